"""Commands that look at adapters and at the library."""
