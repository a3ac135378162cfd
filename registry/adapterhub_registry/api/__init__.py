"""HTTP: requests become values, results become answers."""
