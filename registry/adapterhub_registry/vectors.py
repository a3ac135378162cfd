"""The vectors of builds for search by meaning, made beside the server or by workers.

A push waits for nothing: a build without vectors is simply due. Several workers may make the same ones; the first wins.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Row, and_, delete, exists, func, insert, select
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from adapterhub.core.extras import missing
from adapterhub.formats.meaning.model import MODEL, is_model
from adapterhub.formats.meaning.texts import parts_of
from adapterhub_registry.database.db import Database, adapters, lock_name, meaning, repos
from adapterhub_registry.database.steps import Leftover, drop

if TYPE_CHECKING:
    from adapterhub.formats.meaning.encoder import Encoder


AT_ONCE: Final = 32
DUE: Final = adapters.c.is_listed & ~exists().where(
    meaning.c.repo_id == adapters.c.repo_id, meaning.c.commit_id == adapters.c.commit_id, meaning.c.model == MODEL
)
"""The builds that wait for vectors."""


def model_place(root: Path) -> Path:
    """Return the folder of the model in the registry under `root`."""
    return root / "meaning" / MODEL


def has_model(root: Path) -> bool:
    """Return whether the model and the packages for it are on this machine."""
    return is_model(model_place(root)) and not missing("find")


def parts(row: Row[Any]) -> list[str]:
    """Return the texts of a build, a row of `adapters` with its `full_name`, whose vectors stand for it."""
    name = row.name or row.full_name.partition("/")[2]
    return parts_of(name, row.task or "", row.description or "", (row.examples or "").splitlines())


def make(database: Database, root: Path, *, stopped: Event | None = None, since_ms: int = 0) -> int:
    """Make the vectors of the builds that are due, until `stopped` is set; their number. Nothing without the model.

    With `since_ms`, those of the builds that were pushed since. Without it, the vectors go that no search needs.
    """
    if not has_model(root):
        return 0
    done, encoder = 0, None
    wanted = select(adapters, repos.c.full_name).join(repos, repos.c.id == adapters.c.repo_id)
    wanted = wanted.where(DUE, adapters.c.created_at >= since_ms).order_by(adapters.c.created_at)
    while stopped is None or not stopped.is_set():
        with database.read() as connection:
            rows = connection.execute(wanted.limit(AT_ONCE)).all()
        if not rows:
            break
        encoder = encoder or _encoder(root)
        for row in rows:
            _keep(database, row, _packed(encoder, parts(row)))
        done += len(rows)
    if done and not since_ms:
        drop(database, unneeded())
    return done


def _keep(database: Database, row: Row[Any], vectors: bytes) -> None:
    mine = {"repo_id": row.repo_id, "commit_id": row.commit_id}
    here = and_(*(meaning.c[name] == value for name, value in mine.items()))
    with contextlib.suppress(IntegrityError), database.begin() as connection:  # another worker, or no such repository
        lock_name(connection, "vectors")  # so that rows appear in the order of their numbers
        connection.execute(delete(meaning).where(here))
        connection.execute(insert(meaning).values(**mine, model=MODEL, vectors=vectors))


def unneeded() -> Leftover:
    """Return the vectors of builds that searches no longer show."""
    same = (adapters.c.repo_id == meaning.c.repo_id) & (adapters.c.commit_id == meaning.c.commit_id)
    return Leftover(meaning, ~exists().where(same, adapters.c.is_listed))


def rebuild(database: Database) -> int:
    """Let every build wait for new vectors; the number of those that had some."""
    with database.begin() as connection:
        return connection.execute(delete(meaning)).rowcount


def waiting(connection: Connection) -> int:
    """Return how many builds wait for vectors."""
    return connection.scalar(select(func.count()).select_from(adapters).where(DUE)) or 0


def _encoder(root: Path) -> Encoder:
    from adapterhub.formats.meaning.encoder import Encoder

    return Encoder(model_place(root))


def _packed(encoder: Encoder, texts: list[str]) -> bytes:
    from adapterhub.formats.meaning.ranking import packed_build

    return packed_build(encoder.vectors(texts))
