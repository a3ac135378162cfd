"""`init`, `lock`, `install --save` and `uninstall` as users type them."""

from __future__ import annotations

import http.server
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from adapterhub.projects.lock.lockfile import read_lock
from adapterhub.projects.project import read_project
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base


@pytest.fixture
def adapt(tmp_path: Path) -> Adapt:
    """A library with a base and two adapters, and a project made in `.`."""
    adapt = Adapt(tmp_path)
    make_base(tmp_path / "base")
    adapt.ok("base", "add", "./base", "--as", "base-7b")
    for seed, name in enumerate(["legal-qa", "tables"]):
        make_adapter(tmp_path / "out" / name, seed=seed)
        adapt.ok("add", f"./out/{name}", "--name", name, "--base", "base-7b")
    adapt.ok("init", "--base", "base-7b")
    return adapt


def project_text(adapt: Adapt) -> str:
    return (adapt.folder / "adapters.toml").read_text()


def lock_bytes(adapt: Adapt) -> bytes:
    return (adapt.folder / "adapters.lock").read_bytes()


def write(adapt: Adapt, text: str) -> None:
    (adapt.folder / "adapters.toml").write_text('[project]\nbase = "base-7b"\n' + text)


# ---------------------------------------------------------------- init
def test_init_makes_a_project_once(tmp_path):
    adapt = Adapt(tmp_path)

    done = adapt("init", "new", "--base", "base-7b", "--json")
    assert '"base": "base-7b"' in done.stdout
    assert "no base `base-7b` is registered yet" in done.stderr
    assert "already has an `adapters.toml`. It was not changed" in adapt.fails(15, "init", "new")
    assert "adapters.toml" in adapt.ok("init")


def test_a_base_in_a_folder_is_written_as_the_project_finds_it(adapt):
    adapt.ok("init", "sub/new", "--base", "./base")
    adapt.ok("init", "home-made", "--base", "~/base")

    assert 'base = "../../base"\n' in (adapt.folder / "sub/new/adapters.toml").read_text()
    assert 'base = "~/base"\n' in (adapt.folder / "home-made/adapters.toml").read_text()
    assert "warning: no folder `../nowhere` in `third` yet" in adapt("init", "third", "--base", "./nowhere").stderr
    adapt.ok("install", "legal-qa@./base", "--save", "--project", "./sub/new")
    assert 'legal-qa = ">=1.0.0"\n' in (adapt.folder / "sub/new/adapters.toml").read_text()


def test_without_a_project_the_way_to_one_is_told(tmp_path):
    adapt = Adapt(tmp_path)

    assert "hint: create one here with `adapt init`" in adapt.fails(10, "lock")
    assert f"`{tmp_path}` has no `adapters.toml`" in adapt.fails(10, "lock", "--project", str(tmp_path))


# ---------------------------------------------------------------- install --save
def test_what_is_installed_with_save_is_in_the_project_and_in_the_lock(adapt):
    adapt.ok("install", "legal-qa", "--save")
    adapt.ok("install", "tables<2", "--rank", "-8", "--save", "--group", "eval")

    text = project_text(adapt)
    assert 'legal-qa = ">=1.0.0"' in text
    assert '[groups.eval]\ntables = {spec = "<2", rank = "-8"}' in text
    assert "# Adapters by name." in text
    lock = read_lock(adapt.folder)
    assert [(e.key, e.version, e.group) for e in lock.adapters] == [
        ("legal-qa", "1.0.0", None),
        ("tables", "1.0.0", "eval"),
    ]
    assert adapt.json("lock", "--check")["current"] is True


def test_what_is_installed_with_save_is_in_adapters_as_well(adapt):
    adapt.ok("install", "tables", "--save")
    shutil.rmtree(adapt.folder / "adapters" / "tables")

    done = adapt("install", "legal-qa", "--save")
    [again] = adapt.json("install", "legal-qa", "--save", "--group", "eval")

    assert "linked legal-qa  legal-qa 1.0.0" in done.stdout
    assert "linked tables  tables 1.0.0" in done.stdout  # all of the project is synced, as `adapt sync` does
    assert "2 adapters in " in done.stdout
    assert again["linked"] == str(adapt.folder / "adapters" / "legal-qa")
    assert adapt.ok("sync", "--all-groups").endswith("all as locked\n")


def test_no_sync_leaves_adapters_alone(adapt):
    [done] = adapt.json("install", "legal-qa", "--save", "--no-sync")

    assert "linked" not in done
    assert read_lock(adapt.folder).adapters
    assert not (adapt.folder / "adapters").exists()


