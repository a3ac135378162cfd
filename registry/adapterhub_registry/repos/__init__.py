"""Repositories, commits, adapters and search."""
