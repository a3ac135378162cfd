"""What each request costs with the code of another checkout and with ours, in turns on the same rows, and whether answers are equal.

A part of `bench_registry_scale`. The other server has the filled database of `registry_growth`, and ours a copy of it that
lasts as long as the comparison: the database that is kept must be no newer than the other checkout, which fills it where
there is none.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

import httpx
import psutil

from tests.bench import registry_growth
from tests.bench.registry_filling import Shape
from tests.bench.registry_growth import READY, Running, code_of, serving
from tests.registry.asked_at_size import Asked, requests
from tests.registry.shared_servers import ROOT

PREPARE: Final = f"""
import json, sys
from pathlib import Path
from adapterhub_registry.app import open_registry
from adapterhub_registry.settings import load_settings
from tests.bench.registry_filling import Shape, fill, store_small_files
from tests.registry.asked_at_size import tokens_in

root = Path(sys.argv[1])
registry = open_registry(load_settings(root))
if not (root / "{READY}").exists():
    fill(registry.db, Shape(int(sys.argv[2])), store_small_files(registry.blobs))
    (root / "{READY}").touch()
print(json.dumps(tokens_in(registry)))
registry.db.close()
"""
VARIES: Final = (
    r"http://127\.0\.0\.1:\d+",
    r"nonce[-=]\"?[\w+/=-]+",
    r'name="form_token" value="\w+',
    r"\?v=\w+",
    r'"next_cursor":"[\w=-]+',
    f"{datetime.now(timezone.utc):%Y-%m-%d}[T ][0-9:.]+Z?",
    r">(\d+ (second|minute)s? ago|just now)<",
)
"""Addresses, what a page draws anew, the versions of its style and scripts, and the times of today."""
LIMITS: Final = (5, 10)
AROUND: Final = 60


@contextlib.contextmanager
def _pair(checkout: Path, builds: int) -> Iterator[tuple[Running, Running]]:
    """The other server and ours."""
    kept = registry_growth.KEPT / f"sqlite-{builds}"
    ours = kept.with_name(f"{kept.name}-copy")
    kept.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        tokens = _tokens(checkout, kept, builds)
        shutil.rmtree(ours, ignore_errors=True)
        stack.callback(shutil.rmtree, ours, ignore_errors=True)
        subprocess.run(["cp", "-a", "--reflink=auto", kept, ours], check=True)
        both = []
        for root, code in ((kept, checkout), (ours, ROOT)):
            url, pid = stack.enter_context(serving(root, checkout=code))
            both.append(Running([url], [psutil.Process(pid)], tokens))
        yield both[0].calm(), both[1].calm()


def _tokens(checkout: Path, root: Path, builds: int) -> dict[str, str]:
    command = [sys.executable, "-c", PREPARE, str(root), str(builds)]
    made = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=code_of(checkout), cwd=checkout, check=True)
    tokens: dict[str, str] = json.loads(made.stdout)
    return tokens


def steady(text: str) -> str:
    """An answer without what differs from server to server."""
    for pattern in VARIES:
        text = re.sub(pattern, "~", text)
    return text


def difference(other: str, ours: str) -> str:
    """Where two answers part first."""
    at = next((n for n, (a, b) in enumerate(zip(other, ours, strict=False)) if a != b), min(len(other), len(ours)))
    start = max(at - AROUND, 0)
    return f"{other[start : at + AROUND]!r} != {ours[start : at + AROUND]!r}"


def _ask(client: httpx.Client, server: Running, one: Asked, path: str) -> tuple[float, str]:
    before = server.cpu_s()
    answer = client.request(one.method, path, headers=server.headers(one))
    return (server.cpu_s() - before) * 1000, f"{answer.status_code} {steady(answer.text)}"


def compare(checkout: Path, builds: int, repeats: int, only: str = "") -> dict[str, str]:
    """Print what each request costs in both, and return where answers differ, by the name of the request."""
    costs: dict[str, tuple[float, float]] = {}
    differing: dict[str, str] = {}
    with _pair(checkout.resolve(), builds) as servers, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(httpx.Client(base_url=one.urls[0], timeout=60)) for one in servers]
        for one in requests(Shape(builds)):
            if only not in one.name:
                continue
            spent: tuple[list[float], list[float]] = ([], [])
            for turn in range(repeats + 2):
                path, said = one.path(), []
                for client, server, times in zip(clients, servers, spent, strict=True):
                    cpu, text = _ask(client, server, one, path)
                    said.append(text)
                    if turn > 1:  # statements are prepared by then, and pages of the disk read
                        times.append(cpu)
                if said[0] != said[1]:
                    differing.setdefault(one.name, f"{path}: {difference(*said)}")
            costs[one.name] = (statistics.mean(spent[0]), statistics.mean(spent[1]))
    print(f"request, CPU ms of {checkout} and of this checkout, answers", flush=True)
    for name, (before, now) in sorted(costs.items(), key=lambda item: -item[1][1]):
        print(f"{name:48} {before:7.2f} {now:7.2f}  {'differ' if name in differing else 'equal'}")
    for name, where in differing.items():
        print(f"{name} differs at {where}")
    for limit in LIMITS:
        over = [sum(pair[n] > limit for pair in costs.values()) for n in (0, 1)]
        print(f"of {len(costs)} requests over {limit} ms: {over[0]} before, {over[1]} now")
    print(f"{len(costs) - len(differing)} have equal answers")
    return differing
