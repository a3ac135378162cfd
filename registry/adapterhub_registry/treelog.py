"""The log of releases, which only grows: of each published, yanked and deleted version and each move of an alias.

The change and its entry are one transaction, whose last step appends: so appends wait for one another only while one
commits. Each complete node of the tree is a row, so that an append costs a few rows, however long the log is.

All public repositories share one log. Each private one has a log of its own, which only those who may read it can ask
for: nothing elsewhere tells that it exists, how many entries it has, or when. A repository that becomes public or
private, or gets another name, has its releases recorded again in the log, and by the name, that it has from then on.

One key signs the heads of every log of a registry. It is in the database, which its servers share.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import lru_cache
from itertools import groupby
from operator import attrgetter
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    BigInteger,
    Row,
    Select,
    Text,
    bindparam,
    case,
    cast,
    delete,
    exists,
    func,
    insert,
    select,
    tuple_,
)
from sqlalchemy.engine import Connection
from sqlalchemy.sql.visitors import replacement_traverse

from adapterhub.core.dates import Moment
from adapterhub.core.digests import Digest, canonical_json, strict_json
from adapterhub.core.specs import version_key
from adapterhub.formats.publication import Job, Publication
from adapterhub.formats.treelog import (
    TILE_LEVELS,
    TILE_WIDTH,
    LogKey,
    LogSigner,
    Node,
    Range,
    Tile,
    appended,
    bundle,
    consistency,
    cosignature,
    inclusion,
    joined,
    leaf_hash,
    new_seed,
    opened_note,
    peaks,
)
from adapterhub_registry.database.db import (
    Database,
    adapters,
    before_commit,
    facts,
    insert_new,
    lock_name,
    log_entries,
    log_nodes,
    now_ms,
    redirects,
    releases,
    repos,
)
from adapterhub_registry.database.prepared import PreparedSql
from adapterhub_registry.database.search_tables import rows_of
from adapterhub_registry.database.steps import windows

PUBLIC: Final = 0
"""The log of all public repositories."""
RECORDED: Final = "version.recorded"
"""An entry for a release that stood before its log, or before its repository had this name."""
RELEASING: Final = ("version.published", RECORDED)
_KEPT: Final = ("adapter", "version", "digest", "alias", "targets", "to")
"""What an entry tells of a change: not who made it, and not why.

