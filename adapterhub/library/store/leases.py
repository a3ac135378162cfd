"""Leases on installed builds: `remove` refuses a leased build, and `gc` spares its objects.

A lease is a file in `leases/` that a process holds with `flock`. It ends with the process, however that ends; children
made by fork hold it too.
"""

from __future__ import annotations

import contextlib
import stat
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

from adapterhub.core.digests import Digest, hex_of
from adapterhub.core.disk.files import RealFolder, matching
from adapterhub.core.disk.root import Claim, claim, finished, living
from adapterhub.core.errors import StoreLocked
from adapterhub.formats.manifest import MANIFEST_FILE
from adapterhub.library.store.blobs import Store
from adapterhub.library.store.catalog import Installed, folder_below, objects_of


class Leases:
    """The leases of one library."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._folder = store.root / "leases"

    def living(self) -> list[Claim]:
        """The leases that processes hold now."""
        return living(self._folder)

    def ensure_none(self, builds: Sequence[Installed]) -> None:
        """Raise if a process holds a lease on one of the builds; the caller holds the lock `publish`.

        Raises:
            StoreLocked: the message names the processes.
        """
        leases = self.living()
        for build in builds:
            name = folder_below(self._store.root, build)
            holders = [str(lease.holder) for lease in leases if lease.what == name]
            if holders:
                raise StoreLocked(
                    f"`{build.full_name}` {build.manifest.label} is in use by {', '.join(holders)}. "
                    "Nothing was removed",
                    hint="stop that process first, or remove the adapter later",
                )

    @contextlib.contextmanager
    def hold(self, build: Installed) -> Iterator[bool]:
        """Lease a build while the block runs; False, and no lease, if it is not installed any more."""
        with contextlib.ExitStack() as stack:
            # both locks shared: no remove and no gc runs between its look at the leases and its deletions
            with (
                self._store.lock("store", exclusive=False),
                self._store.lock("publish", exclusive=False),
                self._store.os_errors_as_refusals(),
            ):
                is_here = (build.folder / MANIFEST_FILE).is_file()
                if is_here:
                    name = folder_below(self._store.root, build)
                    stack.enter_context(claim(self._folder, name, objects_of(build.manifest)))
            yield is_here


GRACE_S = 3600.0
"""Objects younger than this are spared by `sweep`: a writer on another host (no shared locks) may name them next."""

_TEMP_GRACE_S: Final = 3600.0
"""A temp file beside a small record is abandoned when it is older than this, whatever `grace_s` is."""


def sweep(
    store: Store, keep: Collection[Digest], *, grace_s: float = GRACE_S, dry_run: bool = False
) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
    """Delete what is not in `keep` and older than `grace_s`, stale temp files too.

    The caller holds the exclusive lock, and `keep` holds what living claims need. A writer's folder goes with the
    writer, at any age. Returns the deleted and the spared files with their sizes in bytes.
    """
    names = {hex_of(d) for d in keep}
    now, temporary = time.time(), store.root / "tmp"
    gone: list[tuple[Path, int]] = []
    spared: list[tuple[Path, int]] = []
    for folder, name, age_s in _sweepable(store.root, grace_s):
        if name.split(".")[0] in names or folder.path.name in names:  # results lie in a folder of their manifest
            continue
        try:
            facts = folder.facts(name)
        except FileNotFoundError:
            continue
        if stat.S_ISREG(facts.st_mode) and facts.st_nlink > 1 and folder.path != temporary:
            continue  # some folder still shares these bytes, even one that cannot say so; deleting frees nothing
        path = folder.path / name
        if age_s and facts.st_mtime > now - age_s:
            spared.append((path, facts.st_size))
            continue
        gone.append((path, facts.st_size))
        if not dry_run:
            with store.os_errors_as_refusals(), contextlib.suppress(FileNotFoundError):
                folder.remove(name)
    return gone, spared


def _sweepable(root: Path, grace_s: float) -> Iterator[tuple[RealFolder, str, float]]:
    """Every file that a sweep may take when no digest in its name is kept, and the age in seconds it must have."""
    at_work = {claim.path.name for claim in living(root / "intents")}
    over = {path.name for path in finished(root / "intents")}
    ended = {path.name for path in finished(root / "leases")}
    old_s = max(grace_s, _TEMP_GRACE_S)
    try:
        top = RealFolder.open(root)
    except FileNotFoundError:
        return
    with top:
        for place, pattern in (
            ("blobs/sha256/*", "*"),
            ("manifests/sha256", "*.json"),
            ("origins", "*.json"),
            ("yanked", "*.json"),
            ("tests/*", "*.json"),
            ("made/*", "*.json"),
            ("cache/tests/*", "*.json"),
            ("cache/tried/*", "*.json"),
        ):
            yield from ((*found, grace_s) for found in matching(top, place.split("/"), pattern))
        for folder, name in matching(top, ["tmp"], "*"):
            if name not in at_work:
                yield folder, name, 0.0 if name in over else grace_s
        for place, names in (("intents", over), ("leases", ended)):
            yield from ((folder, name, 0.0) for folder, name in matching(top, [place], "*") if name in names)
        for place in ("intents", "leases", "manifests/sha256"):
            yield from ((*found, old_s) for found in matching(top, place.split("/"), ".*"))
        for levels in ([], ["*"]):
            yield from ((*found, old_s) for found in matching(top, levels, ".*.json.*-*"))