def test_a_folder_in_the_way_of_a_save_leaves_the_project_as_it_was(adapt):
    adapt.ok("install", "tables", "--save")
    before = project_text(adapt), lock_bytes(adapt)
    (adapt.folder / "adapters" / "legal-qa").mkdir()
    (adapt.folder / "adapters" / "legal-qa" / "mine").write_text("mine")

    done = adapt("install", "legal-qa", "--save")

    assert done.exit_code == 15
    assert "installed, but not saved: the project is unchanged" in done.stderr
    assert (project_text(adapt), lock_bytes(adapt)) == before


def test_a_project_names_the_base_where_nobody_does(adapt):
    make_base(adapt.folder / "base-2", seed=5)
    adapt.ok("base", "add", "./base-2", "--as", "other-7b")
    make_adapter(adapt.folder / "out" / "other", seed=9)
    adapt.ok("add", "./out/other", "--name", "legal-qa", "--version", "2.0.0", "--base", "other-7b")

    [installed] = adapt.json("install", "legal-qa")

    assert installed["version"] == "1.0.0"


def test_a_save_that_cannot_be_locked_leaves_the_project_as_it_was(adapt):
    adapt.ok("install", "tables", "--save")
    write(adapt, project_text(adapt).partition("\n\n")[2] + "\nmissing = '*'\n")
    before = project_text(adapt), lock_bytes(adapt)

    done = adapt("install", "legal-qa", "--save")

    assert done.exit_code == 10
    assert "installed, but not saved: the project is unchanged" in done.stderr
    assert (project_text(adapt), lock_bytes(adapt)) == before


def test_what_several_commands_save_at_once_is_all_saved(adapt):
    names = ["legal-qa", "tables", "third", "fourth"]
    for name in names[2:]:
        make_adapter(adapt.folder / "out" / name, seed=len(name))
        adapt.ok("add", f"./out/{name}", "--name", name, "--base", "base-7b")
    write(adapt, "[adapters]\n")

    at_once = [
        subprocess.Popen(
            [sys.executable, "-m", "adapterhub.cli", "install", name, "--save"],
            cwd=adapt.folder, env=os.environ | {"ADAPTERHUB_HOME": str(adapt.folder / "home")},
        )
        for name in names
    ]  # fmt: skip

    assert [process.wait() for process in at_once] == [0] * len(names)
    assert sorted(wanted.key for wanted in read_project(adapt.folder).adapters) == sorted(names)
    adapt.ok("lock", "--check")


def test_a_name_of_the_project_does_not_change_its_publisher_in_silence(adapt):
    write(adapt, '[adapters]\nlegal-qa = "acme/legal-qa>=1"\n')
    adapt.ok("push", "legal-qa", "--to", "./published")

    told = adapt.fails(15, "install", "evil/legal-qa", "--from", "./published", "--save")

    assert "`legal-qa` is `acme/legal-qa` in this project, not `evil/legal-qa`" in told


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--group", "eval"], "needs `--save`"),
        (["--no-sync"], "needs `--save`"),
        (["--save", "--dry-run"], "`--dry-run` writes nothing"),
        (["--save", "--group", "my group"], "`my group`"),
        (["--save", "--allow-base-mismatch"], "a project locks builds for its own base only"),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_anything_is_installed(adapt, options, told):
    said = adapt.fails(2, "install", "legal-qa", *options)

    assert told in said
    assert "installed" not in said.partition("hint:")[0]


# ---------------------------------------------------------------- lock
def test_lock_says_what_changed_and_then_that_nothing_did(adapt):
    write(adapt, "[adapters]\nlegal-qa = '>=1'\n")

    first = adapt.ok("lock").splitlines()
    again = adapt.ok("lock").splitlines()

    assert first[0].startswith("+ base base-7b  sha256:")
    assert first[1].startswith("+ legal-qa  legal-qa 1.0.0 rank 4  sha256:")
    assert first[2].startswith("wrote ")
    assert again == [f"unchanged: {adapt.folder / 'adapters.lock'}, 1 entry"]


def test_the_lock_is_the_same_text_on_another_machine(adapt, tmp_path):
    adapt.ok("push", "legal-qa", "--to", "./published")
    write(adapt, "[remotes.pub]\npath = './published'\n[adapters]\nlegal-qa = '>=1'\n")
    adapt.ok("lock")
    first = lock_bytes(adapt)
    elsewhere = Adapt(tmp_path, home="second")
    elsewhere.ok("base", "add", "./base", "--as", "base-7b")
    (tmp_path / "adapters.lock").unlink()

    elsewhere.ok("lock")

    assert lock_bytes(adapt) == first
    assert str(tmp_path).encode() not in first


