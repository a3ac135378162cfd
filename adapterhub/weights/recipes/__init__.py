"""Recipes of merges, their parents and their text."""
