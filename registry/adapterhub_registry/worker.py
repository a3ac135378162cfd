"""Records of weights, made once for each build beside the server or by workers, and the builds with like updates.

Workers have no secret of a server, so the key lies beside the sketches. It is random, and a rebuild makes a new one.

Of like updates, what a caller may read is decided afterwards, for every build that is near, so that hidden ones change
neither the answer nor its length.

A push only notes that its build waits. A worker claims a build by moving its time on, and counts the attempt before it
reads a byte: weights that end the worker are given up after three attempts, and one that is killed leaves its build to
the next. Nothing else in the registry needs a record.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from threading import Event
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Row, delete, exists, func, insert, select, true, update
from sqlalchemy.engine import Connection

from adapterhub.core.digests import parse_digest
from adapterhub.core.errors import AdapterHubError, MalformedConfig, MalformedTensorFile, shown
from adapterhub.formats.derived.record import DerivedRecord
from adapterhub.formats.manifest import CONFIG_FILE, MANIFEST_FILE, MEDIA_TYPES, WEIGHTS_FILE
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.safetensors.file import TensorFile
from adapterhub_registry.access import rights
from adapterhub_registry.database.db import Database, adapters, derived, facts, insert_new, now_ms, parents, sketches
from adapterhub_registry.errors import busy
from adapterhub_registry.repos.adapter_facts import CONFIG_LIMIT_BYTES, header_of, manifest_of
from adapterhub_registry.repos.commits import tree_of
from adapterhub_registry.storage.blobs import BlobStore, StoreUnreachable

if TYPE_CHECKING:
    from adapterhub.formats.derived.likeness import Sketches


_NAME: Final = "sketch_secret"
_BYTES: Final = 32


def sketch_key(database: Database) -> str:
    """The key, made when it is first asked for; of all who ask at once, one decides."""
    wanted = select(facts.c.value).where(facts.c.name == _NAME)
    with database.read() as connection:
        found = connection.scalar(wanted)
    if found is None:
        with database.begin() as connection:
            insert_new(connection, facts, [{"name": _NAME, "value": secrets.token_hex(_BYTES)}])
            found = connection.scalar(wanted)
    return hmac.new(bytes.fromhex(str(found)), b"sketch/1", hashlib.sha256).hexdigest()


def id_of(key: str) -> str:
    """What tells one key from another and says nothing of it."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def forget(database: Database) -> None:
    """Let the next sketch have a new key."""
    with database.begin() as connection:
        connection.execute(delete(facts).where(facts.c.name == _NAME))


KEPT: Final = 64
AT_ONCE: Final = 2


class Once:
    """Results by key, the latest `KEPT` of them. `subject` is what only one computation at a time may be about."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._running: set[Hashable] = set()

    def result(self, subject: Hashable, key: Hashable, make: Callable[[], Any]) -> Any:
        """The result kept under `(subject, key)`, or a new one of `make`.

        Raises:
            HttpRefusal: 503 with Retry-After while another computation about the subject runs, or many others.
        """
        with self._lock:
            if (subject, key) in self._kept:
                self._kept.move_to_end((subject, key))
                return self._kept[subject, key]
            if subject in self._running or len(self._running) >= AT_ONCE:
                raise busy("other weights are being compared; try again")
            self._running.add(subject)
        try:
            made = make()
        finally:
            with self._lock:
                self._running.discard(subject)
        with self._lock:
            self._kept[subject, key] = made
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return made


FLOOR: Final = 0.9
"""The least cosine in an answer. Below, sketches err too much, and each answer would tell more of their key."""
DIGITS: Final = 2
_COUNTED_S: Final = 60.0
"""Sketches are counted when there is a later one, and this often: some go, and one may be of the same millisecond."""


@dataclass(frozen=True, slots=True)
class _KnownSketches:
    digests: list[str]
    packed: Sketches


@dataclass(slots=True)
class KnownSketches:
    """The sketches of a database: new ones are added to those in memory; all are read again when one is gone."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _count: int = 0
    _last_ms: int = 0
    _counted_at: float = -_COUNTED_S
    _at_last: set[str] = field(default_factory=set)
    _of_key: dict[str, _KnownSketches] = field(default_factory=dict)

    def near(self, connection: Connection, digest: str, above: float) -> dict[str, float] | None:
        """The cosine with each build, by digest, that is `above` or more or as much negated; None without a sketch.

        The cosines are rounded to `DIGITS`, and `above` is at least `FLOOR`.
        """
        wanted = select(sketches.c.key_id, sketches.c.sketch).where(sketches.c.digest == digest)
        mine = connection.execute(wanted).one_or_none()
        if mine is None:
            return None
        known = self._read(connection).get(mine.key_id)
        if known is None:
            return {}
        found = known.packed.cosines(mine.sketch).round(DIGITS)
        least = max(above, FLOOR) - 10.0 ** -(DIGITS + 3)  # float32 has no 0.9
        near = (abs(found) >= least).nonzero()[0].tolist()
        return {known.digests[at]: round(float(found[at]), DIGITS) for at in near if known.digests[at] != digest}

    def _read(self, connection: Connection) -> dict[str, _KnownSketches]:
        last_ms = connection.scalar(select(func.max(sketches.c.made_at))) or 0
        with self._lock:
            if last_ms == self._last_ms and monotonic() < self._counted_at + _COUNTED_S:
                return self._of_key
            count = connection.scalar(select(func.count()).select_from(sketches)) or 0
            self._counted_at = monotonic()
            if (count, last_ms) == (self._count, self._last_ms):
                return self._of_key
            since = _rows(connection, sketches.c.made_at >= self._last_ms)
            new = [row for row in since if row.digest not in self._at_last]
            if self._count + len(new) != count:  # some are gone, or were made again
                self._of_key, new = {}, _rows(connection, true())
            self._of_key = _with(self._of_key, new)
            self._count, self._last_ms = count, last_ms
            self._at_last = {row.digest for row in (*since, *new) if row.made_at == self._last_ms}
            return self._of_key


