"""Aliases of a registry: one user moves them, another installs and serves what they mean."""

from __future__ import annotations

import zlib
from contextlib import closing

import pytest

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
    path = world.bob.ok("path", prod)
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
    assert world.bob.json("alias", "show", prod, *there)["targets"] == canary["targets"]
    assert world.bob.json("info", prod)["version"] == "1.0.0"
    assert "1.0.0 90 %, 1.1.0 10 % -> 1.0.0" in world.ann.ok("alias", "rollback", prod, *there)
    assert [row["action"] for row in world.ann.json("alias", "history", prod, *there)] == ["set", "set", "rollback"]
    assert world.ann.json("alias", "remove", prod, *there)["targets"] == []
    assert "was removed" in world.bob.fails(10, "alias", "show", prod, *there)
    assert "no alias `beta`" in world.bob.fails(10, "alias", "show", f"{name}@beta", *there)


def test_what_may_not_be_is_refused_and_moves_nothing(world):
    name = f"{world.team}/legal-qa"
    there = ("--remote", "ours")

    assert "token" in world.bob.fails(14, "alias", "set", "prod", f"{name}==1.0.0", *there)
    assert "names no version" in world.ann.fails(2, "alias", "set", "prod", name, *there)
    assert "has no" in world.ann.fails(10, "alias", "set", "prod", f"{name}==9", *there)
    assert "--offline" in world.ann.fails(13, "alias", "set", "prod", f"{name}==1.0.0", *there, "--offline")
    assert "needs the name" in world.ann.fails(2, "alias", "list", *there)
    assert "for a registry" in world.ann.fails(2, "alias", "list", "--token", "x")
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
            provider.forget_alias()
            second = provider.find("acme/legal-qa@prod")
    provider.forget_alias("acme/legal-qa@prod")
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
