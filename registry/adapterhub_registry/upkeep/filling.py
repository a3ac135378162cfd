"""Imports a folder of adapters: each becomes a repository whose head has its files, and its version is released.

    FOLDER/NAMESPACE/NAME/   adapter_config.json, adapter_model.safetensors, and what else lies there

Adapters arrive together: their files are stored first, then one transaction writes the rows of those whose
repositories are new and that nothing in the registry can contradict. Every other one, such as the next version of a
repository, takes the way of a push. Nothing that is there is read again, so an interrupted import goes on when it is
repeated.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from sqlalchemy import Table, bindparam, cast, delete, exists, func, literal, select, text, update
from sqlalchemy.engine import Connection

from adapterhub.core.disk.files import open_plain
from adapterhub.core.errors import AdapterHubError, Malformed, NotFound, shown
from adapterhub.core.specs import fold, version_key, version_order
from adapterhub.formats.administration import Filled
from adapterhub.formats.manifest import CONFIG_FILE
from adapterhub_registry.access.callers import OPERATOR
from adapterhub_registry.api.context import Registry
from adapterhub_registry.api.hub.upload import SAMPLE_BYTES, goes_by_lfs
from adapterhub_registry.database.db import (
    adapter_names,
    adapters,
    blobs,
    commits,
    derived,
    insert_new,
    lock_name,
    lock_space,
    nodes,
    now_ms,
    places,
    redirects,
    refs,
    releases,
    repo_tags,
    repos,
    test_rules,
    tombstones,
)
from adapterhub_registry.database.prepared import PreparedSql
from adapterhub_registry.database.search_tables import among, columns_of, rows_of, texts, wordings
from adapterhub_registry.database.steps import Progress, batches, silent
from adapterhub_registry.database.trees import FileTree, Totals, fits_leaf, key_of, leaf_of
from adapterhub_registry.errors import HttpRefusal
from adapterhub_registry.names import RepoId, parse_path, parse_repo_id
from adapterhub_registry.repos import adapter_facts
from adapterhub_registry.repos import adapters as adapter_index
from adapterhub_registry.repos.adapter_facts import AdapterFacts
from adapterhub_registry.repos.adapters import version_of
from adapterhub_registry.repos.commits import (
    Delete,
    Operation,
    Proposal,
    Put,
    commit,
    entry_of,
    first_file,
    head_facts,
    id_of_commit,
    tree_of,
)
from adapterhub_registry.repos.git_patterns import ATTRIBUTES_FILE
from adapterhub_registry.repos.repos import MAIN, name_columns
from adapterhub_registry.storage.blobs import CHUNK_BYTES, BlobReader, PutNext, StoredBlob

TOGETHER: Final = 400
"""The files of so many adapters are stored together."""
WRITTEN: Final = 100
"""How many adapters one transaction writes: less than a tenth of a second of CPU, while pushes wait."""
MOST_PROBLEMS: Final = 1000
SMALL_BYTES: Final = 64 << 10
"""A file of at most this size is kept in memory until its rows are written."""
KNOWN: Final = 2000
"""How many small files of the last adapters are known by their bytes: many adapters have the same config."""
STORED_AT_ONCE: Final = 16
"""How many files travel to a bucket at the same time."""
_HEADER_BYTES: Final = 8
_TITLE: Final = "Import"


class _Files(dict[str, str]):
    """The sha256 of each path of an adapter, with the sums over all files."""

    totals: Totals = Totals()


@dataclass(slots=True)
class _Arrival:
    """An adapter on its way in: its repository, and its files as they were stored."""

    repo_id: RepoId
    folder: Path
    private: bool
    puts: dict[str, Put] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return self.repo_id.partition("/")[0]


def fill(registry: Registry, folder: Path, *, private: bool = False, progress: Progress = silent) -> Filled:
    """Import every `folder/NAMESPACE/NAME` with an adapter; repositories that have these files already are left alone.

    Servers may run. New repositories send no events. An adapter that cannot come in is named in the result, with the
    reason, and the others go on.

    Raises:
        NotFound: there is no such folder.
        DiskFull: no room is left; what came so far stays.
    """
    if not folder.is_dir():
        raise NotFound(f"no folder `{shown(str(folder), 200)}`; nothing was imported", hint="check the path")
    filling = _Filling(registry, private=private)
    total = sum(1 for _ in _folders(folder))
    for done, some in enumerate(batches(_folders(folder), TOGETHER)):
        progress("adapters", done * TOGETHER, total)
        filling.take(some)
    return Filled(
        added=filling.added,
        updated=filling.updated,
        unchanged=filling.unchanged,
        bytes=filling.bytes,
        problems=tuple(filling.problems),
    )


def _folders(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Yield the namespace, the name and the place of each folder two levels down."""
    for namespace in _subfolders(folder):
        for name in _subfolders(namespace.path):
            yield namespace.name, name.name, Path(name.path)


