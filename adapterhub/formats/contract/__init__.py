"""Behaviour contracts, `evals.jsonl`: what an adapter answered when it was recorded, and the results of checks."""
