"""Base models: their weight files, and the fingerprint that identifies them."""
