"""Base models that the library knows."""
