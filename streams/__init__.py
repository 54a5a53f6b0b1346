"""Events through Kafka and what they cause: a library with no settings and no global state of its own."""
