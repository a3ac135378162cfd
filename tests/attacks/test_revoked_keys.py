"""A stolen key: whatever it signed is refused, and a published version gets the signature of another key."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from adapterhub.core.errors import NotAllowed, SignatureRefused
from adapterhub.library.library import Library
from tests.cli.test_cli_verbs_remote import World
from tests.support.signing_homes import Homes, make_homes
from tests.support.tiny import make_adapter


@pytest.fixture
def homes(tmp_path: Path) -> Homes:
    """Ann's `legal-qa` is signed; Ben trusts her key and has it."""
    homes = make_homes(tmp_path)
    homes.publish("1.0.0")
    homes.trust()
    homes.ben.ok(*homes.install())
    return homes


@pytest.mark.parametrize("policy", ["default", "warn", "off", "require"])
def test_what_a_revoked_key_signed_is_refused_under_every_policy_with_the_reason(homes, policy):
    homes.ben.ok("key", "policy", policy)
    homes.ben.ok("info", "legal-qa", "--path")

    homes.ben.ok("key", "revoke", "ann", "--reason", "stolen on Monday")

    why = "is signed by `ann`, a key that was revoked: stolen on Monday"
    for command in (
        ("info", "legal-qa", "--path"),
        ("list", "--format", "vllm"),
        ("push", "legal-qa", "--to", "./other"),
    ):
        assert why in homes.ben.fails(14, *command)
    for command in (("verify", "legal-qa"), ("audit", "legal-qa")):
        assert why in homes.ben(*command).stdout
        assert homes.ben(*command).exit_code == 3
    homes.ben.ok("remove", "legal-qa", "--yes")
    assert why in homes.ben.fails(14, *homes.install())
    assert not homes.is_installed()


def test_a_revoked_key_is_not_trusted_again_and_signs_nothing(homes):
    homes.ann.ok("key", "revoke", "ann", "--reason", "lost")
    homes.ben.ok("key", "revoke", "ann")
    public = homes.ann.folder / homes.ann.home / "keys" / "ann.pub"

    assert "was revoked here: lost" in homes.ann.fails(14, "key", "sign", "legal-qa", "--key", "ann")
    assert "was revoked as `ann`" in homes.ben.fails(15, "key", "trust", "again", public)
    assert {(one["name"], one["kind"]) for one in homes.ben.json("key", "list")} == {("ann", "revoked")}
    homes.ben.ok("key", "policy", "require")
    assert {(one["name"], one["kind"]) for one in homes.ben.json("key", "list")} == {("ann", "revoked")}


def test_python_refuses_a_revoked_key_as_commands_do(homes):
    import adapterhub

    library = adapterhub.Library(Library(homes.ben.library.root).root)
    library.keys.revoke("ann", reason="stolen")

    with pytest.raises(SignatureRefused, match="revoked: stolen"):
        library.info("legal-qa", only="path")
    ann = adapterhub.Library(homes.ann.library.root)
    ann.keys.revoke("ann")
    with pytest.raises(NotAllowed, match="was revoked here"):
        ann.sign("legal-qa", key="ann")


@pytest.mark.slow
@pytest.mark.parametrize("newer", [False, True])
def test_a_published_version_is_signed_again_and_keeps_its_bytes(tmp_path, server, online, request, newer):
    world = World(tmp_path, server, f"t{zlib.crc32(request.node.name.encode())}")
    name = f"{world.team}/legal-qa"
    for key in ("old", "new"):
        world.ann.ok("key", "new", key, "--unencrypted")
        world.bob.ok("key", "trust", key, tmp_path / world.ann.home / "keys" / f"{key}.pub")
    made = make_adapter(tmp_path / "out" / "1.0.0")
    world.ann.ok("add", made, "--name", "legal-qa", "--version", "1.0.0", "--base", "base-7b")
    world.ann.ok("push", "legal-qa==1.0.0", "--to", name, "--sign", "--key", "old")
    if newer:
        world.publish("1.1.0")
    before = server.get(f"/api/adapt/v1/adapters/{name}/versions").json()["versions"]
    world.ann.ok("key", "sign", "legal-qa==1.0.0", "--key", "new", "--namespace", world.team)
    since = server.get("/api/adapt/v1/events").json()["next"]

    assert "`adapt push --sign`" in world.ann.fails(15, "push", "legal-qa==1.0.0", "--to", name)
    world.ann.ok("push", "legal-qa==1.0.0", "--to", name, "--sign", "--key", "new")

    after = server.get(f"/api/adapt/v1/adapters/{name}/versions").json()["versions"]
    assert [(one["version"], one["digest"]) for one in after] == [(one["version"], one["digest"]) for one in before]
    world.bob.ok("key", "revoke", "old", "--reason", "stolen")
    world.bob.ok("install", f"{name}@base-7b==1.0.0", "--signatures", "require")
    assert "is signed by `new`" in world.bob.ok("verify", f"{name}==1.0.0")
    [old] = [one["commit"] for one in before if one["version"] == "1.0.0"]
    raw = server.get(f"/{name}/resolve/{old}/adapterhub.json")
    assert raw.is_success  # what is locked goes on
    seen = server.get(f"/api/adapt/v1/events?since={since}").json()["events"]
    assert [one["type"] for one in seen if one["data"]["repo"] == name] == ["version.published"]
    refs = server.get(f"/api/models/{name}/refs").json()
    assert [one["name"] for one in refs["branches"]] == ["main"]
