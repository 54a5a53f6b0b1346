"""Validated read-through lookups: a library with no settings and no global state of its own."""
