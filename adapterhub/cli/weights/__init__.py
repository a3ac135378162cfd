"""Commands that compute with weights."""
