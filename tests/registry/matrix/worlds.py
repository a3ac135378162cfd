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
from typing import Any

import httpx
import pytest
from adapterhub_registry import worker
from adapterhub_registry.access.callers import SCOPES
from adapterhub_registry.access.tokens import open_session
from adapterhub_registry.settings import ServerLimits

from adapterhub.core.specs import parse_name
from adapterhub.distribution.hub import Hub
from adapterhub.formats.release import Release
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import Installed
from adapterhub.library.transfer import copy
from tests.registry.issuer import Issuer, issuing
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
MEMBERS = ("team member", "expired member", *(f"bound to {scope}" for scope in SCOPES))
"""Callers with tokens that persons made. `bound to …`: an administrator of what is hidden, in one open repository."""
DEVICE = "device token"
"""A caller with a token that the writer approved for a program; it does no more."""
PIPELINE = "pipeline of"
EXPIRED = "expired pipeline"
JOBS = (f"{PIPELINE} acme/open", f"{PIPELINE} hidden/open", EXPIRED)
"""Callers with tokens of jobs: for a repository beside a hidden one, for one that is not there yet, and for none any more."""


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
    issuer: Issuer

    def at(self, second: int) -> None:
        self.clock.now_ns = (BEGAN_MS + second * 1000) * 1_000_000

    def job(self, repo: str, project: str) -> str:
        """A token for a repository, which a job of a project gets."""
        self.server.registry.publishers.add(repo, self.issuer.url, {"repository": project})
        identity = self.issuer.token(self.server.url, repository=project)
        made = self.ok("POST", "/api/adapt/v1/publish-token", {"repo": repo, "token": identity})
        return str(made.json()["token"])

    def push(self, repo: str, build: Installed, *, private: bool = False, token: str = "") -> None:
        hub = Hub(endpoint=self.server.url, token=token or self.server.token)
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
        world.push(repo, builds["secret"], private=True, token=world.job(repo, f"acme/{MARK}"))
        world.push(repo, builds["secret 2"])
        world.ok("POST", f"/api/adapt/v1/adapters/{repo}/yank", {"version": "2.0.0", "reason": f"bad {MARK}"})
        world.ok("POST", f"/api/adapt/v1/adapters/{repo}/aliases/prod", {"targets": [{"version": "1.0.0"}]})
        world.ok("POST", f"/api/adapt/v1/adapters/{repo}/aliases/prod/retention", {"newest": 3})
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


def _members(server: Running) -> Iterator[str]:
    """The tokens of `MEMBERS`."""
    members, tokens = server.registry.members, server.registry.tokens

    def own(user: str, scope: str, *namespaces: str) -> str:
        with server.registry.db.begin() as connection:
            number = open_session(connection, user, lasts_s=3600, label="signed in")
        caller = tokens.caller_numbered(number)
        assert caller is not None
        token = tokens.create_own(caller, scopes=[scope], namespaces=namespaces)
        tokens.revoke(number)
        return token

    for user in ("tia", "xia", "otto"):
        tokens.create(user, "read")
    members.put_team("acme", "openers", "administer", ["open"])
    members.add("acme", "tia", team="openers")
    yield own("tia", "administer")
    members.add("acme", "xia", role="administer", days=1e-6)
    members.add("hidden", "xia", role="administer", days=1e-6)
    yield own("xia", "administer")
    for namespace in ("acme", "hidden"):
        members.add(namespace, "otto", role="administer")
    for scope in SCOPES:
        yield own("otto", scope, "acme/open")


def _device(server: Running, approver: str) -> str:
    """A token that a person approved on the page for codes."""
    devices, caller = server.registry.devices, server.registry.tokens.authenticate(approver)
    assert caller is not None
    made = devices.start("adapt on desk", address="127.0.0.1", scopes=("write", "release"), days=3)
    assert devices.answer(made.user_code, caller, approve=True)
    return devices.poll(made.device_code).token


@contextlib.contextmanager
def reopened(
    folder: Path, port: int, library: Library, tokens: dict[str, str], *, second: int = 104, **settings: Any
) -> Iterator[World]:
    """A registry as it is, with a clock that stands."""
    clock = SimpleNamespace(now_ns=0)
    limits = ServerLimits(similar_requests_per_minute=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        patch.setattr(
            "adapterhub_registry.database.db.time", SimpleNamespace(time_ns=lambda: clock.now_ns, time=time.time)
        )
        patch.setattr("adapterhub_registry.app.FLUSH_EVERY_S", 1e9)
        for place in ("api.members_api", "pages.people"):
            patch.setattr(f"adapterhub_registry.{place}.ACCEPTS_A_MINUTE", 1_000_000)
        patch.setattr("adapterhub_registry.treelog.new_seed", lambda: bytes(32))
        patch.setattr("adapterhub_registry.api.trusted_api.A_MINUTE", 10_000)
        numbers = itertools.count(10**9)  # else random, and ids of commits name them
        patch.setattr("adapterhub_registry.access.trusted._new_number", lambda _: next(numbers))
        settings = {"public_url": f"http://127.0.0.1:{port}", **settings}
        with issuing() as issuer, running(folder, port=port, derives=False, limits=limits, **settings) as server:
            found = World(server, library, clock, tokens, issuer)
            found.at(second)
            yield found


@contextlib.contextmanager
def world(
    folder: Path, port: int, made: tuple[Library, dict[str, Installed]], hidden: Hidden | None, **settings: Any
) -> Iterator[World]:
    """A registry with what everybody sees, and before it what is hidden, if anything."""
    library, builds = made
    with reopened(folder, port, library, {}, **settings) as found:
        found.clock.now_ns = 0
        make = found.server.registry.tokens.create
        for name, (user, role, globs) in ROLES.items():
            found.tokens[name] = make(user, role, namespaces=list(globs))  # type: ignore[arg-type]
        found.tokens.update(zip(MEMBERS, _members(found.server), strict=True))
        found.tokens["owner"] = make(OWNER, "write", namespaces=["hidden/*", "acme/*"])
        found.tokens["asker"] = make(f"u{MARK}", "read")
        found.at(-2 * 15 * 60)
        found.tokens[EXPIRED] = found.job("acme/open", "acme/expired")
        found.at(0)
        found.tokens[DEVICE] = _device(found.server, found.tokens["writer"])
        for repo in ("acme/open", "hidden/open"):
            found.tokens[f"{PIPELINE} {repo}"] = found.job(repo, "acme/training")
        if hidden is not None:
            hidden.fill(found, builds)
        _fill(found, builds)
        yield found
