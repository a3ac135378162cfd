"""The safetensors format: header, facts about tensors, kinds of files."""
