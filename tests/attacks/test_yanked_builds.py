"""A build that its server has withdrawn: nothing uses it by itself, though it is installed and the newest."""

from __future__ import annotations

import zlib

import pytest

import adapterhub
from adapterhub.core.errors import NoCompatibleRelease
from tests.cli.test_cli_verbs_remote import World
from tests.cli.test_yanked import seen_yanked
from tests.support.tiny_models import llama

pytestmark = pytest.mark.slow


@pytest.fixture
def world(tmp_path, server, online, request) -> World:
    world = World(tmp_path, server, f"t{zlib.crc32(request.node.name.encode())}")
    world.publish("1.0.0")
    world.publish("1.1.0")
    return world


USES = (
    ("info", "{}", "--path"),
    ("export", "{}", "--format", "peft", "-o", "./out/exported"),
    ("merge", "{}", "{}==1.1.0", "--weights", "0.5,0.5", "-o", "both"),
    ("resize", "{}", "--rank", "1", "-o", "small"),
    ("port", "{}", "--to", "base-7b"),
    ("fuse", "{}", "-o", "./out/fused"),
    ("run", "{}", "hello", "--max-new-tokens", "1"),
    ("test", "{}"),
    ("push", "{}", "--to", "./out/published"),
    ("key", "sign", "{}"),
    ("alias", "set", "prod", "{}"),
    ("pull", "{}", "./out/pulled", "--offline"),
    ("install", "{}", "--offline"),
    ("route", "--base", "base-7b", "--over", "{}", "-o", "./out/route.json"),
)


def test_no_verb_uses_what_is_only_there_yanked(world):
    name = seen_yanked(world)
    world.bob.ok("remove", f"{name}==1.0.0", "--yes")

    for command in USES:
        told = world.bob.fails(11, *[part.format(name) for part in command])

        assert "1.1.0  yanked: leaked labels" in told, command


def test_no_method_uses_what_is_only_there_yanked(world, tmp_path):
    name = seen_yanked(world)
    world.bob.ok("remove", f"{name}==1.0.0", "--yes")
    library = adapterhub.Library(world.bob.library.root)
    model = llama()
    calls = {
        "path": lambda: library.info(name, only="path"),
        "run": lambda: library.run(name, "hello"),
        "attach": lambda: library.attach(model, name),
        "bank": lambda: library.bank(model).load(name),
        "merge": lambda: library.merge([name, f"{name}==1.1.0"], output="both"),
        "export": lambda: library.export(name, tmp_path / "e", format="peft"),
        "fuse": lambda: library.fuse(name, output=tmp_path / "f"),
        "resize": lambda: library.resize(name, rank=1),
        "port": lambda: library.port(name, to="base-7b"),
        "push": lambda: library.push(name, to=str(tmp_path / "p")),
        "sign": lambda: library.sign(name),
    }

    for verb, call in calls.items():
        with pytest.raises(NoCompatibleRelease, match="yanked: leaked labels"):
            pytest.fail(f"{verb} gave {call()}")
