"""Adapters at work: attached to a model, chosen per call in a bank, served by an engine, exported, tuned.

Arithmetic on updates without a model belongs in `weights`.
"""
