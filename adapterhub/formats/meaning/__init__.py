"""What a text means, as a vector: all-MiniLM-L6-v2 in numpy, and the order of builds by it."""
