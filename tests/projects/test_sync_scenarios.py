"""A locked project against a real registry that changes: the locked bytes, or a refusal with both hashes. Never a drift.

Ann publishes to a registry on loopback; Ben's project is locked from it. Then the registry changes, and Ben's second
machine, whose library is empty, syncs.
"""

from __future__ import annotations

import shutil
import zlib
from pathlib import Path

import pytest

from adapterhub.core.digests import digest_of
from adapterhub.core.disk.files import digest_of_file
from adapterhub.formats.manifest import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE
from adapterhub.projects.lock.lockfile import read_lock
from tests.registry.running import Running
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base

pytestmark = pytest.mark.slow


class World:
    """Ann, Ben and the registry; `namespace` is this test's own."""

    def __init__(self, folder: Path, server: Running, namespace: str) -> None:
        self.folder, self.server, self.namespace = folder, server, namespace
        make_base(folder / "models" / "base-7b")
        self.ann = self.machine("ann")
        self.ann.ok("remote", "login", "ours", "--token", server.token)
        (folder / "work").mkdir()
        (folder / "work" / "adapters.toml").write_text(
            f'[project]\nbase = "base-7b"\n\n[remotes.ours]\nurl = "{server.url}"\nnamespaces = ["{namespace}"]\n\n'
            f'[adapters]\nlegal-qa = "{namespace}/legal-qa>=1"\ntables = "{namespace}/tables"\n'
        )
        self.publish("legal-qa", "1.0.0", seed=1)
        self.publish("tables", "1.0.0", seed=2)
        self.ben = self.in_project("ben")
        self.ben.ok("sync")
        self.locked = read_lock(folder / "work").entries

    def machine(self, home: str) -> Adapt:
        adapt = Adapt(self.folder, home)
        adapt.ok("base", "add", "./models/base-7b", "--as", "base-7b")
        adapt.ok("remote", "add", "ours", self.server.url, "--namespaces", self.namespace)
        return adapt

    def in_project(self, home: str) -> Adapt:
        self.machine(home)
        return Adapt(self.folder / "work", f"../{home}")

    def second_machine(self) -> Adapt:
        """An empty library, and no `adapters/` yet."""
        shutil.rmtree(self.folder / "work" / "adapters")
        return self.in_project("second")

    def guest(self) -> Adapt:
        """An empty library without a remote of its own, whose user agreed to the servers of the project."""
        shutil.rmtree(self.folder / "work" / "adapters", ignore_errors=True)
        guest = Adapt(self.folder / "work", "../guest")
        guest.ok("base", "add", "../models/base-7b", "--as", "base-7b")
        guest.ok("remote", "trust")
        return guest

    def publish(self, name: str, version: str, *, seed: int) -> None:
        folder = make_adapter(self.folder / "out" / f"{name}-{version}-{seed}", seed=seed)
        self.ann.ok("add", folder, "--name", name, "--version", version, "--base", "base-7b")
        self.ann.ok("push", f"{name}=={version}", "--to", self.repo(name))

    def replace(self, name: str, version: str, *, seed: int) -> str:
        """Publish other bytes under a version that is out; the new digest.

        The registry forbids that, so its memory of the version is taken away first, as its owner could.
        """
        repo, tag = self.repo(name), f"v{version}"
        assert self.server.send("DELETE", f"/api/models/{repo}/tag/{tag}").status_code < 300
        self.forget_releases()
        self.ann.ok("remove", f"{name}=={version}", "--yes")
        self.publish(name, version, seed=seed)
        [build] = self.ann.library.builds_named(name)
        return build.manifest.digest

    def forget_releases(self) -> None:
        from adapterhub_registry.database.db import releases, tombstones

        with self.server.registry.db.begin() as connection:
            connection.execute(releases.delete())
            connection.execute(tombstones.delete())

    def repo(self, name: str) -> str:
        return f"{self.namespace}/{name}"

    def is_locked_state(self) -> bool:
        """Every file of `adapters/` is the locked one."""
        adapters = self.folder / "work" / "adapters"
        files = [(adapters / e.key / f.path, f.sha256) for e in self.locked.values() for f in e.files]
        files += [(adapters / e.key / MANIFEST_FILE, e.digest) for e in self.locked.values()]
        return all(digest_of_file(path)[0] == digest for path, digest in files)


