"""One local library: its store, its index, its bases, its remotes, and what it lets in.

Choosing among places and bringing builds in from afar belong in `distribution`.
"""
