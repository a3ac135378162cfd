"""`outdated`, `upgrade`, `tree`, `why`, `info`, `export` and `doctor`: in a project, and in a library without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from adapterhub.api.health import dependencies
from adapterhub.formats.modules import ranges
from adapterhub.library.upkeep.lineage import drawn
from tests.support.command_line import Adapt
from tests.support.tiny import LAYERS, MODULES, make_adapter, make_base

PROJECT = """\
[project]
base = "base-7b"

[remotes.published]
path = "./published"

[adapters]
legal-qa = "<2"
summary = "summarize==1.0"

[groups.eval]
judge = "*"

[merges.both]
method = "svd"
options = { rank = 4 }
inputs = [ { adapter = "legal-qa", weight = 0.7 }, { adapter = "summary", weight = 0.3 } ]
"""


@dataclass(frozen=True)
class World:
    """An author who publishes into `./published`, and a user in the same folder."""

    author: Adapt
    user: Adapt

    def publish(self, name: str, version: str, *, seed: int = 0, rank: int = 4) -> str:
        folder = self.user.folder / "out" / f"{name}-{version}-{rank}"
        make_adapter(folder, seed=seed, rank=rank)
        self.author.ok("add", folder, "--name", name, "--version", version, "--base", "base-7b", "--variant")
        self.author.ok("push", f"{name}=={version}", "--to", "./published", "--rank", str(rank))
        return self.author.json("show", f"{name}=={version}", "--rank", str(rank))["digest"]


@pytest.fixture
def world(tmp_path) -> World:
    world = World(Adapt(tmp_path, "author"), Adapt(tmp_path))
    make_base(tmp_path / "base")
    for one in (world.author, world.user):
        one.ok("base", "add", "./base", "--as", "base-7b")
    world.publish("legal-qa", "1.0", seed=1)
    world.publish("summarize", "1.0", seed=2)
    world.publish("judge", "1.0", seed=3)
    return world


@pytest.fixture
def project(world, tmp_path) -> World:
    (tmp_path / "adapters.toml").write_text(PROJECT)
    world.user.ok("lock")
    return world


# ---------------------------------------------------------------- outdated
def told(rows: list[dict]) -> dict[str, tuple]:
    return {row["name"]: (row["current"], row["allowed"], row["newest"]) for row in rows}


def test_outdated_tells_what_is_allowed_and_what_is_newest(project):
    assert project.user.json("upgrade", "--check") == []
    assert "no adapter `summarize`" in project.user.fails(10, "upgrade", "--check", "summarize")
    project.publish("legal-qa", "1.5", seed=4)
    project.publish("legal-qa", "2.0", seed=5)
    project.publish("summarize", "1.1", seed=6)

    rows = project.user.json("upgrade", "--check")
    text = project.user("upgrade", "--check")

    assert told(rows) == {"legal-qa": ("1.0", "1.5", "2.0"), "summary": ("1.0", "1.0", "1.1")}
    assert text.stdout.splitlines()[0] == "name\tlocked\tallowed\tnewest\tplace\tnote"
    assert "hint: `adapt upgrade`" in text.stderr
    named = project.user.json("upgrade", "--check", "summary", "judge")
    assert told(named)["summary"] == ("1.0", "1.0", "1.1")
    assert set(told(named)) == {"summary", "judge"}
    (project.user.folder / "adapters.lock").unlink()
    assert "`adapt lock`" in project.user.fails(10, "upgrade", "--check")


def test_outdated_names_each_place_that_has_it(project, tmp_path):
    other = Adapt(tmp_path, "author")
    make_adapter(tmp_path / "out" / "more", seed=9)
    other.ok("add", "./out/more", "--name", "judge", "--version", "3.0", "--base", "base-7b")
    other.ok("push", "judge==3.0", "--to", "./more")

    rows = project.user.json("upgrade", "--check", "judge", "--from", "./more")

    assert [(Path(row["place"].split("`")[1]).name, row["newest"]) for row in rows] == [
        ("published", "1.0"), ("more", "3.0")
    ]  # fmt: skip


def test_outdated_without_a_project_looks_where_things_came_from(world):
    world.user.ok("install", "legal-qa@base-7b", "--from", "./published")
    assert world.user.json("upgrade", "--check") == []
    world.publish("legal-qa", "1.1", seed=4)
    world.publish("legal-qa", "1.1", seed=5, rank=8)

    [row] = world.user.json("upgrade", "--check")

    assert (row["name"], row["current"], row["newest"]) == ("legal-qa", "1.0", "1.1")
    # of two builds of the newest release the one of the rank that is installed
    assert row["newest_digest"] == world.author.json("show", "legal-qa==1.1", "--rank", "4")["digest"]


def test_what_was_added_here_is_published_nowhere(world, tmp_path):
    make_adapter(tmp_path / "out" / "mine", seed=7)
    world.user.ok("add", "./out/mine", "--name", "mine", "--base", "base-7b")

    done = world.user("upgrade", "--check")

    assert (done.exit_code, done.stdout) == (0, "name\tinstalled\tnewest\tplace\tnote\n")
    assert "no source has `mine`" in done.stderr


# ---------------------------------------------------------------- upgrade
def test_upgrade_locks_the_newest_that_is_allowed_and_syncs_it(project, tmp_path):
    project.user.ok("sync", "--group", "eval")
    newest = project.publish("legal-qa", "1.5", seed=4)
    project.publish("judge", "2.0", seed=5)
    project.publish("legal-qa", "2.0", seed=6)

    done = project.user.json("upgrade", "legal-qa", "judge")

    assert {change["key"]: change["kind"] for change in done["changes"]}.keys() >= {"legal-qa", "judge", "both"}
    manifests = {
        p.name: json.loads((p / "adapterhub.json").read_text()) for p in (tmp_path / "adapters").iterdir() if p.is_dir()
    }
    assert {key: m["version"] for key, m in manifests.items() if key != "both"} == {
        "legal-qa": "1.5", "summary": "1.0", "judge": "2.0"
    }  # fmt: skip
    # the merge is made of the new one
    assert newest in {parent["digest"] for parent in manifests["both"]["parents"]}
    assert [one["current"] for one in project.user.json("upgrade", "--check", "judge")] == ["2.0"]


def test_upgrade_of_one_leaves_the_others_locked_and_prints_a_line_for_each_change(project, tmp_path):
    project.user.ok("sync", "--group", "eval")
    project.publish("legal-qa", "1.5", seed=4)
    project.publish("judge", "2.0", seed=5)

    project.user.ok("upgrade", "judge")

    tree = {one["key"]: one["version"] for one in project.user.json("tree")["adapters"]}
    assert (tree["judge"], tree["legal-qa"]) == ("2.0", "1.0")

    *lines, summary = project.user.ok("upgrade").splitlines()

    assert lines == ["~ both  merged again", "~ legal-qa  1.0 -> 1.5"]
    assert summary.startswith(f"4 adapters in {tmp_path}/adapters: 2 changed")


def test_upgrade_with_nothing_to_take_changes_nothing(project, tmp_path):
    before = (tmp_path / "adapters.lock").read_bytes()

    done = project.user("upgrade")

    assert done.exit_code == 0
    assert "no newer release is allowed" in done.stderr
    assert (tmp_path / "adapters.lock").read_bytes() == before


def files_in(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()
    }


def test_upgrade_dry_run_tells_what_the_upgrade_then_does_and_writes_nothing(project, tmp_path):
    project.user.ok("sync", "--group", "eval")
    project.publish("legal-qa", "1.5", seed=4)
    project.publish("legal-qa", "2.0", seed=6)
    before = files_in(tmp_path)

    told = project.user.json("upgrade", "--dry-run")
    words = project.user("upgrade", "--dry-run")

    assert files_in(tmp_path) == before
    assert [(c["kind"], c["key"]) for c in told["changes"]] == [("changed", "both"), ("changed", "legal-qa")]
    assert sorted(Path(p).name for p in told["folders"]) == ["both", "legal-qa"]
    assert "~ legal-qa  1.0 -> 1.5" in words.stdout
    assert "~ both  merged again" in words.stdout
    done = project.user.json("upgrade")
    assert [(c["kind"], c["key"]) for c in done["changes"]] == [("changed", "both"), ("changed", "legal-qa")]
    assert {a["path"] for a in done["sync"]["adapters"] if a["done"] != "kept"} == set(told["folders"])
    again = project.user.json("upgrade", "--dry-run")
    assert (again["changes"], again["folders"]) == ([], [])


def test_upgrade_dry_run_fails_as_the_upgrade_would(project, tmp_path):
    make_adapter(tmp_path / "adapters" / "summary", seed=9)

    told = project.user.fails(15, "upgrade", "--dry-run")

    assert "adapters/summary" in told
    assert told == project.user.fails(15, "upgrade")
    assert project.user.fails(10, "upgrade", "nothing", "--dry-run") == project.user.fails(10, "upgrade", "nothing")


def test_upgrade_without_a_project_installs_the_newest_beside_the_old_and_its_dry_run_nothing(world, tmp_path):
    world.user.ok("install", "legal-qa@base-7b", "--from", "./published")
    digest = world.publish("legal-qa", "1.1", seed=4)
    before = files_in(tmp_path)

    [told] = world.user.json("upgrade", "--dry-run")
    words = world.user.ok("upgrade", "--dry-run")

    assert files_in(tmp_path) == before
    assert words == "would install legal-qa  1.0 -> 1.1\n"
    [done] = world.user.json("upgrade", "legal-qa")
    assert told == done | {"path": None}
    assert (done["name"], done["from"], done["to"], done["digest"]) == ("legal-qa", "1.0", "1.1", digest)
    assert sorted(row["version"] for row in world.user.json("list")) == ["1.0", "1.1"]
    assert world.user.json("upgrade") == []
    world.publish("legal-qa", "1.2", seed=5)
    assert world.user.ok("upgrade") == "~ legal-qa  1.1 -> 1.2\n"


# ---------------------------------------------------------------- tree and why
def test_the_tree_of_a_project(project, tmp_path):
    lines = project.user.ok("tree").splitlines()

    assert lines[0] == f"{tmp_path}  (base base-7b)"
    assert [line.split("  (not")[0] for line in lines[1:]] == [
        f"├── both {project.user.json('tree')['adapters'][0]['version']} (rank 4) [svd]",
        "│   ├── 0.7 x legal-qa 1.0",
        "│   └── 0.3 x summary 1.0",
        "├── judge 1.0 (rank 4)  (group eval)",
        "├── legal-qa 1.0 (rank 4)",
        "└── summary: summarize 1.0 (rank 4)",
    ]


def test_a_name_of_the_project_is_what_is_locked_under_it(project):
    project.user.ok("sync")

    [entry] = project.user.json("tree", "summary")["adapters"]

    assert (entry["key"], entry["name"], entry["state"]) == ("summary", "summarize", "installed")
    assert project.user.ok("tree", "summarize").startswith("summarize 1.0")  # a name of the library
    assert project.user.json("info", "summary")["name"] == "summarize"
    assert project.user.ok("compare", "--diff", "summary", "summarize==1.0").startswith("identical")


def test_what_a_manifest_calls_its_parents_cannot_steer_a_terminal(world, tmp_path):
    from dataclasses import replace

    from adapterhub.formats.manifest import Manifest, Parent

    world.user.ok("install", "judge@base-7b", "--from", "./published")
    folder = Path(world.user.ok("info", "judge", "--path").strip())
    manifest = Manifest.read(folder / "adapterhub.json")
    odd = replace(manifest, parents=(Parent(digest=None, spec="\x1b[2Jx", weight=1.0),))
    (tmp_path / "odd").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "odd" / name).write_bytes((folder / name).read_bytes())
    odd = replace(odd, name="odd")
    (tmp_path / "odd" / "adapterhub.json").write_bytes(odd.to_bytes())
    world.user.ok("install", "odd@base-7b", "--from", "./odd")

    told = world.user.ok("tree", "odd") + world.user.ok("info", "odd") + world.user.ok("tree", "--invert", "odd")

    assert "\x1b" not in told
    assert "\\x1b[2Jx" in told


def test_the_tree_of_a_library_begins_with_what_nothing_was_made_from(world):
    world.user.ok("install", "legal-qa@base-7b", "summarize@base-7b", "--from", "./published")
    world.user.ok("merge", "legal-qa", "summarize", "--weights", "0.5,2", "-o", "both")
    world.user.ok("merge", "both", "legal-qa", "--weights", "1,-1", "-o", "deep")

    assert world.user.ok("tree") == (
        "deep 1.0.0 (rank 8) [cat]\n"
        "├── 1 x both 1.0.0 (rank 8) [cat]\n"
        "│   ├── 0.5 x legal-qa 1.0 (rank 4)\n"
        "│   └── 2 x summarize 1.0 (rank 4)\n"
        "└── -1 x legal-qa 1.0 (rank 4)\n"
    )
    assert world.user.ok("tree", "summarize") == "summarize 1.0 (rank 4)\n"


def test_parents_that_are_gone_are_told(world):
    world.user.ok("install", "legal-qa@base-7b", "summarize@base-7b", "--from", "./published")
    world.user.ok("merge", "legal-qa", "summarize", "-o", "both")
    world.user.ok("remove", "legal-qa", "--yes")
    stored = world.user.ok("tree", "both")
    world.user.ok("cache", "clean", "--grace", "0")

    assert "legal-qa 1.0 (rank 4)  (removed)" in stored
    assert "legal-qa 1.0  (not here)" in world.user.ok("tree", "both")
    assert [p["state"] for p in world.user.json("tree", "both")["adapters"][0]["parents"]] == ["missing", "installed"]
    assert "no longer installed: legal-qa 1.0" in world.user("info", "both").stderr


def test_why_follows_merges_to_whoever_needs_them(project, tmp_path):
    project.user.ok("sync", "--all-groups")
    project.user.ok("merge", "summarize", "judge", "-o", "later", "--root", "./home")

    [answer] = project.user.json("tree", "--invert", "summary")

    kinds = [(use["kind"], use["who"], use["key"]) for use in answer["uses"]]
    assert ("project", str(tmp_path), "summary") in kinds
    assert ("project", str(tmp_path), "both") in kinds
    assert ("merge", "later==1.0.0", None) in kinds
    merged = next(use for use in answer["uses"] if use["who"].startswith("both=="))
    assert [(use["kind"], use["key"]) for use in merged["uses"]] == [("project", "both")]
    text = project.user.ok("tree", "--invert", "summary")
    assert "wanted as `summarize==1.0`" in text
    assert "its merge `both` is made from it (0.3 x)" in text


def test_why_of_what_nobody_needs(world):
    world.user.ok("install", "judge@base-7b", "--from", "./published")

    done = world.user("tree", "--invert", "judge")

    assert done.stdout == "judge 1.0 (rank 4): nothing needs it\n"
    assert "hint: nothing needs judge 1.0 (rank 4); `adapt remove judge --yes`" in done.stderr
    assert "did you mean `judge`" in world.user.fails(10, "tree", "--invert", "jugde")


def test_a_process_that_reads_an_adapter_holds_it(world):
    world.user.ok("install", "judge@base-7b", "legal-qa@base-7b", "--from", "./published")
    library = world.user.library
    build = next(b for b in library.installed() if b.manifest.name == "judge")
    with library.lease(build):
        [answer] = world.user.json("tree", "--invert", "judge")
        holders = world.user.json("tree", "--holders")["holders"]
        text = world.user.ok("tree", "--holders")
    after = world.user.json("tree", "--invert", "judge")[0]["uses"]

    assert [(use["kind"], use["why"]) for use in answer["uses"]] == [("process", "has it open")]
    assert f"process {os.getpid()} " in answer["uses"][0]["who"]
    assert [(h["kind"], [a["key"] for a in h["adapters"]]) for h in holders] == [
        ("process", ["judge"]), ("nobody", ["legal-qa"])
    ]  # fmt: skip
    assert f"process {os.getpid()} (since" in text
    assert "unused\n└── legal-qa 1.0" in text
    assert after == []


def test_holders_are_projects_until_their_folder_is_gone(project, tmp_path):
    project.user.ok("sync")
    held = project.user.json("tree", "--holders")["holders"][0]
    assert (held["kind"], held["who"]) == ("project", str(tmp_path))
    assert {a["key"] for a in held["adapters"]} == {"legal-qa", "summary", "judge", "both"}

    elsewhere = Adapt(tmp_path / "out")
    (tmp_path / "adapters.lock").unlink()
    (tmp_path / "adapters.toml").unlink()
    uses = project.user.json("tree", "--invert", "legal-qa")[0]["uses"]
    assert {use["kind"] for use in uses} == {"project", "merge"}
    assert elsewhere("tree", "--root", "../home").exit_code == 0


def test_trees_import_nothing_heavy(world, tmp_path):
    world.user.ok("install", "judge@base-7b", "--from", "./published")
    forbidden = ["torch", "peft", "transformers", "numpy", "sqlite_utils", "huggingface_hub", "rich", "tomlkit"]
    code = (
        "import sys, json\n"
        "from adapterhub.cli import _run\n"
        "for more in ([], ['--invert', 'judge']):\n"
        "    sys.argv = ['adapt', 'tree', *more, '--root', 'home']\n"
        "    assert _run() == 0\n"
        f"print(json.dumps([m for m in {forbidden!r} if m in sys.modules]), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)

    assert json.loads(done.stderr.strip().splitlines()[-1]) == []


def test_a_drawn_tree_has_its_lines_in_place():
    tree = {"a": {"b": {"c": {}}, "d": {}}, "e": {"f": {}}}

    lines = list(drawn("root", list(tree.items()), lambda item: (item[0], list(item[1].items()))))

    assert lines == ["root", "├── a", "│   ├── b", "│   │   └── c", "│   └── d", "└── e", "    └── f"]


# ---------------------------------------------------------------- info
def test_info_tells_modules_base_signature_and_who_uses_it(world, tmp_path):
    make_adapter(tmp_path / "out" / "mixed", seed=8, alpha_pattern={"v_proj": 2}, modules_to_save=None, lora_alpha=16)
    world.user.ok("add", "./out/mixed", "--name", "mixed", "--base", "base-7b")
    world.user.ok("install", "judge@base-7b", "--from", "./published")
    world.user.ok("merge", "mixed", "judge", "--weights", "1,2", "-o", "both")

    found = world.user.json("info", "mixed")
    lines = world.user.ok("info", "mixed").splitlines()

    groups = {g["name"]: (g["modules"], g["layers"], g["rank"], g["alpha"], g["scale"]) for g in found["groups"]}
    assert groups == {"q_proj": (LAYERS, "0-1", 4, 16, 4.0), "v_proj": (LAYERS, "0-1", 4, 2, 0.5)}
    assert set(groups) == set(MODULES)
    assert (found["base_verdict"], found["base_asked"], found["installed"]) == ("SAME_WEIGHTS", "base-7b", True)
    assert found["signature"]["standing"] == "unsigned"
    assert [use["who"] for use in found["used_by"]] == ["both==1.0.0"]
    assert "modules\tq_proj  2 of 8 x 8, rank 4, alpha 16, scale 4, layers 0-1" in lines
    assert world.user.json("show", "mixed") == found
    assert [(p["name"], p["weight"], p["state"]) for p in world.user.json("info", "both")["lineage"]] == [
        ("mixed", 1, "installed"), ("judge", 2, "installed")
    ]  # fmt: skip


def test_info_judges_the_base_that_is_asked_for(world, tmp_path):
    make_base(tmp_path / "tuned", seed=5)
    world.user.ok("base", "add", "./tuned", "--as", "tuned")
    world.user.ok("install", "judge@base-7b", "--from", "./published")

    assert "made for another base" in world.user.fails(11, "info", "judge", "--base", "tuned")
    assert world.user.json("info", "judge", "--base", "./base")["base_verdict"] == "SAME_WEIGHTS"


def test_layers_are_told_as_ranges():
    assert ranges([3, 1, 0, 2, 7, 9, 8, 8]) == "0-3, 7-9"
    assert (ranges([]), ranges([5])) == ("", "5")


# ---------------------------------------------------------------- export and install -r
def test_a_list_that_is_exported_installs_the_same_bytes_elsewhere(project, tmp_path):
    text = project.user.ok("export", "--all-groups")
    (tmp_path / "adapters.txt").write_text("# what we use\n\n" + text.replace("\n", "   # pinned\n"))
    other = Adapt(tmp_path, "second-home")
    other.ok("base", "add", "./base", "--as", "base-7b")

    other.ok("install", "-r", "adapters.txt", "--from", "./published")

    lines = text.splitlines()
    assert lines == sorted(lines)
    assert {row["digest"] for row in other.json("list")} == {line.partition("#")[2] for line in lines}
    assert all(len(line.partition("#sha256:")[2]) == 64 for line in lines)
    assert [line.partition("==")[0] for line in lines] == ["judge", "legal-qa", "summarize"]
    fewer = project.user("export")
    assert [line.partition("==")[0] for line in fewer.stdout.splitlines()] == ["legal-qa", "summarize"]
    assert "skipped, because only their recipe is published: `both`" in fewer.stderr


def test_the_library_is_exported_outside_of_a_project(world, tmp_path):
    world.user.ok("install", "judge@base-7b", "--from", "./published")
    digest = world.user.json("show", "judge")["digest"]

    assert world.user.ok("export") == f"judge==1.0#{digest}\n"
    world.user.ok("export", "-o", "list.txt")
    assert (tmp_path / "list.txt").read_text() == f"judge==1.0#{digest}\n"
    assert "without a name, it prints a plain list" in world.user.fails(2, "export", "judge")
    assert "`--group`" in world.user.fails(2, "export", "--group", "eval")


def test_a_list_with_wrong_lines_installs_nothing_and_names_them_all(world, tmp_path):
    (tmp_path / "bad.txt").write_text("judge@base-7b\nLegal\nsummarize@1.0.0\n==1\n")

    said = world.user.fails(16, "install", "-r", "bad.txt", "--from", "./published")

    assert [number for number in range(1, 5) if f"line {number}:" in said] == [2, 4]
    assert world.user.json("list") == []
    assert "give at least one adapter to install" in world.user.fails(2, "install")
    assert "no such file: `nowhere.txt`" in world.user.fails(10, "install", "-r", "nowhere.txt")


# ---------------------------------------------------------------- doctor
def checks(adapt: Adapt, *arguments: str) -> dict[str, tuple[str, str]]:
    done = adapt("doctor", "--offline", "--json", *arguments)
    return {line["check"]: (line["state"], line["fact"]) for line in json.loads(done.stdout)}


def test_doctor_looks_at_the_installation_and_the_project_and_leaves_nothing_behind(project, tmp_path):
    before = [sorted(path.name for path in folder.iterdir()) for folder in (tmp_path, tmp_path / "home")]
    found = checks(project.user)

    assert [sorted(path.name for path in folder.iterdir()) for folder in (tmp_path, tmp_path / "home")] == before
    assert found["links"][0] == "ok"
    assert found["project links"][0] == "ok"
    assert found["project"] == ("ok", f"{tmp_path / 'adapters.toml'}: 4 requested")
    assert found["lock"] == ("ok", "4 locked")
    assert found["click"][0] == "ok"
    assert found["extra weights"] == ("ok", "installed")
    (tmp_path / "adapters.toml").write_text(PROJECT.replace('"<2"', '"<3"'))
    assert checks(project.user)["lock"][0] == "warning"
    (tmp_path / "adapters.lock").write_text("nonsense")
    assert checks(project.user)["lock"][0] == "failed"
    assert project.user("doctor", "--offline").exit_code == 3
    (tmp_path / "adapters.toml").write_text("[projec")
    assert checks(project.user)["project"][0] == "failed"


def test_doctor_holds_dependencies_against_the_declared_bounds(tmp_path, monkeypatch):
    info = tmp_path / "madeup-1.0.dist-info"
    info.mkdir()
    needs = ["click>=8", "packaging>=999", "no-such-thing>=1", "numpy>=999; extra == 'x'", "nor-this; extra == 'x'"]
    lines = ["Metadata-Version: 2.1", "Name: madeup", "Version: 1.0", *(f"Requires-Dist: {one}" for one in needs)]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    found = {line.what: (line.state, line.hint) for line in dependencies("madeup")}

    assert found == {
        "madeup": ("ok", ""),
        "click": ("ok", ""),
        "packaging": ("failed", "`pip install 'packaging>=999'`"),
        "no-such-thing": ("failed", "`pip install 'no-such-thing>=1'`"),
        "numpy": ("warning", "`pip install 'numpy>=999'`"),
    }
