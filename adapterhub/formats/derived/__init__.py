"""Figures of low-rank updates: spectra, comparisons, forecasts; from the small factors, and with numpy alone."""
