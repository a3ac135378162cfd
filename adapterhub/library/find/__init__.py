"""Finding the right adapter among many: what a search remembers."""
