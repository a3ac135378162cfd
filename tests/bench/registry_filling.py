"""Fills the database of a registry with many builds in the shapes of a large one, as pushes leave them; no weights.

Of `builds`, one repository has a hundredth as its versions, and one has a tenth as the commits of its history; the others
have 1 to 19 versions each, ten on average. A tenth of the repositories lies in one namespace. Some bases have many
adapters and most have few. Indexes and triggers are made after the rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final

from adapterhub_registry.access.rights import TAG
from adapterhub_registry.database.counting import start_counting
from adapterhub_registry.database.db import Database, now_ms
from adapterhub_registry.database.schema import metadata
from adapterhub_registry.database.search_tables import (
    NAMES,
    TEXTS,
    add_stems,
    add_trigrams,
    keep_tag_sets,
)
from adapterhub_registry.database.trees import TreeFile, TreeNode, id_of, pack
from adapterhub_registry.storage.blobs import BlobStore, StoredBlob
from sqlalchemy.engine import Connection

from adapterhub.core.specs import version_key, version_order

AT_ONCE: Final = 50_000
"""So many rows are written together."""
PART: Final = 5000
"""The most commits of one repository among them."""
START_MS: Final = 1_700_000_000_000
DAY_MS: Final = 86_400_000
TASKS: Final = ("legal-qa", "summarize", "translate", "triage", "sql", "extract", "classify", "rewrite", "chat", "code")
LICENSES: Final = ("mit", "apache-2.0", "cc-by-4.0", "llama3", "other")
RANKS: Final = (4, 8, 16, 32, 64)
METHODS: Final = ("LORA", "LORA", "LORA", "LORA", "LOHA")
WORDS: Final = ("contract", "clause", "invoice", "patient", "ticket", "query", "summary", "review", "protein", "poem")
DAYS: Final = 10
"""The days of which a repository has downloads."""

Row = tuple[Any, ...]
Rows = dict[str, list[Row]]


def digest(text: str) -> str:
    """A made-up sha256."""
    return hashlib.sha256(text.encode()).hexdigest()


def number(text: str, below: int) -> int:
    """A made-up number."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big") % below