def _subfolders(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                yield entry


def _files_in(folder: Path, below: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """Yield the path and the facts of each regular file below a folder, without hidden ones."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _files_in(Path(entry.path), f"{below}{entry.name}/")
            elif entry.is_file(follow_symlinks=False):
                yield f"{below}{entry.name}", entry.stat(follow_symlinks=False)


class _Beginnings:
    """Blobs that facts are read from, by sha256: small files and headers of tensors; the rest comes from the store."""

    def __init__(self, store: BlobReader) -> None:
        self._store = store
        self._held: dict[str, tuple[int, bytes]] = {}

    def hold(self, sha256: str, size: int, content: bytes) -> None:
        """Keep the first bytes of a blob."""
        self._held[sha256] = (size, content)

    def clear(self) -> None:
        """Keep nothing."""
        self._held.clear()

    def size(self, sha256: str) -> int:
        """As that of the store."""
        held = self._held.get(sha256)
        return self._store.size(sha256) if held is None else held[0]

    def open(self, sha256: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """As that of the store."""
        size, content = self._held.get(sha256, (0, b""))
        if (size if end is None else end) <= len(content) and content:
            return iter([content[start:end]])
        return self._store.open(sha256, start, end)


class _Filling:
    """An import under way."""

    def __init__(self, registry: Registry, *, private: bool) -> None:
        self._registry, self._private = registry, private
        self._known: OrderedDict[bytes, StoredBlob] = OrderedDict()
        self._beginnings = _Beginnings(registry.blobs)
        self._near: OrderedDict[str, bool] = OrderedDict()
        self._first = first_file(registry.blobs)
        self.added = self.updated = self.unchanged = self.bytes = 0
        self.problems: list[str] = []

    def take(self, folders: Sequence[tuple[str, str, Path]]) -> None:
        """Bring in some adapters."""
        self._beginnings.clear()
        found = [one for one in (self._looked_at(*folder) for folder in folders) if one is not None]
        if not found:
            return
        same = self._same(found)
        self.unchanged += len(same)
        arrivals = [_Arrival(name, place, self._private) for name, place, _ in found if name not in same]
        if not arrivals:
            return
        with self._registry.blobs.together() as put_next:
            put = partial(self._store, put_next)
            if self._registry.settings.s3 is None:
                stored = [put(one) for one in arrivals]
            else:
                with ThreadPoolExecutor(STORED_AT_ONCE) as pool:
                    stored = list(pool.map(put, arrivals))
        facts = [(one, self._facts_of(one)) for one, is_stored in zip(arrivals, stored, strict=True) if is_stored]
        for part in batches(facts, WRITTEN):
            with self._registry.db.begin() as connection:
                lock_space(connection)
                plain = self._plain(connection, part)
                self._insert(connection, [(one, adapter) for one, adapter in part if one.repo_id in plain and adapter])
            self.added += len(plain)
            for one, adapter in part:
                if one.repo_id not in plain:
                    self._push(one, adapter)

    def _problem(self, name: str, why: str) -> None:
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(f"{shown(name, 200)}: {shown(why, 400)}")

    # ------------------------------------------------------------ files
    def _looked_at(
        self, namespace: str, name: str, folder: Path
    ) -> tuple[RepoId, Path, dict[str, os.stat_result]] | None:
        """Return the repository and the files of a folder; None for one that holds no adapter, which is a problem."""
        try:
            repo_id = parse_repo_id(namespace, name)
            if namespace.lower() in self._registry.repos.reserved:
                raise NotFound(f"the namespace `{namespace}` is reserved; rename the folder")
            files = {parse_path(path): facts for path, facts in _files_in(folder)}
            if CONFIG_FILE not in files:
                raise NotFound(f"holds no {CONFIG_FILE}, expected a PEFT folder")
            if len(files) > self._registry.settings.limits.files:
                raise NotFound(
                    f"holds {len(files)} files; a repository holds at most {self._registry.settings.limits.files}"
                )
        except (AdapterHubError, HttpRefusal) as error:
            self._problem(f"{namespace}/{name}", error.message)
            return None
        return repo_id, folder, files

    def _same(self, found: Sequence[tuple[RepoId, Path, dict[str, os.stat_result]]]) -> set[str]:
        """Return the repositories that have these files: of the same sizes, and not written since the head was made."""
        at = (commits.c.repo_id == repos.c.id) & (commits.c.id == repos.c.head)
        heads = select(repos.c.id, repos.c.full_name, commits.c.root, commits.c.created_at).join(commits, at)
        names = [name for name, _, _ in found]
        same = set()
        with self._registry.db.read() as connection:
            there = {row.full_name: row for row in connection.execute(heads.where(among(repos.c.full_name, names)))}
            for name, _, files in found:
                head = there.get(name)
                if head is not None and all(one.st_mtime * 1000 <= head.created_at for one in files.values()):
                    held = {entry.path: entry.size for entry in FileTree(connection, head.id, head.root).walk()}
                    held.pop(ATTRIBUTES_FILE, None)
                    if held == {path: one.st_size for path, one in files.items()}:
                        same.add(str(name))
        return same

    def _store(self, put: PutNext, arrival: _Arrival) -> bool:
        """Store the files of an adapter; whether all could be read."""
        try:
            for path, facts in _files_in(arrival.folder):
                arrival.puts[path] = self._stored(put, arrival.folder / path, path, facts.st_size)
        except OSError as error:
            self._problem(arrival.repo_id, f"{error.filename or arrival.folder}: {error.strerror or error}")
            return False
        except Malformed as error:  # it changes while it is read
            self._problem(arrival.repo_id, error.message)
            return False
        return True

    def _stored(self, put: PutNext, place: Path, path: str, size: int) -> Put:
        with open_plain(place) as stream:
            first = stream.read(min(max(size, 1), CHUNK_BYTES))
            small = size <= SMALL_BYTES
            blob = self._known.get(first) if small else None
            if blob is None:
                chunks = (chunk for chunk in (first, *iter(partial(stream.read, CHUNK_BYTES), b"")))
                blob = put(chunks, None, size)
                self.bytes += size
        if small:
            self._known[first] = blob
            while len(self._known) > KNOWN:
                self._known.popitem(last=False)
        header = _HEADER_BYTES + int.from_bytes(first[:_HEADER_BYTES], "little")
        self._beginnings.hold(blob.sha256, size, first if small else first[:header])
        return Put(path=path, blob=blob, lfs=goes_by_lfs(path, size, first[:SAMPLE_BYTES]))

    def _facts_of(self, arrival: _Arrival) -> AdapterFacts | None:
        return adapter_facts.facts_of({p: put.blob.sha256 for p, put in arrival.puts.items()}, self._beginnings)

    # ------------------------------------------------------------ rows
    def _plain(self, connection: Connection, facts: Sequence[tuple[_Arrival, AdapterFacts | None]]) -> set[str]:
        """Return the new repositories whose name, version and namespace no rule and no row can contradict."""
        names = [one.repo_id for one, _ in facts]
        for namespace in sorted({fold(one.namespace) for one, _ in facts}):
            lock_name(connection, f"namespace {namespace}")
        folded = {one.repo_id: name_columns(one.repo_id, private=one.private)["folded"] for one, _ in facts}
        taken = set(connection.scalars(select(repos.c.full_name).where(among(repos.c.full_name, names))))
        alike = set(connection.scalars(select(repos.c.folded).where(among(repos.c.folded, list(folded.values())))))
        buried = set(connection.scalars(select(tombstones.c.full_name).where(among(tombstones.c.full_name, names))))
        spaces = sorted({one.namespace for one, _ in facts})
        asking = set(
            connection.scalars(
                select(test_rules.c.namespace).where(test_rules.c.asks != "off", among(test_rules.c.namespace, spaces))
            )
        )
        named = _named(connection, facts, spaces)
        near = self._near_namespaces(connection, spaces)
        plain: set[str] = set()
        seen: set[str] = set()
        for one, adapter in facts:
            mine = (one.namespace, adapter.name) if adapter is not None and adapter.name is not None else None
            fits = one.repo_id not in taken | buried and not {folded[one.repo_id]} & (alike | seen)
            fits = fits and one.namespace not in asking and one.namespace not in near and mine not in named
            fits = fits and _is_public(adapter) and fits_leaf([*one.puts, ATTRIBUTES_FILE])
            if fits:
                plain.add(one.repo_id)
                seen.add(folded[one.repo_id])
                named |= {mine} if mine else set()
        return plain

    def _near_namespaces(self, connection: Connection, spaces: Sequence[str]) -> set[str]:
        """Return the namespaces that look like another one with a public repository, or like an earlier one."""
        new = [space for space in spaces if space not in self._near]
        by_fold: dict[str, set[str]] = {}
        for space in (*self._near, *new):
            by_fold.setdefault(fold(space), set()).add(space)
        others = select(repos.c.folded_namespace, repos.c.namespace).where(repos.c.private.is_(False)).distinct()
        keys = sorted({fold(space) for space in new})
        if keys:
            for row in connection.execute(others.where(among(repos.c.folded_namespace, keys))):
                by_fold[row.folded_namespace].add(row.namespace)
        for space in new:
            self._near[space] = len(by_fold[fold(space)]) > 1
        while len(self._near) > max(KNOWN, len(spaces)):
            self._near.popitem(last=False)
        return {space for space in spaces if self._near.get(space, True)}

    def _insert(self, connection: Connection, facts: Sequence[tuple[_Arrival, AdapterFacts]]) -> None:
        """Write the rows of adapters in new repositories, as one commit, one tag and one release each would."""
        if not facts:
            return
        now, author = now_ms(), str(OPERATOR.user)
        rows: dict[Table, list[dict[str, Any]]] = {table: [] for table in _WRITTEN}
        numbers = _next_numbers(connection, repos, len(facts))
        for number, (one, adapter) in zip(numbers, facts, strict=True):
            puts = dict(sorted([(ATTRIBUTES_FILE, self._first), *one.puts.items()], key=lambda item: key_of(item[0])))
            words = (_TITLE, one.repo_id, author)
            made = id_of_commit(None, dict(puts), words, now)
            root, body, totals = leaf_of([entry_of(put, made, now) for put in puts.values()])
            files = _Files({path: put.blob.sha256 for path, put in puts.items()})
            files.totals = totals
            version = None if adapter.version is None else version_of(f"v{adapter.version}")
            names = [adapter.name] if version is not None and adapter.name is not None else []
            card = adapter_facts.read_card(self._beginnings, files)
            config = adapter_facts.read_config(self._beginnings, files)
            earned = adapter_facts.tags_of_adapter(adapter)
            values, tags = head_facts(card, config, files, earned, names, adapter.task)
            mine, at = {"repo_id": number}, {"commit_id": made, "created_at": now}
            rows[repos].append(
                {
                    "id": number,
                    "created_by": author,
                    "created_at": now,
                    "modified_at": now,
                    "head": made,
                    "downloads": 0,
                }
                | {"most_bytes": totals.bytes}
                | name_columns(one.repo_id, private=one.private)
                | values
            )
            rows[nodes].append(mine | {"id": root, "body": body})
            rows[commits].append(
                mine
                | {"id": made, "parent": None, "root": root, "depth": 1, "created_at": now}
                | dict(zip(("title", "message", "author"), words, strict=True))
            )
            rows[refs].append(mine | at | {"kind": "branch", "name": MAIN})
            for path, put in puts.items():
                blob = put.blob
                rows[places].append(mine | {"sha256": blob.sha256, "path": path, "commit_id": made})
                rows[blobs].append(blob._asdict() | {"created_at": now})
            rows[repo_tags] += [mine | {"tag": tag, "modified_at": now} for tag in sorted(tags)]
            columns = adapter_index.columns_of(adapter)
            rows[adapters].append(mine | at | columns | {"is_head": True, "is_listed": True})
            rows[derived].append(adapter_index.waiting_record(adapter.digest))
            if version is not None:
                rows[refs].append(mine | at | {"kind": "tag", "name": f"v{version}"})
                released = {"version": version, "tag": f"v{version}", "digest": adapter.digest}
                order = {"version_key": version_key(version), "place": version_order(version)}
                rows[releases].append(mine | at | released | order | {"namespace": one.namespace})
                rows[adapter_names] += [
                    mine | {"namespace": one.namespace, "name": name, "created_at": now} for name in names
                ]
            about = SimpleNamespace(full_name=one.repo_id, gated=None, **columns)
            rows[texts].append(mine | {"body": f"{one.repo_id.lower()} {columns['words']}"})
            rows[wordings].append(mine | columns_of(adapter_index.wording_in(about)))
        digests = [row["digest"] for row in rows[derived]]
        known = among(derived.c.digest, digests) & (derived.c.state != "waiting")
        connection.execute(update(derived).where(known).values(due_at=now))  # as `rights.push_again`
        for table, some in rows.items():
            insert_new(connection, table, some)
        connection.execute(delete(redirects).where(among(redirects.c.full_name, [one.repo_id for one, _ in facts])))

    def _push(self, one: _Arrival, adapter: AdapterFacts | None) -> None:
        """Bring in one adapter as a push does."""
        registry = self._registry
        try:
            with registry.db.begin() as connection:
                lock_space(connection)
                there = select(repos).where(repos.c.full_name == one.repo_id)
                repo = connection.execute(there).one_or_none()
                is_new = repo is None
                if repo is None:
                    repo = registry.repos.create(connection, OPERATOR, one.repo_id, private=one.private)
                tree = tree_of(connection, repo.id, repo.head)
                gone = [entry.path for entry in tree.walk() if entry.path not in {*one.puts, ATTRIBUTES_FILE}]
                steps: list[Operation] = [*one.puts.values(), *map(Delete, gone)]  # type: ignore[arg-type]
                proposal = Proposal(
                    branch=MAIN,
                    title=_TITLE,
                    message="",
                    author=str(OPERATOR.user),
                    parent=None,
                    operations=tuple(steps),
                    writes=OPERATOR.writes,
                )
                head = commit(connection, registry.blobs, repo, proposal, max_files=registry.settings.limits.files)
                tag = None if adapter is None or adapter.version is None else f"v{adapter.version}"
                has_tag = (refs.c.repo_id == repo.id) & (refs.c.kind == "tag") & (refs.c.name == tag)
                at = connection.scalar(select(refs.c.commit_id).where(has_tag))
                if tag is not None and at != head:
                    registry.repos.create_tag(connection, OPERATOR, one.repo_id, tag, at=head, message=None)
        except (HttpRefusal, AdapterHubError) as error:
            self._problem(one.repo_id, error.message)
            return
        self.added, self.updated = self.added + is_new, self.updated + (not is_new)


def _named(
    connection: Connection, facts: Sequence[tuple[_Arrival, AdapterFacts | None]], spaces: Sequence[str]
) -> set[tuple[str, str]]:
    """Return the namespaces and names of some adapters of which a version may be there, or was.

    Of a name that many adapters have, every namespace counts that has a repository.
    """
    said = sorted({adapter.name for _, adapter in facts if adapter is not None and adapter.name is not None})
    buried = select(tombstones.c.namespace, tombstones.c.name).distinct()
    buried = buried.where(among(tombstones.c.namespace, spaces), among(tombstones.c.name, said))
    named = {(row.namespace, row.name) for row in connection.execute(buried)}
    items = rows_of(literal(json.dumps(list(spaces))))
    space = cast(items.c.value, repos.c.namespace.type)
    filled = connection.scalars(
        select(space).select_from(items).where(exists().where(repos.c.namespace == space))
    ).all()
    for name in said:
        holders = [str(row[0]) for row in _HOLDERS.tuples(connection, name=name)]
        named |= {(namespace, name) for namespace in (holders if len(holders) < _FEW else filled)}
    return named


_FEW: Final = 20
_HOLDERS: Final = PreparedSql(
    select(repos.c.namespace)
    .join_from(adapters, repos, repos.c.id == adapters.c.repo_id)
    .where(adapters.c.name == bindparam("name"))
    .limit(_FEW)
)
_WRITTEN: Final = (
    *(repos, nodes, commits, refs, places, blobs, repo_tags, adapters, derived, releases, adapter_names),
    *(texts, wordings),
)
"""The tables that a new adapter has rows in, each after those that its rows refer to."""


def _is_public(adapter: AdapterFacts | None) -> bool:
    """Return whether an adapter has no version, or one that may be released."""
    if adapter is None or adapter.version is None:
        return adapter is not None
    try:
        adapter_index.check_public(adapter.version)
    except HttpRefusal:
        return False
    return version_of(f"v{adapter.version}") is not None


def _next_numbers(connection: Connection, table: Table, count: int) -> Sequence[int]:
    """Numbers for new rows, which no row had before."""
    if connection.dialect.name == "postgresql":
        one = func.nextval(func.pg_get_serial_sequence(table.name, "id"))
        return connection.scalars(select(one).select_from(func.generate_series(1, count))).all()
    last = text("SELECT max(seq) FROM sqlite_sequence WHERE name = :name").bindparams(name=table.name)
    first = int(connection.scalar(last) or 0) + 1
    return range(first, first + count)
