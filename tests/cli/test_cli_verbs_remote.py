"""The verbs with a real registry on loopback: what is newer there, what was withdrawn, what does not answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.registry.running import Running, running
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base

pytestmark = pytest.mark.slow


class World:
    """`ann` publishes to the registry as `team`, `bob` uses it."""

    def __init__(self, folder: Path, server: Running, team: str) -> None:
        self.server, self.team, self.folder = server, team, folder
        self.ann, self.bob = Adapt(folder, "ann"), Adapt(folder, "bob")
        make_base(folder / "base")
        for home in (self.ann, self.bob):
            home.ok("base", "add", "./base", "--as", "base-7b")
            home.ok("remote", "add", "ours", server.url, "--namespaces", team)
        self.ann.ok("remote", "login", "ours", "--token", server.token)

    def publish(self, version: str) -> None:
        seed = len(list((self.folder / "out").glob("*"))) if (self.folder / "out").exists() else 0
        made = make_adapter(self.folder / "out" / version, seed=seed)
        self.ann.ok("add", made, "--name", "legal-qa", "--version", version, "--base", "base-7b")
        self.ann.ok("push", f"legal-qa=={version}", "--to", f"{self.team}/legal-qa")

    def yank(self, version: str, reason: str) -> None:
        path = f"/api/adapt/v1/adapters/{self.team}/legal-qa/yank"
        assert self.server.post(path, {"version": version, "reason": reason}).is_success


@pytest.fixture
def world(tmp_path, server, online, request) -> World:
    import zlib

    world = World(tmp_path, server, f"t{zlib.crc32(request.node.name.encode())}")
    world.publish("1.0.0")
    return world


@pytest.fixture
def project(world, tmp_path) -> World:
    (tmp_path / "adapters.toml").write_text(
        '[project]\nbase = "base-7b"\n\n[remotes.reg]\n'
        f'url = "{world.server.url}"\nnamespaces = ["{world.team}"]\n\n[adapters]\n'
        f'qa = "{world.team}/legal-qa<2"\n'
    )
    world.bob.ok("sync")
    return world


def test_outdated_and_upgrade_of_a_project(project, tmp_path):
    assert project.bob.json("upgrade", "--check") == []
    project.publish("1.1.0")
    project.publish("2.0.0")
    project.yank("1.0.0", "leaked labels")

    [row] = project.bob.json("upgrade", "--check")
    assert (row["name"], row["current"], row["allowed"], row["newest"]) == ("qa", "1.0.0", "1.1.0", "2.0.0")
    assert row["yanked"] == "leaked labels"
    assert "yanked: leaked labels" in project.bob.ok("upgrade", "--check")

    project.bob.ok("upgrade")
    assert (tmp_path / "adapters" / "qa" / "adapterhub.json").is_file()
    [row] = project.bob.json("upgrade", "--check")
    assert (row["current"], row["newest"], row["yanked"]) == ("1.1.0", "2.0.0", None)


def test_outdated_and_upgrade_of_a_library(world):
    world.bob.ok("install", f"{world.team}/legal-qa@base-7b")
    world.publish("1.1.0")

    [row] = world.bob.json("upgrade", "--check")
    [done] = world.bob.json("upgrade")

    assert (row["name"], row["newest"]) == (f"{world.team}/legal-qa", "1.1.0")
    assert (done["from"], done["to"]) == ("1.0.0", "1.1.0")
    assert world.bob.json("upgrade", "--check") == []


def test_a_server_that_is_away_is_told_and_nothing_fails(world, tmp_path):
    with running(tmp_path / "second") as second:
        world.bob.ok("remote", "add", "second", second.url)
        world.bob.ok("remote", "login", "second", "--token", second.token)
        world.bob.ok("mirror", f"{world.team}/legal-qa@base-7b", "--from", "ours", "--to", "second")
        world.bob.ok("remote", "add", "ours", world.server.url)  # which gives the namespace up
        world.bob.ok("install", f"{world.team}/legal-qa@base-7b", "--remote", "second")

    [row] = world.bob.json("upgrade", "--check")

    assert row["problem"]
    assert row["newest"] is None
    assert world.bob.json("upgrade", "--check", "--offline") == []


def test_info_asks_a_server_only_for_what_is_not_here(world):
    name = f"{world.team}/legal-qa"
    there = world.bob.json("info", f"{name}@base-7b")
    world.bob.ok("install", f"{name}@base-7b")
    here = world.bob.json("info", name)
    again = world.bob.json("info", name, "--remote", "ours")

    assert (there["installed"], here["installed"], again["installed"]) == (False, True, False)
    assert there["groups"] == here["groups"]
    assert there["digest"] == here["digest"]
    assert here["origin"] == world.server.url
    assert "`--offline`" in world.bob.fails(13, "info", "acme/nothing", "--offline")


def test_info_of_a_server_names_the_registered_base_that_fits(world):
    name = f"{world.team}/legal-qa"

    fits = world.bob.json("info", name, "--remote", "ours")
    line = world.bob.ok("info", name, "--remote", "ours")
    world.bob.ok("base", "remove", "base-7b")
    unknown = world.bob.json("info", name, "--remote", "ours")

    assert (fits["base_verdict"], fits["base_asked"], fits["base_differences"]) == ("SAME_WEIGHTS", "base-7b", [])
    assert "base verdict\tSAME_WEIGHTS, `base-7b`\n" in line
    assert (unknown["base_verdict"], unknown["base_asked"]) == ("UNKNOWN", None)


def test_diff_compares_versions_that_only_a_server_has(world):
    world.publish("1.1.0")
    old, new = (f"{world.team}/legal-qa=={version}" for version in ("1.0.0", "1.1.0"))

    there = world.bob.json("compare", "--diff", old, new, "--remote", "ours")
    world.bob.ok("install", f"{old[:-7]}@base-7b==1.0.0")
    mixed = world.bob.json("compare", "--diff", old, new)

    assert not there["identical"]
    assert there["base_verdict"] == "SAME_WEIGHTS"
    assert [side["path"] for side in (there["first"], there["second"])] == [None, None]
    assert there["second"]["origin"].startswith(f"{world.team}/legal-qa at ")
    assert (mixed["first"]["origin"], mixed["second"]["path"]) == (None, None)
    assert mixed["weights"] == there["weights"]
    assert len(world.bob.json("list")) == 1
    assert "no adapter `nothing`" in world.bob.fails(10, "compare", "--diff", "nothing", old)


def test_info_of_a_version_that_only_the_server_has(world):
    world.bob.ok("install", f"{world.team}/legal-qa@base-7b")
    world.publish("1.1.0")

    assert world.bob.json("info", f"{world.team}/legal-qa==1.1.0")["installed"] is False
    assert "1.0.0" in world.bob("info", f"{world.team}/legal-qa==3").stderr


def test_the_policy_of_a_project_holds_for_info_and_pull_of_what_a_server_has_and_not_for_mirror(project, tmp_path):
    toml, name = tmp_path / "adapters.toml", f"{project.team}/legal-qa"
    toml.write_text(toml.read_text() + f'[policy]\ndeny-namespaces = ["{project.team}"]\n')
    why = f"policy `deny-namespaces` holds `{project.team}`"

    assert project.bob.json("info", name, "--remote", "ours")["policy_refusal"] == why
    assert f"policy\trefused by the project's policy: {why}\n" in project.bob.ok("info", name, "--remote", "ours")
    assert why in project.bob.fails(11, "pull", name, "out", "--remote", "ours")
    with running(tmp_path / "second") as second:
        project.bob.ok("remote", "add", "second", second.url)
        project.bob.ok("remote", "login", "second", "--token", second.token)
        assert project.bob.json("mirror", name, "--from", "ours", "--to", "second")[0]["created"]


def test_pull_takes_nothing_unsigned_from_a_remote_of_which_the_project_requires_signatures(project, tmp_path):
    toml, name = tmp_path / "adapters.toml", f"{project.team}/legal-qa"
    toml.write_text(toml.read_text().replace("[remotes.reg]\n", '[remotes.reg]\nsignatures = "require"\n'))

    pull = ("pull", name, "pulled", "--remote", project.server.url)

    assert "not signed" in project.bob.fails(14, *pull)
    assert not (tmp_path / "pulled").exists()
    project.bob.ok(*pull, "--signatures", "off")


def test_a_token_for_one_server_is_not_shown_to_the_one_that_something_came_from(world, monkeypatch):
    from tests.registry.proxy import proxy_of

    world.bob.ok("remote", "remove", "ours")
    with proxy_of(world.server.url) as other:
        world.bob.ok("install", f"{world.team}/legal-qa@base-7b", "--remote", other.url)
        other.seen.clear()
        world.bob.ok("remote", "add", "mine", "https://mine.example.com", "--default")
        monkeypatch.setenv("ADAPTERHUB_TOKEN", "adp_secret")

        world.bob.ok("upgrade", "--check")

    assert other.seen
    assert {request.headers.get("authorization") for request in other.seen} == {None}


def test_verbose_prints_each_request_without_its_query_and_quiet_none(world):
    done = world.bob("-v", "search", "legal", "--remote", "ours")

    requests = [line for line in done.stderr.splitlines() if line.startswith("GET ")]
    assert f"GET {world.server.url}/api/adapt/v1/adapters: 200 OK" in requests
    assert "?" not in "".join(requests)
    assert done.stdout == world.bob.ok("search", "legal", "--remote", "ours")
    assert "GET" not in world.bob("search", "legal", "--remote", "ours").stderr
