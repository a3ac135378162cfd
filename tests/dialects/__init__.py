"""Adapters of PEFT on tiny models of every class that transformers can build, and under every name of their modules."""
