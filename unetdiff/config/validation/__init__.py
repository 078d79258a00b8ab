"""Constraints on a config: combinations of keys, and files that must exist."""
