"""What filling and upkeep of a registry in one folder take: import, check, gc, backup; by the number of adapters.

    python -m tests.bench.bench_registry_upkeep [--adapters 20000] [--layers 32]

Each adapter has four files with 22 kB of weights, most of them a header of 128 tensors. Storing reads, hashes and writes files;
the rest is the rows. The longest transaction is the longest time in which another writer would have waited.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adapterhub_registry.api.context import Registry
from adapterhub_registry.app import create_app, open_registry
from adapterhub_registry.settings import load_settings
from adapterhub_registry.storage.blobs import DiskBlobs
from adapterhub_registry.upkeep import filling, space
from adapterhub_registry.upkeep.backup import back_up
from adapterhub_registry.upkeep.filling import fill
from adapterhub_registry.upkeep.holdings import check_holdings
from adapterhub_registry.upkeep.space import free_space
from sqlalchemy import event

from tests.bench.harness import given
from tests.registry.many_adapters import write_many


class Locks:
    """The transactions of a registry that write, and how long each held the database."""

    def __init__(self, registry: Registry) -> None:
        self._began = 0.0
        self.longest_s = 0.0
        event.listen(registry.db.engine, "begin", self._begin)
        for name in ("commit", "rollback"):
            event.listen(registry.db.engine, name, self._end)

    def _begin(self, connection: Any) -> None:
        self._began = time.perf_counter() if connection.get_execution_options().get("writes") else 0.0

    def _end(self, _connection: Any) -> None:
        if self._began:
            self.longest_s = max(self.longest_s, time.perf_counter() - self._began)


def main() -> None:
    """Measure and print."""
    asked = given(__doc__, adapters=20_000, layers=32)
    with tempfile.TemporaryDirectory() as folder:
        source = write_many(Path(folder, "adapters"), asked.adapters, layers=asked.layers)
        registry = open_registry(load_settings(Path(folder, "registry")))
        create_app(registry.settings, registry)
        locks, stored = Locks(registry), [0.0]
        for owner, name in ((filling._Filling, "_store"), (DiskBlobs, "_name")):
            counting(owner, name, stored)

        def measured(name: str, call: Callable[[], Any]) -> Any:
            locks.longest_s = 0.0
            began, cpu = time.perf_counter(), time.process_time()
            found = call()
            spent, used = time.perf_counter() - began, time.process_time() - cpu
            each = used / asked.adapters * 1000
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
            print(
                f"{name:18} {spent:7.1f} s  {each:6.3f} ms of CPU each  longest lock {locks.longest_s:5.2f} s"
                f"  {most} MiB at most",
                flush=True,
            )
            return found

        print(measured("import", lambda: fill(registry, source)))
        print(f"of which storing   {stored[0] / asked.adapters * 1000:6.3f} ms of CPU each")
        measured("import again", lambda: fill(registry, source))
        held = measured("check", lambda: check_holdings(registry.db, registry.blobs))
        print(f"the database takes {held.build_bytes} bytes per build; problems: {len(held.problems)}")
        measured("check --bytes", lambda: check_holdings(registry.db, registry.blobs, read_bytes=True))
        space.KEEP_UPLOADS_S = -5  # type: ignore[misc]
        for number in range(asked.adapters // 20):
            registry.blobs.put([b"nothing names number %d" % number])
        measured("gc --dry-run", lambda: free_space(registry, dry_run=True))
        print(measured("gc", lambda: free_space(registry)))
        measured("backup", lambda: back_up(registry, Path(folder, "copy")))
        measured("backup again", lambda: back_up(registry, Path(folder, "copy")))
        registry.db.close()


def counting(owner: Any, name: str, spent: list[float]) -> None:
    """Add the CPU time of a method to `spent`."""
    call = getattr(owner, name)

    def counted(*given: Any, **more: Any) -> Any:
        began = time.process_time()
        try:
            return call(*given, **more)
        finally:
            spent[0] += time.process_time() - began

    setattr(owner, name, counted)


if __name__ == "__main__":
    main()
