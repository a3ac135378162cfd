"""The commands that administer a running registry: `token`, `user`, `webhook`, `tests` and `names`."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from click.core import ParameterSource

from adapterhub.core.disk.files import read_plain
from adapterhub.core.display import table_lines
from adapterhub.core.errors import NotFound, RemoteUnreachable, UsageProblem, shown
from adapterhub.core.specs import parse_name
from adapterhub.formats.administration import Delivery, HeldName, LogEntry, NewToken, Token, User, Webhook
from adapterhub.formats.documented import Documented
from adapterhub.formats.signature import KEY_LIMIT_BYTES
from adapterhub_registry.access.tokens import ROLES, door_of
from adapterhub_registry.operations.far import FarNames, FarRegistry, FarTests, FarTokens, FarWebhooks
from adapterhub_registry.outbox import TYPES
from adapterhub_registry.settings import ServerLimits, Settings, load_settings, parse_networks, parse_s3
from adapterhub_registry.testing import ASKS

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout.")
PREFIX = "ADAPTERHUB_REGISTRY_"


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
    limits = ServerLimits().with_values(tuple(given.get("limits", ())))
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


Command = TypeVar("Command", bound=Callable[..., Any])
Far = TypeVar("Far", bound=FarRegistry)
_CELL_CHARACTERS = 400


def where_options(whose: str) -> Callable[[Command], Command]:
    """Add the options that name a registry; `whose` token `--url` needs."""
    options = (
        click.option(
            "--token",
            "admin_token",
            envvar="ADAPTERHUB_TOKEN",
            metavar="TOKEN",
            help=f"{whose} token for --url [default: ADAPTERHUB_TOKEN].",
        ),
        option("--url", "Administer the registry at this address instead.", metavar="URL"),
        option(text="Folder of the registry whose server runs on this machine.", **ROOT),
    )

    def add(command: Command) -> Command:
        for one in options:
            command = one(command)
        return command

    return add


def registry_in(given: Mapping[str, Any], kind: type[Far]) -> Far:
    """The registry at `--url`, or that of the server over `--root`, which lets its operator in.

    Raises:
        UsageProblem: the options name two registries, or `--url` has no token.
        NotFound: the folder holds no registry; nothing was created.
        RemoteUnreachable: no server runs over the folder.
    """
    if given["url"] is None:
        return kind(*door_of(given["root"]), is_here=True)
    if click.get_current_context().get_parameter_source("root") is ParameterSource.COMMANDLINE:
        raise UsageProblem("--url and --root name two registries; expected one of them")
    far = kind(given["url"], given["admin_token"])
    if far.is_plain_text:
        click.echo(f"warning: {far.url} is not encrypted: others on the network can read the token", err=True)
    return far


def show_rows(kind: type[Documented], records: Sequence[Documented], *, as_json: bool) -> None:
    """Print records of a kind as JSON, as a table on a terminal, or as columns between tabs."""
    rows, columns = [record.to_json() for record in records], list(kind.document_attributes())
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    cells = [["" if row[name] is None else shown(str(row[name]), _CELL_CHARACTERS) for name in columns] for row in rows]
    if sys.stdout.isatty():
        head, body = table_lines(columns, cells, width=shutil.get_terminal_size().columns)
        click.echo("\n".join([*head, *body]))
    else:
        click.echo("\n".join("\t".join(row) for row in (columns, *cells)))


def _show(record: Documented, text: str, *, as_json: bool) -> None:
    click.echo(json.dumps(record.to_json()) if as_json else text)


# ---------------------------------------------------------------- tokens and users
_administrator = where_options("Administrator's")


@click.group()
def token() -> None:
    """Create, list and revoke the tokens of a registry whose server runs.

    \b
    Examples:
      adapt registry token create --root ./registry-data --user ana --role write
      adapt registry token list --url https://registry.example.org
    """


@token.command()
@_administrator
@click.option("--user", required=True, metavar="NAME", help="User of the token.")
@click.option("--role", type=click.Choice(ROLES), default="read", show_default=True, help="What the token may do.")
@click.option(
    "--namespaces",
    multiple=True,
    metavar="GLOBS",
    help="Repositories that the token covers, such as `acme/*`; repeat for several [default: USER/*].",
)
@click.option("--days", type=float, metavar="N", help="Let the token expire after N days.")
@click.option("--label", default="", metavar="TEXT", help="Purpose of the token.")
@JSON
def create(
    user: str,
    role: str,
    namespaces: tuple[str, ...],
    days: float | None,
    label: str,
    as_json: bool,
    **given: object,
) -> None:
    """Create a token and print it. No command can show it again.

    \b
    Example:
      adapt registry token create --root ./registry-data --user ana --role write --namespaces 'acme/*'
    """
    globs = [part.strip() for text in namespaces for part in text.split(",") if part.strip()]
    text = registry_in(given, FarTokens).create(user, role, namespaces=globs, label=label, days=days)
    _show(NewToken(token=text, user=user, role=role), text, as_json=as_json)


@token.command("list")
@_administrator
@JSON
def list_(as_json: bool, **given: object) -> None:
    """List the tokens with user, role, namespaces and times, but never a token itself.

    \b
    Example:
      adapt registry token list --root ./registry-data
    """
    show_rows(Token, registry_in(given, FarTokens).records(), as_json=as_json)


@token.command()
@click.argument("number", type=int)
@_administrator
@JSON
def revoke(number: int, as_json: bool, **given: object) -> None:
    """Revoke a token by its NUMBER in `list`; it stops working at once.

    \b
    Example:
      adapt registry token revoke 2 --root ./registry-data
    """
    record = registry_in(given, FarTokens).revoke(number)
    _show(record, f"revoked token {number} of {record.user}", as_json=as_json)


@token.command()
@_administrator
@JSON
def log(as_json: bool, **given: object) -> None:
    """Show who created and revoked tokens, and when; oldest first.

    \b
    Example:
      adapt registry token log --url https://registry.example.org
    """
    show_rows(LogEntry, registry_in(given, FarTokens).log(), as_json=as_json)


@click.group()
def user() -> None:
    """List the users of a registry, and revoke all tokens of one. A user's first token creates the user.

    \b
    Example:
      adapt registry user list --root ./registry-data
    """


@user.command("list")
@_administrator
@JSON
def list_users(as_json: bool, **given: object) -> None:
    """List the users, each with the number of tokens that work.

    \b
    Example:
      adapt registry user list --url https://registry.example.org
    """
    show_rows(User, registry_in(given, FarTokens).users(), as_json=as_json)


@user.command("revoke")
@click.argument("name")
@_administrator
@JSON
def revoke_user(name: str, as_json: bool, **given: object) -> None:
    """Revoke all tokens of the user NAME. Repositories of the user stay.

    \b
    Example:
      adapt registry user revoke ana --root ./registry-data
    """
    records = registry_in(given, FarTokens).revoke_user(name)
    if as_json:
        show_rows(Token, records, as_json=True)
    else:
        click.echo(f"revoked {'the only token' if len(records) == 1 else f'all {len(records)} tokens'} of {name}")


# ---------------------------------------------------------------- webhooks
_owner = where_options("Owner's")


@click.group()
def webhook() -> None:
    """Send signed messages to your own server when an adapter gets a version, is yanked, or an alias moves.

    \b
    Examples:
      adapt registry webhook add acme https://hooks.example.org/adapters --url https://registry.example.org
      adapt registry webhook deliveries 3 --url https://registry.example.org
    """


@webhook.command()
@click.argument("scope")
@click.argument("receiver")
@click.option("--type", "types", multiple=True, type=click.Choice(TYPES), help="Send only these events; repeatable.")
@_owner
@JSON
def add(scope: str, receiver: str, types: tuple[str, ...], as_json: bool, **given: object) -> None:
    """Send the events of SCOPE, a namespace or a repository, to the URL RECEIVER.

    Prints the secret that signs the messages. No command can show it again.

    \b
    Example:
      adapt registry webhook add acme/legal-qa https://hooks.example.org/adapters --type version.yanked
    """
    made = registry_in(given, FarWebhooks).add(scope, receiver, types)
    _show(made, f"webhook {made.webhook.id}\nsecret: {made.secret}", as_json=as_json)


@webhook.command("list")
@_owner
@JSON
def list_webhooks(as_json: bool, **given: object) -> None:
    """List the webhooks that you own, with the numbers of waiting and failed deliveries.

    \b
    Example:
      adapt registry webhook list --url https://registry.example.org
    """
    show_rows(Webhook, registry_in(given, FarWebhooks).records(), as_json=as_json)


@webhook.command()
@click.argument("number", type=int)
@_owner
@JSON
def remove(number: int, as_json: bool, **given: object) -> None:
    """Remove a webhook by its NUMBER in `list`, and the deliveries that wait for it.

    \b
    Example:
      adapt registry webhook remove 3 --url https://registry.example.org
    """
    record = registry_in(given, FarWebhooks).remove(number)
    _show(record, f"removed webhook {number} of {record.scope}", as_json=as_json)


@webhook.command()
@click.argument("number", type=int)
@_owner
@JSON
def test(number: int, as_json: bool, **given: object) -> None:
    """Send the event `webhook.test` to a webhook; exit 13 when the receiver does not accept it.

    \b
    Example:
      adapt registry webhook test 3 --url https://registry.example.org
    """
    done = registry_in(given, FarWebhooks).test(number)
    if as_json or done.problem is None:
        _show(done, f"delivered {done.event} ({done.status})", as_json=as_json)
    if done.problem is not None:
        raise RemoteUnreachable(
            f"webhook {number} did not get the event: {done.problem}",
            hint="the server sends to public addresses by https, follows no redirect, and waits 10 seconds",
        )


@webhook.command()
@click.argument("number", type=int)
@click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True, help="Show at most this number.")
@_owner
@JSON
def deliveries(number: int, limit: int, as_json: bool, **given: object) -> None:
    """Show the last deliveries of a webhook, newest first, with the answers of the receiver.

    \b
    Example:
      adapt registry webhook deliveries 3 --url https://registry.example.org
    """
    show_rows(Delivery, registry_in(given, FarWebhooks).deliveries(number, limit=limit), as_json=as_json)


# ---------------------------------------------------------------- what a namespace asks, and its names
@click.command()
@click.argument("namespace")
@click.option(
    "--require",
    "asks",
    type=click.Choice(ASKS),
    help="Publish only versions with a contract, or with a PASS by a key of the namespace as well.",
)
@click.option(
    "--trust", multiple=True, metavar="NAME=FILE", help="Let the results of this public key count; repeatable."
)
@click.option("--distrust", multiple=True, metavar="NAME", help="Remove this key; repeatable.")
@click.option("--keys-only/--any-key", default=None, help="Store results by these keys only, or by any key.")
@where_options("Namespace administrator's")
@JSON
def tests(
    namespace: str,
    asks: str | None,
    trust: tuple[str, ...],
    distrust: tuple[str, ...],
    keys_only: bool | None,
    as_json: bool,
    **given: object,
) -> None:
    """Show or change what NAMESPACE asks of a version before it is published.

    `contract` asks for a contract in the adapter. `passed` also asks for a signed PASS by one of the namespace's keys,
    by that contract and on the base that the adapter declares. Versions that are published already stay.

    \b
    Examples:
      adapt registry tests acme --url https://registry.example.org
      adapt registry tests acme --require passed --trust ben=ben.pub --url https://registry.example.org
      adapt registry tests acme --require off --root ./registry-data
    """
    keys = [_key_file(text) for text in trust]
    far = registry_in(given, FarTests)
    if keys or distrust or asks is not None or keys_only is not None:
        rule = far.change(namespace, asks=asks, keys_only=keys_only, trust=keys, distrust=distrust)
    else:
        rule = far.rule(namespace)
    if as_json:
        click.echo(json.dumps(rule.to_json(), indent=1))
        return
    asked = {"off": "nothing", "contract": "a contract", "passed": "a contract, and a PASS by one of its keys"}
    click.echo(f"{rule.namespace} asks of a new version: {asked[rule.asks]}")
    click.echo(f"results: {'by these keys only' if rule.keys_only else 'by any key, where the sender may write'}")
    for key in rule.keys:
        click.echo(f"key {key.name}\t{key.fingerprint}")


def _key_file(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if not name or not path:
        raise UsageProblem(f"--trust `{shown(text)}`: expected NAME=FILE", hint="such as `--trust ben=ben.pub`")
    try:
        raw = read_plain(Path(path), KEY_LIMIT_BYTES)
    except OSError as error:
        raise NotFound(f"no key `{shown(path, 200)}`: {error.strerror}; nothing was changed") from None
    return name, raw.decode("utf-8", "replace")


@click.command()
@click.argument("namespace")
@click.argument("name", required=False)
@click.option("--to", "repo", metavar="ORG/REPO", help="Give NAME to this repository alone.")
@where_options("Namespace owner's")
@JSON
def names(namespace: str, name: str | None, repo: str | None, as_json: bool, **given: object) -> None:
    """Show which repositories may release the adapter names of NAMESPACE, or move NAME to one of them.

    Who may write the repository NAMESPACE/NAME may release NAME anywhere in NAMESPACE. Anyone else may release it only
    in a repository that has the name already.

    \b
    Examples:
      adapt registry names acme --url https://registry.example.org
      adapt registry names acme legal-qa --to acme/legal-qa-base-7b --root ./registry-data
    """
    if (name is None) != (repo is None):
        raise UsageProblem(
            "NAME and `--to` belong together", hint="`adapt registry names acme legal-qa --to acme/legal-qa`"
        )
    far = registry_in(given, FarNames)
    held = far.held(namespace) if name is None or repo is None else far.move(namespace, parse_name(name), repo)
    show_rows(HeldName, held, as_json=as_json)
