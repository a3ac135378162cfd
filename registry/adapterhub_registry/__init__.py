"""The self-hosted registry: a server that speaks the Hugging Face Hub's HTTP API and indexes adapters by base.

It imports the wings `core` and `formats` of `adapterhub`; `adapterhub` never imports the registry.
"""
