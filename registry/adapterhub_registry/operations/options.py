"""The common options of `adapt registry`, and the settings that they describe.

Each option has an environment variable, so that a container needs no command line of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from adapterhub_registry.settings import Limits, Settings, load_settings, parse_networks, parse_s3

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout.")
PREFIX = "ADAPTERHUB_REGISTRY_"

Command = TypeVar("Command", bound=Callable[..., Any])


def option(name: str, text: str, *more: str, **attributes: object) -> Callable[[Command], Command]:
    """An option whose environment variable follows from its name."""
    variable = PREFIX + name.removeprefix("--").replace("-", "_").upper()
    return click.option(name, *more, cls=None, **{"envvar": variable, "help": text} | attributes)


ROOT: Final[Mapping[str, Any]] = {
    "name": "--root",
    "type": click.Path(file_okay=False, path_type=Path),
    "default": "registry-data",
    "show_default": True,
    "metavar": "DIR",
}
_PLACE = (
    option(text="Folder of the registry: blobs, database, secret.", **ROOT),
    option("--database", "SQLAlchemy URL of a database [default: SQLite in --root].", metavar="URL"),
    option("--blobs", "Bucket for the blobs, s3://BUCKET[/PREFIX] [default: --root].", metavar="URL"),
    option("--s3-endpoint", "Address of the S3 service [default: AWS].", metavar="URL"),
    option("--s3-public-endpoint", "Address of the S3 service for clients, if it differs.", metavar="URL"),
    option("--s3-region", "Region of the bucket.", default="us-east-1", show_default=True, metavar="NAME"),
)
_SERVER = (
    option("--public-url", "Address for clients, when the server is behind a proxy.", metavar="URL"),
    option(
        "--secret-file",
        "Secret that signs upload links, the same for all servers of a database [default: in --root].",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
    ),
    # without a variable: set for good, it would replace the secret at every start
    option("--replace-secret", "Make this secret valid for all servers of the database.", envvar=None, is_flag=True),
    option("--no-anonymous-read", "Require a token for reading, too.", is_flag=True),
    option(
        "--limit",
        "Set a limit; repeat for several.",
        "limits",
        envvar=f"{PREFIX}LIMITS",
        multiple=True,
        metavar="NAME=VALUE",
    ),
    option(
        "--trusted-proxy",
        "Proxy, or network such as 10.0.0.0/8, whose X-Forwarded-For header the server trusts.",
        "trusted_proxies",
        envvar=f"{PREFIX}TRUSTED_PROXIES",
        multiple=True,
        metavar="ADDRESS",
    ),
    option(
        "--webhook-network",
        "Network such as 10.0.0.0/8 that webhooks may reach, by http, too [default: public addresses by https].",
        "webhook_networks",
        envvar=f"{PREFIX}WEBHOOK_NETWORKS",
        multiple=True,
        metavar="ADDRESS",
    ),
    option("--no-worker", "Leave the records of weights to `adapt registry worker`.", is_flag=True),
    option("--log-requests", "Log each request as a JSON line on stderr.", is_flag=True),
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


def settings_of(given: Mapping[str, Any], *, serves: bool) -> Settings:
    """The settings that the options describe; missing options have their defaults.

    Only what `serves` creates the folder and needs the secret.

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
        serves=serves,
        secret_file=given.get("secret_file"),
        database_url=given.get("database"),
        public_url=given.get("public_url"),
        anonymous_read=not given.get("no_anonymous_read", False),
        limits=limits,
        s3=s3,
        trusted_proxies=parse_networks(tuple(given.get("trusted_proxies", ()))),
        webhook_networks=parse_networks(tuple(given.get("webhook_networks", ()))),
        log_requests=given.get("log_requests", False),
        derives=not given.get("no_worker", False),
    )
