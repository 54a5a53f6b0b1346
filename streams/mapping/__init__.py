"""Field tables between a case and a recipient, compiled and used in both directions."""
