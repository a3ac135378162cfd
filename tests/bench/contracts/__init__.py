"""The benchmark of behaviour contracts: `python -m tests.bench.contracts`."""