def _rows(connection: Connection, which: ColumnElement[bool]) -> list[Row[Any]]:
    return list(connection.execute(select(sketches).where(which)).all())


def _with(before: Mapping[str, _KnownSketches], rows: Sequence[Row[Any]]) -> dict[str, _KnownSketches]:
    from adapterhub.formats.derived.likeness import Sketches

    after = dict(before)
    for key in {row.key_id for row in rows}:
        mine = [row for row in rows if row.key_id == key]
        found, packed = after.get(key), [row.sketch for row in mine]
        digests = [row.digest for row in mine]
        after[key] = (
            _KnownSketches(digests, Sketches(packed))
            if found is None
            else _KnownSketches([*found.digests, *digests], found.packed.with_more(packed))
        )
    return after


log = logging.getLogger("adapterhub_registry")

MOST_ATTEMPTS: Final = 3
CLAIM_MS: Final = 600_000
"""How long a claimed build is left to its worker; longer than its record takes."""
RETRY_MS: Final = 60_000
"""The wait after the blob store did not answer."""
AT_ONCE_BYTES: Final = 64 << 20
"""Weights up to this size are read in one piece, larger ones tensor by tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The config and the weights of a build, and what reads the bytes of the weights."""

    config: AdapterConfig
    file: TensorFile
    read: Callable[[int, int], bytes]
    config_sha256: str
    weights_sha256: str


class _Claim(NamedTuple):
    """A build, the number of the attempt, and when it was due."""

    digest: str
    attempt: int
    due_at: int


class _Stopped(Exception):
    """The worker ends."""


def forget_unnamed(connection: Connection) -> None:
    """Remove the records of the builds that no commit has any more."""
    for table in (derived, parents, sketches):
        connection.execute(delete(table).where(~exists().where(adapters.c.digest == table.c.digest)))


def rebuild(database: Database) -> int:
    """Let every build wait for a new record and a sketch under a new key; their number. Old records stay until then."""
    forget(database)
    with database.begin() as connection:
        return connection.execute(update(derived).values(state="waiting", attempts=0, due_at=now_ms())).rowcount


def work(database: Database, blob_store: BlobStore, *, stopped: Event | None = None) -> int:
    """Make the records that wait, one after the other, until `stopped` is set; their number."""
    done, stopped = 0, stopped or Event()
    if find_spec("numpy") is None:  # the builds wait for a worker that has it
        return 0
    while not stopped.is_set():
        began = now_ms()
        claimed = _claim(database)
        if claimed is None:
            _note(database, began)
            break
        _make(database, blob_store, claimed, stopped)
        done += 1
    return done


def _note(database: Database, until_ms: int) -> None:
    """Note that nothing waits, where a build was pushed again that has its record: a write only if it changes much."""
    with database.read() as connection:
        is_behind = rights.is_behind(connection)
    if is_behind:
        with database.begin() as connection:
            rights.note(connection, until_ms)


def _claim(database: Database) -> _Claim | None:
    """The next build that waits, which is now the caller's for `CLAIM_MS`."""
    due = (derived.c.state == "waiting") & (derived.c.due_at <= now_ms())
    wanted = select(derived.c.digest, derived.c.attempts, derived.c.due_at).where(due).order_by(derived.c.due_at)
    while True:
        with database.read() as connection:
            found = connection.execute(wanted.limit(1)).one_or_none()
        if found is None:
            return None
        same = (derived.c.digest == found.digest) & (derived.c.due_at == found.due_at) & (derived.c.state == "waiting")
        moved = {"attempts": found.attempts + 1, "due_at": now_ms() + CLAIM_MS}
        with database.begin() as connection:
            if connection.execute(update(derived).where(same).values(**moved)).rowcount:
                return _Claim(found.digest, found.attempts + 1, found.due_at)


