"""Base models: their weights as files and the fingerprint that tells them apart."""
