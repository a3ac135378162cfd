"""Behaviour contracts from Python."""
