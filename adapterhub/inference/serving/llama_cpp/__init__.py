"""llama.cpp's server, and the front that gives it names: its start, what names mean, and what passes through."""
