"""Keeps the adapters of an engine that somebody else started equal to a file, by the engine's own HTTP routes.

`wanted` reads the file, `engines` has one small driver for each engine, `reconciler` compares and acts. Names, leases,
checks, aliases and deny lists are those of `serving`.
"""