The entry of a release that a job of a CI published also has `publisher`: the digest of what the registry attests.
"""
AT_ONCE: Final = 500
"""So many releases a transaction records, as pushes wait for it."""
_SEED: Final = "log_key"
_COSIGNED: Final = "cosigned {} {}"
_LOGGED: Final = frozenset(
    {
        *("version.published", "version.yanked", "version.unyanked", "version.deleted"),
        *("alias.moved", "repository.deleted", "repository.moved"),
    }
)


class _Waiting(NamedTuple):
    """An entry that its transaction is about to append."""

    log: int
    repo_id: int
    repo: str
    kind: str
    version_key: str | None
    entry: bytes


def note(connection: Connection, repo: Row[Any], kind: str, data: Mapping[str, object]) -> None:
    """Let the transaction of a change of `repo` append it."""
    if kind not in _LOGGED:
        return
    all_of = {**data, "adapter": data.get("name", data.get("adapter"))}
    told = {key: all_of[key] for key in _KEPT if all_of.get(key) is not None}
    if kind == "version.published":
        told |= _publisher(connection.scalar(_one(repo.id, version_key(str(told["version"])))))
    _add(connection, repo, repo.full_name, kind, told)
    if kind == "version.published":  # a reader who knows an earlier name of the repository finds the release by that
        names = select(redirects.c.full_name).where(redirects.c.repo_id == repo.id).order_by(redirects.c.full_name)
        for name in connection.scalars(names).all():
            _add(connection, repo, name, RECORDED, told)


def note_releases(connection: Connection, repo: Row[Any]) -> None:
    """Record the releases of a repository by the name and in the log that it has now."""
    for row in connection.execute(_RELEASED.where(releases.c.repo_id == repo.id).order_by(releases.c.version)).all():
        _record(connection, repo, row)


def complete(database: Database, repo_id: int | None = None) -> None:
    """Record the releases that are in no log, of one repository or all: those from before it, and of older servers."""
    in_log = (log_entries.c.repo_id == releases.c.repo_id) & (log_entries.c.version_key == releases.c.version_key)
    its_log = log_entries.c.log == case((repos.c.private, repos.c.id), else_=PUBLIC)
    entry = exists(log_entries.c.position).where(in_log, log_entries.c.kind.in_(RELEASING), its_log)
    keys = (releases.c.repo_id, releases.c.version_key)
    same = {key: log_entries.c[key.name] for key in keys}
    for window in [releases.c.repo_id == repo_id] if repo_id is not None else windows(database, keys):
        # PostgreSQL may merge both tables, and would read the log from its begin for each window
        there = replacement_traverse(window, {}, lambda element, **_: same.get(element))
        lacking = ~entry.where(there).correlate(releases, repos)
        wanted = _RELEASED.join(repos, repos.c.id == releases.c.repo_id).where(window, lacking)
        with database.read() as connection:
            is_lacking = connection.execute(wanted.limit(1)).first() is not None
        while is_lacking:
            with database.begin() as connection:
                lock_name(connection, "releases without an entry")
                rows = connection.execute(wanted.order_by(*keys).limit(AT_ONCE)).all()
                for number, mine in groupby(rows, key=attrgetter("repo_id")):
                    repo = connection.execute(select(repos).where(repos.c.id == number)).one()
                    for row in mine:
                        _record(connection, repo, row)
            is_lacking = len(rows) == AT_ONCE


_RELEASED: Final = select(
    releases.c.repo_id, releases.c.version, releases.c.digest, releases.c.publisher, adapters.c.name
).outerjoin(adapters, (adapters.c.repo_id == releases.c.repo_id) & (adapters.c.commit_id == releases.c.commit_id))


def _one(repo_id: int, key: str) -> Select[Any]:
    mine = (releases.c.repo_id == repo_id) & (releases.c.version_key == key)
    return select(releases.c.publisher, releases.c.created_at).where(mine)


def _publisher(stored: str | None) -> dict[str, Digest]:
    """Return the member of an entry that stands for the job that published the release, if one did."""
    return {} if stored is None else {"publisher": Job(**json.loads(stored)).stated}


def log_of(repo: Row[Any]) -> int:
    """Return the log of a repository."""
    return int(repo.id) if repo.private else PUBLIC


def _record(connection: Connection, repo: Row[Any], row: Any) -> None:
    name = row.name or repo.full_name.partition("/")[2]
    told = {"adapter": name, "version": row.version, "digest": f"sha256:{row.digest}", **_publisher(row.publisher)}
    _add(connection, repo, repo.full_name, RECORDED, told)


def _add(connection: Connection, repo: Row[Any], name: str, kind: str, told: Mapping[str, Any]) -> None:
    at = datetime.fromtimestamp(now_ms() / 1000, tz=timezone.utc)
    time = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    entry = canonical_json({"kind": kind, "repository": name, "time": time, **told})
    version = told.get("version")
    key = None if version is None else version_key(str(version))
    before_commit(connection, _append, _Waiting(log_of(repo), repo.id, name, kind, key, entry))


def _append(connection: Connection, waiting: Sequence[_Waiting]) -> None:
    """Append entries, in the order of their logs, so that no two transactions wait for each other."""
    for log, items in groupby(sorted(waiting, key=attrgetter("log")), key=attrgetter("log")):
        lock_name(connection, f"log {log}")
        size = size_of(connection, log)
        nodes = _nodes(connection, log, peaks(0, size))
        rows, made = [], []
        for item in items:
            rows.append({**item._asdict(), "position": size})
            new = appended(size, leaf_hash(item.entry), nodes.__getitem__)
            nodes |= dict(new)
            made += [{"log": log, "level": at[0], "position": at[1], "hash": value} for at, value in new]
            size += 1
        connection.execute(insert(log_entries), rows)
        connection.execute(insert(log_nodes), made)


def size_of(connection: Connection, log: int) -> int:
    """Return how many entries a log has."""
    ((last,),) = _LAST.tuples(connection, log=log)
    return 0 if last is None else int(last) + 1


_LAST: Final = PreparedSql(select(func.max(log_entries.c.position)).where(log_entries.c.log == bindparam("log")))


def head_of_entries(connection: Connection, log: int) -> tuple[int, bytes]:
    """Return the size and the root of a log, computed from its entries.

    Raises:
        LookupError: an entry is missing, or a kept node is not that of the entries.
    """
    wanted = select(log_entries.c.position, log_entries.c.entry).where(log_entries.c.log == log)
    rows = connection.execute(wanted.order_by(log_entries.c.position), execution_options={"yield_per": 1000})
    size, top = 0, dict[Node, bytes]()
    for row in rows:
        if row.position != size:
            raise LookupError(f"log {log}: entry {size} is missing")
        top |= appended(size, leaf_hash(bytes(row.entry)), top.__getitem__)
        size += 1
        top = {node: top[node] for node in peaks(0, size)}
    root = joined([top[node] for node in peaks(0, size)])
    if root_at(connection, log, size) != root:
        raise LookupError(f"log {log}: its kept nodes are not those of its {size} entries")
    return size, root


def root_at(connection: Connection, log: int, size: int) -> bytes:
    """Return the root of the first entries of a log, by its kept nodes."""
    return _roots(connection, log, [(0, size)])[0]


def _nodes(connection: Connection, log: int, wanted: Iterable[Node]) -> dict[Node, bytes]:
    keys = json.dumps([level * _POSITIONS + position for level, position in wanted])
    rows = _NODES.tuples(connection, log=log, keys=keys)
    return {(level, position): bytes(value) for level, position, value in rows}


_POSITIONS: Final = 1 << 48
_KEY: Final = cast(rows_of(bindparam("keys", type_=Text)).c.value, BigInteger)
_KEYS: Final = select(bindparam("log", type_=BigInteger), _KEY.op("/")(_POSITIONS), _KEY.op("&")(_POSITIONS - 1))
_AT: Final = tuple_(log_nodes.c.log, log_nodes.c.level, log_nodes.c.position)  # whole, or SQLite reads all of the log
_NODES: Final = PreparedSql(select(log_nodes.c.level, log_nodes.c.position, log_nodes.c.hash).where(_AT.in_(_KEYS)))


def _roots(connection: Connection, log: int, ranges: Sequence[Range]) -> list[bytes]:
    """Return the root of each range of entries.

    Raises:
        LookupError: a row is missing, which only someone who writes to the database by hand can have done.
    """
    parts = [peaks(*one) for one in ranges]
    nodes = _nodes(connection, log, {node for part in parts for node in part})
    return [joined([nodes[node] for node in part]) for part in parts]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """That an entry is in its log. `private` is True if the log is that of one repository.

    `attestation` is the registry's on the job that published the release, None if none did.
    """

    checkpoint: str
    index: int
    entry: str
    hashes: tuple[bytes, ...]
    private: bool
    attestation: bytes | None


_RELEASES: Final = PreparedSql(
    select(log_entries.c.position, log_entries.c.entry, log_entries.c.repo)
    .where(log_entries.c.repo_id == bindparam("repo"), log_entries.c.version_key == bindparam("key"))
    .where(log_entries.c.log == bindparam("log"), log_entries.c.kind.in_(RELEASING))
    .order_by(log_entries.c.position.desc())
)


@lru_cache(maxsize=64)
def _signer(seed: bytes, log: int) -> LogSigner:
    if log == PUBLIC:
        return LogSigner(seed)
    # tells nothing of the number, which counts repositories
    return LogSigner(seed, hmac.new(seed, b"log %d" % log, hashlib.sha256).hexdigest()[:16])


@lru_cache(maxsize=64)
def _signed(signer: LogSigner, size: int, root: bytes) -> str:
    """Return the checkpoint of a tree; all proofs have the same one until the log grows, and bytes like any new one."""
    return signer.sign(size, root)


class TreeLog:
    """The logs of a registry, read and signed."""

    def __init__(self, database: Database, witnesses: Sequence[LogKey] = ()) -> None:
        self._db, self._witnesses = database, witnesses
        self._seed: bytes | None = None

    def has_key(self, connection: Connection) -> bool:
        """Return whether a server made the key, as the first question for a head does."""
        return connection.scalar(select(facts.c.value).where(facts.c.name == _SEED)) is not None

    def signer(self, log: int = PUBLIC) -> LogSigner:
        """Return the signer of a log; the first call of all servers makes the key."""
        if self._seed is None:
            wanted = select(facts.c.value).where(facts.c.name == _SEED)
            with self._db.read() as connection:
                found = connection.scalar(wanted)
            if found is None:
                with self._db.begin() as connection:
                    insert_new(connection, facts, [{"name": _SEED, "value": new_seed().hex()}])
                    found = connection.scalar(wanted)
            self._seed = bytes.fromhex(str(found))
        return _signer(self._seed, log)

    def checkpoint(self, connection: Connection, log: int) -> str:
        """Return the signed head, with what witnesses co-signed of it."""
        size = size_of(connection, log)
        lines = [line for key in self._witnesses for at, line in [self._cosigned(connection, log, key)] if at == size]
        return _signed(self.signer(log), size, root_at(connection, log, size)) + "".join(lines)

    def keep_cosignatures(self, log: int, note: str) -> int:
        """Keep what known witnesses co-signed of a head of a log, and return of how many it is the newest.

        Raises:
            ValueError: it is not a head of this log; the message is the reason.
        """
        key = self.signer(log).key
        head, kept = opened_note(note, key), 0
        with self._db.begin() as connection:
            lock_name(connection, f"log {log}")
            if head.size > size_of(connection, log) or root_at(connection, log, head.size) != head.root:
                raise ValueError("is the head of another log, with another past")
            for witness in self._witnesses:
                found, (size, line) = cosignature(note, head, witness), self._cosigned(connection, log, witness)
                if found is None or head.size < size:
                    continue
                if head.size == size:  # the newest one on this head stays, also if an older one is sent again
                    found = cosignature(note + line, head, witness) or found
                name = _COSIGNED.format(log, witness.id.hex())
                connection.execute(delete(facts).where(facts.c.name == name))
                insert_new(connection, facts, [{"name": name, "value": f"{head.size}\n{found[1]}"}])
                kept += 1
        return kept

    def _cosigned(self, connection: Connection, log: int, witness: LogKey) -> tuple[int, str]:
        """Return the size of the last head that a witness co-signed, and the line; -1 before the first."""
        wanted = select(facts.c.value).where(facts.c.name == _COSIGNED.format(log, witness.id.hex()))
        size, _, line = str(connection.scalar(wanted) or "-1\n").partition("\n")
        return int(size), line

    def tile(self, connection: Connection, log: int, tile: Tile) -> bytes | None:
        """Return the bytes of a tile; None if the log has no such tile, or not that much of it."""
        first = tile.number * TILE_WIDTH
        table, level = (log_entries, None) if tile.level is None else (log_nodes, tile.level * TILE_LEVELS)
        value = log_entries.c.entry if level is None else log_nodes.c.hash
        at = (table.c.log == log) & (table.c.position >= first) & (table.c.position < first + tile.width)
        if level is not None:
            at &= log_nodes.c.level == level
        rows = [bytes(row) for row in connection.scalars(select(value).where(at).order_by(table.c.position)).all()]
        if len(rows) != tile.width:
            return None
        return bundle(rows) if level is None else b"".join(rows)

    def consistency(self, connection: Connection, log: int, old: int, new: int) -> list[bytes] | None:
        """Return the proof that the log of `new` entries begins with that of `old`.

        None if it has fewer than `new`.
        """
        return _roots(connection, log, consistency(old, new)) if new <= size_of(connection, log) else None

    def proof(
        self, connection: Connection, repo: Row[Any], asked: str, key: str, witness: str | None = None
    ) -> Proof | None:
        """Return the proof that the log has a version, by its `key` and the name `asked`, or by its own, or None.

        The head is the last one that the `witness` of that name co-signed, if it has the version, or the newest.
        """
        log = log_of(repo)
        rows = _RELEASES.rows(connection, repo=repo.id, key=key, log=log)
        row = next((one for one in rows if one.repo == asked), rows[0] if rows else None)
        if row is None:
            return None
        size, line = size_of(connection, log), ""
        for by in self._witnesses:
            if by.name == witness and (last := self._cosigned(connection, log, by))[0] > row.position:
                size, line = last
        ranges = [(0, size), *inclusion(row.position, size)]
        root, *hashes = _roots(connection, log, ranges)
        return Proof(
            checkpoint=_signed(self.signer(log), size, root) + line,
            index=row.position,
            entry=bytes(row.entry).decode(),
            hashes=tuple(hashes),
            private=log != PUBLIC,
            attestation=self._attestation(connection, repo.id, key, bytes(row.entry)),
        )

    def _attestation(self, connection: Connection, repo_id: int, key: str, entry: bytes) -> bytes | None:
        """Attest a release by its entry, where that says that a job published it."""
        said = strict_json(entry)
        release = connection.execute(_one(repo_id, key)).one_or_none() if "publisher" in said else None
        if release is None or release.publisher is None:
            return None
        about = {name: said[name] for name in ("repository", "version", "digest")}
        job, time = Job(**json.loads(release.publisher)), Moment(release.created_at).text
        return Publication(**about, time=time, job=job).signed(self.signer())
