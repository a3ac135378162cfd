"""Faults on purpose: kills, full disks, failed syncs, flipped bits, crowds. `python -m tests.crash` runs all of them.

`tests/core/test_crash_short.py` runs a sample of the same in the normal suite.
"""
