"""Two adapters side by side: similarity and difference."""
