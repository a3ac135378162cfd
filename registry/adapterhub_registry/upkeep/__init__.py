"""Gives the space of a registry back."""
