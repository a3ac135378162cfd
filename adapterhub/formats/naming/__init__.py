"""Names of modules and tensors: in the files of a base, in memory, and in other releases of transformers."""
