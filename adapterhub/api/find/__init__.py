"""Finding the right adapter from Python: trying candidates on a base, and routing."""
