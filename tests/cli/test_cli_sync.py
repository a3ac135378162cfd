"""`adapt sync` as a user types it, over directories of builds: lock and folder, frozen, offline, prune, names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from adapterhub.formats.manifest import WEIGHTS_FILE
from tests.support.command_line import Adapt
from tests.support.outside import lacking
from tests.support.programs import needs
from tests.support.tiny import make_adapter, make_base

PROJECT = """\
[project]
base = "base-7b"

[remotes.published]
path = "../published"

[adapters]
legal-qa = ">=1"
brief = "tables~=1.0"

[groups.eval]
judge = ""
"""


@pytest.fixture
def ann(tmp_path: Path) -> Adapt:
    """Somebody who publishes three adapters to a directory."""
    make_base(tmp_path / "models" / "base-7b")
    ann = Adapt(tmp_path, "ann")
    ann.ok("base", "add", "./models/base-7b", "--as", "base-7b")
    for seed, name in enumerate(("legal-qa", "tables", "judge")):
        publish(ann, name, "1.0.0", seed=seed)
    return ann


def publish(ann: Adapt, name: str, version: str, *, seed: int) -> None:
    folder = make_adapter(ann.folder / "out" / f"{name}-{version}", seed=seed)
    ann.ok("add", folder, "--name", name, "--version", version, "--base", "base-7b")
    ann.ok("push", f"{name}=={version}", "--to", "./published")


@pytest.fixture
def work(tmp_path: Path, ann: Adapt) -> Adapt:
    """`adapt` in a project, with an empty library that knows the base."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "adapters.toml").write_text(PROJECT)
    work = Adapt(tmp_path / "work")
    work.ok("base", "add", "../models/base-7b", "--as", "base-7b")
    return work


def places(work: Adapt) -> list[str]:
    return sorted(p.name for p in (work.folder / "adapters").iterdir() if not p.name.startswith("."))


def test_sync_locks_brings_and_links_what_the_project_asks_for(work):
    told = work.json("sync")

    assert told["locked_anew"] is True
    assert [(a["key"], a["name"], a["done"]) for a in told["adapters"]] == [
        ("brief", "tables", "linked"),
        ("legal-qa", "legal-qa", "linked"),
    ]
    assert places(work) == ["brief", "legal-qa"]
    again = work.json("sync")
    assert (again["locked_anew"], {a["done"] for a in again["adapters"]}) == (False, {"kept"})


def test_sync_says_in_words_what_it_did(work):
    told = work.ok("sync")
    assert "linked brief  tables 1.0.0  from " in told
    assert "2 adapters in " in told
    assert "all as locked" in work.ok("sync")


def test_frozen_never_resolves_and_names_what_is_stale(work):
    assert "no `adapters.lock`" in work.fails(10, "sync", "--frozen")
    work.ok("sync")
    path = work.folder / "adapters.toml"
    path.write_text(PROJECT.replace('">=1"', '">=0.5"'))
    before = (work.folder / "adapters.lock").read_bytes()

    told = work.fails(15, "sync", "--frozen")

    assert "`legal-qa` is locked for" in told
    assert "`adapt lock`" in told
    assert (work.folder / "adapters.lock").read_bytes() == before
    assert work.json("sync")["locked_anew"] is True
    work.ok("sync", "--frozen", "--offline")


def test_a_lock_keeps_its_choice_though_a_newer_release_appears(work, ann):
    work.ok("sync")
    publish(ann, "legal-qa", "1.1.0", seed=9)
    shutil.rmtree(work.folder / "adapters")
    shutil.rmtree(work.folder / "home" / "adapters")

    told = work.json("sync")

    assert {a["version"] for a in told["adapters"]} == {"1.0.0"}


def test_groups_by_name_and_all_of_them(work):
    work.ok("sync")
    assert [a["key"] for a in work.json("sync", "--group", "eval")["adapters"]] == ["brief", "judge", "legal-qa"]
    assert "did not" not in work.fails(2, "sync", "--group", "evil")
    told = work.json("sync")
    assert [Path(one["path"]).name for one in told["left"]] == ["judge"]
    assert [Path(p).name for p in work.json("sync", "--prune")["removed"]] == ["judge"]
    assert [a["key"] for a in work.json("sync", "--all-groups")["adapters"]] == ["brief", "judge", "legal-qa"]


def test_prune_leaves_what_sync_did_not_make_unless_yes_is_said(work):
    work.ok("sync")
    mine = make_adapter(work.folder / "adapters" / "my-run")

    done = work("sync", "--prune")
    assert (done.exit_code, mine.exists()) == (0, True)
    assert "`my-run`" in done.stderr
    assert [Path(p).name for p in work.json("sync", "--prune", "--yes")["removed"]] == ["my-run"]
    assert not mine.exists()


