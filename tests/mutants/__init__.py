"""Mutation testing: what is changed at random in the core, and whether the tests of its room notice."""
