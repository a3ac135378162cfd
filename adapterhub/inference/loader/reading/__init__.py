"""The tensors of an adapter, and their places in the model."""
