"""A release that its server withdraws: nothing new takes it, what is locked stays, and every command that sees it tells."""

from __future__ import annotations

import contextlib
import json
import zlib

import pytest

import adapterhub
from adapterhub.core.errors import AdapterDenied
from adapterhub.core.specs import BaseSpec
from adapterhub.distribution.hub import Hub
from adapterhub.inference.serving import AdapterProvider
from adapterhub.inference.serving.access.denied import Denied
from adapterhub.library.library import Library
from adapterhub.projects.lock.lockfile import read_lock
from adapterhub.projects.reporting import LogReporter
from adapterhub.projects.session import Session
from tests.cli.test_cli_verbs_remote import World
from tests.inference.test_denied import upkeep_of
from tests.registry.running import running
from tests.support.tiny import make_adapter, make_base

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


# ---------------------------------------------------------------- yank, unyank, delete
@pytest.fixture(params=["registry", "plain hub"])
def kind(request, monkeypatch) -> str:
    """Our registry records a yank itself; any other server gets a tag and a file."""
    if request.param == "plain hub":
        monkeypatch.setattr(Hub, "features", frozenset())
    return request.param


def test_a_yanked_version_is_passed_over_until_it_is_unyanked(world, server, kind):
    name = f"{world.team}/legal-qa"
    version, hub = f"{name}==1.1.0", Hub(endpoint=server.url, token=server.token)

    def stored() -> tuple[str | None, dict[str, str]]:
        return hub.versions(name)[0].yanked, dict(hub.withdrawal.taken_back(name))

    dry = world.ann.json("yank", version, "--reason", "leaked labels", "--dry-run")
    done = world.ann.json("yank", version, "--reason", "leaked labels")
    again = world.ann.json("yank", version, "--reason", "leaked labels")
    replaced = world.ann.json("yank", version, "--reason", "wrong base")

    assert [one["done"] for one in (dry, done, again, replaced)] == [False, True, False, True]
    assert (done["repo"], done["versions"], done["yanked"]) == (name, ["1.1.0"], "leaked labels")
    assert stored() == ("wrong base", {})
    refused = world.bob.fails(11, "install", f"{name}@base-7b>1.0", "--dry-run")
    assert "1.1.0  yanked: wrong base" in refused
    assert [d["version"] for d in world.bob.json("install", f"{name}@base-7b", "--dry-run")] == ["1.0.0"]

    assert world.ann.json("yank", version, "--undo")["done"]
    assert not world.ann.json("yank", version, "--undo")["done"]
    assert stored() == (None, {"1.1": "wrong base"})
    assert [d["version"] for d in world.bob.json("install", f"{name}@base-7b", "--dry-run")] == ["1.1.0"]

    world.ann.ok("yank", version, "--reason", "worse")
    assert stored() == ("worse", {})
    world.ann.ok("yank", version, "--undo")
    assert stored() == (None, {"1.1": "worse"})


def test_a_plain_hub_keeps_a_yank_through_the_next_push_and_lists_it(world, server, monkeypatch):
    monkeypatch.setattr(Hub, "features", frozenset())
    name = f"{world.team}/legal-qa"
    world.ann.ok("yank", f"{name}==1.1.0", "--reason", "leaked labels")

    world.publish("1.2.0")
    world.ann.ok("yank", f"{name}==1.2.0", "--reason", "also leaked")

    told = world.bob.fails(11, "install", f"{name}@base-7b>1.0", "--dry-run")
    assert "yanked: leaked labels" in told
    assert "yanked: also leaked" in told
    monkeypatch.setattr(Hub, "is_public_hub", True)
    listed = Hub(endpoint=server.url, token=server.token).published(world.team)
    assert {one.version: one.yanked for one in listed} == {"1.0.0": False, "1.1.0": True, "1.2.0": True}


def test_a_yank_names_the_repository_or_the_adapter(world):
    world.ann.ok("push", "legal-qa==1.1.0", "--to", f"{world.team}/legal-qa-base-7b")
    name = f"{world.team}/legal-qa"

    by_repository = world.ann.json("yank", f"{name}-base-7b==1.1.0", "--dry-run")
    by_base = world.ann.json("yank", f"{name}@base-7b==1.0.0", "--dry-run")

    assert by_repository["repo"] == f"{name}-base-7b"
    assert (by_base["repo"], by_base["yanked"]) == (name, "no reason given")


