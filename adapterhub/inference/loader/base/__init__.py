"""The base model in memory."""
