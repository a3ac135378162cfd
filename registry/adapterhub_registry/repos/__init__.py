"""Repositories: commits, refs, adapters, quotas and search."""
