"""The operator pages on the admin port."""
