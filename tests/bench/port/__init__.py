"""The benchmark of ports: what of an adapter is left on a related base, by each method, and whether that was foretold."""
