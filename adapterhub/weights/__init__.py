"""Adapter updates as matrices: merge, compare, extract, fuse, and the recipes of merges.

Anything that needs a model in memory belongs in `inference`.
"""
