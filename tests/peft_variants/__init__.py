"""Every configuration of PEFT's own test suite, made by PEFT and judged here."""
