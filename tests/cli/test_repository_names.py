"""A repository may have another name than the adapter in it; both install, and tables show both."""

from __future__ import annotations

import zlib

import pytest

from tests.registry.running import Running
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base

pytestmark = pytest.mark.slow


class World:
    """`ann` publishes the adapter `json` as the repository `TEAM/json-smol`, `bob` uses it."""

    def __init__(self, folder, server: Running, team: str) -> None:
        self.team, self.folder = team, folder
        self.ann, self.bob = Adapt(folder, "ann"), Adapt(folder, "bob")
        make_base(folder / "base")
        for home in (self.ann, self.bob):
            home.ok("base", "add", "./base", "--as", "base-7b")
            home.ok("remote", "add", "ours", server.url, "--namespaces", team)
        self.ann.ok("remote", "login", "ours", "--token", server.token)
        self.publish("json", "1.0.0", "json-smol")

    def publish(self, name: str, version: str, repository: str) -> None:
        made = make_adapter(self.folder / "out" / f"{name}-{version}", seed=len(version + repository))
        self.ann.ok("add", made, "--name", name, "--version", version, "--base", "base-7b")
        self.ann.ok("push", f"{name}=={version}", "--to", f"{self.team}/{repository}")


@pytest.fixture
def world(tmp_path, server, online, request) -> World:
    return World(tmp_path, server, f"t{zlib.crc32(request.node.name.encode())}")


@pytest.mark.parametrize("namespaced", [True, False])
@pytest.mark.parametrize("name", ["json", "json-smol"])
def test_both_names_install_the_one_adapter(world, name, namespaced):
    spec = f"{world.team}/{name}" if namespaced else name

    (plan,) = world.bob.json("install", spec, "--dry-run")
    (done,) = world.bob.json("install", spec)

    assert plan["name"] == done["name"] == f"{world.team}/json"
    assert [build.full_name for build in world.bob.library.installed()] == [f"{world.team}/json"]
    (again,) = world.bob.json("install", spec)
    assert again["present"]


def test_both_names_show_the_one_adapter_and_where_it_is(world):
    for name in ("json", "json-smol"):
        shown = world.bob.json("info", f"{world.team}/{name}", "--remote", "ours")
        assert (shown["name"], shown["repository"]) == (f"{world.team}/json", f"{world.team}/json-smol")
    assert world.bob.json("info", f"{world.team}/json-smol")["name"] == f"{world.team}/json"
    pulled = world.bob.json("pull", f"{world.team}/json-smol", "./plain")
    assert pulled["name"] == f"{world.team}/json"


def test_a_search_shows_both_names_and_what_it_prints_installs(world):
    (found,) = world.bob.json("search", world.team, "--remote", "ours")
    table = world.bob.ok("search", world.team, "--remote", "ours")

    assert (found["repository"], found["name"]) == (f"{world.team}/json-smol", "json")
    header, row = table.splitlines()[:2]
    assert header.split()[:3] == ["repository", "adapter", "version"]
    assert row.split()[:3] == [f"{world.team}/json-smol", "json", "1.0.0"]
    world.bob.ok("install", row.split()[0])


def test_the_name_of_an_adapter_wins_over_that_of_a_repository(world):
    world.publish("json-smol", "2.0.0", "other")

    (done,) = world.bob.json("install", f"{world.team}/json-smol")

    assert (done["name"], done["version"]) == (f"{world.team}/json-smol", "2.0.0")


def test_a_repository_that_changed_its_adapter_lists_both(world):
    world.publish("yaml", "2.0.0", "json-smol")

    refused = world.bob.fails(2, "install", f"{world.team}/json-smol")

    assert f"the repository `{world.team}/json-smol` holds 2 adapters" in refused
    assert f"{world.team}/yaml" in refused


def test_a_project_locks_syncs_and_upgrades_by_the_name_of_a_repository(world, tmp_path):
    (tmp_path / "adapters.toml").write_text(
        f'[project]\nbase = "base-7b"\n\n[remotes.reg]\nurl = "{world.bob.json("remote", "list")[0]["url"]}"\n'
        f'namespaces = ["{world.team}"]\n\n[adapters]\nqa = "{world.team}/json-smol"\n'
    )
    world.bob.ok("sync")
    assert world.bob.json("upgrade", "--check") == []
    world.publish("json", "1.1.0", "json-smol")

    (newer,) = world.bob.json("upgrade", "--check")
    world.bob.ok("upgrade")

    assert newer["name"] == "qa"
    lock = (tmp_path / "adapters.lock").read_text()
    assert f'name = "{world.team}/json"' in lock
    assert 'version = "1.1.0"' in lock


def test_install_save_saves_the_name_of_the_adapter(world, tmp_path):
    world.bob.ok("init", "--base", "base-7b")

    world.bob.ok("install", f"{world.team}/json-smol", "--save")

    assert f'json = "{world.team}/json>=1.0.0"' in (tmp_path / "adapters.toml").read_text().replace("'", '"')
