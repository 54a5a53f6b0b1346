"""The resident's form of the demo: it stands in for a council's website and knows the gateway by HTTP only."""
