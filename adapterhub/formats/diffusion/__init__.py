"""Image pipelines: their components, and the names that other programs give the tensors of each."""
