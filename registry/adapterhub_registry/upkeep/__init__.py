"""Upkeep of a registry while its servers run: each task works in short steps, and goes on after an interruption."""
