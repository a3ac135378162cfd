"""What upkeep of a registry takes over many small blobs in a bucket, in requests to the S3 server, CPU, memory and locks.

    python -m tests.bench.bench_registry_store [--blobs 100000] [--backup]

The blobs are written past the registry, straight under their keys, and the database names 19 of 20. At the end, each
route and page of another registry in the same bucket is asked, and what the S3 server answered meanwhile is counted. All runs on this machine: the S3 server, the database and the registry's commands. `--backup` also copies
all blobs to another bucket of the same server.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
import psutil
from adapterhub_registry.app import create_app, open_registry
from adapterhub_registry.database.db import blobs, places, repos
from adapterhub_registry.settings import S3Place, load_settings
from adapterhub_registry.storage.s3 import _key
from adapterhub_registry.upkeep import space
from adapterhub_registry.upkeep.backup import back_up
from adapterhub_registry.upkeep.holdings import check_holdings
from adapterhub_registry.upkeep.space import free_space
from sqlalchemy import insert
from starlette.testclient import TestClient

from tests.bench.bench_registry_upkeep import Locks
from tests.bench.harness import given
from tests.bench.registry_filling import Shape, fill, store_small_files
from tests.registry.asked_at_size import requests, tokens_in
from tests.registry.shared_servers import CREDENTIALS, S3, s3

STEP = 5000


PUT_AT_ONCE = 48
ONE_UNNAMED_OF = 20


class Measured:
    """Runs calls and prints what each took, here and at the S3 server."""

    def __init__(self, server: S3, locks: Locks) -> None:
        self._server, self._locks = server, locks
        [self._process] = [one for one in psutil.Process().children() if one.name() == "weed"]

    def __call__(self, name: str, call: Callable[[], Any]) -> Any:
        self._locks.longest_s, before = 0.0, self._server.asked()
        began, cpu, theirs = time.perf_counter(), time.process_time(), sum(self._process.cpu_times()[:2])
        found = call()
        spent, used = time.perf_counter() - began, time.process_time() - cpu
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        print(
            f"{name:28} {spent:8.1f} s  {used:7.1f} s of CPU here, {sum(self._process.cpu_times()[:2]) - theirs:7.1f} there"
            f"  {most} MiB at most  longest lock {self._locks.longest_s:.2f} s  {dict(self._server.asked() - before)}",
            flush=True,
        )
        return found


def ask_all(server: S3, folder: Path, place: S3Place) -> None:
    """Ask each route and page of a registry with 30,000 builds, and count what the S3 server answered."""
    registry = open_registry(load_settings(folder, s3=place, derives=False))
    shape = Shape(30_000)
    fill(registry.db, shape, store_small_files(registry.blobs))
    tokens = tokens_in(registry)
    client = TestClient(create_app(registry.settings, registry), base_url="http://registry")
    before, every = server.asked(), list(requests(shape))
    for one in every:
        headers = {} if one.who == "anyone" else {"Authorization": f"Bearer {tokens[one.who]}"}
        answer = client.request(one.method, one.path(), headers=headers, follow_redirects=False)
        assert answer.status_code in {200, 302, 404}, one.name
    print(f"{len(every)} routes and pages asked the S3 server for {dict(server.asked() - before)}", flush=True)
    registry.db.close()


async def put_blobs(store: Any, prefix: str, numbers: range) -> list[dict[str, Any]]:
    """Write small blobs under their keys; the rows that a registry has of them."""
    turn = asyncio.Semaphore(PUT_AT_ONCE)

    async def put(number: int) -> dict[str, Any]:
        content = b"blob number %d" % number
        sha256 = hashlib.sha256(content).hexdigest()
        async with turn:
            await obstore.put_async(store, prefix + _key(sha256), content)
        return {"sha256": sha256, "git_sha1": sha256[:40], "size": len(content), "created_at": 0}

    return list(await asyncio.gather(*map(put, numbers)))


def main() -> None:
    """Measure and print."""
    asked = given(__doc__, blobs=100_000, backup=False)
    os.environ |= CREDENTIALS
    with s3() as server, tempfile.TemporaryDirectory() as folder:
        bucket = server.new_bucket()
        place = S3Place(bucket=bucket, prefix="reg/", endpoint=server.endpoint)
        registry = open_registry(load_settings(Path(folder), s3=place))
        with registry.db.begin() as connection:
            row = {"id": 1, "full_name": "a/b", "namespace": "a", "folded": "a/b", "folded_namespace": "a", "head": ""}
            times = {"created_at": 0, "modified_at": 0}
            connection.execute(insert(repos).values(private=False, created_by="a", **row, **times))

        def put() -> None:
            store = server.store(bucket)
            for start in range(0, asked.blobs, STEP):
                made = asyncio.run(put_blobs(store, "reg/", range(start, min(start + STEP, asked.blobs))))
                named = [one for at, one in enumerate(made) if at % ONE_UNNAMED_OF]
                with registry.db.begin() as connection:
                    rows = [{"repo_id": 1, "sha256": one["sha256"], "path": "f", "commit_id": ""} for one in named]
                    connection.execute(insert(places), rows)
                    connection.execute(insert(blobs), named)

        measured = Measured(server, Locks(registry))
        measured(f"put {asked.blobs:,}", put)
        space.KEEP_UPLOADS_S = -5  # type: ignore[misc]
        measured("the server's list alone", lambda: sum(1 for _ in registry.blobs.kept()))
        print(measured("gc --dry-run", lambda: free_space(registry, dry_run=True)))
        print(measured("check", lambda: check_holdings(registry.db, registry.blobs)))
        print(measured("gc", lambda: free_space(registry)))
        print(measured("gc again", lambda: free_space(registry)))
        if asked.backup:
            copies = S3Place(bucket=server.new_bucket(), prefix="copy/", endpoint=server.endpoint)
            target = Path(folder, "copy")
            print(measured("backup", lambda: back_up(registry, target, files=copies)))
            print(measured("backup again", lambda: back_up(registry, target, files=copies)))
        registry.db.close()
        with tempfile.TemporaryDirectory() as other:
            ask_all(server, Path(other), S3Place(bucket=bucket, prefix="asked/", endpoint=server.endpoint))


if __name__ == "__main__":
    main()
