"""Commands that publish, sign and name remotes."""
