"""The pages of a registry with many builds: p50 and p99 of search, build page, base page, and CPU beside their JSON.

    python -m tests.bench.bench_pages [--builds 100000] [--repeats 200] [--database postgresql://user@host/name] [--root FOLDER]

One client asks one server on this machine, over loopback, each time for another adapter. The index is as pushes leave
it, so SQLite has no statistics; each 20th adapter is signed, each 50th yanked, and each tenth build has a record of 224 modules, one of 4096 x 4096 for each of 7 kinds in 32 layers. CPU is that of the
server's process. The database is SQLite unless `--database` names one of PostgreSQL, empty or with such rows.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
from adapterhub_registry.database.db import (
    Database,
    adapters,
    commits,
    derived,
    nodes,
    places,
    refs,
    releases,
    repo_tags,
    repos,
    sketches,
)
from adapterhub_registry.database.search_tables import texts, wordings
from adapterhub_registry.database.trees import EMPTY, FileTree, TreeFile
from adapterhub_registry.storage.blobs import DiskBlobs
from sqlalchemy import select

from adapterhub.formats.derived.record import DerivedRecord, ModuleRecord
from adapterhub.formats.relevance import wording_of, words_of
from tests.bench.bench_registry_scale import digest
from tests.bench.harness import given
from tests.bench.many_builds import BASES, RANKS, TASKS

ROOT = Path(__file__).resolve().parent.parent.parent
STEP = 2000
START_MS = 1_700_000_000_000
KINDS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
HTML = {"Accept": "text/html"}


def record_of(seed: int) -> DerivedRecord:
    """A record as of a 7B model at rank 16."""
    draw = random.Random(seed)
    modules = []
    for layer in range(32):
        for kind in KINDS:
            values = tuple(sorted((round(draw.uniform(0.01, 1), 6) for _ in range(16)), reverse=True))
            figures = {
                "norm": round(draw.uniform(0.5, 2), 6),
                "effective_rank": round(draw.uniform(3, 16), 6),
                "values": values,
            }
            modules.append(
                ModuleRecord(
                    name=f"model.layers.{layer}.{kind}",
                    kind="linear",
                    out=4096,
                    width=4096,
                    parts=1,
                    rank=16,
                    scale=2.0,
                    **figures,
                )
            )
    return DerivedRecord(
        weights=f"sha256:{digest(str(seed))}",
        config=f"sha256:{digest('config')}",
        modules=tuple(modules),
        norm=20.0,
    )


def fill(database: Database, blobs: DiskBlobs, builds: int) -> None:
    """Rows for `builds` repositories with one released adapter each, and the records of each tenth."""
    card = blobs.put([b"---\nlicense: mit\n---\n# An adapter\n\nIt answers questions.\n"])
    packed = [zlib.compress(json.dumps(record_of(seed).to_json(), separators=(",", ":")).encode()) for seed in range(8)]
    signs = [random.Random(seed).randbytes(256) for seed in range(8)]
    entry = TreeFile(
        path="README.md",
        size=card.size,
        sha256=card.sha256,
        git_sha1=card.git_sha1,
        lfs=False,
        changed_at=START_MS,
        changed_in=digest("c")[:40],
    )
    for start in range(0, builds, STEP):
        with database.begin() as connection:
            tables: dict[str, list[dict[str, object]]] = {
                "repos": [],
                "commits": [],
                "refs": [],
                "adapters": [],
                "releases": [],
                "tags": [],
                "derived": [],
                "sketches": [],
                "texts": [],
                "wordings": [],
                "places": [],
            }
            for n in range(start, min(start + STEP, builds)):
                _add(tables, n, packed, signs)
            for table, key in (
                (repos, "repos"),
                (commits, "commits"),
                (refs, "refs"),
                (adapters, "adapters"),
                (releases, "releases"),
                (repo_tags, "tags"),
                (derived, "derived"),
                (sketches, "sketches"),
                (texts, "texts"),
                (wordings, "wordings"),
                (places, "places"),
            ):
                for row in tables[key] if table is commits else ():
                    row["root"] = FileTree(connection, row["repo_id"], EMPTY).changed([("README.md", entry)]).root  # type: ignore[arg-type]
                if tables[key]:
                    connection.execute(table.insert(), tables[key])
    with database.begin() as connection:
        if database.is_shared:  # PostgreSQL does so by itself, some time later
            connection.exec_driver_sql("ANALYZE")
        count = connection.execute(nodes.select().limit(1)).all()
        assert count, "the trees have nodes"


def _add(tables: dict[str, list[dict[str, object]]], n: int, packed: list[bytes], signs: list[bytes]) -> None:
    number, name, commit, at = n + 1, name_of(n), digest(f"commit {n}")[:40], START_MS + n * 1000
    task, base, build = TASKS[n % len(TASKS)], n % BASES, digest(f"build {n}")
    row = {
        "id": number,
        "full_name": name,
        "namespace": "acme",
        "folded": name,
        "folded_namespace": "acme",
        "private": False,
        "gated": None,
    }
    row |= {
        "created_by": "ann",
        "created_at": at,
        "modified_at": at,
        "head": commit,
        "downloads": n % 977,
        "used_bytes": 0,
        "pipeline_tag": None,
    }
    tables["repos"].append(row | {"library_name": "peft", "card": '{"license": "mit"}', "config": "{}"})
    tables["commits"].append(
        {
            "repo_id": number,
            "id": commit,
            "parent": None,
            "root": EMPTY,
            "title": "push",
            "message": "",
            "author": "ann",
            "created_at": at,
        }
    )
    for kind, ref in (("branch", "main"), ("tag", "v1.0.0")):
        tables["refs"].append(
            {"repo_id": number, "kind": kind, "name": ref, "commit_id": commit, "message": None, "created_at": at}
        )
    facts = {
        "repo_id": number,
        "commit_id": commit,
        "digest": build,
        "weights_sha256": digest(f"weights {n}"),
        "name": name[5:],
        "version": "1.0.0",
    }
    facts |= {
        "base_model": f"org/base-{base}",
        "base_sha256": digest(f"base {base}"),
        "base_tensors": digest(f"tensors {base}"),
        "base_files": None,
    }
    facts |= {
        "task": task,
        "peft_type": "LORA",
        "methods": '["LORA"]',
        "rank": RANKS[n % len(RANKS)],
        "alpha": 16.0,
        "target_modules": "[]",
        "dtype": "F32",
    }
    facts |= {
        "parameters": 1000,
        "description": f"Adapter {n} for {task}",
        "words": f"{name} {task} corpus {n % 977}",
        "is_head": True,
        "is_listed": True,
    }
    tables["adapters"].append(facts | {"created_at": at})
    release = {"version": "1.0.0", "tag": "v1.0.0", "commit_id": commit, "digest": build, "created_at": at}
    yanked_at = at if n % 50 == 0 else None
    tables["releases"].append({"repo_id": number, "yanked_at": yanked_at} | release)
    tables["texts"].append({"repo_id": number, "body": f"{name} {facts['words']}"})
    said = wording_of(name, task, facts["words"], ())
    tables["wordings"].append({"repo_id": number, **said._asdict(), "body": " ".join(words_of(" ".join(said)))})
    for path in ("README.md", "model.sig") if n % 20 == 0 else ("README.md",):
        place = {"repo_id": number, "sha256": digest(f"{path} {n}"), "path": path, "commit_id": commit}
        tables["places"].append(place)
    tags = ("license:mit", "lora", f"adapter-task:{task}")
    tables["tags"] += [{"repo_id": number, "tag": tag, "modified_at": at} for tag in tags]
    if n % 10 == 0:
        made = {"state": "made", "attempts": 1, "due_at": 0, "reason": None, "norm": 20.0}
        tables["derived"].append({"digest": build, "record": packed[n % 8]} | made)
        tables["sketches"].append({"digest": build, "key_id": "one", "made_at": at, "sketch": signs[n % 8]})


def name_of(n: int) -> str:
    """The repository of build `n`."""
    return f"acme/{TASKS[n % len(TASKS)]}-{n}"


def cpu_s(pid: int) -> float:
    """The CPU time of a process and its threads, in seconds, by the clock that Linux keeps for it: to the microsecond."""
    return time.clock_gettime((~pid << 3) | 2)


def measured(
    client: httpx.Client, pid: int, paths: Iterator[str], repeats: int, *, method: str = "GET", **options: object
) -> tuple[float, float, float]:
    """p50 and p99 in milliseconds, and the server's CPU for one answer, in milliseconds."""
    client.request(method, next(paths), **options).raise_for_status()  # type: ignore[arg-type]
    spent, before = [], cpu_s(pid)
    for _ in range(repeats):
        path, start = next(paths), time.perf_counter()
        answer = client.request(method, path, **options)  # type: ignore[arg-type]
        spent.append((time.perf_counter() - start) * 1000)
        answer.raise_for_status()
    used = (cpu_s(pid) - before) * 1000 / repeats
    return statistics.median(spent), statistics.quantiles(spent, n=100)[98], used


