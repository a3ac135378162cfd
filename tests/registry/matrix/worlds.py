"""Registries that differ by hidden things: the same clock, the same order, the same callers."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from adapterhub_registry import worker
from adapterhub_registry.settings import ServerLimits

from adapterhub.core.specs import parse_name
from adapterhub.distribution.hub import Hub
from adapterhub.formats.release import Release
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import Installed
from adapterhub.library.transfer import copy
from tests.registry.running import Running, running
from tests.support.tiny import make_adapter, make_base

MARK = "zqxhidden"
"""Stands in every text of what is hidden."""
BEGAN_MS = 1_700_000_000_000
OWNER = "olga"
ROLES = {
    "reader": ("rita", "read", ()),
    "writer": ("bob", "write", ()),
    "namespace admin": ("eve", "admin", ("eve/*",)),
    "neighbour": ("nina", "write", ("acme/open",)),
}
"""Callers with tokens; none may see what is hidden. `neighbour` writes to one repository beside a hidden one."""


@dataclass
class Builds:
    """A library with the builds that the registries get."""

    folder: Path
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @cached_property
    def library(self) -> Library:
        library = Library(self.folder / "home")
        library.catalog.put_base(library.bases.add(make_base(self.folder / "base"), "base-7b"))
        return library

    def build(
        self, name: str, version: str = "1.0.0", *, seed: int = 0, text: str = "open", gated: str = ""
    ) -> Installed:
        base = self.library.bases.get("base-7b")
        made = make_adapter(self.folder / f"{name}-{next(self._numbers)}", seed=seed)
        widget = f"widget:\n- text: {gated}\n" if gated else ""
        (made / "README.md").write_text(f"---\nlicense: mit\n{widget}---\n# About\n\nIt is {text}. {gated}\n")
        about = Description(
            name=parse_name(name),
            version=version,
            task=f"{text}-task",
            description=f"about {text}",
            examples=(f"is it {gated or text}?",),
        )
        return self.library.add(made, about, base=base).build


@dataclass
class World:
    """One registry, and a clock that moves only by `at`."""

    server: Running
    library: Library
    clock: SimpleNamespace
    tokens: dict[str, str]

    def at(self, second: int) -> None:
        self.clock.now_ns = (BEGAN_MS + second * 1000) * 1_000_000

    def push(self, repo: str, build: Installed, *, private: bool = False) -> None:
        hub = Hub(endpoint=self.server.url, token=self.server.token)
        release = Release(manifest=build.manifest, namespace=None, origin="home", base_hub_id="org/base")
        copy(release, self.library, hub.to(repo, private=private))

    def ok(self, method: str, path: str, body: object = None, *, token: str = "") -> httpx.Response:
        return self.server.send(method, path, body, token=token).raise_for_status()

    def work(self) -> None:
        worker.work(self.server.registry.db, self.server.registry.blobs)


@dataclass(frozen=True)
class Hidden:
    """What one of two registries has; `fill` adds it. `compares` where nothing at all may differ."""

    fill: Callable[[World, dict[str, Installed]], None]
    compares: bool


def _private(world: World, builds: dict[str, Installed]) -> None:
    for repo in ("hidden/secret", "acme/secret"):
        world.push(repo, builds["secret"], private=True)
        world.push(repo, builds["secret 2"])
        world.ok("POST", f"/api/adapt/v1/adapters/{repo}/yank", {"version": "2.0.0", "reason": f"bad {MARK}"})
        world.ok("POST", f"/api/adapt/v1/adapters/{repo}/aliases/prod", {"targets": [{"version": "1.0.0"}]})
        world.ok("POST", "/api/adapt/v1/webhooks", {"scope": repo, "url": f"https://{MARK}.example/hook"})
        world.ok("POST", f"/api/models/{repo}/branch/{MARK}", {})
        world.ok("GET", f"/{repo}/resolve/main/adapter_config.json")
    world.work()


def _deleted(world: World, builds: dict[str, Installed]) -> None:
    for repo in ("hidden/secret", "acme/secret"):
        world.push(repo, builds["secret"], private=True)
        world.push(repo, builds["secret 2"])
        world.ok("GET", f"/{repo}/resolve/main/adapter_config.json")
    world.work()
    for repo in ("hidden/secret", "acme/secret"):
        world.ok("DELETE", "/api/repos/delete", {"organization": repo.partition("/")[0], "name": "secret"})


def _gated(world: World, builds: dict[str, Installed]) -> None:
    for repo in ("hidden/secret", "acme/secret"):
        world.push(repo, builds["gated"])
        world.ok("PUT", f"/api/models/{repo}/settings", {"gated": "manual"})
        world.ok("POST", f"/{repo}/ask-access", {}, token=world.tokens["asker"])
    world.work()


def _yanked(world: World, builds: dict[str, Installed]) -> None:
    for repo in ("hidden/secret", "acme/secret"):
        world.push(repo, builds["open"])
        world.push(repo, builds["secret 2"])
        world.ok("POST", f"/api/adapt/v1/adapters/{repo}/yank", {"version": "2.0.0", "reason": f"bad {MARK}"})
    world.work()


KINDS: dict[str, Hidden] = {
    "private": Hidden(_private, compares=True),
    "deleted": Hidden(_deleted, compares=True),
    "gated": Hidden(_gated, compares=False),
    "yanked": Hidden(_yanked, compares=False),
}


def _fill(world: World, builds: dict[str, Installed]) -> None:
    """What everybody sees; it comes after what is hidden, so that every number of the database differs."""
    world.at(100)
    world.push("acme/open", builds["open"])
    world.at(101)
    world.push("acme/open", builds["open 2"])
    world.at(102)
    world.ok("POST", "/api/adapt/v1/adapters/acme/open/aliases/prod", {"targets": [{"version": "1.0.0"}]})
    world.ok("GET", "/acme/open/resolve/main/adapter_config.json")
    world.work()
    world.at(103)
    world.ok(
        "POST",
        "/api/adapt/v1/webhooks",
        {"scope": "bob", "url": "https://bob.example/hook"},
        token=world.tokens["writer"],
    )
    world.push("bob/same", builds["secret"])  # its bytes are those of what is hidden; no worker has seen them since
    world.at(104)
    world.server.registry.downloads.flush()


def make_builds(folder: Path) -> tuple[Library, dict[str, Installed]]:
    made = Builds(folder)
    return made.library, {
        "open": made.build("open", seed=1),
        "open 2": made.build("open", "1.1.0", seed=2),
        "secret": made.build("secret", seed=1_001, text="quiet"),
        "secret 2": made.build("secret", "2.0.0", seed=1_002, text=MARK),
        "gated": made.build("gated", seed=1_003, text="veiled", gated=MARK),
    }


@contextlib.contextmanager
def world(
    folder: Path, port: int, made: tuple[Library, dict[str, Installed]], hidden: Hidden | None
) -> Iterator[World]:
    """A registry with what everybody sees, and before it what is hidden, if anything."""
    library, builds = made
    clock = SimpleNamespace(now_ns=0)
    limits = ServerLimits(similar_requests_per_minute=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        patch.setattr(
            "adapterhub_registry.database.db.time", SimpleNamespace(time_ns=lambda: clock.now_ns, time=time.time)
        )
        patch.setattr("adapterhub_registry.app.FLUSH_EVERY_S", 1e9)
        with running(folder, port=port, derives=False, limits=limits) as server:
            tokens = {
                name: server.registry.tokens.create(user, role, namespaces=list(globs))  # type: ignore[arg-type]
                for name, (user, role, globs) in ROLES.items()
            }
            tokens["owner"] = server.registry.tokens.create(OWNER, "write", namespaces=["hidden/*", "acme/*"])
            tokens["asker"] = server.registry.tokens.create(f"u{MARK}", "read")
            found = World(server, library, clock, tokens)
            found.at(0)
            if hidden is not None:
                hidden.fill(found, builds)
            _fill(found, builds)
            yield found
