"""What `gc` and `check` of a registry take over many small blobs in a bucket, and what the S3 server alone takes to list them.

    python -m tests.bench.bench_registry_store [--blobs 100000]

The database names half of the blobs. All runs on this machine: the S3 server, the database and the registry's commands.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from adapterhub_registry.app import open_registry
from adapterhub_registry.database.db import blobs, places, repos
from adapterhub_registry.settings import S3Place, load_settings
from adapterhub_registry.upkeep import space
from adapterhub_registry.upkeep.holdings import check_holdings
from adapterhub_registry.upkeep.space import free_space
from sqlalchemy import insert

from tests.bench.harness import given
from tests.registry.shared_servers import CREDENTIALS, s3

STEP = 5000


def timed(name: str, call: Callable[[], Any]) -> Any:
    """Run a call and print its times and the most memory so far."""
    began, cpu = time.perf_counter(), time.process_time()
    found = call()
    spent, used = time.perf_counter() - began, time.process_time() - cpu
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{name:28} {spent:8.1f} s  {used:7.1f} s of CPU here  {most} MiB at most", flush=True)
    return found


def main() -> None:
    """Measure and print."""
    asked = given(__doc__, blobs=100_000)
    os.environ |= CREDENTIALS
    with s3() as server, tempfile.TemporaryDirectory() as folder:
        place = S3Place(bucket=server.new_bucket(), prefix="reg/", endpoint=server.endpoint)
        registry = open_registry(load_settings(Path(folder), s3=place))
        with registry.db.begin() as connection:
            row = {"id": 1, "full_name": "a/b", "namespace": "a", "folded": "a/b", "folded_namespace": "a", "head": ""}
            times = {"created_at": 0, "modified_at": 0}
            connection.execute(insert(repos).values(private=False, created_by="a", **row, **times))

        def put() -> None:
            with ThreadPoolExecutor(16) as pool:
                for start in range(0, asked.blobs, STEP):
                    numbers = range(start, min(start + STEP, asked.blobs))
                    made = list(pool.map(lambda n: registry.blobs.put([b"blob number %d" % n]), numbers))
                    with registry.db.begin() as connection:
                        half = made[::2]
                        named = [{"repo_id": 1, "sha256": one.sha256, "path": "f", "commit_id": ""} for one in half]
                        connection.execute(insert(places), named)
                        connection.execute(insert(blobs), [one._asdict() | {"created_at": 0} for one in half])

        timed(f"put {asked.blobs:,}", put)
        space.KEEP_UPLOADS_S = -5  # type: ignore[misc]
        timed("the server's list alone", lambda: sum(1 for _ in registry.blobs.kept()))
        print(timed("gc --dry-run", lambda: free_space(registry, dry_run=True)))
        print(timed("check", lambda: check_holdings(registry.db, registry.blobs)))
        print(timed("gc", lambda: free_space(registry)))
        registry.db.close()


if __name__ == "__main__":
    main()
