"""One file a program: how it names the tensors of a LoRA, and where it keeps their scale."""
