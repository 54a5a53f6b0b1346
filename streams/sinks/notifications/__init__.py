"""E-mail and text messages."""
