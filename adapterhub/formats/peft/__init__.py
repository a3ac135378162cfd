"""PEFT's `adapter_config.json` and the keys of its weights."""
