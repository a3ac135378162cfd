"""Recipes of merges: their values, their TOML text, and the adapters that they name."""
