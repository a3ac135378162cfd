"""Remembers the releases of removed repositories: their versions never get other bytes, but may return."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Row, Table, false, select
from sqlalchemy.engine import Connection

from adapterhub.core.specs import version_key
from adapterhub_registry.database.db import adapters, insert_new, now_ms, releases, repos, tombstones
from adapterhub_registry.errors import conflict
from adapterhub_registry.repos.adapter_facts import AdapterFacts


def bury(connection: Connection, repo: Row[Any]) -> None:
    """Record the releases of a repository that loses its name; call it before the name is free."""
    # waits for a concurrent release, which refers to this row
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


def check_release(connection: Connection, repo: Row[Any], version: str, adapter: AdapterFacts) -> None:
    """Raise when a removed release of this version, under this name or of the same adapter, had another digest.

    Check the existing releases first: one that is removed meanwhile then has its tombstone.

    Raises:
        Refusal: 409.
    """
    same = (tombstones.c.namespace == repo.namespace) & (tombstones.c.name == adapter.name)
    same &= has_build(tombstones, adapter)
    here = tombstones.c.full_name == repo.full_name
    other = (tombstones.c.version_key == version_key(version)) & (tombstones.c.digest != adapter.digest)
    wanted = select(tombstones.c.full_name, tombstones.c.version).where(
        other, here | (same if adapter.name is not None else false())
    )
    found = connection.execute(wanted.limit(1)).one_or_none()
    if found is not None:
        # never names another repository, which may have been private
        own = found.full_name == repo.full_name
        raise _gone(f"`{repo.full_name}`" if own else f"adapter `{adapter.name}` in `{repo.namespace}`", found.version)


def check_tag_without_adapter(connection: Connection, repo: Row[Any], version: str | None) -> None:
    """Raise when a removed release of `repo` had this version, which a commit without an adapter cannot be."""
    if version is None:
        return
    here = (tombstones.c.full_name == repo.full_name) & (tombstones.c.version_key == version_key(version))
    buried = connection.scalar(select(tombstones.c.version).where(here))
    if buried is not None:
        raise _gone(f"`{repo.full_name}`", buried)


def check_arrival(connection: Connection, repo: Row[Any], full_name: str) -> None:
    """Raise when a repository has other bytes for a version that was released under its new name."""
    same = (tombstones.c.version_key == releases.c.version_key) & (tombstones.c.digest != releases.c.digest)
    wanted = select(releases.c.version).join_from(releases, tombstones, same)
    version = connection.scalar(
        wanted.where(releases.c.repo_id == repo.id, tombstones.c.full_name == full_name).limit(1)
    )
    if version is not None:
        raise _gone(f"`{full_name}`", version)


def has_build(table: Table, adapter: AdapterFacts) -> ColumnElement[bool]:
    """The condition on `table` (`adapters` or `tombstones`) for the base and rank of an adapter."""
    return (
        table.c.base_sha256.is_not_distinct_from(adapter.base_sha256)
        & table.c.base_model.is_not_distinct_from(adapter.base_model)
        & table.c.rank.is_not_distinct_from(adapter.rank)
    )


def _gone(holder: str, version: str) -> Exception:
    return conflict(
        f"release {version} of {holder} was removed and had other bytes; releases never change, so raise the version"
    )
