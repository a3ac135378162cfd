"""One registry for the whole run, started as users start it, and stock clients in processes of their own.

The hub client reads HF_ENDPOINT and its switches when it is imported, and this process imports it offline: whatever
speaks to the registry as a client runs in a subprocess.
"""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from adapterhub_registry.database.db import Database
from adapterhub_registry.storage.blobs import DiskBlobs
from sqlalchemy.engine import Connection

from tests.registry import shared_servers
from tests.registry.proxy import Proxy, proxy_of
from tests.registry.running import Running

ROOT = Path(__file__).resolve().parent.parent.parent
# large enough that the usual small files go in one piece, small enough that a test can send parts
LIMITS = ("multipart_from_bytes=8388608", "part_bytes=5242880", "json_body_bytes=1048576", "files=3000")
MODES = {"xet": {}, "lfs": {"HF_HUB_DISABLE_XET": "1"}}


@dataclass(frozen=True)
class Served:
    """A registry in its own process, and the token of its administrator."""

    url: str
    token: str
    root: Path
    pid: int

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """For a client of this registry that keeps its cache in `home`; offline mode is off."""
        mine = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        path = os.pathsep.join([str(ROOT), str(ROOT / "registry")])
        hub = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
        return mine | {"PYTHONPATH": path, "ADMIN_TOKEN": self.token, "NO_COLOR": "1"} | hub | more


@contextlib.contextmanager
def serving(folder: Path, limits: tuple[str, ...] = LIMITS, *options: str) -> Iterator[Served]:
    """A registry under `folder`, started as users start it; its log must stay empty."""
    command = [sys.executable, "-m", "adapterhub_registry", "--root", str(folder / "root"), "--port", "0", *options]
    command += [part for limit in limits for part in ("--limit", limit)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "registry")])}
    log = folder / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
    assert process.stdout is not None
    lines = [process.stdout.readline(), process.stdout.readline()]
    assert all(lines), f"the registry did not start: {log.read_text()}"
    url, token = (line.rpartition(": ")[2].strip() for line in lines)
    try:
        yield Served(url, token, folder / "root", process.pid)
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()
    assert log.read_text() == "", "the registry wrote to its log: something failed inside it"


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


class Undo(Exception):
    """Ends a transaction without a trace."""


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Database, DiskBlobs]]:
    """A database that stays empty, and a store of blobs."""
    root = tmp_path_factory.mktemp("parts")
    database = Database(f"sqlite:///{root / 'registry.db'}")
    yield database, DiskBlobs(root)
    database.close()


@pytest.fixture
def store(parts: tuple[Database, DiskBlobs]) -> DiskBlobs:
    return parts[1]


@pytest.fixture
def connection(parts: tuple[Database, DiskBlobs]) -> Iterator[Connection]:
    """A transaction that is undone after the test."""
    with contextlib.suppress(Undo), parts[0].begin() as connection:
        yield connection
        raise Undo


@pytest.fixture
def proxy(server: Running) -> Iterator[Proxy]:
    """What stands between the registry of a file and its clients."""
    with proxy_of(server.url) as proxy:
        yield proxy


XET_ALONE = pytest.mark.parametrize("mode", ["xet", pytest.param("lfs", marks=pytest.mark.exhaustive)], indirect=True)
"""For tests in which the way of uploading decides little; `--exhaustive` takes both."""


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> Mapping[str, str]:
    """The client's switches: as installed (Xet), and with Xet off (LFS)."""
    return MODES[request.param]


@pytest.fixture(scope="session")
def pg() -> Iterator[shared_servers.Postgres]:
    """A PostgreSQL for all tests that want one."""
    with shared_servers.postgres() as server:
        yield server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[shared_servers.S3]:
    """An S3 server for all tests that want one; there is one to install for Linux on x86_64 only."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("no S3 server to install for this machine")
    with shared_servers.s3() as server:
        yield server
