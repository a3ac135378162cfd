"""The self-hosted registry: a server that speaks the Hugging Face Hub's HTTP API and indexes adapters by base.

The room is empty so far; `registry/` may import floors 0 to 3 of `adapterhub`, and `adapterhub` never imports it.
"""
