"""The trees of files that commits share."""
