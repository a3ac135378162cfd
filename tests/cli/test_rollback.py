"""`adapt upgrade --undo`: back to what the lock held before, with the file, the merges and `adapters/`."""

from __future__ import annotations

import json

import pytest

from adapterhub import Project
from adapterhub.projects.lock.lockfile import read_lock
from tests.cli.test_cli_verbs import files_in, project, world  # noqa: F401 - fixtures

pytestmark = pytest.mark.slow


def versions(folder) -> dict[str, str]:
    """What `adapters/` has."""
    return {
        path.name: json.loads((path / "adapterhub.json").read_text())["version"]
        for path in (folder / "adapters").iterdir()
        if path.is_dir()
    }


@pytest.fixture
def upgraded(project, tmp_path):  # noqa: F811
    """Locked with `legal-qa` 1.0, then 1.5."""
    project.user.ok("sync")
    (tmp_path / "before").write_bytes((tmp_path / "adapters.lock").read_bytes())
    project.publish("legal-qa", "1.5", seed=4)
    project.user.ok("upgrade")
    assert versions(tmp_path)["legal-qa"] == "1.5"
    return project


def test_rollback_takes_back_what_an_upgrade_did(upgraded, tmp_path):
    said = upgraded.user("upgrade", "--undo", "legal-qa")

    assert "~ legal-qa  1.5 -> 1.0\n" in said.stdout
    assert (tmp_path / "adapters.lock").read_bytes() == (tmp_path / "before").read_bytes()
    assert versions(tmp_path)["legal-qa"] == "1.0"
    upgraded.user.ok("sync", "--frozen", "--check")
    assert "nothing earlier" in upgraded.user.fails(10, "upgrade", "--undo", "legal-qa")


def test_each_rollback_goes_one_step_further_back(upgraded, tmp_path):
    upgraded.publish("legal-qa", "1.6", seed=7)
    upgraded.user.ok("lock", "--upgrade", "legal-qa")

    found = [
        upgraded.user.json("upgrade", "--undo", "legal-qa")["changes"][-1]["text"].split("  ")[0] for _ in range(2)
    ]

    assert found == ["1.6 -> 1.5", "1.5 -> 1.0"]
    upgraded.user.ok("upgrade")
    assert versions(tmp_path)["legal-qa"] == "1.6"
    assert upgraded.user.json("upgrade", "--undo", "legal-qa")["changes"][-1]["text"].startswith("1.6 -> 1.0")


def test_a_dry_run_tells_what_the_rollback_then_does_and_writes_nothing(upgraded, tmp_path):
    before = files_in(tmp_path)

    told = upgraded.user.json("upgrade", "--undo", "legal-qa", "--dry-run")

    assert files_in(tmp_path) == before
    assert [(one["kind"], one["key"]) for one in told["changes"]] == [("changed", "both"), ("changed", "legal-qa")]
    done = upgraded.user.json("upgrade", "--undo", "legal-qa")
    assert {a["path"] for a in done["sync"]["adapters"] if a["done"] != "kept"} == set(told["folders"])


def test_a_rollback_of_a_save_takes_its_requirement_back_too(project, tmp_path):  # noqa: F811
    project.user.ok("sync")
    project.publish("legal-qa", "1.5", seed=4)
    project.user.ok("install", "legal-qa>=1.5,<2", "--from", "./published", "--save")

    said = project.user("upgrade", "--undo", "legal-qa")

    assert 'legal-qa = "<2"\n' in (tmp_path / "adapters.toml").read_text()
    assert "`adapters.toml` asks for `legal-qa<2` again" in said.stderr
    assert versions(tmp_path)["legal-qa"] == "1.0"
    project.user.ok("lock", "--check")


def test_a_rollback_that_cannot_bring_the_build_changes_nothing(upgraded, tmp_path):
    [old] = [b for b in upgraded.user.library.installed() if b.spec.startswith("legal-qa==1.0")]
    upgraded.user.library.remove([old])
    upgraded.user.library.gc(grace_s=0)
    (tmp_path / "published").rename(tmp_path / "away")
    before = {name: (tmp_path / name).read_bytes() for name in ("adapters.toml", "adapters.lock")}

    said = upgraded.user.fails(10, "upgrade", "--undo", "legal-qa")

    assert "legal-qa 1.0" in said
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert versions(tmp_path)["legal-qa"] == "1.5"
    (tmp_path / "away").rename(tmp_path / "published")
    upgraded.user.ok("upgrade", "--undo", "legal-qa")  # the history is still there


def test_what_cannot_be_rolled_back_is_refused_with_the_way(upgraded, tmp_path):
    assert "no adapter `nothing` in this project" in upgraded.user.fails(10, "upgrade", "--undo", "nothing")
    assert "nothing earlier" in upgraded.user.fails(10, "upgrade", "--undo", "summary")
    assert "`adapt upgrade --undo legal-qa`" in upgraded.user.fails(15, "upgrade", "--undo", "both")
    toml = tmp_path / "adapters.toml"
    toml.write_text(toml.read_text().replace('"<2"', '"<3"'))
    assert "`adapt lock`" in upgraded.user.fails(15, "upgrade", "--undo", "legal-qa")
    toml.write_text(toml.read_text().replace('"<3"', '"<2"') + "\n[policy]\nmax-rank = 4\n")
    upgraded.user.ok("lock")
    upgraded.user.ok("upgrade", "--undo", "legal-qa")


def test_a_policy_that_came_since_holds_for_a_rollback(upgraded, tmp_path):
    upgraded.publish("legal-qa", "1.6", seed=8, rank=2)
    toml = tmp_path / "adapters.toml"
    toml.write_text(
        toml.read_text().replace('"summarize==1.0"', '"*"').partition("[merges")[0] + "\n[policy]\nmax-rank = 2\n"
    )
    toml.write_text(toml.read_text().replace('summary = "*"\n', "").replace('judge = "*"\n', ""))
    upgraded.user.ok("lock")

    assert "max-rank" in upgraded.user.fails(11, "upgrade", "--undo", "legal-qa")


def test_python_rolls_back_as_the_command_does(upgraded, tmp_path):
    opened = Project(tmp_path, library=tmp_path / "home")

    planned = opened.rollback("legal-qa", dry_run=True)
    assert {str(change.key) for change in planned.changes} == {"both", "legal-qa"}
    done = opened.rollback("legal-qa")

    assert {path.name for path in done.folders} == {"both", "legal-qa"}
    assert read_lock(tmp_path).entries["legal-qa"].version == "1.0"


def test_the_hint_of_a_rollback_says_what_really_goes_forward(project, tmp_path):  # noqa: F811
    toml = tmp_path / "adapters.toml"
    toml.write_text(toml.read_text().replace('"<2"', '"==1.0"'))
    project.user.ok("sync")
    project.publish("legal-qa", "1.5", seed=4)
    project.user.ok("install", "legal-qa>=1.5,<2", "--from", "./published", "--save")

    said = project.user("upgrade", "--undo", "legal-qa")

    assert versions(tmp_path)["legal-qa"] == "1.0"
    assert "`adapt upgrade` goes forward again" not in said.stderr
    assert "asks for `legal-qa==1.0`: change that to go forward to 1.5 again" in said.stderr
    project.user.ok("upgrade")
    assert versions(tmp_path)["legal-qa"] == "1.0"
