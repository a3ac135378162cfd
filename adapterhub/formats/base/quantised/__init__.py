"""Quantised copies of a model: the intervals that their codes stand for."""
