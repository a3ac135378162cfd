"""Access to the adapters of a running server: withdrawn builds, tenants with their keys and quotas, the record.

Nothing here knows an engine or a web server. The middleware of vLLM and the front of llama.cpp use the same parts.
"""
