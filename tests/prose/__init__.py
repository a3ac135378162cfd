"""The prose of the documentation: phrases that we do not write, and a prose linter beside them."""