def test_sync_warns_of_a_base_with_other_weights_than_were_locked_and_goes_on(work, tmp_path):
    work.ok("sync")
    locked = work.json("base", "show", "base-7b")["fingerprint"]["weights"]
    work.ok("base", "remove", "base-7b")
    assert work("sync").stderr == ""  # a base that is not registered here contradicts nothing
    make_base(tmp_path / "models" / "other", seed=7)
    work.ok("base", "add", "../models/other", "--as", "base-7b")
    here = work.json("base", "show", "base-7b")["fingerprint"]["weights"]
    shutil.rmtree(tmp_path / "models")  # nothing is hashed to tell

    done = work("sync", "--frozen", "--offline", "--json")

    assert (done.exit_code, {a["done"] for a in json.loads(done.stdout)["adapters"]}) == (0, {"kept"})
    assert done.stderr.count("warning:") == 1
    assert f"base `base-7b` changed since they were locked: locked {locked}, here {here}" in done.stderr
    assert "`adapt lock --upgrade`" in done.stderr


def test_a_folder_in_the_way_is_refused_by_name_and_stays(work):
    mine = make_adapter(work.folder / "adapters" / "legal-qa", seed=50)
    data = (mine / WEIGHTS_FILE).read_bytes()

    assert "adapters/legal-qa" in work.fails(15, "sync")
    assert (mine / WEIGHTS_FILE).read_bytes() == data
    work.ok("sync", "--prune", "--yes")
    assert (mine / WEIGHTS_FILE).read_bytes() != data


def test_sync_works_from_below_the_project_and_with_project(work, tmp_path):
    (work.folder / "deep" / "er").mkdir(parents=True)
    below = Adapt(work.folder / "deep" / "er", str(work.folder / "home"))

    below.ok("sync")
    assert places(work) == ["brief", "legal-qa"]
    outside = Adapt(tmp_path, "work/home")
    assert "no project" in outside.fails(10, "sync")
    outside.ok("sync", "--project", "work")


# ---------------------------------------------------------------- merges
def test_a_merge_of_the_project_is_locked_made_and_linked(work):
    text = PROJECT + (
        "\n[merges.both]\nmethod = 'svd'\noptions = { rank = 4 }\n"
        "inputs = [ { adapter = 'legal-qa', weight = 0.7 }, { adapter = 'brief', weight = 0.3 } ]\n"
    )
    (work.folder / "adapters.toml").write_text(text)

    work.ok("sync")

    assert places(work) == ["both", "brief", "legal-qa"]
    digest = json.loads(work.ok("info", "both", "--json"))["digest"]
    shutil.rmtree(work.folder / "home" / "adapters")
    shutil.rmtree(work.folder / "home" / "blobs")
    shutil.rmtree(work.folder / "home" / "manifests")
    shutil.rmtree(work.folder / "adapters")
    told = work.json("sync", "--frozen", "--offline")
    assert {a["key"]: a["from"] for a in told["adapters"]}["both"] == "its recipe"
    assert {a["key"]: a["digest"] for a in told["adapters"]}["both"] == digest


# ---------------------------------------------------------------- names
def test_a_bare_name_of_the_project_is_what_its_lock_names(work, ann):
    work.ok("sync")
    newer = make_adapter(work.folder.parent / "newer", seed=77)
    work.ok("add", newer, "--name", "legal-qa", "--version", "1.5.0", "--base", "base-7b")

    done = work("info", "legal-qa", "--path")

    assert Path(done.stdout.strip()).name.startswith("1.0.0")
    assert "adapters.lock" in done.stderr
    assert Path(work.ok("info", "legal-qa>=1", "--path").strip()).name.startswith("1.5.0")
    assert Path(work.ok("info", "legal-qa@base-7b", "--path").strip()).name.startswith("1.5.0")
    assert "/tables/1.0.0" in work.ok("info", "brief", "--path")
    outside = Adapt(work.folder.parent, "work/home")
    assert Path(outside.ok("info", "legal-qa", "--path").strip()).name.startswith("1.5.0")


def test_verify_and_merge_mean_the_locked_ones_too(work):
    work.ok("sync")

    [report] = work.json("verify", "brief")
    assert report["adapter"].startswith("tables 1.0.0")
    work.ok("merge", "legal-qa", "brief", "-o", "both")
    parents = json.loads(work.ok("info", "both==1.0.0", "--json"))["parents"]
    assert [p["spec"] for p in parents] == ["legal-qa==1.0.0", "tables==1.0.0"]


def test_a_locked_name_that_is_not_here_says_how_to_get_it(work):
    work.ok("sync")
    shutil.rmtree(work.folder / "home" / "adapters")

    assert "`adapt sync`" in work.fails(10, "info", "legal-qa", "--path")


