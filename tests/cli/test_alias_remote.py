"""Aliases of a registry: one user moves them, another installs and serves what they mean."""

from __future__ import annotations

import zlib
from contextlib import closing

import pytest
from adapterhub_registry.repos import retention

import adapterhub
from adapterhub.distribution.hub import Hub
from adapterhub.inference.serving import AdapterProvider
from adapterhub.library.library import Library
from tests.cli.test_cli_verbs_remote import World
from tests.registry.running import running

pytestmark = pytest.mark.slow


@pytest.fixture
def world(tmp_path, server, online, request) -> World:
    world = World(tmp_path, server, f"t{zlib.crc32(request.node.name.encode())}")
    for version in ("1.0.0", "1.1.0"):
        world.publish(version)
    return world


def test_a_writer_moves_it_and_others_install_what_it_means(world):
    name, prod = f"{world.team}/legal-qa", f"{world.team}/legal-qa@prod"
    world.ann.ok("alias", "set", "prod", "legal-qa==1.0.0", "--remote", "ours")

    installed = world.bob.json("install", prod)
    (followed,) = world.bob.json("alias", "list")
    path = world.bob.ok("info", prod, "--path")
    world.ann.ok("alias", "set", "prod", f"{name}==1.1.0", "--remote", "ours")
    again = world.bob.json("install", prod)

    assert [row["version"] for row in (*installed, *again)] == ["1.0.0", "1.1.0"]
    assert (followed["alias"], followed["adapter"], followed["place"]) == ("prod", name, world.server.url)
    assert "1.0.0" in path
    assert world.bob.json("alias", "history", prod)[-1]["action"] == "follow"
    assert f"hint: write `{prod}`" in world.bob.fails(2, "alias", "rollback", "prod")
    back = world.bob.json("alias", "rollback", prod)
    assert (back["targets"][0]["version"], back["place"]) == ("1.0.0", None)
    assert world.bob.json("install", prod)[0]["version"] == "1.0.0", "what the user set here comes first"


def test_the_commands_answer_for_the_registry(world):
    name, prod = f"{world.team}/legal-qa", f"{world.team}/legal-qa@prod"
    there = ("--remote", "ours")
    world.ann.ok("alias", "set", "prod", f"{name}==1.0.0", *there)
    canary = world.ann.json("alias", "set", "prod", f"{name}==1.0.0=9", f"{name}==1.1.0=1", *there)

    assert [(one["version"], one["weight"]) for one in canary["targets"]] == [("1.0.0", 9), ("1.1.0", 1)]
    assert canary["moved_by"].startswith("ann (token")
    assert [row["alias"] for row in world.bob.json("alias", "list", name, *there)] == ["prod"]
    assert world.bob.json("alias", "list", prod, *there)[0]["targets"] == canary["targets"]
    assert world.bob.json("info", prod)["version"] == "1.0.0"
    assert "1.0.0 90 %, 1.1.0 10 % -> 1.0.0" in world.ann.ok("alias", "rollback", prod, *there)
    assert [row["action"] for row in world.ann.json("alias", "history", prod, *there)] == ["set", "set", "rollback"]
    assert world.ann.json("alias", "remove", prod, *there)["targets"] == []
    assert "was removed" in world.bob.fails(10, "alias", "list", prod, *there)
    assert "no alias `beta`" in world.bob.fails(10, "alias", "list", f"{name}@beta", *there)


