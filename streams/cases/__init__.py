"""Cases: their type, their document, their keys, their rows."""
