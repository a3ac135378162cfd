"""Aliases of adapters from Python, and the steps that the commands share with them."""
