"""The engines of the bank: native layers, and those of PEFT."""
