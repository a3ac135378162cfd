"""Leases on installed builds: `remove` refuses a leased build, and `gc` spares its objects.

A lease is a file in `leases/` that a process holds with `flock`. It ends with the process, however that ends; children
made by fork hold it too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from adapterhub.core.disk.root import Claim, claim, living
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
        """Return the leases that processes hold now."""
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