@pytest.fixture
def world(tmp_path: Path, server: Running, online: None, request: pytest.FixtureRequest) -> World:
    return World(tmp_path, server, f"t{zlib.crc32(request.node.name.encode())}")


def test_a_second_machine_with_an_empty_library_gets_the_locked_bytes(world):
    second = world.second_machine()

    told = second.json("sync", "--frozen")

    assert world.is_locked_state()
    files = [file for entry in world.locked.values() for file in entry.files]
    # both have the same config, which comes twice only if both are fetched at the very same time
    least = sum({file.sha256: file.size_bytes for file in files}.values())
    assert least <= told["fetched_bytes"] <= sum(file.size_bytes for file in files)
    assert {e.source.pin["repo"] for e in world.locked.values()} == {world.repo("legal-qa"), world.repo("tables")}
    assert all(e.source.pin["commit"] and e.source.address == world.server.url for e in world.locked.values())
    assert {a["done"] for a in second.json("sync", "--frozen", "--offline")["adapters"]} == {"kept"}


def test_a_newer_release_changes_nothing_that_is_locked(world):
    world.publish("legal-qa", "1.1.0", seed=5)

    world.second_machine().ok("sync")

    assert world.is_locked_state()
    assert read_lock(world.folder / "work").entries == world.locked


def test_a_registry_that_forgot_a_version_to_give_it_other_bytes_is_found_out_by_its_log(world):
    other, locked = world.replace("legal-qa", "1.0.0", seed=9), world.locked["legal-qa"].digest
    assert other != locked

    error = world.second_machine().fails(12, "sync", "--frozen")

    assert f"as {other}, and the server offers {locked}. Nothing was fetched" in error


def test_a_repository_that_was_made_anew_under_its_name_is_refused_with_both_hashes(world):
    repo = world.repo("legal-qa")
    body = {"type": "model", "name": "legal-qa", "organization": world.namespace}
    assert world.server.send("DELETE", "/api/repos/delete", body).status_code < 300
    world.ann.ok("remove", "legal-qa==1.0.0", "--yes")
    folder = make_adapter(world.folder / "out" / "other", seed=9)
    world.ann.ok("add", folder, "--name", "legal-qa", "--version", "1.0.0", "--base", "base-7b")
    refused = world.ann.fails(15, "push", "legal-qa==1.0.0", "--to", repo)
    assert "raise the version" in refused
    assert "another version" in refused
    world.forget_releases()  # as another registry would
    world.ann.ok("push", "legal-qa==1.0.0", "--to", repo)
    [other] = world.ann.library.builds_named("legal-qa")

    told = world.second_machine().fails(12, "sync", "--frozen")

    assert world.locked["legal-qa"].digest in told
    assert other.manifest.digest in told
    assert repo in told
    assert not (world.folder / "work" / "adapters").exists()


def test_a_repository_that_was_deleted_is_a_refusal_that_names_what_was_locked(world):
    body = {"type": "model", "name": "legal-qa", "organization": world.namespace}
    assert world.server.send("DELETE", "/api/repos/delete", body).status_code < 300

    told = world.second_machine().fails(10, "sync", "--frozen")

    assert world.locked["legal-qa"].digest in told
    assert not (world.folder / "work" / "adapters").exists()


def test_the_locked_bytes_are_taken_from_any_place_that_has_them(world):
    body = {"type": "model", "name": "legal-qa", "organization": world.namespace}
    assert world.server.send("DELETE", "/api/repos/delete", body).status_code < 300
    text = (world.folder / "work" / "adapters.toml").read_text()
    more = f'[remotes.kept]\npath = "../ben"\nnamespaces = ["{world.namespace}"]\n\n[adapters]'
    (world.folder / "work" / "adapters.toml").write_text(text.replace("[adapters]", more))

    world.guest().ok("sync", "--frozen")

    assert world.is_locked_state()


