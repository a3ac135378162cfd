"""Who asks, how often, and what is counted."""
