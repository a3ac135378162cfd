"""Figures of low-rank updates: spectra, comparisons, forecasts; computed from the small factors with numpy only."""
