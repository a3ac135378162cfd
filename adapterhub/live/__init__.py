"""Streams of versions: publish an adapter while it is trained, and follow it elsewhere.

Here belongs what a training and its followers share. Code that runs a model does not belong here: it is in `inference`.
"""
