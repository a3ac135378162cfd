"""The commands that administer a running registry: tokens, accounts, publishers, members, webhooks, tests and names."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from click.core import ParameterSource

from adapterhub.core.digests import canonical_json
from adapterhub.core.disk.files import read_plain
from adapterhub.core.display import table_lines
from adapterhub.core.errors import CHECK_FILE, LogMismatch, NotFound, RemoteUnreachable, UsageProblem, shown
from adapterhub.core.specs import parse_name
from adapterhub.formats.administration import (
    Account,
    Delivery,
    HeldName,
    Invitation,
    LogEntry,
    Member,
    NewToken,
    Publisher,
    RemovedMember,
    Team,
    Token,
    User,
    Webhook,
)
from adapterhub.formats.documented import Documented
from adapterhub.formats.signature import KEY_LIMIT_BYTES
from adapterhub.formats.treelog import parse_witness
from adapterhub_registry.access.callers import ROLES, SCOPES
from adapterhub_registry.access.tokens import door_of
from adapterhub_registry.access.trusted import pin_in
from adapterhub_registry.operations.far import (
    FarAccounts,
    FarMembers,
    FarNames,
    FarPublishers,
    FarRegistry,
    FarTests,
    FarTokens,
    FarWebhooks,
)
from adapterhub_registry.outbox import TYPES
from adapterhub_registry.settings import (
    ServerLimits,
    Settings,
    load_settings,
    parse_networks,
    parse_s3,
)
from adapterhub_registry.testing import ASKS

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout.")
PREFIX = "ADAPTERHUB_REGISTRY_"


def option(name: str, text: str, *more: str, **attributes: object) -> Callable[[Command], Command]:
    """Return an option whose environment variable follows from its name."""
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
    option(
        "--blobs",
        f"Bucket for the blobs, s3://BUCKET[/PREFIX] [default: --root]; {PREFIX}S3_ENDPOINT names one outside AWS.",
        metavar="URL",
    ),
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
    option(
        "--sign-in",
        "Let people sign in at the OpenID Connect issuer that this TOML file names, with the rights of their groups.",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
    ),
    option("--no-anonymous-read", "Also require a token for reading.", is_flag=True),
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
        "Network such as 10.0.0.0/8 that webhooks may reach, also by http [default: public addresses by https].",
        "webhook_networks",
        envvar=f"{PREFIX}WEBHOOK_NETWORKS",
        multiple=True,
        metavar="ADDRESS",
    ),
    option(
        "--witness",
        "Public key of a mirror that may co-sign the log (`adapt mirror --witness`); repeat for several.",
        "witnesses",
        envvar=f"{PREFIX}WITNESSES",
        multiple=True,
        metavar="KEY",
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
    """Return the settings that the options describe; missing options have their defaults.

    Only what `serves` creates the folder and needs the secret.

    Raises:
        UsageProblem: an option has an invalid value.
    """
    limits = ServerLimits().with_values(tuple(given.get("limits", ())))
    s3 = None
    if given.get("blobs"):
        s3 = parse_s3(
            given["blobs"],
            endpoint=os.environ.get(f"{PREFIX}S3_ENDPOINT"),
            public_endpoint=os.environ.get(f"{PREFIX}S3_PUBLIC_ENDPOINT"),
            region=os.environ.get(f"{PREFIX}S3_REGION", "us-east-1"),
            link_ttl_s=limits.href_ttl_s,
        )
    return load_settings(
        given["root"],
        serves=serves,
        secret_file=given.get("secret_file"),
        sign_in_file=given.get("sign_in"),
        database_url=given.get("database"),
        public_url=given.get("public_url"),
        anonymous_read=not given.get("no_anonymous_read", False),
        limits=limits,
        s3=s3,
        trusted_proxies=parse_networks(tuple(given.get("trusted_proxies", ()))),
        webhook_networks=parse_networks(tuple(given.get("webhook_networks", ()))),
        witnesses=tuple(parse_witness(text.strip()) for text in given.get("witnesses", ())),
        log_requests=given.get("log_requests", False),
        derives=not given.get("no_worker", False),
    )


Command = TypeVar("Command", bound=Callable[..., Any])
Far = TypeVar("Far", bound=FarRegistry)
_CELL_CHARACTERS = 400


def where_options(whose: str) -> Callable[[Command], Command]:
    """Add the options that name a registry; `whose` token `--url` needs."""
    text = f"Administer the registry at this address instead, with the {whose} token in ADAPTERHUB_TOKEN."
    options = (
        option("--url", text, metavar="URL"),
        option(text="Folder of the registry whose server runs on this machine.", **ROOT),
    )

    def add(command: Command) -> Command:
        for one in options:
            command = one(command)
        return command

    return add


def registry_in(given: Mapping[str, Any], kind: type[Far]) -> Far:
    """Return the registry at `--url`, or that of the server over `--root`, which lets its operator in.

    Raises:
        UsageProblem: the options name two registries, or `--url` has no token.
        NotFound: the folder holds no registry; nothing was created.
        RemoteUnreachable: no server runs over the folder.
    """
    if given["url"] is None:
        return kind(*door_of(given["root"]), is_here=True)
    if click.get_current_context().get_parameter_source("root") is ParameterSource.COMMANDLINE:
        raise UsageProblem("--url and --root name two registries; expected one of them")
    far = kind(given["url"], os.environ.get("ADAPTERHUB_TOKEN"))
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
_LISTS: Final[Mapping[str, Callable[[FarMembers, str], tuple[type[Documented], Sequence[Documented]]]]] = {
    "members": lambda far, namespace: (Member, far.records(namespace)),
    "teams": lambda far, namespace: (Team, far.teams(namespace)),
    "invitations": lambda far, namespace: (Invitation, far.invitations(namespace)),
}


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
@click.option("--user", metavar="NAME", help="User of the token [default: yourself, as far as you are a member].")
@click.option("--role", type=click.Choice(ROLES), default="read", show_default=True, help="What the token may do.")
@click.option("--scope", "scopes", multiple=True, type=click.Choice(SCOPES), help="Allow this, not a role; repeat.")
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
    user: str | None,
    role: str,
    scopes: tuple[str, ...],
    namespaces: tuple[str, ...],
    days: float | None,
    label: str,
    as_json: bool,
    **given: object,
) -> None:
    """Create a token and print it. No command can show it again.

    An administrator grants tokens to any --user. Without --user it is your own, with the token in ADAPTERHUB_TOKEN: it
    does no more than that token, and only where you are a member.

    \b
    Examples:
      adapt registry token create --root ./registry-data --user ana --role write --namespaces 'acme/*'
      adapt registry token create --scope release --namespaces acme/legal --days 30 --url https://registry.example.org
    """
    globs = [part.strip() for text in namespaces for part in text.split(",") if part.strip()]
    far = registry_in(given, FarTokens)
    text = far.create(user, role, namespaces=globs, label=label, days=days, scopes=scopes)
    _show(NewToken(token=text, user=user or "", role=role), text, as_json=as_json)


@token.command("list")
@click.option("--users", is_flag=True, help="List the users instead, each with the number of tokens that work.")
@_administrator
@JSON
def list_(users: bool, as_json: bool, **given: object) -> None:
    """List the tokens with user, role, namespaces and times, but never a token itself.

    \b
    Example:
      adapt registry token list --root ./registry-data
    """
    if users:
        show_rows(User, registry_in(given, FarTokens).users(), as_json=as_json)
        return
    show_rows(Token, registry_in(given, FarTokens).records(), as_json=as_json)


@token.command()
@click.argument("number", type=int, required=False)
@click.option("--user", metavar="NAME", help="Revoke all tokens of this user, whose repositories stay.")
@_administrator
@JSON
def revoke(number: int | None, user: str | None, as_json: bool, **given: object) -> None:
    """Revoke a token by its NUMBER in `list`, or all of a user; it stops working at once.

    \b
    Examples:
      adapt registry token revoke 2 --root ./registry-data
      adapt registry token revoke --user ana --root ./registry-data
    """
    if (number is None) == (user is None):
        raise UsageProblem("give the NUMBER of a token, or `--user NAME`")
    if user is not None:
        records = registry_in(given, FarTokens).revoke_user(user)
        if as_json:
            show_rows(Token, records, as_json=True)
        else:
            click.echo(f"revoked {'the only token' if len(records) == 1 else f'all {len(records)} tokens'} of {user}")
        return
    assert number is not None  # one of both is given
    record = registry_in(given, FarTokens).revoke(number)
    _show(record, f"revoked token {number} of {record.user}", as_json=as_json)


@token.command()
@_administrator
@click.option("--user", metavar="NAME", help="Show only changes by this user.")
@click.option("--action", metavar="WORD", help="Show only changes of this kind, such as `revoke` or `member`.")
@click.option("--repo", metavar="NAME", help="Show only changes in this repository or namespace.")
@click.option("--address", metavar="ADDRESS", help="Show only changes from this address.")
@click.option("--since", metavar="TIME", help="Show only changes from this time on, such as 2026-01-31T12:00:00Z.")
@click.option("--until", metavar="TIME", help="Show only changes up to this time.")
@click.option("--lines", is_flag=True, help="Print JSON lines, each as soon as it arrives, and check their seals.")
@JSON
def log(
    user: str | None,
    action: str | None,
    repo: str | None,
    address: str | None,
    since: str | None,
    until: str | None,
    lines: bool,
    as_json: bool,
    **given: object,
) -> None:
    """Show who changed what in the registry, and when; oldest first.

    Administrators of a namespace see its changes with --repo. With --lines and no condition, the command ends with code
    12 where an entry does not follow the one before.

    \b
    Examples:
      adapt registry token log --url https://registry.example.org
      adapt registry token log --repo acme --action member --since 2026-01-01T00:00:00Z --url https://registry.example.org
      adapt registry token log --lines --root ./registry-data > changes.jsonl
    """
    conditions = {"user": user, "action": action, "repo": repo, "address": address, "since": since, "until": until}
    found = registry_in(given, FarTokens).log(**conditions)
    if not lines:
        show_rows(LogEntry, list(found), as_json=as_json)
        return
    before: LogEntry | None = None
    for entry in found:
        click.echo(canonical_json(entry.to_json()).decode())
        follows = before is None or any(conditions.values()) or entry.seal == entry.seal_after(before.seal)
        if not follows:
            raise LogMismatch(
                f"entry {entry.number} of the log does not follow entry {entry.number - 1}: one of them was changed",
                hint="compare with an earlier copy of these lines",
            )
        before = entry


# ---------------------------------------------------------------- jobs of a CI that publish
@click.command()
@click.argument("repo", required=False)
@click.option("--issuer", metavar="ISSUER", help="Trust jobs of this issuer of identity tokens to publish to REPO.")
@click.option(
    "--claim",
    "claims",
    multiple=True,
    metavar="NAME=VALUE",
    help="Trust only those whose token states this; repeatable. `*` stands for anything but `/`, `**` for anything.",
)
@click.option("--remove", "number", type=int, metavar="NUMBER", help="Trust this publisher no more.")
@_administrator
@JSON
def publishers(
    repo: str | None, issuer: str | None, claims: tuple[str, ...], number: int | None, as_json: bool, **given: object
) -> None:
    """Show or change which jobs of a CI may publish to which repository without a secret.

    A job sends the identity token that its CI gives it, and gets a token of 15 minutes for REPO, which may be new.
    Removing a publisher also ends the tokens that its jobs have. An administrator of a namespace gives its name for
    REPO to show or --remove its publishers, and names issuers that the registry trusts already, GitHub or gitlab.com.

    \b
    Examples:
      adapt registry publishers --url https://registry.example.org
      adapt registry publishers acme/legal-qa --issuer https://gitlab.com --claim project_path=acme/training
      adapt registry publishers acme --url https://registry.example.org
      adapt registry publishers --remove 3 --root ./registry-data
    """
    if (issuer is None) != (not claims) or (issuer is not None and (repo is None or number is not None)):
        raise UsageProblem(
            "REPO, `--issuer` and `--claim` belong together, and `--remove` goes without them; nothing was changed",
            hint="such as `adapt registry publishers acme/legal-qa --issuer URL --claim repository=acme/training`",
        )
    pins = dict(pin_in(text) for text in claims)
    far = registry_in(given, FarPublishers)
    if number is not None:
        records = [far.remove(number, repo)]
    else:
        records = far.records(repo) if repo is None or issuer is None else [far.add(repo, issuer, pins)]
    show_rows(Publisher, records, as_json=as_json)


# ---------------------------------------------------------------- members of namespaces
@click.command()
@click.argument("namespace")
@click.option("--add", metavar="USER", help="Make this user a member, with --role or in --team.")
@click.option("--remove", metavar="USER", help="End all that this user has in NAMESPACE; with --team, only that team.")
@click.option("--invite", is_flag=True, help="Print a link by which one person becomes a member; with --add, USER.")
@click.option("--withdraw", type=int, metavar="NUMBER", help="Let this invitation end.")
@click.option("--role", type=click.Choice([*SCOPES, "none"]), help="Role of the member or, by itself, of --team.")
@click.option("--team", default="", metavar="TEAM", help="Team of NAMESPACE; with only --role, create or change it.")
@click.option("--repos", default="", metavar="NAMES", help="Names of the team, such as `legal-*,qa` [default: all].")
@click.option("--days", type=float, metavar="N", help="Let the membership, or the link, end after N days.")
@click.option("--about", metavar="TEXT", help="Say this about NAMESPACE on its page, in one line; '' removes it.")
@click.option(
    "--list", "what", type=click.Choice(list(_LISTS)), default="members", show_default=True, help="List these instead."
)
@where_options("Namespace administrator's")
@JSON
def members(
    namespace: str,
    *,
    add: str | None,
    remove: str | None,
    invite: bool,
    withdraw: int | None,
    role: str | None,
    team: str,
    repos: str,
    days: float | None,
    about: str | None,
    what: str,
    as_json: bool,
    **given: object,
) -> None:
    """Show or change the members and teams of NAMESPACE; `'*'` is the whole registry.

    A member with a role reads, writes, releases or administers all repositories of NAMESPACE; each role includes those
    before it. A team has a role in its own repositories. --role none removes a team. Removing a user ends memberships,
    tokens, sessions, keys, trusted publishers and webhooks of that user there; what the user pushed stays.

    \b
    Examples:
      adapt registry members acme --url https://registry.example.org
      adapt registry members acme --add ana --role write --days 90 --root ./registry-data
      adapt registry members acme --team legal --role release --repos 'legal-*' --root ./registry-data
      adapt registry members acme --invite --team legal --url https://registry.example.org
      adapt registry members '*' --remove ben --root ./registry-data
    """
    far = registry_in(given, FarMembers)
    place: dict[str, object] = {"team": team} if team else {"role": role}
    if about is not None:
        said = far.describe(namespace, about)
        _show(said, f"{namespace}: {said.about or 'says nothing about itself'}", as_json=as_json)
    elif invite:
        more = {"user": add} if add is not None else {}
        made = far.invite(namespace, **place, **more, **({} if days is None else {"days": days}))
        _show(made, made.link, as_json=as_json)
    elif withdraw is not None:
        show_rows(Invitation, [far.withdraw(namespace, withdraw)], as_json=as_json)
    elif add is not None:
        show_rows(Member, [far.add(namespace, add, **place, days=days)], as_json=as_json)
    elif remove is not None and team:
        show_rows(Member, [far.leave_team(namespace, remove, team)], as_json=as_json)
    elif remove is not None:
        show_rows(RemovedMember, [far.remove(namespace, remove)], as_json=as_json)
    elif team and role == "none":
        show_rows(Team, [far.remove_team(namespace, team)], as_json=as_json)
    elif team and role is not None:
        names = [name.strip() for name in repos.split(",") if name.strip()]
        show_rows(Team, [far.put_team(namespace, team, role, names)], as_json=as_json)
    elif role is not None or team or repos or days is not None:
        raise UsageProblem(
            "--role, --team, --repos and --days belong to --add, --invite or a team; nothing was changed",
            hint=f"such as `adapt registry members {namespace} --add USER --role write`",
        )
    else:
        show_rows(*_LISTS[what](far, namespace), as_json=as_json)


# ---------------------------------------------------------------- people who sign in at an issuer
@click.command()
@click.option("--link", metavar="USER", help="Let the person SUBJECT of the issuer sign in as this user.")
@click.option("--subject", metavar="SUBJECT", help="The person for `--link`, as the issuer writes it (`sub`).")
@click.option("--unlink", metavar="USER", help="Remove the account of this user, who stays; its sessions end.")
@click.option("--readmit", metavar="USER", help="Let this user sign in again who was removed from the registry.")
@_administrator
@JSON
def accounts(subject: str | None, as_json: bool, **given: Any) -> None:
    """Show or change who signs in at the issuer of the registry, with the groups of the last sign-in.

    A person who left all groups is refused at the next sign-in; removing the user ends everything at once. Groups that
    changed count from the next sign-in: `adapt registry token revoke --user USER` makes a person sign in again.

    \b
    Examples:
      adapt registry accounts --url https://registry.example.org
      adapt registry accounts --link ana --subject 248289761001 --root ./registry-data
    """
    changes = {name: given.pop(name) for name in ("link", "unlink", "readmit")}
    asked = [(name, user) for name, user in changes.items() if user is not None]
    if len(asked) > 1 or (subject is None) == (changes["link"] is not None):
        raise UsageProblem(
            "give one of `--unlink`, `--readmit`, or `--link USER --subject SUBJECT`; nothing was changed"
        )
    far = registry_in(given, FarAccounts)
    match asked:
        case [("link", user)]:
            records = [far.link(user, subject or "")]
        case [("unlink", user)]:
            records = [far.unlink(user)]
        case [(_, user)]:
            records = [far.readmit(user)]
        case _:
            records = far.records()
    show_rows(Account, records, as_json=as_json)


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
    "--trust", multiple=True, metavar="NAME=FILE", help="Accept the results that this public key signed; repeatable."
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
        raise NotFound(f"no key `{shown(path, 200)}`: {error.strerror}; nothing was changed", hint=CHECK_FILE) from None
    return name, raw.decode("utf-8", "replace")


@click.command()
@click.argument("namespace")
@click.argument("name", required=False)
@click.option("--to", "repo", metavar="ORG/REPO", help="Give NAME to only this repository.")
@where_options("Namespace owner's")
@JSON
def names(namespace: str, name: str | None, repo: str | None, as_json: bool, **given: object) -> None:
    """Show which repositories may release the adapter names of NAMESPACE, or move NAME to one of them.

    Anyone with write access to the repository NAMESPACE/NAME may release NAME anywhere in NAMESPACE. Others may release
    it only in a repository that has the name already.

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
