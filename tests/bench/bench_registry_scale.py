"""A registry on PostgreSQL and S3: requests per second and p99 with 100,000 builds, and bytes per second.

    python -m tests.bench.bench_registry_scale [--builds 100000] [--seconds 5] [--megabytes 200]

    python -m tests.bench.bench_registry_scale --every [--builds 1000000] [--database sqlite | postgres] [--repeats 6]
        [--only TEXT] [--against CHECKOUT]

With `--every`, it asks every route and page instead, at 30,000 builds and at `--builds`; see `registry_growth`. `--only` keeps
the requests whose name holds a text. `--against` asks a server of another checkout, too, at `--builds` on SQLite, and
compares CPU and answers; see `registry_against`.

Everything runs on this machine: PostgreSQL, the S3 server, the registry's servers and the clients that load them. Where
they share few cores, a second server takes cores from the database and the clients: read the ratio with that in mind.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
from adapterhub_registry.database.db import Database, adapters, blobs, commits, places, refs, releases, repo_tags, repos
from adapterhub_registry.database.search_tables import texts
from adapterhub_registry.database.trees import EMPTY, FileTree, TreeFile

from tests.bench.harness import given, timed
from tests.bench.many_builds import BASES, RANKS, TASKS
from tests.bench.registry_against import compare
from tests.bench.registry_growth import growth
from tests.registry.pushing import Push, put
from tests.registry.shared_servers import CREDENTIALS, Shared, postgres, s3

STEP = 2000
SMALL = 30_000
CLIENTS = 8
MEBIBYTE = 1 << 20
PUSH_STEPS = ("PUT", "copy aside", "read", "copy to its name")
START_MS = 1_700_000_000_000


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def fill(database: Database, builds: int) -> None:
    """Rows for `builds` repositories with one released adapter each, as pushes leave them; no bytes."""
    for start in range(0, builds, STEP):
        numbers = range(start, min(start + STEP, builds))
        with database.begin() as connection:
            for table, rows in _rows(numbers).items():
                for row in (
                    rows if table is commits else ()
                ):  # the repositories, whose nodes these are, are there by now
                    row["root"] = (
                        FileTree(connection, row["repo_id"], EMPTY).changed(_files(row["repo_id"] - 1, row)).root
                    )
                connection.execute(table.insert(), rows)
    if not database.is_shared:
        return  # a server keeps no statistics in SQLite
    with database.begin() as connection:
        connection.exec_driver_sql("ANALYZE")
        # ids were given by hand: the sequence goes on behind them
        connection.exec_driver_sql("SELECT setval(pg_get_serial_sequence('repos', 'id'), (SELECT max(id) FROM repos))")


def _files(n: int, commit: dict[str, Any]) -> list[tuple[str, TreeFile]]:
    changed = {"changed_in": commit["id"], "changed_at": commit["created_at"]}
    return [
        (path, TreeFile(path=path, sha256=sha256, git_sha1=sha256[:40], size=1000, lfs=lfs, **changed))
        for path, sha256, lfs in (
            ("adapter_config.json", digest(f"config {n % 100}"), False),
            ("adapter_model.safetensors", digest(f"weights {n}"), True),
        )
    ]


def _rows(numbers: range) -> dict[object, list[dict[str, Any]]]:
    found: dict[object, list[dict[str, Any]]] = {
        table: [] for table in (repos, refs, commits, places, blobs, repo_tags, adapters, releases, texts)
    }
    for n in numbers:
        base, task = n % BASES, TASKS[(n // BASES) % len(TASKS)]
        rank = RANKS[(n // (BASES * len(TASKS))) % len(RANKS)]
        name, at, head = f"{task}-{n}", START_MS + n * 1000, digest(f"commit {n}")[:40]
        space = f"team{n % 500}"
        weights = digest(f"weights {n}")
        mine = {"repo_id": n + 1}
        found[repos].append(
            {
                "id": n + 1, "full_name": f"{space}/{name}", "namespace": space, "folded": f"{space}/{name}",
                "folded_namespace": space, "private": False, "created_by": space, "created_at": at, "modified_at": at,
                "head": head, "used_bytes": 10_000_000, "pipeline_tag": task, "library_name": "peft",
                "downloads": n * 7919 % 10_000, "card": "{}", "config": "{}",
            }
        )  # fmt: skip
        named = {"commit_id": head, "created_at": at}
        found[refs] += [
            mine | named | {"kind": "branch", "name": "main"},
            mine | named | {"kind": "tag", "name": "v1.0.0"},
        ]
        found[commits].append(
            mine
            | {
                "id": head,
                "title": "push",
                "message": "",
                "author": space,
                "created_at": at,
            }
        )
        found[places] += [
            mine | {"sha256": entry.sha256, "path": path, "commit_id": head}
            for path, entry in _files(n, found[commits][-1])
        ]
        found[blobs].append({"sha256": weights, "git_sha1": weights[:40], "size": 1000, "created_at": at})
        tags = ["adapterhub", "peft", "safetensors", f"base_model:adapter:org/base-{base}", f"lora-rank:{rank}"]
        tags += [f"base-sha256:{digest(f'base {base}')[:32]}", f"adapter-task:{task}", f"adapter-name:{name}"]
        found[repo_tags] += [mine | {"tag": tag, "modified_at": at} for tag in [*tags, task]]
        found[adapters].append(
            mine
            | {
                "commit_id": head, "digest": digest(f"manifest {n}"), "weights_sha256": weights, "name": name,
                "version": "1.0.0", "base_model": f"org/base-{base}", "base_sha256": digest(f"base {base}"), "task": task,
                "peft_type": "LORA", "methods": '["lora"]', "rank": rank, "alpha": 2.0 * rank, "target_modules": "[]",
                "dtype": "F32", "parameters": 460_800 * rank, "description": f"Number {n}", "words": f"{name} {task}",
                "is_head": True, "is_listed": True, "created_at": at,
            }
        )  # fmt: skip
        found[texts].append(mine | {"body": f"{space}/{name} {name} {task}"})
        found[releases].append(
            mine
            | {
                "version": "1.0.0",
                "tag": "v1.0.0",
                "commit_id": head,
                "digest": digest(f"manifest {n}"),
                "created_at": at,
            }
        )
    return found


def requests(builds: int) -> dict[str, Callable[[int], tuple[str, dict[str, object]]]]:
    """What clients ask for, by name; the argument is the number of the request."""

    def repo(n: int) -> str:
        n = n * 104_729 % builds
        return f"team{n % 500}/{TASKS[(n // BASES) % len(TASKS)]}-{n}"

    def by_tags(n: int) -> tuple[str, dict[str, object]]:
        tags = [f"base_model:adapter:org/base-{n % BASES}", f"adapter-task:{TASKS[n % len(TASKS)]}"]
        return "/api/models", {"filter": tags, "limit": 20}

    def search(n: int) -> tuple[str, dict[str, object]]:
        where = {"base_sha256": digest(f"base {n % BASES}"), "task": TASKS[n % len(TASKS)]}
        return "/api/adapt/v1/adapters", {**where, "rank_max": 16, "limit": 20}

    return {
        "newest 20": lambda _: ("/api/models", {"limit": 20}),
        "20 by base and task (tags)": by_tags,
        "20 by base, task and rank": search,
        "model info by tag": lambda n: (f"/api/models/{repo(n)}/revision/v1.0.0", {}),
        "resolve (HEAD and GET)": lambda n: (f"/{repo(n)}/resolve/v1.0.0/adapter_model.safetensors", {}),
    }


def load(
    urls: list[str], token: str, ask: Callable[[int], tuple[str, dict[str, object]]], seconds: float
) -> list[float]:
    """The time of each request that `CLIENTS` clients sent, one after the other each, over `urls` in turn."""
    spent: list[float] = []
    until = time.perf_counter() + seconds

    def run(number: int) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=urls[number % len(urls)], headers=headers, timeout=60) as client:
            at = number
            while time.perf_counter() < until:
                path, query = ask(at)
                method = "HEAD" if "/resolve/" in path and at // CLIENTS % 2 else "GET"
                began = time.perf_counter()
                answer = client.request(method, path, params=query)
                spent.append(time.perf_counter() - began)
                assert answer.status_code in {200, 302}, answer.text
                at += CLIENTS

    threads = [threading.Thread(target=run, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return spent


def shown(spent: list[float], seconds: float) -> str:
    ordered = sorted(spent)
    p99 = ordered[int(len(ordered) * 0.99)]
    return f"{len(spent) / seconds:7.0f}/s  p50 {statistics.median(ordered) * 1000:6.1f} ms  p99 {p99 * 1000:6.1f} ms"


@contextlib.contextmanager
def replicas(shared: Shared, count: int) -> Iterator[list[str]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(shared.replica()).url for _ in range(count)]


def measure_bytes(shared: Shared, endpoint_store: object, megabytes: int) -> None:
    """Push and pull one large file through a server and S3, and let the S3 server alone do each step of it."""
    from datetime import timedelta

    import obstore

    store: Any = endpoint_store
    spent: dict[str, list[float]] = {}
    with replicas(shared, 1) as (url,), httpx.Client(base_url=url, timeout=600) as client:
        client.headers["Authorization"] = f"Bearer {shared.token}"
        for turn in range(3):
            push = Push(repo=f"bytes/{'abc'[turn] * 3}", weights=os.urandom(megabytes * MEBIBYTE))
            client.post("/api/repos/create", json={"organization": "bytes", "name": push.repo[6:]}).raise_for_status()
            path = f"/{push.repo}/resolve/main/adapter_model.safetensors"
            sent, got = (obstore.sign(store, way, f"alone-{turn}", timedelta(hours=1)) for way in ("PUT", "GET"))
            steps: dict[str, Callable[[], object]] = {
                "push": lambda p=push: p.commit(client),  # type: ignore[misc]
                "PUT": lambda p=push, at=sent: put(at, p.weights),  # type: ignore[misc]
                "copy aside": lambda n=turn: obstore.copy(store, f"alone-{n}", f"aside-{n}"),  # type: ignore[misc]
                "read": lambda n=turn: [None for _ in obstore.get(store, f"aside-{n}").stream(MEBIBYTE)],  # type: ignore[misc]
                "copy to its name": lambda n=turn: obstore.copy(store, f"aside-{n}", f"named-{n}"),  # type: ignore[misc]
                "pull": lambda at=path: client.get(at, follow_redirects=True).raise_for_status(),  # type: ignore[misc]
                "GET": lambda at=got: httpx.get(at, timeout=600).raise_for_status(),  # type: ignore[misc]
                "sha256 of the client": lambda p=push: hashlib.sha256(p.weights),  # type: ignore[misc]
                "sha256 and sha1 of the server": lambda p=push: (
                    hashlib.sha256(p.weights),
                    hashlib.sha1(p.weights, usedforsecurity=False),
                ),  # type: ignore[misc]
            }
            for name, step in steps.items():
                spent.setdefault(name, []).append(timed(step, time.perf_counter)[0])
    for name, found in spent.items():
        print(f"{name:30} {statistics.median(found):6.2f} s  {megabytes / statistics.median(found):5.0f} MiB/s")
    alone = [sum(turn) for turn in zip(*(spent[name] for name in PUSH_STEPS), strict=True)]
    for name, peer in (("push", spent["PUT"]), ("push", alone), ("pull", spent["GET"])):
        ratio = statistics.median(theirs / ours for ours, theirs in zip(spent[name], peer, strict=True))
        what = "the same steps" if peer is alone else "one transfer"
        print(f"{name} {megabytes} MiB against {what} of the S3 server alone: ratio {ratio:.2f}")


def main() -> None:
    """Measure and print."""
    how = {"every": False, "database": ("sqlite", "postgres"), "repeats": 6, "only": "", "against": Path}
    asked = given(__doc__, builds=100_000, seconds=5.0, megabytes=200, **how)
    if asked.every and asked.against:
        compare(asked.against, asked.builds, asked.repeats, asked.only)
        return
    if asked.every:
        growth([asked.database], sorted({SMALL, asked.builds}), asked.repeats, asked.only)
        return
    os.environ |= CREDENTIALS
    with postgres() as pg, s3() as bucket, tempfile.TemporaryDirectory() as folder:
        shared = Shared(Path(folder), pg.new_database(), bucket.endpoint, bucket.new_bucket())
        with shared.replica():  # makes the tables and the token
            pass
        database = Database(shared.database)
        began = time.perf_counter()
        fill(database, asked.builds)
        database.close()
        print(f"{asked.builds:,} builds written in {time.perf_counter() - began:.0f} s; {os.cpu_count()} cores for all")
        for count in (1, 2):
            with replicas(shared, count) as urls:
                for name, ask in requests(asked.builds).items():
                    load(urls, shared.token, ask, 0.5)
                    print(
                        f"{count} x server  {name:28} {shown(load(urls, shared.token, ask, asked.seconds), asked.seconds)}"
                    )
        measure_bytes(shared, bucket.store(shared.bucket), asked.megabytes)


if __name__ == "__main__":
    main()
