"""What the stock hub client does against a registry, check by check.

Only the standard library and `huggingface_hub` are needed, so that the checks run in the environment of any client
version: `python -m tests.registry.conformance` prints one JSON line for each check. HF_ENDPOINT and ADMIN_TOKEN name the
registry and the token of an administrator.
"""
