"""Adapters on a model, in an engine, or written for one: attach, bank, export, serving, tuning.

Arithmetic on updates without a model belongs in `weights`.
"""
