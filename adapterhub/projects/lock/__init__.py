"""The lock file: values, text, conflicts, staleness."""
