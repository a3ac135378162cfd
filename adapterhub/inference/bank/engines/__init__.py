"""The engines of the bank: native hooks, and PEFT's layers."""