@dataclass(frozen=True)
class Shape:
    """What a registry of so many builds has, by the number of a repository from 0 on."""

    builds: int

    @cached_property
    def repos(self) -> int:
        return max(self.builds // 10, 20)

    @cached_property
    def bases(self) -> int:
        return max(self.repos // 100, 10)

    @cached_property
    def teams(self) -> int:
        return max(self.repos // 20, 5)

    @cached_property
    def users(self) -> int:
        return max(self.builds // 100, 10)

    @property
    def large(self) -> str:
        """The repository of many versions."""
        return self.full_name(0)

    @property
    def long(self) -> str:
        """The repository of many commits."""
        return self.full_name(1)

    def namespace(self, n: int) -> str:
        return "corp" if n % 10 == 0 else f"team{n % self.teams}"

    def task(self, n: int) -> str:
        return TASKS[number(f"task {n}", len(TASKS))]

    def full_name(self, n: int) -> str:
        return f"{self.namespace(n)}/{self.task(n)}-{n}"

    def versions(self, n: int) -> int:
        return max(self.builds // 100, 20) if n == 0 else 1 if n == 1 else 1 + number(f"versions {n}", 19)

    def commits(self, n: int) -> int:
        return max(self.builds // 10, 100) if n == 1 else 1 + self.versions(n)

    def base(self, n: int) -> int:
        """The base of a repository: the k-th is about 1/k as frequent as the first."""
        return int(self.bases ** (number(f"base {n}", 1 << 20) / (1 << 20))) - 1

    def is_private(self, n: int) -> bool:
        return n > 1 and number(f"private {n}", 100) == 0

    def is_gated(self, n: int) -> bool:
        return n > 1 and number(f"gated {n}", 200) == 0

    def is_yanked(self, n: int, version: int) -> bool:
        return number(f"yanked {n} {version}", 50) == 0

    def base_digest(self, k: int) -> str:
        return digest(f"base {k}")

    def at(self, n: int, version: int) -> int:
        """When a version was pushed: all within two years, in no order of the repositories."""
        first = number(f"at {n}", 600) * DAY_MS + n % DAY_MS
        return START_MS + first + version * 3_600_000


@dataclass(frozen=True)
class SmallFiles:
    """Files with bytes, which many repositories share."""

    attributes: StoredBlob
    cards: Sequence[StoredBlob]
    configs: Sequence[StoredBlob]
    contract: StoredBlob
    signature: StoredBlob


def store_small_files(blobs: BlobStore) -> SmallFiles:
    """Put the files with bytes into the store."""

    def put(text: str) -> StoredBlob:
        return blobs.put([text.encode()], size=len(text.encode()))

    def config(rank: int, method: str) -> str:
        return json.dumps({"peft_type": method, "r": rank, "base_model_name_or_path": "org/base-0"})

    return SmallFiles(
        attributes=put("*.safetensors filter=lfs diff=lfs merge=lfs -text\n"),
        cards=[put(f"---\nlicense: {name}\n---\n# An adapter\n\nIt answers questions.\n") for name in LICENSES],
        configs=[put(config(rank, method)) for rank in RANKS for method in dict.fromkeys(METHODS)],
        contract=put('{"not": "a contract"}\n'),
        signature=put("{}"),
    )


def fill(database: Database, shape: Shape, files: SmallFiles) -> None:
    """Write the rows of a registry of this shape into a new database."""
    with _bare(database) as writer:
        filling = _Filling(shape, files)
        for n in range(shape.repos):
            for part in filling.repository(n):
                writer.write(part)
        writer.write(_accounts(shape, files))
    if database.is_shared:
        return
    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")


class _Writer:
    """Writes rows in batches, by the fastest way of the database."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._waiting: Rows = {}
        self._count = 0

    def write(self, rows: Rows) -> None:
        for name, some in rows.items():
            self._waiting.setdefault(name, []).extend(some)
            self._count += len(some)
        if self._count > AT_ONCE:
            self.flush()

    def flush(self) -> None:
        for name, rows in self._waiting.items():
            columns = COLUMNS[name]
            if isinstance(self._connection, sqlite3.Connection):
                marks = ",".join("?" * len(columns))
                self._connection.executemany(f"INSERT INTO {name} ({','.join(columns)}) VALUES ({marks})", rows)  # noqa: S608
                continue
            flags = [at for at, one in enumerate(columns) if one in FLAGS]
            with self._connection.cursor().copy(f"COPY {name} ({','.join(columns)}) FROM STDIN") as copy:
                for row in rows:
                    values = list(row)
                    for at in flags:
                        values[at] = bool(values[at])
                    copy.write_row(values)
        self._waiting, self._count = {}, 0


@contextlib.contextmanager
def _bare(database: Database) -> Iterator[_Writer]:
    """A writer of a database without its indexes and triggers, which come back with their rows."""
    with database.engine.connect() as connection:
        raw: Any = connection.connection.driver_connection
        if database.is_shared:
            yield from _bare_postgresql(raw)
        else:
            yield from _bare_sqlite(connection, raw)


def _bare_sqlite(connection: Connection, raw: sqlite3.Connection) -> Iterator[_Writer]:
    for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-1500000", "foreign_keys=OFF", "mmap_size=0"):
        raw.execute(f"PRAGMA {pragma}").fetchall()
    raw.execute("PRAGMA temp_store=FILE")
    made = "SELECT type, name, sql FROM sqlite_master WHERE type IN ('index', 'trigger') AND sql IS NOT NULL"
    parts = raw.execute(made).fetchall()
    for kind, name, _ in parts:
        raw.execute(f"DROP {kind} {name}")
    raw.execute("BEGIN")
    writer = _Writer(raw)
    yield writer
    writer.flush()
    raw.execute("COMMIT")
    for kind, _, sql in parts:
        if kind == "index":
            raw.execute(sql)
    for index in (TEXTS, NAMES):
        add_trigrams(connection, index)
    add_stems(connection)
    start_counting(connection)
    keep_tag_sets(connection)
    left = {name for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")}
    for kind, name, sql in parts:
        if kind == "trigger" and name not in left:
            raw.execute(sql)
    raw.commit()
    raw.execute("PRAGMA journal_mode=WAL").fetchall()


def _bare_postgresql(raw: Any) -> Iterator[_Writer]:
    raw.execute("SET session_replication_role = replica")
    raw.execute("SET maintenance_work_mem = '512MB'")
    made = (
        "SELECT c.relname, pg_get_indexdef(i.indexrelid) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
        " JOIN pg_namespace s ON s.oid = c.relnamespace WHERE s.nspname = 'public'"
        " AND i.indexrelid NOT IN (SELECT conindid FROM pg_constraint WHERE conindid <> 0)"
    )
    parts = raw.execute(made).fetchall()
    for name, _ in parts:
        raw.execute(f"DROP INDEX {name}")
    writer = _Writer(raw)
    yield writer
    writer.flush()
    for _, sql in parts:
        raw.execute(sql)
    numbered = [table.name for table in metadata.tables.values() if "id" in COLUMNS.get(table.name, ())]
    for name in numbered:  # numbers were given by hand: the sequence goes on behind them
        sequence = raw.execute("SELECT pg_get_serial_sequence(%s, 'id')", (name,)).fetchone()[0]
        if sequence is not None:
            raw.execute(f"SELECT setval('{sequence}', (SELECT max(id) FROM {name}))")  # noqa: S608
    raw.execute("SET session_replication_role = origin")
    raw.execute("VACUUM ANALYZE")


COLUMNS: Final = {
    "users": ("id", "name", "created_at"),
    "tokens": ("id", "sha256", "user_id", "label", "role", "namespaces", "created_at"),
    "records": (
        "id", "position", "seal", "created_at", "actor", "user_name", "address", "action", "namespace", "repo", "subject"
    ),
    "members": ("namespace", "team", "user_id", "source", "role", "created_at", "created_by"),
    "teams": ("namespace", "name", "role", "repos", "created_at", "created_by"),
    "repos": (
        "id", "full_name", "namespace", "folded", "folded_namespace", "private", "gated", "created_by", "created_at",
        "modified_at", "head", "downloads", "used_bytes", "most_bytes", "pipeline_tag", "library_name", "card", "config",
    ),
    "refs": ("repo_id", "kind", "name", "commit_id", "created_at"),
    "commits": ("repo_id", "id", "parent", "root", "depth", "title", "message", "author", "created_at"),
    "nodes": ("repo_id", "id", "body"),
    "places": ("repo_id", "sha256", "path", "commit_id"),
    "blobs": ("sha256", "git_sha1", "size", "created_at"),
    "uploads": ("repo_id", "sha256", "user_name", "created_at", "token_id"),
    "repo_tags": ("repo_id", "tag", "modified_at"),
    "adapters": (
        "repo_id", "commit_id", "digest", "weights_sha256", "name", "version", "base_model", "base_sha256",
        "base_tensors", "base_files", "task", "peft_type", "methods", "rank", "alpha", "target_modules", "dtype",
        "parameters", "description", "words", "examples", "is_head", "is_listed", "is_warned", "created_at",
    ),
    "releases": (
        "repo_id", "version", "namespace", "version_key", "place", "tag", "commit_id", "digest", "created_at",
        "yanked_at", "yanked_by", "yanked_reason",
    ),
    "derived": ("digest", "state", "attempts", "due_at", "reason"),
    "base_claims": ("digest", "base_sha256", "claim", "method"),
    "parents": ("digest", "position", "parent", "spec", "weight", "relation"),
    "texts": ("repo_id", "body"),
    "wordings": ("repo_id", "name", "task", "description", "prompts", "body"),
    "downloads": ("repo_id", "day", "count"),
    "events": ("id", "number", "public_id", "type", "repo", "private", "data", "created_at"),
    "adapter_names": ("namespace", "name", "repo_id", "created_at"),
    "alias_moves": ("id", "repo_id", "alias", "created_at", "actor", "action", "targets"),
}  # fmt: skip
FLAGS: Final = frozenset({"private", "is_head", "is_listed", "is_warned"})


class _Filling:
    """The rows of some repositories."""

    def __init__(self, shape: Shape, files: SmallFiles) -> None:
        self._shape, self._files = shape, files
        self._events = itertools.count(1)

    def repository(self, n: int) -> Iterator[Rows]:  # noqa: PLR0915 - a table after the other
        """The rows of one repository, in parts."""
        shape, rows = self._shape, {name: [] for name in COLUMNS}
        repo_id, full_name, space, task = n + 1, shape.full_name(n), shape.namespace(n), shape.task(n)
        k, rank = shape.base(n), RANKS[number(f"rank {n}", len(RANKS))]
        method = METHODS[number(f"method {n}", len(METHODS))]
        license_at = number(f"license {n}", len(LICENSES))
        name = full_name.partition("/")[2]
        card = self._files.cards[license_at]
        config = self._files.configs[RANKS.index(rank) * 2 + (method != "LORA")]
        shared = {".gitattributes": self._files.attributes, "README.md": card, "adapter_config.json": config}
        if number(f"tested {n}", 5) == 0:
            shared["evals.jsonl"] = self._files.contract
        if number(f"signed {n}", 10) == 0:
            shared["model.sig"] = self._files.signature
        description = " ".join(WORDS[number(f"word {n} {at}", len(WORDS))] for at in range(6)) + f" number {n}"
        words = f"{name} {task} org/base-{k} {description}".lower()
        versions, count = shape.versions(n), shape.commits(n)
        listed = next((v for v in reversed(range(versions)) if not shape.is_yanked(n, v)), versions - 1)
        any_yanked = any(shape.is_yanked(n, v) for v in range(versions))
        author, parent, first = f"user{n % shape.users}", None, ""
        at = shape.at(n, 0)
        for step in range(count):
            at = START_MS + step * 60_000 if n == 1 else shape.at(n, step)
            commit = digest(f"commit {n} {step}")[:40]
            first = first or commit
            weights = digest(f"weights {n} {step}")
            entries = self._entries(shared, weights, first, commit, at, is_first=step == 0)
            raw = TreeNode(0, entries).raw
            root = id_of(raw)
            rows["commits"].append((repo_id, commit, parent, root, step + 1, f"Step {step}", "", author, at))
            rows["nodes"].append((repo_id, root, pack(raw)))
            parent = commit
            if step == 0:
                rows["places"] += [(repo_id, blob.sha256, path, commit) for path, blob in shared.items()]
                continue
            rows["places"].append((repo_id, weights, "adapter_model.safetensors", commit))
            rows["blobs"].append((weights, weights[:40], 1_843_200 * rank, at))
            rows["uploads"].append((repo_id, weights, author, at, 1 + n % shape.users))
            release = step - 1 if n != 1 else step - (count - versions)
            if release < 0:
                continue
            text, build = f"{release + 1}.0.0", digest(f"manifest {n} {release}")
            yanked = shape.is_yanked(n, release)
            why = (at + DAY_MS, author, "wrong data") if yanked else (None, None, None)
            rows["releases"].append(
                (
                    repo_id,
                    text,
                    space,
                    version_key_of(text),
                    version_order_of(text),
                    f"v{text}",
                    commit,
                    build,
                    at,
                    *why,
                )
            )
            rows["refs"].append((repo_id, "tag", f"v{text}", commit, at))
            base = shape.base_digest(k)
            rows["adapters"].append(
                (
                    repo_id, commit, build, weights, name, text, f"org/base-{k}", base, digest(f"tensors {k}"), None, task,
                    method, json.dumps([method.lower()]), rank, 2.0 * rank, '["q_proj", "v_proj"]', "F32", 460_800 * rank,
                    description, words, "", step == count - 1, release == listed and not yanked,
                    release == listed and any_yanked, at,
                )
            )  # fmt: skip
            rows["derived"].append((build, "none", 1, at, "made up"))
            rows["base_claims"].append((build, base, digest(f"claim {k}"), 1))
            if number(f"parents {n} {release}", 50) == 0 and n:
                other = number(f"parent {n} {release}", n)
                rows["parents"].append(
                    (build, 0, digest(f"manifest {other} 0"), shape.full_name(other), 1.0, "merged from")
                )
            rows["events"].append(self._event(n, full_name, name, text, build, private=shape.is_private(n)))
            if len(rows["commits"]) >= PART:
                yield rows
                rows = {name: [] for name in COLUMNS}
        rows["refs"].append((repo_id, "branch", "main", parent, at))
        if n % 5 == 0:
            self._alias(rows, repo_id, parent, f"{versions}.0.0", digest(f"manifest {n} {versions - 1}"), at)
        tags = ["adapterhub", "peft", "safetensors", method.lower(), f"base_model:adapter:org/base-{k}", task]
        tags += [f"lora-rank:{rank}", f"base-sha256:{shape.base_digest(k)[:32]}", f"adapter-task:{task}"]
        tags += [f"{TAG}{name}", f"license:{LICENSES[license_at]}"]
        rows["repo_tags"] += [(repo_id, tag, at) for tag in tags]
        private = shape.is_private(n)
        rows["repos"].append(
            (
                repo_id, full_name, space, f"~{full_name}" if private else full_name, space, private,
                "auto" if shape.is_gated(n) else None, author, shape.at(n, 0), at, parent,
                DAYS * number(f"downloads {n}", 100) + DAYS * n % 977, 1_843_200 * rank, 1_843_200 * rank * count, task,
                "peft", json.dumps({"license": LICENSES[license_at]}), json.dumps({"peft": {"peft_type": method}}),
            )
        )  # fmt: skip
        rows["texts"].append((repo_id, f"{full_name} {words}"))
        rows["wordings"].append(
            (repo_id, full_name, task, description, "", f"{full_name} {task} {description}".lower())
        )
        today = now_ms() // DAY_MS
        rows["downloads"] += [(repo_id, today - day, 1 + n % 100) for day in range(DAYS)]
        rows["adapter_names"].append((space, name, repo_id, at))
        yield rows

    @staticmethod
    def _entries(
        shared: dict[str, StoredBlob], weights: str, first: str, commit: str, at: int, *, is_first: bool
    ) -> list[TreeFile]:
        since = {"changed_in": first, "changed_at": at}
        found = [
            TreeFile(path=path, sha256=blob.sha256, git_sha1=blob.git_sha1, size=blob.size, lfs=False, **since)
            for path, blob in shared.items()
        ]
        if not is_first:
            mine = {"changed_in": commit, "changed_at": at}
            path = "adapter_model.safetensors"
            found.append(TreeFile(path=path, sha256=weights, git_sha1=weights[:40], size=1_843_200, lfs=True, **mine))
        return sorted(found, key=lambda one: one.path)

    def _event(self, n: int, full_name: str, name: str, version: str, build: str, *, private: bool) -> Row:
        data = json.dumps({"name": name, "version": version, "digest": f"sha256:{build}"})
        place = next(self._events)
        recent = now_ms() - (n * 7919 % (20 * DAY_MS))  # the feed keeps thirty days
        mine = (f"evt_{build[:32]}", "version.published", full_name, private, data, recent)
        return (place, START_MS * 1000 + place * 1000, *mine)

    @staticmethod
    def _alias(rows: Rows, repo_id: int, commit: str | None, version: str, build: str, at: int) -> None:
        targets = json.dumps([{"version": version, "digest": f"sha256:{build}", "weight": 1.0}])
        rows["refs"].append((repo_id, "alias", "prod", commit, at))
        for move in range(3):
            at_move = (repo_id * 3 + move, repo_id, "prod", at - (3 - move) * DAY_MS, "user1 (token 1)", "set", targets)
            rows["alias_moves"].append(at_move)


@lru_cache
def version_key_of(text: str) -> str:
    return version_key(text)


@lru_cache
def version_order_of(text: str) -> bytes:
    return version_order(text)


def _accounts(shape: Shape, files: SmallFiles) -> Rows:
    """Users with a token each, the log of these, and the rows of the files with bytes."""
    numbers = range(1, shape.users + 1)
    at = START_MS
    small = [files.attributes, *files.cards, *files.configs, files.contract, files.signature]
    return {
        "users": [(n, f"user{n}", at) for n in numbers],
        "tokens": [
            (n, digest(f"token {n}"), n, f"user{n}-write", "write", json.dumps([f"user{n}/*"]), at) for n in numbers
        ],
        "records": [
            (
                n + 1,
                n + 1,
                "0" * 64,
                at + n,
                f"user{n % shape.users} (token 1)",
                f"user{n % shape.users}",
                f"10.0.{n % 7}.{n % 250}",
                "yank" if n % 1000 == 0 else "release",
                shape.full_name(n).partition("/")[0],
                shape.full_name(n),
                "1.0.0",
            )
            for n in range(shape.repos)
        ],
        "members": [
            ("corp", "" if n % 2 else f"team{n % 50}", n, "", "read" if n % 2 else None, at, "x") for n in numbers
        ],
        "teams": [("corp", f"team{n}", "write", "*", at, "x") for n in range(0, 50, 2)],
        "blobs": [(one.sha256, one.git_sha1, one.size, at) for one in dict.fromkeys(small)],
    }
