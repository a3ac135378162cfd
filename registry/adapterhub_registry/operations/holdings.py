"""Checks that a registry has everything that its commits and uploads name, for example after restoring a backup."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.engine import Connection

from adapterhub.core.errors import BlobNotFound
from adapterhub.formats.administration import Holdings
from adapterhub_registry.database.db import Database, refs, repos, uploads
from adapterhub_registry.database.db import blobs as blobs_table
from adapterhub_registry.database.db import commits as commits_table
from adapterhub_registry.database.trees.trees import EMPTY, stored_nodes
from adapterhub_registry.repos import damage
from adapterhub_registry.storage.blobs import BlobStore, digest_of


def named_blobs(connection: Connection) -> dict[str, int]:
    """The size of every blob that a row or a tree names, by sha256."""
    known = select(blobs_table.c.sha256, blobs_table.c.size).order_by(blobs_table.c.sha256)
    named = {row.sha256: row.size for row in connection.execute(known)}
    for _, _, node in stored_nodes(connection):
        if node is not None and not node.height:
            named |= {entry.sha256: entry.size for entry in node.items}
    return named


def check_holdings(database: Database, blobs: BlobStore, *, read_bytes: bool = False) -> Holdings:
    """Check that everything that rows name exists: each blob, each ref's commit, each commit's tree.

    With `read_bytes`, also hash all bytes. This marks damaged blobs in the database, so that the server accepts their
    bytes again, and removes the mark from repaired ones.
    """
    with database.read() as connection:
        wanted = named_blobs(connection)
        known = set(connection.scalars(select(blobs_table.c.sha256)))
        sent = set(connection.scalars(select(uploads.c.sha256).distinct()))
        made = {
            (row.repo_id, row.id) for row in connection.execute(select(commits_table.c.repo_id, commits_table.c.id))
        }
        named_refs = connection.execute(
            select(refs.c.repo_id, refs.c.name, refs.c.commit_id, repos.c.full_name).join(repos)
        ).all()
        problems = _tree_problems(connection)
    problems += [
        f"{ref.full_name}: `{ref.name}` names commit {ref.commit_id}, which is missing"
        for ref in named_refs
        if (ref.repo_id, ref.commit_id) not in made
    ]
    problems += [
        f"blob {sha256}: an upload names it, but the table of blobs does not" for sha256 in sorted(sent - known)
    ]
    found = {sha256: _problem(blobs, sha256, size, read_bytes=read_bytes) for sha256, size in wanted.items()}
    if read_bytes:
        with database.begin() as connection:
            damage.mark(connection, [sha256 for sha256, problem in found.items() if problem])
            damage.unmark(connection, [sha256 for sha256, problem in found.items() if not problem])
    problems += [problem for problem in found.values() if problem]
    return Holdings(blobs=len(wanted), bytes=sum(wanted.values()), problems=tuple(problems))


def _tree_problems(connection: Connection) -> list[str]:
    """A sentence for each part of a tree that is missing or damaged."""
    names = {row.id: row.full_name for row in connection.execute(select(repos.c.id, repos.c.full_name))}
    trees = select(commits_table.c.repo_id, commits_table.c.root).where(commits_table.c.root != EMPTY)
    named = {(row.repo_id, row.root) for row in connection.execute(trees)}
    whole: set[tuple[int, str]] = set()
    damaged: set[tuple[int, str]] = set()
    for repo_id, node_id, node in stored_nodes(connection):
        (damaged if node is None else whole).add((repo_id, node_id))
        if node is not None and node.height:
            named |= {(repo_id, link.id) for link in node.items}
    problems = [f"{names[repo_id]}: part {node_id} of a tree is damaged" for repo_id, node_id in sorted(damaged)]
    missing = sorted(named - whole - damaged)
    return problems + [f"{names[repo_id]}: part {node_id} of a tree is missing" for repo_id, node_id in missing]


def _problem(blobs: BlobStore, sha256: str, size: int, *, read_bytes: bool) -> str | None:
    try:
        found = blobs.size(sha256)
        if found != size:
            return f"blob {sha256}: has {found} bytes, expected {size}"
        if read_bytes:
            digest = digest_of(blobs.open(sha256))
            if digest != sha256:
                return f"blob {sha256}: its bytes have the digest {digest}"
    except BlobNotFound:
        return f"blob {sha256}: is missing"
    except OSError as error:
        return f"blob {sha256}: cannot be read: {error.strerror or error}"
    return None