def test_lock_works_from_a_folder_inside_and_by_project(adapt, tmp_path):
    (tmp_path / "src").mkdir()
    write(adapt, "[adapters]\nlegal-qa = '>=1'\n")

    adapt.ok("lock", "--project", str(tmp_path))
    inside = Adapt(tmp_path / "src", home="../home")

    assert inside.json("lock", "--check")["lock"] == str(tmp_path / "adapters.lock")


def test_check_tells_all_that_is_stale_and_changes_nothing(adapt):
    write(adapt, "[adapters]\nlegal-qa = '>=1'\n")
    adapt.ok("lock")
    write(adapt, "[adapters]\nlegal-qa = '>=2'\ntables = ''\n[policy]\nmax-rank = 8\n")
    before = lock_bytes(adapt)

    told = adapt.fails(15, "lock", "--check")

    assert "policy `max-rank` changed from nothing to `8`" in told
    assert "`legal-qa` is locked for `legal-qa>=1`, but the project requires `legal-qa>=2`" in told
    assert "`tables` is not locked" in told
    assert "hint: `adapt lock` updates it" in told
    assert lock_bytes(adapt) == before


def test_a_damaged_lock_is_not_overwritten(adapt):
    write(adapt, "[adapters]\nlegal-qa = '>=1'\n")
    adapt.ok("lock")
    path = adapt.folder / "adapters.lock"
    path.write_text(path.read_text().replace("rank = 4", "rank = four"))

    told = adapt.fails(16, "lock")

    line = path.read_text().split("\n").index("rank = four") + 1
    assert f"line {line}: not TOML: Invalid value" in told
    assert "rank = four" in path.read_text()


def test_upgrade_takes_names_only_with_the_option(adapt):
    write(adapt, "[adapters]\nlegal-qa = '>=1'\n")
    adapt.ok("lock")
    adapt.ok("add", "./out/tables", "--name", "legal-qa", "--version", "1.1.0", "--base", "base-7b")

    assert "`adapt lock --upgrade legal-qa`" in adapt.fails(2, "lock", "legal-qa")
    assert "1.1.0" not in adapt.ok("lock")
    assert "~ legal-qa  1.0.0 -> 1.1.0" in adapt.ok("lock", "--upgrade", "legal-qa")


def test_a_merge_of_the_project_is_locked_with_its_recipe(adapt):
    write(
        adapt,
        "[adapters]\nlegal-qa = ''\ntables = ''\n[merges.both]\n"
        "inputs = [{adapter='legal-qa', weight=0.7}, {adapter='tables', weight=0.3}]\n",
    )

    document = adapt.json("lock")
    again = adapt.json("lock")

    [merge] = document["merges"]
    assert merge["version"].startswith("1.0.0+")
    assert again["changes"] == []
    assert adapt.json("show", "both")["digest"] == merge["digest"]


# ---------------------------------------------------------------- uninstall
def test_uninstall_with_save_takes_it_out_of_project_lock_and_library(adapt):
    adapt.ok("install", "legal-qa", "tables", "--save")

    done = adapt.json("uninstall", "legal-qa", "--save", "--yes")

    assert (done["project_names"], [r["name"] for r in done["removed"]]) == (["legal-qa"], ["legal-qa"])
    assert "legal-qa =" not in project_text(adapt).replace("# legal-qa =", "")
    assert [e.key for e in read_lock(adapt.folder).adapters] == ["tables"]
    assert adapt.json("lock", "--check")["current"] is True
    assert "no adapter `legal-qa`" in adapt.fails(10, "show", "legal-qa")


def test_uninstall_without_save_is_remove(adapt):
    adapt.ok("install", "legal-qa", "--save")

    adapt.ok("uninstall", "legal-qa", "--yes")

    assert "legal-qa = " in project_text(adapt)
    assert [e.key for e in read_lock(adapt.folder).adapters] == ["legal-qa"]


def test_what_another_name_of_the_project_stands_for_stays_installed(adapt):
    write(adapt, "[adapters]\nlegal-qa = ''\nsecond = 'legal-qa'\n")
    adapt.ok("lock")

    done = adapt.json("uninstall", "second", "--save", "--yes")

    assert (done["project_names"], done["removed"]) == (["second"], [])
    adapt.ok("show", "legal-qa")


