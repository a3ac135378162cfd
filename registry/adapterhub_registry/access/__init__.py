"""Who makes a request, how often, and what the server counts."""
