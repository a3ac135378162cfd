"""GGUF files: their headers, their types of numbers, and the names of their tensors."""