def test_a_part_of_a_merge_goes_only_with_the_merge(adapt):
    write(adapt, "[adapters]\nlegal-qa = ''\n[merges.both]\ninputs = [{adapter='legal-qa', weight=1}]\n")
    adapt.ok("lock")
    before = project_text(adapt), lock_bytes(adapt)

    told = adapt.fails(15, "uninstall", "legal-qa", "--save", "--yes")

    assert "`legal-qa` is part of `both`. Nothing was changed" in told
    assert (project_text(adapt), lock_bytes(adapt)) == before
    adapt.ok("uninstall", "legal-qa", "both", "--save", "--yes")
    assert read_lock(adapt.folder).entries == {}


# ---------------------------------------------------------------- what it costs, and what is asked of signatures
def test_a_lock_that_changes_nothing_imports_nothing_heavy(adapt):
    write(adapt, "[adapters]\nlegal-qa = ''\n")
    adapt.ok("lock")
    code = (
        "import sys\n"
        "from adapterhub.cli import _run\n"
        "for words in ('lock', 'lock --check', 'init another', 'sync'):\n"
        "    sys.argv = ['adapt', *words.split(), '--root', 'home']\n"
        "    assert _run() == 0\n"
        "heavy = ['torch', 'peft', 'transformers', 'huggingface_hub', 'sqlite_utils', 'rich']\n"
        "heavy += ['adapterhub.api.steps.contracts', 'concurrent.futures', 'importlib.metadata', 'tempfile', 'shutil']\n"
        "print([m for m in heavy if m in sys.modules], file=sys.stderr)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], cwd=adapt.folder, capture_output=True, text=True, check=True)

    assert done.stderr.strip().splitlines()[-1] == "[]"


def test_a_project_asks_for_more_than_its_user_does_and_never_for_less(adapt):
    adapt.ok("push", "legal-qa", "--to", "./published")
    adapt.ok("uninstall", "legal-qa", "--yes")
    remote = "[remotes.pub]\npath = './published'\nsignatures = '{policy}'\n"

    write(adapt, remote.format(policy="require"))
    assert "is not signed" in adapt.fails(14, "install", "legal-qa")
    adapt.ok("key", "policy", "require")
    write(adapt, remote.format(policy="off"))
    assert "is not signed" in adapt.fails(14, "install", "legal-qa")


# ---------------------------------------------------------------- servers
@pytest.mark.slow
def test_a_build_of_a_server_is_locked_with_repository_and_commit(adapt, server, online):
    adapt.ok("remote", "add", "ours", server.url, "--namespaces", "acme")
    adapt.ok("remote", "login", "ours", "--token", server.token)
    adapt.ok("push", "legal-qa", "--to", "acme/legal-qa")
    adapt.ok("uninstall", "legal-qa", "--yes")
    adapt.ok("remote", "remove", "ours")
    write(
        adapt,
        f"[remotes.team]\nurl = '{server.url}'\nnamespaces = ['acme']\n[adapters]\nlegal-qa = ''\nsame = 'acme/legal-qa'\n",
    )
    adapt.ok("remote", "trust")

    adapt.ok("lock")
    lock = read_lock(adapt.folder)

    assert {(e.key, e.name, e.source.remote, e.source.address, e.source.pin["repo"]) for e in lock.adapters} == {
        ("legal-qa", "acme/legal-qa", "team", server.url, "acme/legal-qa"),
        ("same", "acme/legal-qa", "team", server.url, "acme/legal-qa"),
    }
    assert all(len(e.source.pin["commit"]) == 40 for e in lock.adapters)
    # nobody is asked again: the server may be gone
    write(adapt, project_text(adapt).partition("\n")[2].partition("\n")[2].replace("same = 'acme/legal-qa'", ""))
    assert "- same" in adapt.ok("lock", "--offline")


def test_a_server_that_a_project_names_sees_no_token_of_another(adapt, online, monkeypatch):
    seen: list[str | None] = []

    class Curious(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    listener = http.server.HTTPServer(("127.0.0.1", 0), Curious)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{listener.server_port}"
        write(adapt, f"[remotes.evil]\nurl = '{url}'\nnamespaces = ['acme']\n[adapters]\nx = 'acme/x'\n")
        adapt.ok("remote", "trust")
        monkeypatch.setenv("ADAPTERHUB_TOKEN", "secret")
        monkeypatch.setenv("HF_TOKEN", "secret")
        adapt("lock")
    finally:
        listener.shutdown()
        listener.server_close()

    assert seen
    assert set(seen) == {None}
