"""Which builds come in and which may be used, by origin and signature."""
