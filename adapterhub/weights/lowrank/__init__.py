"""Low-rank updates: their algebra, and their factors in PEFT files."""