def test_what_the_library_has_needs_no_repository(world):
    for name in ("legal-qa", "tables"):
        body = {"type": "model", "name": name, "organization": world.namespace}
        assert world.server.send("DELETE", "/api/repos/delete", body).status_code < 300
    shutil.rmtree(world.folder / "work" / "adapters")

    world.ben.ok("sync", "--frozen")

    assert world.is_locked_state()


@pytest.mark.parametrize("name", [WEIGHTS_FILE, CONFIG_FILE])
def test_a_file_that_was_swapped_on_the_server_is_refused_with_both_hashes(world, name):
    [file] = [f for f in world.locked["legal-qa"].files if f.path == name]
    hexes = file.sha256.removeprefix("sha256:")
    [blob] = [p for p in world.server.root.rglob("*") if p.is_file() and p.name == hexes]
    honest = blob.read_bytes()
    swapped = honest[:-3] + bytes([honest[-3] ^ 1]) + honest[-2:]
    blob.chmod(0o644)
    blob.write_bytes(swapped)
    try:
        told = world.second_machine().fails(12, "sync", "--frozen")
    finally:
        blob.write_bytes(honest)  # other tests share it

    assert file.sha256 in told
    assert digest_of(swapped) in told
    assert not (world.folder / "work" / "adapters").exists()


def test_a_registry_that_is_down_is_told_and_what_is_here_still_syncs(world):
    lock = world.folder / "work" / "adapters.lock"
    toml = world.folder / "work" / "adapters.toml"
    for path in (lock, toml):
        path.write_text(path.read_text().replace(world.server.url, "http://127.0.0.1:9"))
    shutil.rmtree(world.folder / "work" / "adapters")
    world.ben.ok("remote", "remove", "ours")  # by that name the project now has another server

    world.ben.ok("sync", "--frozen")
    assert world.is_locked_state()
    told = world.guest().fails(13, "sync", "--frozen")

    assert all(entry.digest in told for entry in world.locked.values())
    assert "could not be reached" in told


def test_a_registry_that_offers_only_an_older_version_is_refused(world):
    """The locked commit is gone with its repository, and one with an older version stands in its place."""
    body = {"type": "model", "name": "tables", "organization": world.namespace}
    assert world.server.send("DELETE", "/api/repos/delete", body).status_code < 300
    world.ann.ok("remove", "tables==1.0.0", "--yes")
    world.publish("tables", "0.9.0", seed=11)

    told = world.second_machine().fails(10, "sync", "--frozen")

    assert world.locked["tables"].digest in told
    assert not (world.folder / "work" / "adapters").exists()


def test_offline_says_which_server_it_may_not_ask(world):
    told = world.second_machine().fails(13, "sync", "--frozen", "--offline")

    assert world.server.url in told
    assert "--offline" in told


def test_a_yanked_release_that_is_locked_is_installed_with_a_notice(world):
    answer = world.server.post(
        f"/api/adapt/v1/adapters/{world.repo('tables')}/yank",
        {"version": "1.0.0", "reason": "trained on leaked labels"},
    )
    assert answer.status_code < 300, answer.text

    done = world.second_machine()("sync", "--frozen")

    assert done.exit_code == 0
    assert "was yanked: trained on leaked labels" in done.stderr
    assert world.is_locked_state()


def test_a_build_that_must_be_signed_and_is_not_is_refused(world):
    second = world.second_machine()
    Adapt(world.folder, "second").ok("key", "policy", "require", "--remote", "ours")

    assert "is not signed" in second.fails(14, "sync", "--frozen")
    assert not (world.folder / "work" / "adapters").exists()
    second.ok("sync", "--frozen", "--signatures", "off")
    assert world.is_locked_state()