def _make(database: Database, blob_store: BlobStore, claim: _Claim, stopped: Event) -> None:
    digest, attempt = claim.digest, claim.attempt
    values: dict[str, Any]
    mine: list[dict[str, Any]] = []
    key, sketch = sketch_key(database), b""
    if attempt > MOST_ATTEMPTS:
        values = _none(f"the worker ended {MOST_ATTEMPTS} times while it read these weights")
    else:
        with database.read() as connection:
            files = files_of(connection, digest)
        try:
            mine = [{"digest": digest, **one} for one in _parents(files, blob_store)]
            values, sketch = _figures(files, blob_store, stopped, key)
        except (StoreUnreachable, _Stopped) as error:  # no fault of the weights: the attempt does not count
            wait_ms = 0 if isinstance(error, _Stopped) else RETRY_MS
            values = {"attempts": attempt - 1, "due_at": now_ms() + wait_ms}
    with database.begin() as connection:
        if mine:
            connection.execute(delete(parents).where(parents.c.digest == digest))
            connection.execute(insert(parents), mine)
        if "state" in values:
            values["due_at"] = claim.due_at
            rights.note(connection, claim.due_at)
            connection.execute(delete(sketches).where(sketches.c.digest == digest))
        if sketch:
            made = {"digest": digest, "key_id": id_of(key), "made_at": now_ms(), "sketch": sketch}
            connection.execute(insert(sketches).values(**made))
        connection.execute(update(derived).where(derived.c.digest == digest).values(**values))


def _figures(files: Mapping[str, str], blob_store: BlobStore, stopped: Event, key: str) -> tuple[dict[str, Any], bytes]:
    """The values of the row in `derived`, and the sketch; empty without one."""
    try:
        record, sketch = _record(files, blob_store, stopped, key)
    except AdapterHubError as error:
        return _none(str(error)), b""
    except (StoreUnreachable, _Stopped):
        raise
    except Exception as error:  # whatever is wrong with one build, the next one gets its record
        log.warning("no figures of a build", exc_info=True)
        return _none(f"the figures could not be computed: {type(error).__name__}"), b""
    packed = zlib.compress(json.dumps(record.to_json(), separators=(",", ":")).encode())
    if not record.modules:
        return _none(record.reason) | {"record": packed}, b""
    return {"state": "made", "reason": None, "norm": record.norm, "record": packed}, sketch


def _record(files: Mapping[str, str], blob_store: BlobStore, stopped: Event, key: str) -> tuple[DerivedRecord, bytes]:
    from adapterhub.formats.derived.deriving import derive
    from adapterhub.formats.derived.likeness import Sketch

    sketch = Sketch(key)
    opened = open_build(files, blob_store)

    def read(start: int, end: int) -> bytes:
        if stopped.is_set():
            raise _Stopped
        return opened.read(start, end)

    record = derive(
        opened.config,
        opened.file,
        read,
        weights_digest=parse_digest(f"sha256:{opened.weights_sha256}"),
        config_digest=parse_digest(f"sha256:{opened.config_sha256}"),
        sketch=sketch,
    )
    return record, sketch.packed()


def _none(reason: str) -> dict[str, Any]:
    return {"state": "none", "reason": shown(reason, 1000), "norm": None, "record": None}


def _parents(files: Mapping[str, str], blob_store: BlobStore) -> list[dict[str, Any]]:
    manifest = manifest_of(files, blob_store)
    if manifest is None:
        return []
    return [
        {
            "position": at,
            "parent": one.digest and one.digest[7:],
            "spec": shown(one.spec, 400),
            "weight": one.weight,
            "relation": manifest.relation,
        }
        for at, one in enumerate(manifest.parents)
    ]


def files_of(connection: Connection, digest: str) -> dict[str, str]:
    """The files of a build, path to sha256, from a commit that has it; empty when none has it any more."""
    row = connection.execute(select(adapters).where(adapters.c.digest == digest).limit(1)).one_or_none()
    if row is None:
        return {}
    tree = tree_of(connection, row.repo_id, row.commit_id)
    found = (tree.find(path) for path in (*MEDIA_TYPES, MANIFEST_FILE))
    return {entry.path: entry.sha256 for entry in found if entry is not None}


def open_build(files: Mapping[str, str], blob_store: BlobStore) -> Opened:
    """The config and the checked header of a build.

    Raises:
        MalformedConfig, MalformedTensorFile: they are missing or cannot be read; names the file and the reason.
        BlobNotFound: the bytes are lost.
    """
    config, weights = files.get(CONFIG_FILE), files.get(WEIGHTS_FILE)
    if config is None or weights is None:
        raise MalformedTensorFile(WEIGHTS_FILE, "is missing")
    if blob_store.size(config) > CONFIG_LIMIT_BYTES:
        raise MalformedConfig(CONFIG_FILE, f"holds more than {CONFIG_LIMIT_BYTES} bytes")
    parsed = AdapterConfig.parse(b"".join(blob_store.open(config)), CONFIG_FILE)
    header = header_of(files, blob_store)
    if header is None:
        raise MalformedTensorFile(WEIGHTS_FILE, "cannot be read", hint="`adapt verify` says why")
    whole = b"".join(blob_store.open(weights)) if header.size_bytes <= AT_ONCE_BYTES else None

    def read(start: int, end: int) -> bytes:
        return whole[start:end] if whole is not None else b"".join(blob_store.open(weights, start, end))

    return Opened(config=parsed, file=header, read=read, config_sha256=config, weights_sha256=weights)
