"""A registry that runs on loopback in a thread, with an admin token."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
import uvicorn.server
from adapterhub_registry.access.tokens import door
from adapterhub_registry.api.context import Registry
from adapterhub_registry.app import create_app
from adapterhub_registry.database.db import Database
from adapterhub_registry.operations.server import config_of
from adapterhub_registry.settings import load_settings
from fastapi import FastAPI
from huggingface_hub import HfApi

from tests.registry.pushing import Push
from tests.support.command_line import Adapt, Done


class _Hasty:
    """`asyncio` for uvicorn, which looks ten times a second whether it should end, and then waits as long again."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / 5)


uvicorn.server.asyncio = _Hasty()  # type: ignore[assignment]


@dataclass(frozen=True)
class Running:
    url: str
    token: str
    root: Path
    registry: Registry
    app: FastAPI

    def send(self, method: str, path: str, body: Any = None, *, token: str | None = "") -> httpx.Response:
        """As the admin; with `token` as another, with None as nobody."""
        given = self.token if token == "" else token
        headers = {"Authorization": f"Bearer {given}"} if given else {}
        return httpx.request(method, self.url + path, json=body, headers=headers)

    def get(self, path: str, *, token: str | None = "") -> httpx.Response:
        return self.send("GET", path, token=token)

    def post(self, path: str, body: Any, *, token: str | None = "") -> httpx.Response:
        return self.send("POST", path, body, token=token)

    def now(self) -> float:
        return time.time()

    def client(self, token: str = "") -> httpx.Client:
        """A client with the admin's token, or with another."""
        headers = {"Authorization": f"Bearer {token or self.token}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)

    @property
    def api(self) -> HfApi:
        """The stock client; a test that uses it is `online`."""
        return HfApi(endpoint=self.url, token=self.token)

    def push(self, repo: str, weights: bytes, version: str = "v1.0.0") -> Push:
        """Push and tag by hand."""
        made = Push(repo=repo, weights=weights, version=version)
        with self.client() as client:
            made.run(client)
        return made

    def create(self, repo: str, **about: object) -> str:
        namespace, _, name = repo.partition("/")
        self.post("/api/repos/create", {"organization": namespace, "name": name, **about}).raise_for_status()
        return repo

    def remove(self, repo: str) -> None:
        namespace, _, name = repo.partition("/")
        self.send("DELETE", "/api/repos/delete", {"organization": namespace, "name": name}).raise_for_status()

    def yank(self, repo: str, reason: str, version: str = "1.0.0") -> None:
        about = {"version": version, "reason": reason}
        self.post(f"/api/adapt/v1/adapters/{repo}/yank", about).raise_for_status()


def typed(*arguments: object) -> Done:
    """`adapt registry …` in this process; `serve` closes what it writes to other users, which ends with the command."""
    mask = os.umask(0o022)
    os.umask(mask)
    try:
        return Adapt(Path(tempfile.gettempdir()))("registry", *arguments)
    finally:
        os.umask(mask)


@functools.cache
def _new_database() -> bytes:
    """The file that a new registry makes, made once: its tables take a hundred statements."""
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{folder}/registry.db")
        database.engine.dispose()
        with contextlib.closing(sqlite3.connect(f"{folder}/registry.db")) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return Path(folder, "registry.db").read_bytes()


@contextmanager
def running(root: Path, *, port: int = 0, **settings: Any) -> Iterator[Running]:
    given, file = load_settings(root, **settings), root / "registry.db"
    if root.is_dir() and not file.exists() and given.database == f"sqlite:///{file}":
        file.write_bytes(_new_database())
    app = create_app(given)
    config = config_of(app)  # as `serve` runs it
    config.port = port
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    registry: Registry = app.state.registry
    url = f"http://127.0.0.1:{port}"
    try:
        with door(root, url, registry.operator):
            yield Running(url, registry.tokens.create("ann", "admin"), root, registry, app)
    finally:
        server.should_exit = True
        thread.join(60)
