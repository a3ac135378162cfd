"""Proofs with real engines: too heavy for the default run. `python -m tests.engines` sets up vLLM and runs them all."""
