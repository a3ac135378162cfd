"""Identifies the sender of a request, limits its rate, and counts what the server does."""
