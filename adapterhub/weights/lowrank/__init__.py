"""Low-rank updates and their algebra."""
