"""A stream that a registry has, too: whoever installs there gets the current version."""

from __future__ import annotations

import json
import zlib

import pytest
from safetensors.numpy import load_file

from adapterhub import Library
from adapterhub.core.errors import NamespaceBound, UsageProblem
from tests.cli.test_cli_verbs_remote import World
from tests.support.tiny import make_adapter

pytestmark = pytest.mark.slow


@pytest.fixture
def world(tmp_path, server, online, request) -> World:
    return World(tmp_path, server, f"t{zlib.crc32(request.node.name.encode())}")


@pytest.fixture
def trained(tmp_path):
    folder = make_adapter(tmp_path / "agent")
    state = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    return config, lambda step: {name: value + value.dtype.type(step) for name, value in state.items()}


def test_each_current_version_is_pushed_and_the_alias_moves_there(world, trained) -> None:
    config, state = trained
    full = f"{world.team}/agent"
    library = Library(world.ann.library.root)
    stream = library.live("agent@base-7b", config=config, remote="ours", gate=lambda one: one.step != 2 or "worse")
    found = [stream.publish(state(step), step=step, sync=step < 3) for step in range(4)]
    stream.close()

    assert [one.unsent for one in found] == [None] * 4
    assert library.alias(f"{full}@live", remote="ours").text() == "0.0.4"
    moves = library.alias_history(f"{full}@live", remote="ours")
    assert [move.targets[0].version for move in moves] == ["0.0.1", "0.0.2", "0.0.4"]
    [installed] = world.bob.json("install", f"{full}@live")
    assert installed["digest"] == found[-1].digest


def test_a_registry_that_does_not_answer_ends_no_training(world, trained) -> None:
    config, state = trained
    library = Library(world.ann.library.root)
    stream = library.live("agent@base-7b", config=config, remote="ours", token="wrong")  # noqa: S106 - that of nobody
    published = stream.publish(state(1), step=1)

    assert published.is_current
    assert published.unsent
    assert published.to_json()["unsent"] == published.unsent
    assert library.alias("agent@live").text() == "0.0.1"
    stream = library.live("agent@base-7b", config=config, remote="ours")
    assert stream.publish(state(2), step=2).unsent is None


def test_a_name_without_a_namespace_needs_a_remote_with_one(world, trained) -> None:
    library = Library(world.ann.library.root)
    library.remotes.add("second", "http://127.0.0.1:9")
    with pytest.raises(UsageProblem, match="namespace"):
        library.live("agent@base-7b", remote="second")


def test_a_namespace_of_a_remote_is_not_published_into_here(world, trained) -> None:
    with pytest.raises(NamespaceBound) as refused:
        Library(world.ann.library.root).live(f"{world.team}/agent@base-7b")
    assert "remote=" in refused.value.hint


def test_a_remote_without_aliases_gets_nothing(world, trained) -> None:
    config, state = trained
    library = Library(world.ann.library.root)
    library.remotes.add("images", "oci://127.0.0.1:9", namespaces=["images"])
    published = library.live("agent@base-7b", config=config, remote="images").publish(state(1), step=1)

    assert published.is_current
    assert published.unsent is not None
    assert "keeps no aliases. Nothing was sent" in published.unsent
