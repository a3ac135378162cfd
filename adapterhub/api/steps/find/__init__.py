"""Finding the right adapter: the model for search by meaning, trying candidates on a base, and routing."""
