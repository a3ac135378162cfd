"""Bytes through a registry: an upload by LFS beside a bare PUT, a download beside nginx, and the memory of eight uploads.

    python -m tests.bench.bench_transfer [--mebibytes 512] [--rounds 3] [--nginx /usr/sbin/nginx]

Each round uploads new bytes in parts, as the Hub's client does, and to a server that only hashes and writes the body
(uvicorn with h11, one PUT, sha256, fsync). curl downloads from the registry and from nginx with sendfile. Ratios are of
wall time and of the CPU time of the servers' processes: the floor divided by the registry, the least of the rounds.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from adapterhub_registry.access.tokens import Tokens
from adapterhub_registry.database.db import Database

from tests.bench.bench_listings import serving
from tests.bench.bench_pages import cpu_s
from tests.bench.bench_remote import peak_mb
from tests.bench.harness import given

MEBIBYTE = 1 << 20
UPLOADS = 8
BARE = """
import hashlib, os, socket, sys, uvicorn
async def app(scope, receive, send):
    digest, more = hashlib.sha256(), True
    with open(sys.argv[1], "wb") as out:
        while more:
            message = await receive()
            body, more = message.get("body", b""), message.get("more_body", False)
            digest.update(body)
            out.write(body)
        out.flush()
        os.fsync(out.fileno())
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
listener = socket.create_server(("127.0.0.1", 0))
print("bare: http://127.0.0.1:%d" % listener.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="warning", http="h11", lifespan="off")).run([listener])
"""


class Bytes:
    """So many mebibytes that no other seed makes, as a body that is read once."""

    def __init__(self, seed: int, first: int, count: int, block: bytes) -> None:
        self._pieces = (b"%8d%8d" % (seed, n) + block for n in range(first, first + count))

    def read(self, _size: int) -> bytes:
        """The next mebibyte; empty at the end."""
        return next(self._pieces, b"")


def call(url: str, method: str, path: str, body: object, headers: dict[str, str]) -> tuple[dict[str, str], bytes]:
    """Headers and body of an answer that must be a success."""
    line = http.client.HTTPConnection(urlsplit(url).netloc, timeout=600)
    line.request(method, path, body, headers)
    answer = line.getresponse()
    found = {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    line.close()
    if answer.status >= http.client.BAD_REQUEST:
        raise SystemExit(f"{method} {path[:40]}: {answer.status} {found[1][:300]!r}")
    return found


class Uploads:
    """Uploads to one repository of a registry."""

    def __init__(self, url: str, token: str, repo: str, mebibytes: int) -> None:
        self._url, self._repo, self._count = url, repo, mebibytes
        self._block = os.urandom(MEBIBYTE - 16)
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        namespace, _, name = repo.partition("/")
        self._post("/api/repos/create", {"organization": namespace, "name": name})

    def _post(self, path: str, body: object) -> bytes:
        return call(self._url, "POST", path, json.dumps(body), self._headers)[1]

    def body(self, seed: int) -> Bytes:
        """The bytes of a seed."""
        return Bytes(seed, 0, self._count, self._block)

    def object(self, seed: int) -> dict[str, object]:
        """What a client says of the bytes before it sends them."""
        hasher, body = hashlib.sha256(), self.body(seed)
        while piece := body.read(0):
            hasher.update(piece)
        return {"oid": hasher.hexdigest(), "size": self._count * MEBIBYTE}

    def send(self, seed: int, wanted: dict[str, object]) -> None:
        """Upload bytes by LFS: the batch, the parts one after the other, their completion and the check."""
        asked = {"operation": "upload", "transfers": ["basic", "multipart"], "hash_algo": "sha256", "objects": [wanted]}
        answer = json.loads(self._post(f"/{self._repo}.git/info/lfs/objects/batch", asked))
        upload, verify = (answer["objects"][0]["actions"][name] for name in ("upload", "verify"))
        links, parts = upload["header"], []
        size = int(links.get("chunk_size", self._count * MEBIBYTE)) // MEBIBYTE
        for number, first in enumerate(range(0, self._count, size), 1):
            count = min(size, self._count - first)
            link = urlsplit(links.get(str(number), upload["href"])).path
            body, length = Bytes(seed, first, count, self._block), {"Content-Length": str(count * MEBIBYTE)}
            parts.append({"partNumber": number, "etag": call(self._url, "PUT", link, body, length)[0].get("etag", "")})
        if "chunk_size" in links:
            self._post(urlsplit(upload["href"]).path, {"oid": wanted["oid"], "parts": parts})
        self._post(urlsplit(verify["href"]).path, wanted)

    def commit(self, path: str, wanted: dict[str, object]) -> None:
        """Commit uploaded bytes as a file."""
        file = {"path": path, "algo": "sha256", **wanted}
        lines = ({"key": "header", "value": {"summary": "x"}}, {"key": "lfsFile", "value": file})
        text = "\n".join(json.dumps(line) for line in lines)
        call(self._url, "POST", f"/api/models/{self._repo}/commit/main", text, self._headers)


def timed(pid: int, work: Callable[[], object]) -> tuple[float, float]:
    """Wall seconds of some work, and the CPU seconds of a server meanwhile."""
    before, start = cpu_s(pid), time.perf_counter()
    work()
    return time.perf_counter() - start, cpu_s(pid) - before


def show(what: str, mebibytes: int, floor: list[tuple[float, float]], ours: list[tuple[float, float]]) -> None:
    """Print the least times of both and their ratios."""
    wall, cpu = (min(one[at] for one in floor) / max(min(one[at] for one in ours), 0.01) for at in (0, 1))
    speeds = [mebibytes / min(one[0] for one in times) for times in (floor, ours)]
    print(
        f"{what}: floor {speeds[0]:.0f} MiB/s, registry {speeds[1]:.0f}; ratio {wall:.2f}, of CPU {cpu:.2f}", flush=True
    )


@contextlib.contextmanager
def nginx(program: str, folder: Path) -> Iterator[tuple[str, int]]:
    """nginx with sendfile, for the files of a folder: its address and the number of its process."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    server = f"server {{ listen 127.0.0.1:{port}; root {folder}; }}"
    conf = folder / "nginx.conf"
    conf.write_text(
        f"daemon off; master_process off; user root; pid {folder}/pid; events {{}}"
        f" http {{ access_log off; sendfile on; tcp_nopush on; {places} {server} }}"
    )
    process = subprocess.Popen([program, "-c", str(conf), "-p", str(folder), "-e", "stderr"])
    try:
        while True:
            assert process.poll() is None, "nginx did not start"
            with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port)):
                break
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.wait(20)