def test_what_cannot_be_yanked_is_refused(world):
    team = world.team
    name = f"{team}/legal-qa==1.1.0"
    for spec, code, said in (
        ("legal-qa==1.1.0", 2, "names no namespace"),
        (f"{team}/legal-qa", 2, "it has `==1.1.0`, `==1.0.0`"),
        (f"{team}/legal-qa==3.0", 10, "has 1.1.0, 1.0.0"),
        (f"{team}/nothing==3.0", 10, f"no adapter `{team}/nothing==3.0`"),
    ):
        for more in ((), ("--undo",)):
            assert said in world.ann.fails(code, "yank", spec, *more)
    assert "control character" in world.ann.fails(2, "yank", name, "--reason", "two\nlines")
    assert "501 characters" in world.ann.fails(2, "yank", name, "--reason", "x" * 501)
    reader = world.server.registry.tokens.create("reader", "read", namespaces=["*"])
    assert "403" in world.bob.having(ADAPTERHUB_TOKEN=reader).fails(14, "yank", name, "--remote", "ours")


def test_a_deleted_version_is_gone_and_a_deleted_repository_too(world, kind):
    name = f"{world.team}/legal-qa"

    assert "pass `--yes`" in world.ann.fails(2, "delete", f"{name}==1.1.0")
    assert not world.ann.json("delete", f"{name}==1.1.0", "--dry-run")["done"]
    assert world.ann.json("delete", f"{name}==1.1.0", "--yes")["versions"] == ["1.1.0"]
    assert [d["version"] for d in world.bob.json("install", f"{name}@base-7b", "--dry-run")] == ["1.0.0"]

    assert "neither one version nor a repository" in world.ann.fails(2, "delete", f"{name}>=1")
    assert world.ann.json("delete", name, "--dry-run")["versions"] == ["1.0.0"]
    world.ann.ok("delete", f"{name}==1.0.0", "--yes")
    assert "or the version was deleted" in world.bob.fails(10, "install", f"{name}@base-7b")
    assert world.ann.json("delete", name, "--yes")["versions"] == []
    assert f"`{name}`" in world.bob.fails(10, "install", f"{name}@base-7b")
    assert f"`{name}`" in world.ann.fails(10, "delete", name, "--yes")


# ---------------------------------------------------------------- upgrade
def test_an_upgrade_leaves_a_yanked_version_and_says_so(world):
    project(world)
    before = (world.folder / "adapters.lock").read_text()
    world.yank("1.1.0", "leaked labels")

    for command in (("upgrade",), ("lock", "--upgrade"), ("lock", "--upgrade", "qa")):
        (world.folder / "adapters.lock").write_text(before)
        told = world.bob(*command)

        assert told.exit_code == 0
        assert locked(world) == ("1.0.0", f"{world.team}/legal-qa")
        assert f"`{world.team}/legal-qa==1.1.0` (`qa` here) was yanked: leaked labels; 1.0.0 replaces it" in told.stderr


def test_an_upgrade_is_refused_where_only_the_yanked_version_is_allowed_unless_the_project_pins_it(world):
    project(world, ">=1.1")
    world.yank("1.1.0", "leaked labels")

    told = world.bob.fails(11, "upgrade")

    assert "1.1.0  yanked: leaked labels" in told
    assert "`==1.1.0` in `adapters.toml` keeps the yanked release" in told
    assert locked(world) == ("1.1.0", f"{world.team}/legal-qa")

    project(world, "==1.1.0")
    before = (world.folder / "adapters.lock").read_text()
    assert "==1.1.0` is yanked: leaked labels" in world.bob("upgrade").stderr
    assert (world.folder / "adapters.lock").read_text() == before


def test_the_library_takes_another_version_than_an_installed_one_that_was_seen_to_be_yanked(world):
    name = f"{world.team}/legal-qa"
    world.bob.ok("install", f"{name}@base-7b")
    world.yank("1.1.0", "leaked labels")

    told = world.bob("upgrade")
    again = world.bob("upgrade")

    assert f"`{name}==1.1.0` was yanked: leaked labels; 1.0.0 replaces it" in told.stderr
    assert {b.manifest.version for b in world.bob.library.installed()} == {"1.0.0", "1.1.0"}
    assert again.stdout == "no newer release found\n"
    assert [d["version"] for d in world.bob.json("install", f"{name}@base-7b")] == ["1.0.0"]
    assert "yanked: leaked labels" in world.bob("install", f"{name}@base-7b==1.1.0", "--offline").stderr


# ---------------------------------------------------------------- what is here already
def test_a_warm_sync_tells_of_a_yank_and_of_its_end(world, kind, tmp_path):
    project(world)
    world.ann.ok("yank", f"{world.team}/legal-qa==1.1.0", "--reason", "leaked labels")
    notice = f"`{world.team}/legal-qa==1.1.0` (`qa` here) was yanked: leaked labels; it is locked"

    assert notice not in world.bob("sync", "--offline").stderr  # not seen yet
    assert notice in world.bob("sync").stderr
    assert notice in world.bob("sync", "--frozen", "--offline").stderr  # seen before
    assert locked(world)[0] == "1.1.0"

    world.ann.ok("yank", f"{world.team}/legal-qa==1.1.0", "--undo")
    assert world.bob("sync").stderr == ""
    assert world.bob("sync", "--offline").stderr == ""