def main() -> None:
    """Fill a registry, serve it, measure and print."""
    options = given(__doc__, builds=100_000, repeats=200, database=str, root=Path)
    draw = random.Random(0)
    pages: dict[str, Callable[[], str]] = {
        "search, newest": lambda: "/",
        "search, a frequent word": lambda: f"/?q={draw.choice(TASKS)}",
        "search, words": lambda: f"/?q=corpus+{draw.randrange(977)}",
        "search, a name": lambda: f"/?q={name_of(draw.randrange(options.builds))[5:]}",
        "search, a word of none": lambda: f"/?q=zebra{draw.randrange(977)}",
        "search, base": lambda: f"/?base={digest(f'base {draw.randrange(BASES)}')}",
        "search, method of none": lambda: "/?method=LOHA",
        "search, signed": lambda: f"/?signed=yes&base={digest(f'base {draw.randrange(BASES)}')}",
        "search, yanked": lambda: "/?yanked=yes",
        "search, licence": lambda: "/?license=mit",
        "search, downloads": lambda: f"/?sort=downloads&task={draw.choice(TASKS)}",
        "feed of a base": lambda: f"/feed?base={digest(f'base {draw.randrange(BASES)}')}",
        "feed of a namespace": lambda: "/feed?namespace=acme",
        "search, base and task": lambda: f"/?base={digest(f'base {draw.randrange(BASES)}')}&task={draw.choice(TASKS)}",
        "adapter page": lambda: f"/{name_of(draw.randrange(options.builds))}",
        "build page": lambda: f"/{name_of(10 * draw.randrange(options.builds // 10))}/1.0.0",
        "base page": lambda: f"/base/{digest(f'base {draw.randrange(BASES)}')}",
    }
    with tempfile.TemporaryDirectory() as folder:
        root = options.root or Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        database = Database(options.database or f"sqlite:///{root / 'registry.db'}")
        with database.read() as connection:
            is_empty = connection.scalar(select(repos.c.id).limit(1)) is None
        if is_empty:
            fill(database, DiskBlobs(root), options.builds)
        database.close()
        command = [sys.executable, "-m", "adapterhub_registry", "--root", str(root), "--port", "0", "--no-worker"]
        command += ["--database", options.database] if options.database else []
        paths = os.pathsep.join([str(ROOT), str(ROOT / "registry")])
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths})
        assert server.stdout is not None
        url = server.stdout.readline().partition(": ")[2].strip()
        try:
            with httpx.Client(base_url=url, timeout=60) as client:
                for name, path in pages.items():
                    shown = measured(client, server.pid, iter(path, None), options.repeats, headers=HTML)
                    twins = (_as_json(path()) for _ in range(options.repeats + 1))
                    twin = measured(client, server.pid, twins, options.repeats)
                    print(
                        f"{options.builds:,} builds, {name}: p50 {shown[0]:.1f} ms  p99 {shown[1]:.1f} ms  CPU {shown[2]:.1f} ms"
                        f"   JSON p50 {twin[0]:.1f} ms  CPU {twin[2]:.1f} ms   ratio of CPU {shown[2] / max(twin[2], 0.01):.2f}"
                    )
        finally:
            server.terminate()
            server.wait(20)


def _as_json(path: str) -> str:
    return f"{path}{'&' if '?' in path else '?'}format=json"


if __name__ == "__main__":
    main()
