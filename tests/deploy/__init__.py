"""The manifests and the Containerfile of `docs/deploy`: read, compared with Kubernetes' own schemas and run as far as one machine can."""
