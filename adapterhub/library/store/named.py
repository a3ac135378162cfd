"""The builds of one name in the index, found by keys: what a look-up costs does not grow with the builds or versions.

The folders remain the truth. The table `places` holds when each folder of builds changed last, as the index knows it.
If another program has changed one since, the folder is listed as well.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any, Final

from adapterhub.library.store.rows import PlaceChange

SCHEMA: Final = ("CREATE TABLE places (folder TEXT PRIMARY KEY, changed_ns INTEGER NOT NULL) WITHOUT ROWID",)


class NamedBuilds:
    """Look-ups in one state of the index. Folders are paths below the library's root."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def namespaces(self, name: str) -> list[str]:
        """Return the namespaces that have the name; "" stands for none."""
        return list(self._each("namespace", "name = ?", name))

    def of_version(self, name: str, namespace: str, order: bytes) -> list[str]:
        """Return the folders of one version, for each base and in each rank; `order` is its `version_order`."""
        found: list[str] = []
        for base in self._bases(name, namespace):
            found += self._folders(f"{_OF_BASE} AND version_order = ?", name, namespace, base, order)
        return found

    def newest(self, name: str, namespace: str, most: int) -> list[str]:
        """Return the folders of at most `most` builds for each base, those of the newest versions."""
        found: list[str] = []
        for base in self._bases(name, namespace):
            found += self._folders(f"{_OF_BASE} ORDER BY version_order DESC LIMIT ?", name, namespace, base, most)
        return found

    def of_digest(self, name: str, prefix: str) -> list[str]:
        """Return the folders of the builds of that name, in any namespace, whose digest begins with `prefix`."""
        # the plus keeps SQLite from the index of names, where it would look at each version
        return self._folders("digest >= ? AND digest < ? AND +name = ?", prefix, f"{prefix}g", name)

    def within(self, folder: str) -> list[str]:
        """Return the folders of all builds in a folder."""
        return self._folders("folder > ? AND folder < ?", f"{folder}/", f"{folder}0")

    def changed_ns(self, folder: str) -> int | None:
        """Return when a folder changed last as the index knows it; None if the index may lack some of its builds."""
        found = self._connection.execute("SELECT changed_ns FROM places WHERE folder = ?", (folder,)).fetchone()
        return None if found is None else int(found[0])

    def with_weights(self, weights_file: str, digest: str, most: int) -> list[tuple[str, str, str]]:
        """Return the namespace, name and version of at most `most` other builds that have this very file of weights."""
        sql = "SELECT namespace, name, version FROM builds WHERE weights_file = ? AND digest != ? LIMIT ?"
        return self._connection.execute(sql, (weights_file, digest, most)).fetchall()

    def _bases(self, name: str, namespace: str) -> Iterator[str]:
        return self._each("base_weights", "name = ? AND namespace = ?", name, namespace)

    def _each(self, column: str, condition: str, *values: str) -> Iterator[str]:
        """Every value of a column of the index of names, once: each is one step in the index."""
        sql = f"SELECT min({column}) FROM builds WHERE {condition}"
        found = self._connection.execute(sql, values).fetchone()[0]
        while found is not None:
            yield found
            found = self._connection.execute(f"{sql} AND {column} > ?", (*values, found)).fetchone()[0]

    def _folders(self, condition: str, *values: Any) -> list[str]:
        return [row[0] for row in self._connection.execute(f"SELECT folder FROM builds WHERE {condition}", values)]


_OF_BASE: Final = "name = ? AND namespace = ? AND base_weights = ?"


def move_places(connection: sqlite3.Connection, changes: Iterable[PlaceChange]) -> None:
    """Note changes of folders that the index follows; one that had changed without the index stays unknown."""
    for folder, before_ns, after_ns in changes:
        known = NamedBuilds(connection).changed_ns(folder)
        connection.execute("DELETE FROM places WHERE folder = ?", (folder,))
        if before_ns in (None, known) and after_ns is not None:
            connection.execute("INSERT INTO places VALUES (?, ?)", (folder, after_ns))
