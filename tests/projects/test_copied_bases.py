"""A lock names the base by its weights: where a proven copy stands for it, and what stays exact."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from adapterhub.api.steps.contracts.gating import base_of_lock
from adapterhub.library.passed import AskedBase
from adapterhub.projects.lock.lockfile import Lock, parse_lock
from adapterhub.projects.sync.bringing import _Bases
from tests.support.command_line import Adapt
from tests.support.copied_bases import World
from tests.support.standin_vllm import make_standin


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A project that was locked in `away`, where the base is; `adapt` has the fp8 copy only, under the base's name."""
    made = World(tmp_path)
    made.adapt.ok("base", "remove", "source")
    made.adapt.ok("remove", "a", "--yes")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "adapters.toml").write_text('[project]\nbase = "source"\n\n[adapters]\na = "*"\n')
    within(made, "away").ok("lock")
    return made


def within(world: World, home: str) -> Adapt:
    """Commands in the folder of the project."""
    places = str(world.folder / "away")
    return Adapt(world.folder / "project", home=f"../{home}").having(ADAPTERHUB_SOURCES=places)


def lock_in(world: World) -> Lock:
    return parse_lock((world.folder / "project" / "adapters.lock").read_text(), "adapters.lock")


def test_a_lock_of_the_source_holds_beside_a_copy_under_its_name(world: World) -> None:
    before = lock_in(world)
    world.adapt.ok("base", "add", "./fp8", "--as", "source")
    here = within(world, "home")

    here.ok("sync")

    assert (world.folder / "project" / "adapters" / "a" / "adapter_model.safetensors").exists()
    here.ok("lock")
    assert lock_in(world) == before  # the lock still names the weights that it was made with


@pytest.mark.parametrize("alias", ["source", "fp8"])
def test_a_frozen_project_runs_on_the_copy_and_its_lock_file_keeps_every_byte(world: World, alias: str) -> None:
    file = world.folder / "project" / "adapters.lock"
    before = file.read_bytes()
    world.adapt.ok("base", "add", "./fp8", "--as", alias)
    here = within(world, "home")

    here.ok("lock", "--check")
    said = here("sync", "--frozen")
    again = here("sync", "--frozen", "--check")
    upgraded = here("upgrade")

    assert (said.exit_code, again.exit_code, upgraded.exit_code) == (0, 0, 0), said.stderr + upgraded.stderr
    told = f"the locked base `source` is here as the fp8-channel copy `{alias}`; the lock still names `source`"
    assert (said.stderr.count(told), again.stderr.count(told)) == (1, 0)  # where something arrives
    assert file.read_bytes() == before
    planned = here.json("serve", "a", "--dry-run", "--python", make_standin(world.folder / "vllm"))
    assert (planned["base"], planned["adapters"][0]["adapter"]) == (alias, "a==1.0.0")


def test_beside_the_base_itself_no_copy_is_told(world: World) -> None:
    world.adapt.ok("base", "add", "./fp8")
    world.adapt.ok("base", "add", "./source")

    assert "is here as the" not in within(world, "home")("sync", "--frozen").stderr


def test_other_weights_under_the_name_still_clash(world: World) -> None:
    world.adapt.ok("base", "add", "./tuned-fp8", "--as", "source")

    here = within(world, "home")
    here.ok("sync")  # brings what the lock says
    said = here("lock")

    assert said.exit_code == 11
    assert "the weights of base `source` changed since they were locked" in said.stderr


def test_a_contract_is_asked_on_the_copy_and_its_results_are_of_the_copy(world: World) -> None:
    world.adapt.ok("base", "add", "./fp8")
    library, lock = world.adapt.library, lock_in(world)
    copy = library.bases.get("fp8")
    assert lock.base is not None

    within(world, "home").ok("sync")
    assert str(base_of_lock(library, lock)) == "fp8"  # the builds of the lock declare the source
    world.adapt.ok("base", "add", "./source")
    assert str(base_of_lock(library, lock)) == "source"
    world.adapt.ok("base", "remove", "source")
    assert str(base_of_lock(library, lock)) == "fp8"
    [build] = library.installed()
    asked = _Bases(library, lock)(build)
    assert asked == AskedBase(weights=lock.base.weights)  # a result counts if it is about the locked weights
    assert asked.weights != copy.fingerprint.weights


def test_a_merge_is_the_same_bytes_beside_the_source_beside_a_copy_and_beside_neither(world: World) -> None:
    digests = {}
    for home, base in (("one", "source"), ("two", "fp8"), ("three", None)):
        shutil.copytree(world.folder / "away", world.folder / home)
        typed = Adapt(world.folder, home=home)
        typed.ok("base", "remove", "source")
        if base is not None:
            typed.ok("base", "add", f"./{base}")
        typed.ok("merge", "a", "a", "--weights", "0.5,0.25", "-o", "m")
        digests[home] = typed.json("info", "m")["digest"]

    assert len(set(digests.values())) == 1


def test_a_manifest_is_made_again_from_the_exact_base_only(world: World) -> None:
    """Its bytes hold the fingerprint of the base, which no copy has."""
    for base, mended in (("fp8", False), ("source", True)):
        home = Adapt(world.folder, home=f"repaired-{base}")
        shutil.copytree(world.folder / "away", world.folder / home.home)
        home.ok("base", "remove", "source")
        home.ok("base", "add", f"./{base}")
        [build] = home.library.installed()
        digest, manifest = build.manifest.digest, build.folder / "adapterhub.json"
        for path in (manifest, home.library.store.manifest_path(digest)):
            path.chmod(0o644)
            path.write_bytes(b"{}")

        home("doctor", "--repair")

        again = list(home.library.installed()) if manifest.exists() and manifest.read_bytes() != b"{}" else []
        assert [each.manifest.digest for each in again] == ([digest] if mended else [])
