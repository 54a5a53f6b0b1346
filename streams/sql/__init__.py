"""The gateway's schema: numbered migrations, and the one function that applies them."""
