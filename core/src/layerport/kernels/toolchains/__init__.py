"""Toolchains."""
