"""Commands that use adapters: run, serve, export."""