def test_a_writer_lets_the_registry_keep_the_newest_versions(world):
    name, current, there = f"{world.team}/legal-qa", f"{world.team}/legal-qa@current", ("--remote", "ours")
    for version in ("1.0.0", "1.1.0"):
        world.ann.ok("alias", "set", "current", f"{name}=={version}", *there)
    before = world.ann.json("alias", "keep", current)  # of the namespace's remote

    assert (before["newest"], before["grace_days"], before["set_by"]) == (None, None, None)
    assert f"{current} keeps all" in world.bob.ok("alias", "keep", current, *there)
    said = world.ann.ok("alias", "keep", current, "1", "0", *there)
    assert f"{current} keeps the newest 1; others go 0 days after" in said
    kept = world.bob.json("alias", "keep", current, *there)
    assert (kept["repo"], kept["alias"], kept["newest"], kept["grace_days"]) == (name, "current", 1, 0)
    assert kept["set_by"].startswith("ann (token")
    assert retention.apply(world.server.registry.db) == 1
    left = world.server.get(f"/api/adapt/v1/adapters/{name}/versions").json()["versions"]
    assert [row["version"] for row in left] == ["1.1.0"]

    world.ann.ok("alias", "keep", current, "20", *there)
    assert adapterhub.Library(world.ann.library.root).keep_alias(current, remote="ours").grace_days == 30
    assert world.ann.json("alias", "keep", current, "all", *there)["newest"] is None

    assert "token" in world.bob.fails(14, "alias", "keep", current, "2", *there)
    assert "no alias `beta`" in world.ann.fails(10, "alias", "keep", f"{name}@beta", "2", *there)
    assert "names no alias" in world.ann.fails(2, "alias", "keep", name, "2", *there)
    for wrong in (("0",), ("some",), ("2", "-1"), ("2", "nan"), ("2", "4000")):
        world.ann.fails(2, "alias", "keep", current, *there, "--", *wrong)
    world.ann.ok("alias", "remove", current, *there)
    assert "was removed" in world.ann.fails(10, "alias", "keep", current, "2", *there)
    assert world.ann.json("alias", "keep", current, "all", *there)["newest"] is None


def test_what_may_not_be_is_refused_and_moves_nothing(world):
    name = f"{world.team}/legal-qa"
    there = ("--remote", "ours")

    assert "token" in world.bob.fails(14, "alias", "set", "prod", f"{name}==1.0.0", *there)
    assert "names no version" in world.ann.fails(2, "alias", "set", "prod", name, *there)
    assert "no adapter" in world.ann.fails(10, "alias", "set", "prod", f"{name}==9", *there)
    assert "--offline" in world.ann.fails(13, "alias", "set", "prod", f"{name}==1.0.0", *there, "--offline")
    assert "needs the name" in world.ann.fails(2, "alias", "list", *there)
    assert world.ann.json("alias", "list", name, *there) == []
    assert world.bob.fails(10, "install", f"{name}@prod")


def test_a_server_goes_on_with_what_it_knows_when_the_registry_is_down(tmp_path, online):
    with running(tmp_path / "registry") as server:
        world = World(tmp_path, server, "acme")
        for version in ("1.0.0", "1.1.0"):
            world.publish(version)
        world.ann.ok("alias", "set", "prod", "legal-qa==1.0.0", "--remote", "ours")
        library = world.bob.library
        provider = serving(library, server.url)
        with closing(provider):
            first = provider.find("acme/legal-qa@prod")
            world.ann.ok("alias", "set", "prod", "legal-qa==1.1.0", "--remote", "ours")
            provider.aliases.forget()
            second = provider.find("acme/legal-qa@prod")
    provider.aliases.forget("acme/legal-qa@prod")
    again = serving(Library(library.root), server.url)
    with closing(again):
        down, restarted = provider.targets("acme/legal-qa@prod"), again.find("acme/legal-qa@prod")

    assert (first.label, second.label) == ("acme/legal-qa==1.0.0", "acme/legal-qa==1.1.0")
    assert down == [f"acme/legal-qa==1.1.0#{second.digest}"]
    assert restarted.digest == second.digest


def serving(library: Library, url: str) -> AdapterProvider:
    base = library.bases.find("base-7b")
    hub = Hub(endpoint=url, token=None, silence_s=60)
    return AdapterProvider(library, base, engine="vllm@0.32", max_rank=16, sources=lambda _: [hub])
