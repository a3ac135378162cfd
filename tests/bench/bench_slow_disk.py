"""HEAD of a file while another client commits, on a disk whose syncs are slow, beside an empty route of FastAPI.

    python -m tests.bench.bench_slow_disk [--sync-ms 20] [--read-ms 0] [--builds 2000] [--repeats 500]

A library of a few lines, compiled here by `cc` and loaded before all others, lets each sync of a file take so long. The
pages that SQLite reads stay in memory, as on a server. `--read-ms` takes them away: no file is mapped, and each read
takes so long. Nothing here stands for a disk whose journal holds up other files while it syncs one. All take turns, and
the least of the rounds counts.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
from adapterhub_registry.access.tokens import Tokens
from adapterhub_registry.database.db import Database

from tests.bench.bench_listings import EMPTY, requests, serving
from tests.bench.bench_pages import measured
from tests.bench.bench_registry_scale import fill
from tests.bench.harness import given

ROUNDS = 3
Measured = tuple[float, float, float]
SLOW = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

static void slow(const char *name) {
    const char *ms = getenv(name);
    if (ms) usleep((useconds_t)(atof(ms) * 1000));
}
#define REAL(type, name) static type (*real)() = 0; if (!real) real = (type (*)())dlsym(RTLD_NEXT, name)
int fsync(int file) { REAL(int, "fsync"); slow("SYNC_MS"); return real(file); }
int fdatasync(int file) { REAL(int, "fdatasync"); slow("SYNC_MS"); return real(file); }
ssize_t pread(int file, void *to, size_t count, off_t at) {
    REAL(ssize_t, "pread"); slow("READ_MS"); return real(file, to, count, at);
}
ssize_t pread64(int file, void *to, size_t count, off64_t at) {
    REAL(ssize_t, "pread64"); slow("READ_MS"); return real(file, to, count, at);
}
static int is_refused(int access, int kind) {  /* a file that is only read: SQLite's, not that of its locks */
    return getenv("READ_MS") && (kind & MAP_SHARED) && access == PROT_READ;
}
void *mmap(void *at, size_t size, int access, int kind, int file, off_t from) {
    REAL(void *, "mmap");
    if (is_refused(access, kind)) { errno = ENODEV; return MAP_FAILED; }
    return real(at, size, access, kind, file, from);
}
void *mmap64(void *at, size_t size, int access, int kind, int file, off64_t from) {
    REAL(void *, "mmap64");
    if (is_refused(access, kind)) { errno = ENODEV; return MAP_FAILED; }
    return real(at, size, access, kind, file, from);
}
"""
COMMITS = """
import base64, itertools, json, sys, time, httpx
url, token = sys.argv[1:]
client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60)
client.post("/api/repos/create", json={"organization": "acme", "name": "busy"})
for n in itertools.count():
    file = {"path": "notes.txt", "content": base64.b64encode(b"%r" % time.time()).decode(), "encoding": "base64"}
    lines = [{"key": "header", "value": {"summary": str(n)}}, {"key": "file", "value": file}]
    body = "\\n".join(map(json.dumps, lines))
    start = time.perf_counter()
    headers = {"Content-Type": "application/x-ndjson"}
    client.post("/api/models/acme/busy/commit/main", content=body, headers=headers).raise_for_status()
    print((time.perf_counter() - start) * 1000, flush=True)
"""


def slow_library(folder: Path) -> Path:
    """The library that slows a disk; exits where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        sys.exit("no `cc` to compile the library that slows a disk")
    source, library = folder / "slow.c", folder / "slow.so"
    source.write_text(SLOW)
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-w", "-o", library, source, "-ldl"], check=True)
    return library


@contextlib.contextmanager
def committing(url: str, token: str) -> Iterator[list[float]]:
    """A client that makes one commit after the other, from its first on; at the end, the milliseconds of each."""
    spent: list[float] = []
    client = subprocess.Popen([sys.executable, "-c", COMMITS, url, token], stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    try:
        spent.append(float(client.stdout.readline()))
        yield spent
    finally:
        client.terminate()
        spent += [float(line) for line in client.stdout if line.endswith("\n")]
        client.wait(20)


def main() -> None:
    """Measure and print."""
    asked = given(__doc__, sync_ms=20.0, read_ms=0.0, builds=2000, repeats=500)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        roots = {"this disk": folder / "fast", "a slow disk": folder / "slow"}
        first, second = roots.values()
        first.mkdir()
        database = Database(f"sqlite:///{first / 'registry.db'}")
        fill(database, asked.builds)
        token = Tokens(database).create("ann", "write", namespaces=["acme"])
        database.close()
        shutil.copytree(first, second)
        slowed = ["env", f"LD_PRELOAD={slow_library(folder)}", f"SYNC_MS={asked.sync_ms}"]
        slowed += [f"READ_MS={asked.read_ms}"] if asked.read_ms else []
        infos = iter(requests(asked.builds)["model info"], None)
        files = (path.partition("/revision")[0][11:] + "/resolve/v1.0.0/adapter_model.safetensors" for path in infos)

        def asking(command: list[str]) -> tuple[str, Callable[..., Measured]]:
            url, pid = stack.enter_context(serving(command))
            headers = {"Authorization": f"Bearer {token}"}
            client = stack.enter_context(httpx.Client(base_url=url, headers=headers, timeout=60))
            return url, partial(measured, client, pid)

        _, empty = asking([sys.executable, "-c", EMPTY])
        heads = {}
        for disk, root in roots.items():
            command = [sys.executable, "-m", "adapterhub_registry", "--root", str(root), "--port", "0", "--no-worker"]
            heads[disk] = asking([*(slowed if root is second else []), *command])
        found: dict[str, list[Measured]] = {}
        commits: dict[str, list[float]] = {disk: [] for disk in roots}
        for _ in range(ROUNDS):
            found.setdefault("an empty route", []).append(empty(iter(lambda: "/empty", None), asked.repeats))
            for disk, (url, head) in heads.items():
                ask = partial(head, files, asked.repeats, method="HEAD")
                found.setdefault(f"HEAD, {disk}", []).append(ask())
                with committing(url, token) as spent:
                    found.setdefault(f"HEAD beside commits, {disk}", []).append(ask())
                commits[disk] += spent
        for name, rounds in found.items():
            p50, p99, cpu = (min(one[at] for one in rounds) for at in range(3))
            spent_by_it = "" if "commits" in name else f"  CPU {cpu:.2f} ms"
            print(f"{name}: p50 {p50:.2f} ms  p99 {p99:.1f} ms{spent_by_it}")
        for disk, spent in commits.items():
            print(f"the commits, {disk}: {len(spent)}, p50 {sorted(spent)[len(spent) // 2]:.1f} ms")


if __name__ == "__main__":
    main()
