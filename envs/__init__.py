"""Markets: prices, features, the ledger and the environments over it."""
