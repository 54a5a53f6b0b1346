"""Tries a declared lookup on its silo before residents do: tables, tags, functions, plans, plain against batched."""
