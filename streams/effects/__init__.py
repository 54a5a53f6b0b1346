"""The rows and the end of effects: what the ledger is made of."""
