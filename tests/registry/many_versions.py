"""A repository of many versions, written as pushes leave them: each with its manifest, commit, tag, release and event."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from adapterhub_registry.database.db import Database, adapters, events, now_ms, refs, releases, repos
from adapterhub_registry.repos import commits
from adapterhub_registry.storage.blobs import DiskBlobs, StoredBlob
from sqlalchemy import insert, select, update

from adapterhub.core.digests import hex_of
from adapterhub.formats.manifest import MANIFEST_FILE, Manifest

STEP = 500


def add_versions(database: Database, store: DiskBlobs, repo: str, numbers: range) -> None:
    """Versions 0.0.N of a repository that has one: its newest build under other versions."""
    with database.begin() as connection:
        row = connection.execute(select(repos).where(repos.c.full_name == repo)).one()
        mine = adapters.c.repo_id == row.id
        facts = dict(connection.execute(select(adapters).where(mine, adapters.c.is_head)).mappings().one())
        entry = commits.tree_of(connection, row.id, row.head).find(MANIFEST_FILE)
        assert entry is not None
        manifest = Manifest.parse(b"".join(store.open(entry.sha256)), MANIFEST_FILE)
    for start in range(numbers.start, numbers.stop, STEP):
        with database.begin() as connection:
            head = connection.scalars(select(repos.c.head).where(repos.c.id == row.id)).one()
            tree = commits.tree_of(connection, row.id, head)
            rows: dict[object, list[dict[str, object]]] = {table: [] for table in (adapters, releases, refs, events)}
            for number in range(start, min(start + STEP, numbers.stop)):
                version, at = f"0.0.{number}", now_ms()
                made = replace(manifest, version=version)
                put = commits.Put(path=MANIFEST_FILE, blob=_stored(store, made.to_bytes()), lfs=False)
                head = commits.write(connection, tree, head, {MANIFEST_FILE: put}, (f"x {version}", "", "admin"))
                tree = commits.tree_of(connection, row.id, head)
                about = {"repo_id": row.id, "commit_id": head, "created_at": at}
                one = {"version": version, "digest": hex_of(made.digest)}
                rows[adapters].append(facts | about | one | {"is_head": False, "is_listed": False})
                rows[releases].append(about | one | {"tag": f"v{version}"})
                rows[refs].append(about | {"kind": "tag", "name": f"v{version}", "message": None})
                told = {"type": "version.published", "repo": repo, "private": False, "data": "{}", "created_at": at}
                rows[events].append(told | {"public_id": f"evt_{head}"})
            for table, some in rows.items():
                connection.execute(insert(table), some)  # type: ignore[call-overload]
            at_main = (refs.c.repo_id == row.id) & (refs.c.kind == "branch") & (refs.c.name == "main")
            connection.execute(update(refs).where(at_main).values(commit_id=head))
            connection.execute(update(repos).where(repos.c.id == row.id).values(head=head))
            connection.execute(update(adapters).where(mine).values(is_head=adapters.c.commit_id == head))


def _stored(store: DiskBlobs, data: bytes) -> StoredBlob:
    """The blob, written without waiting for the disk."""
    sha256 = hashlib.sha256(data).hexdigest()
    path = store._path(sha256)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    return StoredBlob(sha256, git, len(data))
