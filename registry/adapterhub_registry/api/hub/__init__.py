"""The routes of the Hub's HTTP API."""
