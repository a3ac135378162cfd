"""The common options of `adapt registry`, and the settings that they describe.

Each option has an environment variable, so that a container needs no command line of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from adapterhub_registry.settings import Limits, Settings, load_settings, parse_networks, parse_s3

DEFAULT_ROOT = "registry-data"
PREFIX = "ADAPTERHUB_REGISTRY_"

Command = TypeVar("Command", bound=Callable[..., Any])

_PLACE = (
    click.option(
        "--root",
        type=click.Path(file_okay=False, path_type=Path),
        envvar=f"{PREFIX}ROOT",
        default=DEFAULT_ROOT,
        show_default=True,
        metavar="DIR",
        help="Folder of the registry: blobs, database, secret.",
    ),
    click.option(
        "--database",
        envvar=f"{PREFIX}DATABASE",
        metavar="URL",
        help="SQLAlchemy URL of a database [default: SQLite in --root].",
    ),
    click.option(
        "--blobs",
        envvar=f"{PREFIX}BLOBS",
        metavar="URL",
        help="Bucket for the blobs, s3://BUCKET[/PREFIX] [default: --root].",
    ),
    click.option(
        "--s3-endpoint", envvar=f"{PREFIX}S3_ENDPOINT", metavar="URL", help="Address of the S3 service [default: AWS]."
    ),
    click.option(
        "--s3-public-endpoint",
        envvar=f"{PREFIX}S3_PUBLIC_ENDPOINT",
        metavar="URL",
        help="Address of the S3 service for clients, if it differs.",
    ),
    click.option(
        "--s3-region",
        envvar=f"{PREFIX}S3_REGION",
        default="us-east-1",
        show_default=True,
        metavar="NAME",
        help="Region of the bucket.",
    ),
)
_SERVER = (
    click.option(
        "--public-url",
        envvar=f"{PREFIX}PUBLIC_URL",
        metavar="URL",
        help="Address for clients, when the server is behind a proxy.",
    ),
    click.option(
        "--secret-file",
        type=click.Path(dir_okay=False, path_type=Path),
        envvar=f"{PREFIX}SECRET_FILE",
        metavar="FILE",
        help="Secret that signs upload links, the same for all servers of a database [default: in --root].",
    ),
    click.option(
        "--replace-secret", is_flag=True, help="Make this secret the valid one for all servers of the database."
    ),
    click.option(
        "--no-anonymous-read",
        is_flag=True,
        envvar=f"{PREFIX}NO_ANONYMOUS_READ",
        help="Require a token for reading, too.",
    ),
    click.option(
        "--limit",
        "limits",
        multiple=True,
        envvar=f"{PREFIX}LIMITS",
        metavar="NAME=VALUE",
        help="Set a limit; repeat for several.",
    ),
    click.option(
        "--trusted-proxy",
        "trusted_proxies",
        multiple=True,
        envvar=f"{PREFIX}TRUSTED_PROXIES",
        metavar="ADDRESS",
        help="Proxy, or network such as 10.0.0.0/8, whose X-Forwarded-For header the server trusts.",
    ),
    click.option(
        "--log-requests",
        is_flag=True,
        envvar=f"{PREFIX}LOG_REQUESTS",
        help="Log each request as a JSON line on stderr.",
    ),
)


def place_options(command: Command) -> Command:
    """Add the options that locate a registry."""
    return _with(command, _PLACE)


def server_options(command: Command) -> Command:
    """Add the options that configure a server."""
    return _with(command, _SERVER)


def _with(command: Command, options: tuple[Callable[[Any], Any], ...]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def settings_of(given: Mapping[str, Any]) -> Settings:
    """The settings that the options describe; missing options have their defaults.

    Raises:
        UsageProblem: an option has an invalid value.
    """
    limits = Limits().with_values(tuple(given.get("limits", ())))
    s3 = None
    if given.get("blobs"):
        s3 = parse_s3(
            given["blobs"],
            endpoint=given.get("s3_endpoint"),
            public_endpoint=given.get("s3_public_endpoint"),
            region=given["s3_region"],
            link_ttl_s=limits.href_ttl_s,
        )
    return load_settings(
        given["root"],
        secret_file=given.get("secret_file"),
        database_url=given.get("database"),
        public_url=given.get("public_url"),
        anonymous_read=not given.get("no_anonymous_read", False),
        limits=limits,
        s3=s3,
        trusted_proxies=parse_networks(tuple(given.get("trusted_proxies", ()))),
        log_requests=given.get("log_requests", False),
    )
