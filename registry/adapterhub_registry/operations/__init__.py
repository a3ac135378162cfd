"""The commands that serve, check, move and administer a registry."""
