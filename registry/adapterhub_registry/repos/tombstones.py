"""Releases whose repository is gone: their versions never get other bytes, the same bytes may come back."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, false, select
from sqlalchemy.engine import Connection

from adapterhub_registry.database.db import adapters, insert_new, now_ms, releases, repos, tombstones
from adapterhub_registry.errors import conflict
from adapterhub_registry.repos.adapter_facts import AdapterFacts


def bury(connection: Connection, repo: Row[Any]) -> None:
    """Remember the releases of a repository that gives up its name; call it before the name is free."""
    # waits for a release that is being made: it refers to this row
    connection.execute(select(repos.c.id).where(repos.c.id == repo.id).with_for_update())
    mine = (adapters.c.repo_id == releases.c.repo_id) & (adapters.c.commit_id == releases.c.commit_id)
    about = (adapters.c.name, adapters.c.base_sha256, adapters.c.base_model, adapters.c.rank)
    found = connection.execute(
        select(releases.c.version, releases.c.digest, *about)
        .join_from(releases, adapters, mine, isouter=True)
        .where(releases.c.repo_id == repo.id)
    )
    named = {"full_name": repo.full_name, "namespace": repo.namespace, "created_at": now_ms()}
    insert_new(connection, tombstones, [named | dict(row) for row in found.mappings()])


def refuse_other_bytes(connection: Connection, repo: Row[Any], version: str, adapter: AdapterFacts) -> None:
    """Refuse when this version, here or of this adapter in this namespace, was released with another digest.

    Call it after a look at the releases that are there: one that is removed meanwhile has its tombstone by then.
    """
    same = (
        (tombstones.c.namespace == repo.namespace)
        & (tombstones.c.name == adapter.name)
        & tombstones.c.base_sha256.is_not_distinct_from(adapter.base_weights)
        & tombstones.c.base_model.is_not_distinct_from(adapter.base)
        & tombstones.c.rank.is_not_distinct_from(adapter.rank)
    )
    here = tombstones.c.full_name == repo.full_name
    other = (tombstones.c.version == version) & (tombstones.c.digest != adapter.digest)
    wanted = select(tombstones.c.full_name).where(other, here | (same if adapter.name is not None else false()))
    holder = connection.scalar(wanted.limit(1))
    if holder is not None:
        raise _gone(holder, version)


def refuse_without_adapter(connection: Connection, repo: Row[Any], version: str | None) -> None:
    """Refuse when this version was released under the name of `repo`: a commit without an adapter is not that one."""
    here = (tombstones.c.full_name == repo.full_name) & (tombstones.c.version == version)
    if connection.scalar(select(tombstones.c.version).where(here)) is not None:
        raise _gone(repo.full_name, version)


def refuse_arrival(connection: Connection, repo: Row[Any], full_name: str) -> None:
    """Refuse when a repository would bring other bytes for a version that was released under its new name."""
    same = (tombstones.c.version == releases.c.version) & (tombstones.c.digest != releases.c.digest)
    wanted = select(releases.c.version).join_from(releases, tombstones, same)
    version = connection.scalar(
        wanted.where(releases.c.repo_id == repo.id, tombstones.c.full_name == full_name).limit(1)
    )
    if version is not None:
        raise _gone(full_name, version)


def _gone(holder: str, version: str | None) -> Exception:
    return conflict(
        f"release {version} of `{holder}` was removed and had other bytes; releases never change: raise the version"
    )
