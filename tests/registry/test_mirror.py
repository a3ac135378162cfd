"""`adapt mirror 'acme/*'`: every released version that the other server lacks, and next to no requests when it lacks none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from adapterhub.api.library import Library
from adapterhub.core.errors import SpecError
from adapterhub.distribution.mirroring import parse_repositories
from tests.registry.proxy import Proxy, proxy_of
from tests.registry.running import Running, running
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base


@dataclass(frozen=True)
class World:
    adapt: Adapt
    ours: Running
    theirs: Running
    near: Proxy
    far: Proxy

    def mirror(self, *arguments: str) -> str:
        """Mirror from ours to theirs, and forget the requests of before."""
        self.near.seen.clear()
        self.far.seen.clear()
        return self.adapt.ok("mirror", *arguments, "--from", "ours", "--to", "theirs")

    def push(self, name: str, version: str, seed: int) -> None:
        make_adapter(self.adapt.folder / f"{name}-{version}", seed=seed)
        added = ("add", f"./{name}-{version}", "--name", name, "--version", version, "--base", "base")
        self.adapt.ok(*added)
        self.adapt.ok("push", f"{name}=={version}", "--to", f"acme/{name}", "--remote", "ours")


@pytest.fixture
def world(tmp_path: Path, online: None) -> Iterator[World]:
    """Two registries, and a home that reaches each through a proxy that notes the requests."""
    make_base(tmp_path / "base")
    adapt = Adapt(tmp_path)
    adapt.ok("base", "add", "./base", "--as", "base")
    with (
        running(tmp_path / "a") as ours,
        running(tmp_path / "b") as theirs,
        proxy_of(ours.url) as near,
        proxy_of(theirs.url) as far,
    ):
        for name, server, proxy in (("ours", ours, near), ("theirs", theirs, far)):
            adapt.ok("remote", "add", name, proxy.url)
            adapt.ok("remote", "login", name, "--token", server.token)
        yield World(adapt, ours, theirs, near, far)


def versions(server: Running, repo: str) -> dict[str, str]:
    listed = server.get(f"/api/adapt/v1/adapters/{repo}/versions")
    return {one["version"]: one["digest"] for one in listed.json()["versions"]} if listed.is_success else {}


def test_a_pattern_copies_every_released_version_but_the_yanked_ones(world: World) -> None:
    for seed, (name, version) in enumerate([("qa", "1.0.0"), ("qa", "1.1.0"), ("json", "1.0.0"), ("bad", "1.0.0")]):
        world.push(name, version, seed)
    world.ours.yank("acme/bad", "leaked labels")

    planned = world.mirror("acme/*", "--dry-run")
    before = versions(world.theirs, "acme/qa")
    done = world.mirror("acme/*")

    assert planned.count("would copy acme/") == done.count("copied acme/") == 3
    assert before == versions(world.theirs, "acme/bad") == {}
    for repo in ("acme/qa", "acme/json"):
        assert versions(world.theirs, repo) == versions(world.ours, repo) != {}


@pytest.mark.parametrize("spec", ["acme/*", "acme/qa==1.1.0"])
def test_a_mirror_carries_yanks_and_says_that_aliases_stay(world: World, spec: str) -> None:
    for seed, version in enumerate(["1.0.0", "1.1.0"]):
        world.push("qa", version, seed)
    world.mirror("acme/*")
    world.ours.yank("acme/qa", "leaked labels")
    mirror = ("mirror", spec, "--from", "ours", "--to", "theirs")

    planned = world.adapt(*mirror, "--dry-run")
    before = yanks(world.theirs)
    done = world.adapt(*mirror)
    again = world.adapt(*mirror)

    assert before == {"1.0.0": None, "1.1.0": None}
    assert yanks(world.theirs) == {"1.0.0": "leaked labels", "1.1.0": None}
    assert "would yank acme/qa 1.0.0" in planned.stderr
    assert ("yanked acme/qa 1.0.0" in done.stderr, "yanked acme/qa 1.0.0" in again.stderr) == (True, False)
    assert "aliases stay behind" in done.stderr


def test_a_pinned_yanked_version_is_yanked_where_it_arrives(world: World) -> None:
    world.push("qa", "1.0.0", 1)
    world.ours.yank("acme/qa", "leaked")

    world.mirror("acme/qa==1.0.0")

    assert yanks(world.theirs) == {"1.0.0": "leaked"}


def test_other_bytes_under_a_version_are_not_yanked_by_a_mirror(world: World) -> None:
    world.push("qa", "1.0.0", 1)
    make_adapter(world.adapt.folder / "other", seed=9)
    other = Adapt(world.adapt.folder, "other-home")
    other.ok("base", "add", "./base", "--as", "base")
    other.ok("remote", "add", "theirs", world.theirs.url)
    other.ok("remote", "login", "theirs", "--token", world.theirs.token)
    other.ok("add", "./other", "--name", "qa", "--version", "1.0.0", "--base", "base")
    other.ok("push", "qa==1.0.0", "--to", "acme/qa", "--remote", "theirs")
    world.ours.yank("acme/qa", "leaked")

    world.mirror("acme/*")

    assert yanks(world.theirs) == {"1.0.0": None}


@pytest.mark.parametrize("reason", ["leaked labels", "x" * 300])
def test_a_yank_that_the_owner_of_the_copy_took_back_is_carried_once(world: World, reason: str) -> None:
    world.push("qa", "1.0.0", 1)
    world.mirror("acme/*")
    world.ours.yank("acme/qa", reason)
    world.mirror("acme/*")
    world.theirs.post("/api/adapt/v1/adapters/acme/qa/unyank", {"version": "1"}).raise_for_status()

    again = world.adapt("mirror", "acme/*", "--from", "ours", "--to", "theirs")
    before = yanks(world.theirs)
    world.ours.yank("acme/qa", "worse")
    world.mirror("acme/qa==1.0.0")

    assert before == {"1.0.0": None}
    assert "its owner took the same yank back there" in again.stderr
    assert yanks(world.theirs) == {"1.0.0": "worse"}


def yanks(server: Running) -> dict[str, str | None]:
    listed = server.get("/api/adapt/v1/adapters/acme/qa/versions").json()["versions"]
    return {one["version"]: one["yanked"] and one["yanked"]["reason"] for one in listed}


def test_a_mirror_that_lacks_nothing_costs_one_request_to_each_server(world: World) -> None:
    for seed in range(3):
        world.push(f"qa{seed}", "1.0.0", seed)
    world.mirror("acme/*")

    done = world.mirror("acme/*")

    assert done.count("already there: acme/qa") == 3
    assert [request.path.partition("?")[0] for request in world.near.seen + world.far.seen] == [
        "/api/adapt/v1/releases"
    ] * 2


def test_a_pattern_takes_the_repositories_that_it_matches(world: World) -> None:
    for seed, name in enumerate(["qa-en", "qa-de", "json"]):
        world.push(name, "1.0.0", seed)

    found = Library(world.adapt.folder / "home").mirror("acme/qa-*", origin="ours", target="theirs", namespace="copy")

    assert sorted((one.name, one.created) for one in found) == [("acme/qa-de", True), ("acme/qa-en", True)]
    assert sorted(one["id"] for one in world.theirs.get("/api/models").json()) == ["copy/qa-de", "copy/qa-en"]


def test_plain_repositories_are_copied_once(world: World) -> None:
    make_adapter(world.adapt.folder / "plain")
    weights = (world.adapt.folder / "plain" / "adapter_model.safetensors").read_bytes()
    world.ours.push("acme/plain", weights)

    first, second = world.mirror("acme/*"), world.mirror("acme/*")

    assert first.startswith("copied acme/plain 1.0.0")
    assert second.startswith("already there: acme/plain 1.0.0")


def test_pages_of_releases_follow_each_other(world: World) -> None:
    for number in range(5):
        world.ours.push(f"acme/p{number}", bytes([number]) * 500)
    world.ours.push("other/p", b"o" * 500)
    found, cursor, pages = [], "", 0
    while cursor is not None:
        query = f"namespace=acme&limit=2&cursor={cursor}" if cursor else "namespace=acme&limit=2"
        page = world.ours.get(f"/api/adapt/v1/releases?{query}").json()
        found += [(one["repo"], one["version"], one["yanked"]) for one in page["releases"]]
        cursor, pages = page["next_cursor"], pages + 1

    assert found == [(f"acme/p{number}", "1.0.0", False) for number in range(5)]
    assert pages == 3


def test_private_repositories_are_listed_only_to_those_who_see_them(world: World) -> None:
    world.ours.push("acme/secret", b"s" * 500)
    world.ours.send("PUT", "/api/models/acme/secret/settings", {"private": True}).raise_for_status()

    assert world.ours.get("/api/adapt/v1/releases?namespace=acme", token=None).json()["releases"] == []
    assert len(world.ours.get("/api/adapt/v1/releases?namespace=acme").json()["releases"]) == 1


@pytest.mark.parametrize("text", ["*/*", "*", "acme/*@base", "acme/a/*", "acme/*==1.0", "ac[me/*", "acme/*\\n"])
def test_a_pattern_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        parse_repositories(text)


def test_a_pattern_takes_no_base_and_no_rank(tmp_path: Path) -> None:
    adapt = Adapt(tmp_path)
    servers = ("--from", "http://127.0.0.1:9", "--to", "http://127.0.0.1:8")

    said = adapt.fails(2, "mirror", "acme/*", "--rank", "4", *servers)

    assert "a pattern copies builds of every base and rank" in said
