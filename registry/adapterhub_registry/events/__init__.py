"""Tells others what changes: a feed that they follow, and webhooks that the server sends."""