def download(url: str, mebibytes: int, *headers: str) -> None:
    """Download with curl, which keeps nothing."""
    command = ["curl", "-s", "-S", "-f", "-o", "/dev/null", "-w", "%{size_download}", *headers, url]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == str(mebibytes * MEBIBYTE), f"{url}: {done.stdout} bytes"


def main() -> None:
    """Measure and print."""
    asked = given(__doc__, mebibytes=512, rounds=3, nginx=shutil.which("nginx") or "")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        root = folder / "root"
        root.mkdir()
        database = Database(f"sqlite:///{root / 'registry.db'}")
        token = Tokens(database).create("bench", "admin")
        database.close()
        bare_url, bare_pid = stack.enter_context(serving([sys.executable, "-c", BARE, str(folder / "bare")]))
        command = [sys.executable, "-m", "adapterhub_registry", "--root", str(root), "--port", "0", "--no-worker"]
        url, pid = stack.enter_context(serving(command))
        uploads = Uploads(url, token, "acme/x", asked.mebibytes)
        floor, ours = [], []
        for seed in range(asked.rounds):
            wanted, length = uploads.object(seed), {"Content-Length": str(asked.mebibytes * MEBIBYTE)}
            floor.append(timed(bare_pid, partial(call, bare_url, "PUT", "/x", uploads.body(seed), length)))
            ours.append(timed(pid, partial(uploads.send, seed, wanted)))
        show(f"upload of {asked.mebibytes} MiB, floor a bare PUT with sha256", asked.mebibytes, floor, ours)
        uploads.commit("weights.bin", wanted)
        if not asked.nginx:
            print("download: nginx is not installed")
        else:
            near, number = stack.enter_context(nginx(asked.nginx, folder))
            far, header = f"{url}/acme/x/resolve/main/weights.bin", f"Authorization: Bearer {token}"
            floor, ours = [], []
            for _ in range(2 * asked.rounds):
                floor.append(timed(number, partial(download, f"{near}/bare", asked.mebibytes)))
                ours.append(timed(pid, partial(download, far, asked.mebibytes, "-H", header)))
            show(f"download of {asked.mebibytes} MiB, floor nginx with sendfile", asked.mebibytes, floor, ours)
        seeds = range(asked.rounds, asked.rounds + UPLOADS)
        objects = {seed: uploads.object(seed) for seed in seeds}
        threads = [threading.Thread(target=uploads.send, args=item) for item in objects.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(f"peak memory of the server after {UPLOADS} uploads at once: {peak_mb(pid):.0f} MB (under 150)")


if __name__ == "__main__":
    main()