# ---------------------------------------------------------------- no network
SOCKETS_CUT = """
import socket, sys
def refuse(*_, **__):
    raise AssertionError("a socket was opened")
socket.socket = socket.create_connection = socket.getaddrinfo = refuse
from adapterhub.cli import main
sys.argv = ["adapt", *sys.argv[1:]]
main()
"""


@pytest.fixture
def served_lock(work: Adapt) -> Adapt:
    """The lock says that everything is from a server; the library has it."""
    work.ok("sync")
    return work


@pytest.mark.parametrize("cut", ["no sockets in the process", "no network in the kernel"])
def test_offline_opens_no_socket(served_lock, cut):
    work = served_lock
    text = PROJECT.replace('path = "../published"', 'url = "http://127.0.0.1:9"\nnamespaces = ["acme"]')
    (work.folder / "adapters.toml").write_text(text)
    lock = (work.folder / "adapters.lock").read_text()
    (work.folder / "adapters.lock").write_text(
        lock.replace('path = "../published"', f'url = "http://127.0.0.1:9", repo = "acme/x", commit = "{"0" * 40}"')
    )
    shutil.rmtree(work.folder / "adapters")
    command = [sys.executable, "-c", SOCKETS_CUT, "sync", "--offline", "--frozen"]
    if cut == "no network in the kernel":
        unshare = needs("unshare")
        if subprocess.run([unshare, "-rn", "true"], capture_output=True, check=False).returncode:
            lacking("needs the right to cut the network of a process")
        command = [unshare, "-rn", sys.executable, "-m", "adapterhub.cli", "sync", "--offline", "--frozen"]

    done = subprocess.run(
        command,
        cwd=work.folder,
        env=os.environ | {"ADAPTERHUB_HOME": str(work.folder / "home")},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert places(work) == ["brief", "legal-qa"]


# ---------------------------------------------------------------- for other programs
def test_list_says_names_and_folders_of_the_project_to_vllm_and_peft(work):
    work.ok("sync")
    adapters = work.folder / "adapters"

    assert work.ok("list", "--format", "vllm") == f"brief={adapters}/brief\nlegal-qa={adapters}/legal-qa\n"
    assert f'model.load_adapter("{adapters}/legal-qa", adapter_name="legal_qa")\n' in work.ok(
        "list", "--format", "peft"
    )
    found = json.loads(work.ok("list", "--format", "json"))
    assert [(a["name"], a["version"], a["rank"]) for a in found] == [("brief", "1.0.0", 4), ("legal-qa", "1.0.0", 4)]


def test_list_outside_of_a_project_tells_several_versions_apart(ann):
    publish(ann, "tables", "1.1.0", seed=9)

    names = [line.partition("=")[0] for line in ann.ok("list", "--format", "vllm").splitlines()]

    assert sorted(names) == ["judge", "legal-qa", "tables-1.0.0-r4", "tables-1.1.0-r4"]


def test_list_gives_vllm_json_where_a_path_would_end_its_argument(work, tmp_path):
    work.ok("sync")
    moved = tmp_path / "a b=c"
    work.folder.rename(moved)

    line = Adapt(moved).ok("list", "--format", "vllm").splitlines()[0]

    assert json.loads(line) == {"name": "brief", "path": f"{moved}/adapters/brief"}


# ---------------------------------------------------------------- space
def test_cache_says_who_holds_what_and_what_nobody_else_does(work):
    work.ok("sync", "--all-groups")
    work.ok("remove", "judge", "--yes")

    told = work.json("cache", "show")

    kinds = {one["name"]: one for one in told["holders"]}
    project = kinds[str(work.folder)]
    assert (project["kind"], project["objects"]) == ("project", told["objects"])
    assert project["size_bytes"] == told["size_bytes"]
    assert 0 < project["alone_bytes"] < project["size_bytes"]
    assert kinds["legal-qa 1.0.0 (rank 4)"]["alone_bytes"] == 0
    assert told["unused_bytes"] == 0
    assert "legal-qa 1.0.0" in work.ok("cache", "show")


def test_gc_unused_keeps_what_projects_need_and_removes_the_rest(work):
    work.ok("sync")
    work.ok("merge", "legal-qa==1.0.0", "tables==1.0.0", "-o", "mine")

    assert "would remove mine 1.0.0" in work.ok("cache", "clean", "--unused", "--dry-run")
    assert "--yes" in work.fails(2, "cache", "clean", "--unused")
    told = work.json("cache", "clean", "--unused", "--yes", "--grace", "0")

    assert [one["name"] for one in told["removed"]] == ["mine"]
    assert told["freed_bytes"] > 0
    assert {a["done"] for a in work.json("sync", "--frozen", "--offline")["adapters"]} == {"kept"}
    shutil.rmtree(work.folder)
    outside = Adapt(work.folder.parent, "home2")
    shutil.copytree(work.folder.parent / "ann", work.folder.parent / "home2")
    assert len(outside.json("cache", "clean", "--unused", "--yes")["removed"]) == 3
