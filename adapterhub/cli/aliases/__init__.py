"""The commands about aliases of adapters."""
