"""The servers that attacks on a registry share with its other tests."""

from tests.registry.conftest import pg, s3_server

__all__ = ["pg", "s3_server"]
