"""HTTP: parses requests into values and turns results into responses."""