def test_info_and_verify_tell_of_a_yank(world, kind):
    name = f"{world.team}/legal-qa"
    world.bob.ok("install", f"{name}@base-7b")
    assert world.bob.json("info", name)["yanked"] is None
    world.ann.ok("yank", f"{name}==1.1.0", "--reason", "leaked labels")

    assert world.bob.json("info", name, "--offline")["yanked"] is None  # not seen yet
    assert "yanked\tleaked labels\n" in world.bob.ok("info", name)
    assert world.bob.json("info", name, "--offline")["yanked"] == "leaked labels"
    for command in (("verify", name), ("verify", "--all"), ("verify", name, "--offline")):
        assert f"[W_YANKED] warning: adapterhub.json: yanked on {world.server.url}: leaked labels" in world.bob.ok(
            *command
        )


def test_a_rollback_to_a_yanked_version_tells_it(world):
    project(world, "==1.0.0")
    world.ann.ok("yank", f"{world.team}/legal-qa==1.0.0", "--reason", "wrong base")
    toml = world.folder / "adapters.toml"
    toml.write_text(toml.read_text().replace("==1.0.0", ""))
    world.bob.ok("sync")

    said = world.bob("upgrade", "--undo", "qa")

    assert said.exit_code == 0
    assert "was yanked: wrong base; it is locked" in said.stderr
    assert locked(world) == ("1.0.0", f"{world.team}/legal-qa")
    assert "==1.0.0" in toml.read_text()


def test_a_server_that_is_away_says_what_it_said_last(tmp_path, online):
    with running(tmp_path / "short") as short:
        world = World(tmp_path, short, "acme")
        world.publish("1.1.0")
        project(world)
        world.ann.ok("yank", "acme/legal-qa==1.1.0", "--reason", "leaked labels")
        world.bob.ok("sync")

    assert "was yanked: leaked labels; it is locked" in world.bob("sync").stderr
    assert world.bob.json("info", "acme/legal-qa")["yanked"] == "leaked labels"


def test_a_server_cannot_withdraw_what_came_from_another(world, tmp_path):
    with running(tmp_path / "second") as second:
        world.bob.ok("remote", "add", "second", second.url)
        world.bob.ok("remote", "login", "second", "--token", second.token)
        world.bob.ok("install", f"{world.team}/legal-qa@base-7b")
        world.bob.ok("mirror", f"{world.team}/legal-qa@base-7b", "--from", "ours", "--to", "second")
        world.bob.ok("yank", f"{world.team}/legal-qa==1.1.0", "--remote", "second")

        assert world.bob.json("info", f"{world.team}/legal-qa")["yanked"] is None
        assert "W_YANKED" not in world.bob.ok("verify", "--all")

        world.ann.ok("yank", f"{world.team}/legal-qa==1.1.0")
        world.bob.ok("remote", "add", "ours", world.server.url, "--namespaces", "other")
        world.bob.ok("remote", "add", "second", second.url, "--namespaces", world.team)
        assert world.bob.json("info", f"{world.team}/legal-qa")["yanked"] is None  # whose namespace it is no more


def test_several_repositories_with_one_version_are_named(world):
    make_base(world.folder / "base-2", seed=5)
    world.ann.ok("base", "add", "./base-2", "--as", "base-13b")
    made = make_adapter(world.folder / "out" / "other", seed=9)
    world.ann.ok("add", made, "--name", "judge", "--version", "1.0.0", "--base", "base-13b")
    world.ann.ok("push", "judge@base-13b", "--to", f"{world.team}/judge-13b")
    made = make_adapter(world.folder / "out" / "judge", seed=10)
    world.ann.ok("add", made, "--name", "judge", "--version", "1.0.0", "--base", "base-7b")
    world.ann.ok("push", "judge@base-7b", "--to", f"{world.team}/judge-7b")
    name = f"{world.team}/judge"

    told = world.ann.fails(2, "yank", f"{name}==1.0.0")

    assert f"{name}-13b==1.0.0" in told
    assert f"{name}-7b==1.0.0" in told
    assert world.ann.json("yank", f"{name}@base-7b==1.0.0")["repo"] == f"{name}-7b"
    assert world.ann.json("delete", f"{name}-13b==1.0.0", "--yes")["repo"] == f"{name}-13b"


