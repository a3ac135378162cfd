"""Commands that add, install, find and remove adapters."""
