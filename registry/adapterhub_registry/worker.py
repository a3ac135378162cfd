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
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from threading import Event
from time import monotonic
from typing import Any, Final, NamedTuple

from sqlalchemy import bindparam, delete, exists, func, insert, select, tuple_, update
from sqlalchemy.engine import Connection

from adapterhub.core.digests import parse_digest
from adapterhub.core.errors import AdapterHubError, MalformedConfig, MalformedTensorFile, shown
from adapterhub.formats.derived.record import DerivedRecord
from adapterhub.formats.manifest import CONFIG_FILE, MANIFEST_FILE, MEDIA_TYPES, WEIGHTS_FILE
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.safetensors.file import TensorFile
from adapterhub_registry.access import rights
from adapterhub_registry.database.db import (
    Database,
    adapters,
    derived,
    facts,
    insert_new,
    lock_name,
    now_ms,
    parents,
    sketches,
    slices,
)
from adapterhub_registry.database.prepared import PreparedSql
from adapterhub_registry.database.search_tables import among
from adapterhub_registry.database.steps import Leftover
from adapterhub_registry.errors import busy
from adapterhub_registry.repos.adapter_facts import CONFIG_LIMIT_BYTES, header_of, manifest_of
from adapterhub_registry.repos.commits import tree_of
from adapterhub_registry.storage.blobs import BlobStore, StoreUnreachable

_NAME: Final = "sketch_secret"
_BYTES: Final = 32


def sketch_key(database: Database) -> str:
    """Return the key, made when it is first asked for; of all who ask at once, one decides."""
    wanted = select(facts.c.value).where(facts.c.name == _NAME)
    with database.read() as connection:
        found = connection.scalar(wanted)
    if found is None:
        with database.begin() as connection:
            insert_new(connection, facts, [{"name": _NAME, "value": secrets.token_hex(_BYTES)}])
            found = connection.scalar(wanted)
    return hmac.new(bytes.fromhex(str(found)), b"sketch/1", hashlib.sha256).hexdigest()


def id_of(key: str) -> str:
    """Return a stamp that tells one key from another and reveals nothing of it."""
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
        """Return the result kept under `(subject, key)`, or a new one of `make`.

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
EXACT: Final = 100_000
"""Up to so many sketches are compared one by one; of more, `Signs` choose."""
_COUNTED_S: Final = 60.0
"""So often the sketches in memory are counted: those that are gone stay there until they are half of all."""
_READ_AT_ONCE: Final = 2000
_NEXT: Final = PreparedSql(
    select(sketches.c.made_at, sketches.c.digest, sketches.c.key_id, sketches.c.sketch)
    .where(tuple_(sketches.c.made_at, sketches.c.digest) > tuple_(bindparam("made_at"), bindparam("digest")))
    .order_by(sketches.c.made_at, sketches.c.digest)
    .limit(_READ_AT_ONCE)
)
_OF_DIGEST: Final = PreparedSql(
    select(sketches.c.key_id, sketches.c.sketch).where(sketches.c.digest == bindparam("digest"))
)
_OF_DIGESTS: Final = PreparedSql(
    select(sketches.c.digest, sketches.c.sketch).where(
        sketches.c.key_id == bindparam("key_id"), among(sketches.c.digest, "digests")
    )
)


class _KnownSketches:
    """The sketches of one key: 48 bytes of each, and up to `EXACT` of them whole."""

    def __init__(self) -> None:
        from adapterhub.formats.derived.likeness import Signs, Sketches

        self.digests: list[bytes] = []
        self._signs, self._packed = Signs(), Sketches(b"")

    def add(self, digests: Sequence[str], packed: Sequence[bytes]) -> None:
        """Take in some more; a search that runs meanwhile sees them or not."""
        from adapterhub.formats.derived.likeness import Sketches

        self.digests += map(bytes.fromhex, digests)
        self._signs = self._signs.with_more(packed)
        self._packed = self._packed.with_more(packed) if len(self.digests) <= EXACT else Sketches(b"")

    def near(self, sketch: bytes, least: float) -> list[str]:
        """Return the digests of those that may be so near, or as much negated: some are gone, and some are not near."""
        signs, packed = self._signs, self._packed
        places = (abs(packed.cosines(sketch)) >= least).nonzero()[0] if len(packed) else signs.near(sketch)
        return [self.digests[at].hex() for at in places.tolist()]


@dataclass(slots=True)
class KnownSketches:
    """What finds the near sketches of a database. What is new is added; the rows of the table give the answer."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _last: tuple[int, str] = (-1, "")
    _counted_at: float = 0.0
    _of_key: dict[str, _KnownSketches] = field(default_factory=dict)

    def near(self, connection: Connection, digest: str, above: float) -> dict[str, float] | None:
        """Return the cosine with each build, by digest, that is `above` or more or as much negated.

        None without a sketch.

        The cosines are rounded to `DIGITS`, and `above` is at least `FLOOR`.
        """
        mine = _OF_DIGEST.first(connection, digest=digest)
        if mine is None:
            return None
        self.read(connection)
        known = self._of_key.get(mine.key_id)
        if known is None:
            return {}
        from adapterhub.formats.derived.likeness import Sketches

        least = max(above, FLOOR) - 10.0 ** -(DIGITS + 3)  # float32 has no 0.9
        others = set(known.near(mine.sketch, least - 10.0**-DIGITS)) - {digest}
        found: dict[str, float] = {}
        for some in slices(sorted(others)):
            rows = _OF_DIGESTS.tuples(connection, key_id=mine.key_id, digests=json.dumps(some))
            cosines = Sketches([sketch for _, sketch in rows]).cosines(mine.sketch).round(DIGITS).tolist()
            near = zip((digest for digest, _ in rows), cosines, strict=True)
            found |= {one: round(cosine, DIGITS) for one, cosine in near if abs(cosine) >= least}
        return found

    def read(self, connection: Connection) -> None:
        """Take in what is new since the last time: the first time everything, 3 s for a million."""
        with self._lock:
            self._forget_if_gone(connection)
            while True:
                rows = _NEXT.tuples(connection, made_at=self._last[0], digest=self._last[1])
                for key in {row[2] for row in rows}:
                    mine = [row for row in rows if row[2] == key]
                    known = self._of_key.get(key) or _KnownSketches()
                    known.add([row[1] for row in mine], [row[3] for row in mine])
                    self._of_key[key] = known
                if rows:
                    self._last = rows[-1][0], rows[-1][1]
                if len(rows) < _READ_AT_ONCE:
                    return

    def _forget_if_gone(self, connection: Connection) -> None:
        if monotonic() < self._counted_at + _COUNTED_S:
            return
        self._counted_at = monotonic()
        held = sum(len(known.digests) for known in self._of_key.values())
        if held > _READ_AT_ONCE and held > 2 * (connection.scalar(select(func.count()).select_from(sketches)) or 0):
            self._of_key, self._last = {}, (-1, "")


