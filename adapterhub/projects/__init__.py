"""A project: what it wants (`adapters.toml`), what it got (`adapters.lock`), and how the two are kept in step.

Parsing of options and printing belong in `cli`.
"""
