"""A release that its server withdraws: nothing new takes it, what is locked stays, and every command that sees it tells."""

from __future__ import annotations

import zlib

import pytest

from adapterhub.projects.lock.lockfile import read_lock
from tests.cli.test_cli_verbs_remote import World

pytestmark = pytest.mark.slow


@pytest.fixture
def world(tmp_path, server, online, request) -> World:
    world = World(tmp_path, server, f"t{zlib.crc32(request.node.name.encode())}")
    world.publish("1.0.0")
    world.publish("1.1.0")
    return world


def project(world: World, requirement: str = "") -> None:
    """A project of bob's that is locked and synced."""
    (world.folder / "adapters.toml").write_text(
        f'[project]\nbase = "base-7b"\n\n[adapters]\nqa = "{world.team}/legal-qa{requirement}"\n'
    )
    world.bob.ok("sync")


def locked(world: World) -> tuple[str, str]:
    """The locked version, and the repository it is locked from."""
    entry = read_lock(world.folder).entries["qa"]
    assert entry.source.pin["commit"]
    return entry.version, entry.source.pin["repo"]


# ---------------------------------------------------------------- upgrade
@pytest.mark.parametrize("command", [("upgrade",), ("lock", "--upgrade"), ("lock", "--upgrade", "qa")])
def test_an_upgrade_leaves_a_yanked_version_and_says_so(world, command):
    project(world)
    world.yank("1.1.0", "leaked labels")

    told = world.bob(*command)

    assert told.exit_code == 0
    assert locked(world) == ("1.0.0", f"{world.team}/legal-qa")
    assert f"`{world.team}/legal-qa==1.1.0` (`qa` here) was yanked: leaked labels; 1.0.0 replaces it" in told.stderr


def test_an_upgrade_is_refused_where_only_the_yanked_version_is_allowed(world):
    project(world, ">=1.1")
    world.yank("1.1.0", "leaked labels")

    told = world.bob.fails(11, "upgrade")

    assert "1.1.0  yanked: leaked labels" in told
    assert "`==1.1.0` in `adapters.toml` keeps the yanked release" in told
    assert locked(world) == ("1.1.0", f"{world.team}/legal-qa")


def test_an_upgrade_keeps_a_yanked_version_that_the_project_pins(world):
    project(world, "==1.1.0")
    before = (world.folder / "adapters.lock").read_text()
    world.yank("1.1.0", "leaked labels")

    told = world.bob("upgrade")

    assert "==1.1.0` is yanked: leaked labels" in told.stderr
    assert (world.folder / "adapters.lock").read_text() == before


def test_an_upgrade_of_the_library_installs_another_version_beside_a_yanked_one(world):
    name = f"{world.team}/legal-qa"
    world.bob.ok("install", f"{name}@base-7b")
    world.yank("1.1.0", "leaked labels")

    told = world.bob("upgrade")
    again = world.bob("upgrade")

    assert f"`{name}==1.1.0` was yanked: leaked labels; 1.0.0 replaces it" in told.stderr
    assert {b.manifest.version for b in world.bob.library.installed()} == {"1.0.0", "1.1.0"}
    assert again.stdout == "no newer release found\n"


def test_an_install_takes_another_version_than_an_installed_one_that_was_seen_to_be_yanked(world):
    name = f"{world.team}/legal-qa"
    world.bob.ok("install", f"{name}@base-7b")
    world.yank("1.1.0", "leaked labels")
    world.bob.ok("outdated")

    assert [d["version"] for d in world.bob.json("install", f"{name}@base-7b")] == ["1.0.0"]
    assert "yanked: leaked labels" in world.bob("install", f"{name}@base-7b==1.1.0", "--offline").stderr