# ---------------------------------------------------------------- a running server
def test_a_server_stops_an_adapter_that_is_yanked_while_it_runs(world, kind, monkeypatch):
    library, denied = Library(world.bob.library.root), Denied()
    world.bob.ok("install", f"{world.team}/legal-qa@base-7b")
    session = Session(root=library.root, out=LogReporter("test"))
    record = library.bases.find(BaseSpec.parse("base-7b"))
    name = f"{world.team}/legal-qa==1.1"

    with contextlib.closing(AdapterProvider(library, record, engine="vllm@0.32", denied=denied)) as provider:
        look = upkeep_of(provider, session.place_source).look_for_yanks
        provider.find(name)
        look()
        assert provider.find(name)
        world.ann.ok("yank", f"{world.team}/legal-qa==1.1.0", "--reason", "leaked labels")
        look()
        with pytest.raises(AdapterDenied, match="is not served any more: leaked labels"):
            provider.find(name)
        world.ann.ok("yank", f"{world.team}/legal-qa==1.1.0", "--undo")
        look()
        assert provider.find(f"{name}.0")


# ---------------------------------------------------------------- every verb
def seen_yanked(world: World) -> str:
    """Bob has both versions, and has seen that the newer one is yanked; the adapter's name."""
    name = f"{world.team}/legal-qa"
    world.bob.ok("install", f"{name}@base-7b==1.0.0")
    world.bob.ok("install", f"{name}@base-7b==1.1.0")
    world.yank("1.1.0", "leaked labels")
    world.bob.ok("info", f"{name}==1.1.0")
    return name


def test_every_verb_passes_over_an_installed_build_that_was_seen_to_be_yanked(world):
    name = seen_yanked(world)
    library = adapterhub.Library(world.bob.library.root)

    assert "/1.0.0" in world.bob.ok("info", name, "--path")
    assert f"{name}==1.0.0" in _merged_from(world, name)
    world.bob.ok("push", name, "--to", "./out/published")
    published = (world.folder / "out" / "published").rglob("adapterhub.json")
    assert [json.loads(path.read_text())["version"] for path in published] == ["1.0.0"]
    assert world.bob.json("info", name, "--offline")["version"] == "1.0.0"
    assert world.bob.json("alias", "set", "prod", name)["targets"][0]["version"] == "1.0.0"
    assert {one["version"] for one in world.bob.json("list", "--format", "vllm")} == {"1.0.0"}
    assert library[name].manifest.version == "1.0.0"
    assert library.info(name, only="path").name.startswith("1.0.0")


def _merged_from(world: World, name: str) -> str:
    made = make_adapter(world.folder / "out" / "own", seed=77)
    world.bob.ok("add", made, "--name", "own", "--version", "1.0.0", "--base", "base-7b")
    world.bob.ok("merge", name, "own", "--weights", "0.5,0.5", "-o", "both")
    return json.dumps(world.bob.json("info", "both")["parents"])


def test_a_pin_still_uses_a_yanked_build_and_warns_and_the_only_one_is_shown_and_removed(world, caplog):
    name = seen_yanked(world)
    pin = f"{name}==1.1.0"

    told = world.bob("info", pin, "--path")

    assert (told.exit_code, "/1.1.0" in told.stdout) == (0, True)
    assert "==1.1.0` is yanked: leaked labels" in told.stderr
    assert "/1.1.0" in str(adapterhub.Library(world.bob.library.root).info(pin, only="path"))
    assert "==1.1.0` is yanked: leaked labels" in caplog.text
    assert "E_YANKED" in world.bob("audit", pin, "--offline").stdout
    world.bob.ok("remove", f"{name}==1.0.0", "--yes")
    assert world.bob.json("info", name, "--offline")["yanked"] == "leaked labels"
    assert "W_YANKED" in world.bob.ok("verify", name, "--offline")
    world.bob.ok("remove", name, "--yes")
    assert list(world.bob.library.installed()) == []


def test_outdated_promises_what_upgrade_does(world):
    name = seen_yanked(world)

    outdated = world.bob("upgrade", "--check")
    upgraded = world.bob("upgrade")

    assert "yanked: leaked labels" in outdated.stdout
    assert "adapt upgrade" not in outdated.stderr
    assert f"`adapt remove '{name}==1.1.0'` removes the yanked version" in outdated.stderr
    assert upgraded.stdout == "no newer release found\n"
    world.bob.ok("remove", f"{name}==1.0.0", "--yes")
    assert "`adapt upgrade` installs the allowed versions" in world.bob("upgrade", "--check").stderr
    assert "1.1.0 -> 1.0.0" in world.bob.ok("upgrade")
