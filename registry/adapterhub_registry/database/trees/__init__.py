"""The shared trees that commits are made of."""
