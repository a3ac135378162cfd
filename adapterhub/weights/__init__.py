"""Updates as matrices: merge, compare, extract, fuse, and the recipes of merges.

A model in memory belongs in `inference`.
"""
