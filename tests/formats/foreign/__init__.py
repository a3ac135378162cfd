"""LoRA files of other programs."""
