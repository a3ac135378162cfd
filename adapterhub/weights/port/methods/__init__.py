"""One file for each way to move an adapter to another base."""
