"""Finding the right adapter: trying candidates on a base."""
