"""Sizes as whole-number expressions: evaluated, printed, parsed, proven."""
