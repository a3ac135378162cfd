"""Weights in the types of GGML, which GGUF files hold: what each block of numbers stands for."""