def keep_near(database: Database, known: KnownSketches) -> None:
    """Take in new sketches ahead of the requests for them."""
    with database.read() as connection:
        known.read(connection)


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


class Lookout:
    """The time since which a worker looks for waiting builds: at first and each `EVERY_S` all, otherwise new ones.

    So it finds a push at once, what became listed again within `EVERY_S`, and does not read all builds each time.
    """

    EVERY_S: Final = 600.0

    def __init__(self) -> None:
        self._looked_at = -self.EVERY_S

    def since_ms(self) -> int:
        """Return the time of the oldest push to look at; clocks of other machines may be a little behind."""
        if monotonic() >= self._looked_at + self.EVERY_S:
            self._looked_at = monotonic()
            return 0
        return now_ms() - 2 * int(self.EVERY_S * 1000)


class _Claim(NamedTuple):
    """A build, the number of the attempt, and when it was due."""

    digest: str
    attempt: int
    due_at: int


class _Stopped(Exception):
    """The worker ends."""


def unneeded() -> Iterator[Leftover]:
    """Yield the records of the builds that no commit has any more."""
    for table in (derived, parents, sketches):
        yield Leftover(table, ~exists().where(adapters.c.digest == table.c.digest))


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
    """Return the next build that waits, which is now the caller's for `CLAIM_MS`."""
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
            lock_name(connection, "sketches")  # they appear in the order of their times, which all differ
            last = connection.scalar(select(func.max(sketches.c.made_at))) or 0
            made = {"digest": digest, "key_id": id_of(key), "made_at": max(now_ms(), last + 1), "sketch": sketch}
            connection.execute(insert(sketches).values(**made))
        connection.execute(update(derived).where(derived.c.digest == digest).values(**values))


def _figures(files: Mapping[str, str], blob_store: BlobStore, stopped: Event, key: str) -> tuple[dict[str, Any], bytes]:
    """Return the values of the row in `derived`, and the sketch; empty without one."""
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
    """Return the files of a build, path to sha256, from a commit that has it; empty when none has it any more."""
    row = connection.execute(select(adapters).where(adapters.c.digest == digest).limit(1)).one_or_none()
    if row is None:
        return {}
    tree = tree_of(connection, row.repo_id, row.commit_id)
    found = (tree.find(path) for path in (*MEDIA_TYPES, MANIFEST_FILE))
    return {entry.path: entry.sha256 for entry in found if entry is not None}


def open_build(files: Mapping[str, str], blob_store: BlobStore) -> Opened:
    """Return the config and the checked header of a build.

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
        raise MalformedTensorFile(WEIGHTS_FILE, "cannot be read", hint="`adapt verify` names the fault")
    whole = b"".join(blob_store.open(weights)) if header.size_bytes <= AT_ONCE_BYTES else None

    def read(start: int, end: int) -> bytes:
        return whole[start:end] if whole is not None else b"".join(blob_store.open(weights, start, end))

    return Opened(config=parsed, file=header, read=read, config_sha256=config, weights_sha256=weights)
