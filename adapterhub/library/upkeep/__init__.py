"""Damage, repair, space and lineage."""
