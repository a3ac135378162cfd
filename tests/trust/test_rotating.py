"""`adapt key rotate`: from one signing key to another, as often as it takes."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest

import adapterhub
from adapterhub.api.steps import keys as rotating
from adapterhub.formats.signature import Bundle
from adapterhub.library.library import Library
from adapterhub.library.results import ResultFiles
from adapterhub.trust.signing.keys import KeyFolder
from adapterhub.trust.signing.results import sign_result
from adapterhub.trust.signing.trust import TrustFile
from tests.cli.test_cli_verbs_remote import World
from tests.support.command_line import Adapt
from tests.support.signing_homes import Homes, make_homes
from tests.support.tiny import make_adapter


@pytest.fixture
def homes(tmp_path: Path) -> Homes:
    """Ann signed `legal-qa` 1.0.0 and a result on it, and trusts her own key for `legal-qa` on one remote."""
    homes = make_homes(tmp_path)
    homes.publish("1.0.0")
    homes.ann.ok("key", "trust", "ann", "--scope", "legal-qa", "--remote", "*", "--not-after", "2099-01-01")
    [build] = homes.ann.library.installed()
    signer = KeyFolder(homes.ann.library.root).open("ann", None)
    ResultFiles.of_library(homes.ann.library.store, build.manifest.digest).add(sign_result({"says": "fine"}, signer))
    return homes


def signers(home: Adapt) -> set[str]:
    """The keys of the signature and the results of the only build."""
    library = Library(home.library.root)
    [build] = library.installed()
    raws = [(build.folder / "model.sig").read_bytes()]
    raws += ResultFiles.of_library(library.store, build.manifest.digest).read()
    return {Bundle.parse(raw).hint for raw in raws}


def test_a_new_key_has_the_trust_and_the_signatures_of_the_old_one(homes):
    done = homes.ann.json("key", "rotate", "ann", "ann-2", "--unencrypted", "--offline")

    keys = KeyFolder(homes.ann.library.root)
    old, new = keys.public("ann").fingerprint, keys.public("ann-2").fingerprint
    assert (done["fingerprint"], done["trusted"], done["revoked"]) == (new, True, False)
    assert (len(done["signed"]), done["statements"]) == (1, 1)
    trusted = {key.name: key for key in TrustFile(homes.ann.library.root).read().keys}
    assert set(trusted) == {"ann", "ann-2"}
    assert (trusted["ann-2"].adapters, trusted["ann-2"].replaces) == (("legal-qa",), (old,))
    assert trusted["ann-2"].not_after is None
    homes.ann.ok("key", "policy", "require")
    assert "is signed by `ann-2`" in homes.ann.ok("verify", "legal-qa")


def test_a_second_run_signs_nothing_again_and_revokes_when_told(homes):
    homes.ann.ok("key", "rotate", "ann", "ann-2", "--unencrypted", "--offline")
    before = signers(homes.ann)

    again = homes.ann.json("key", "rotate", "ann", "ann-2", "--offline")
    done = homes.ann.json("key", "rotate", "ann", "ann-2", "--offline", "--revoke", "--reason", "stolen")

    assert (again["signed"], again["statements"], again["revoked"]) == ([], 0, False)
    assert (done["signed"], done["statements"], done["revoked"]) == ([], 0, True)
    assert signers(homes.ann) == before
    assert [key.reason for key in TrustFile(homes.ann.library.root).read().revoked] == ["stolen"]
    homes.ann.ok("info", "legal-qa", "--path")
    assert "was revoked here: stolen" in homes.ann.fails(14, "key", "sign", "legal-qa", "--key", "ann")


@pytest.mark.parametrize("stops_at", ["signing_key", "sign_build", "_sign_files", "TrustFile.revoke"])
def test_an_interrupted_rotation_goes_on(homes, monkeypatch, stops_at):
    library = adapterhub.Library(homes.ann.library.root)
    with monkeypatch.context() as stopping:

        def stop(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        stopping.setattr(TrustFile if "." in stops_at else rotating, stops_at.rpartition(".")[2], stop)
        with pytest.raises(KeyboardInterrupt):
            library.keys.rotate("ann", "ann-2", revoke=True, offline=True)
    assert not TrustFile(library.root).read().revoked

    done = library.keys.rotate("ann", "ann-2", revoke=True, offline=True)

    assert (done.is_trusted, done.is_revoked) == (True, True)
    assert KeyFolder(library.root).public("ann-2").fingerprint in signers(homes.ann)
    library.info("legal-qa", only="path")


def test_what_cannot_be_rotated_changes_nothing(homes):
    homes.new_key("third")
    homes.ann.ok("key", "trust", "ben", homes.ann.folder / homes.ann.home / "keys" / "third.pub")
    before = TrustFile(homes.ann.library.root).path.read_bytes()

    homes.ann.fails(10, "key", "rotate", "nobody", "ann-2", "--unencrypted", "--offline")
    homes.ann.fails(2, "key", "rotate", "ann", "ann", "--offline")
    homes.ann.fails(15, "key", "rotate", "ann", "ben", "--unencrypted", "--offline")
    assert "needs a password" in homes.ann.fails(2, "key", "rotate", "ann", "ann-2", "--offline")

    assert KeyFolder(homes.ann.library.root).names() == ["ann", "third"]
    assert TrustFile(homes.ann.library.root).path.read_bytes() == before


@pytest.mark.slow
def test_what_the_old_key_signed_on_a_server_is_named_or_signed_again(tmp_path, server, online, request):
    world = World(tmp_path, server, f"t{zlib.crc32(request.node.name.encode())}")
    name = f"{world.team}/legal-qa"
    world.ann.ok("key", "new", "old", "--unencrypted")
    for version in ("1.0.0", "1.1.0"):
        made = make_adapter(tmp_path / "out" / version, seed=int(version[2]))
        world.ann.ok("add", made, "--name", "legal-qa", "--version", version, "--base", "base-7b")
        world.ann.ok("push", f"legal-qa=={version}", "--to", name, "--sign", "--key", "old")
    world.ann.ok("remove", "legal-qa==1.1.0", "--yes")

    told = world.ann("key", "rotate", "old", "new", "--unencrypted", "--json")
    pushed = world.ann.json("key", "rotate", "old", "new", "--push")
    rest = world.ann.json("key", "rotate", "old", "new")

    named = {(one["repo"], one["version"], one["done"]) for one in json.loads(told.stdout)["published"]}
    assert named == {(name, "1.0.0", False), (name, "1.1.0", False)}
    assert {(one["version"], one["done"]) for one in pushed["published"]} == {("1.0.0", True), ("1.1.0", False)}
    assert [one["version"] for one in rest["published"]] == ["1.1.0"]
    for command in rest["published"][0]["command"].split(" && "):
        world.ann.ok(*(word.strip("'") for word in command.split()[1:]))
    assert world.ann.json("key", "rotate", "old", "new", "--revoke")["published"] == []
