"""The Hub's HTTP API."""
