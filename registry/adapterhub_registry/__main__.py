"""`python -m adapterhub_registry`: serve a registry from a folder."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from adapterhub.errors import AdapterHubError
from adapterhub_registry.server import serve
from adapterhub_registry.settings import Limits, load_settings


def main(arguments: list[str] | None = None) -> int:
    """Run the command; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m adapterhub_registry", description="Serve a registry.")
    parser.add_argument("--root", type=Path, required=True, help="folder that holds everything; made when absent")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0 takes a free one")
    parser.add_argument("--database", help="SQLAlchemy URL instead of a SQLite file under --root")
    parser.add_argument("--public-url", help="what clients call this server, behind a proxy")
    parser.add_argument("--no-anonymous-read", action="store_true", help="let nobody read without a token")
    parser.add_argument("--limit", action="append", default=[], metavar="NAME=VALUE", help="change one of the limits")
    given = parser.parse_args(arguments)
    try:
        settings = load_settings(
            given.root,
            database_url=given.database or os.environ.get("ADAPTERHUB_REGISTRY_DATABASE"),
            public_url=given.public_url,
            anonymous_read=not given.no_anonymous_read,
            limits=Limits().with_values(tuple(given.limit)),
        )
        serve(settings, host=given.host, port=given.port, announce=_say)
    except AdapterHubError as error:
        sys.stderr.write(f"error: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        return error.exit_code
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
