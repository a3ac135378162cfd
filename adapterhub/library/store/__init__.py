"""Objects by digest, the index, and the roots that keep objects alive."""
