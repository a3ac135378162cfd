"""One file a family of models: the names of its modules in the spellings that LoRA files use."""
