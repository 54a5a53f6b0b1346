"""The public routes, one file for each kind of resource."""
