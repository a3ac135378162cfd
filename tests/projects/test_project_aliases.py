"""Aliases of a project: its file says what they mean, its lock pins that, and `sync` brings it."""

from __future__ import annotations

import pytest

from adapterhub.core.errors import Malformed
from adapterhub.library.aliasing import point
from adapterhub.projects.file import project_of
from adapterhub.projects.lock.lockfile import lock_text, parse_lock, read_lock
from tests.support.command_line import Adapt
from tests.support.tiny import make_base

HEAD = '[project]\nbase = "base-7b"\n\n[adapters]\nlegal-qa = ">=1.0"\n'


@pytest.fixture
def adapt(tmp_path, add) -> Adapt:
    for number in (1, 2, 3):
        add("legal-qa", version=f"1.{number}", seed=number)
    (tmp_path / "adapters.toml").write_text(
        HEAD + '\n[aliases.legal-qa]\nprod = "1.2"\ncanary = {1.1 = 0.1, 1.2 = 0.9}\n'
    )
    return Adapt(tmp_path)


def version(adapt: Adapt, spec: str) -> str:
    return adapt.json("info", spec)["version"]


def test_the_lock_pins_each_target_and_sync_brings_it(adapt, tmp_path):
    adapt.ok("sync")

    entries = read_lock(tmp_path).entries
    assert {key: (entry.version, entry.wanted) for key, entry in entries.items()} == {
        "legal-qa": ("1.3", "legal-qa>=1.0"),
        "legal-qa@prod": ("1.2", "legal-qa==1.2 weight=1.0"),
        "legal-qa@canary": ("1.2", "legal-qa==1.2 weight=0.9"),
        "legal-qa@canary@1.1": ("1.1", "legal-qa==1.1 weight=0.1"),
    }
    assert sorted(path.name for path in (tmp_path / "adapters").iterdir() if path.is_dir()) == sorted(entries)
    assert (version(adapt, "legal-qa"), version(adapt, "legal-qa@prod")) == ("1.3", "1.2")
    text = (tmp_path / "adapters.lock").read_text()
    assert lock_text(parse_lock(text)) == text
    adapt.ok("lock", "--check")


def test_the_project_comes_before_the_library(adapt, library):
    point(library, "prod", [(library.builds_named("legal-qa")[0], 1.0)])
    own = version(adapt, "legal-qa@prod")

    adapt.ok("sync")

    assert (own, version(adapt, "legal-qa@prod")) == ("1.1", "1.2")
    assert "1.1 10 %" in adapt("info", "legal-qa@canary", "--path").stderr


def test_set_with_save_writes_the_file_and_keeps_its_comments(adapt, tmp_path):
    adapt.ok("sync")
    path = tmp_path / "adapters.toml"
    path.write_text(path.read_text().replace('prod = "1.2"', 'prod = "1.2" # what clients get'))

    said = adapt.json("alias", "set", "prod", "legal-qa==1.3", "--save")
    adapt.ok("alias", "set", "beta", "legal-qa==1.1=1", "legal-qa==1.3=3", "--save")

    assert said["targets"][0]["version"] == "1.3"
    assert 'beta = {"1.1" = 1.0, "1.3" = 3.0}' in path.read_text()
    assert "# what clients get" in path.read_text()
    assert (version(adapt, "legal-qa@prod"), version(adapt, "legal-qa@beta")) == ("1.3", "1.3")
    assert adapt.json("alias", "list") == []


def test_a_version_that_cannot_be_locked_leaves_the_project_as_it_was(adapt, tmp_path):
    adapt.ok("sync")
    before = {name: (tmp_path / name).read_bytes() for name in ("adapters.toml", "adapters.lock")}

    adapt.fails(11, "alias", "set", "prod", "legal-qa==9", "--save")
    assert "exact versions" in adapt.fails(2, "alias", "set", "prod", "legal-qa", "--save")
    assert "no adapter `summarize`" in adapt.fails(10, "alias", "set", "prod", "summarize==1", "--save")
    assert "adapters.toml" in adapt.fails(15, "upgrade", "--undo", "legal-qa@prod")

    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_an_adapter_that_leaves_the_project_takes_its_aliases_with_it(adapt, tmp_path):
    adapt.ok("sync")

    adapt.ok("remove", "legal-qa", "--save", "--yes")

    assert read_lock(tmp_path).entries == {}
    assert "aliases.legal-qa" not in (tmp_path / "adapters.toml").read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[aliases.nothing]\nprod = '1'", "aliases.nothing: no adapter `nothing` in this project"),
        ("[aliases.legal-qa]\nmain = '1'", "cannot be called like a version"),
        ("[aliases.legal-qa]\nprod = '>=1'", "not a version"),
        ("[aliases.legal-qa]\nprod = 1.2", 'expected a version such as "1.2"'),
        ("[aliases.legal-qa]\nprod = {}", 'expected a version such as "1.2"'),
        ('[aliases.legal-qa]\nprod = {"1.2" = 0}', "expected a number above 0"),
        ('[aliases.legal-qa]\nprod = {"1.2" = "x"}', "expected a number above 0"),
        ("aliases = 3", "aliases: expected a table"),
    ],
)
def test_what_is_no_alias_is_named_with_its_place(tmp_path, text, said):
    with pytest.raises(Malformed, match=r"not a usable project file") as caught:
        project_of(f"{HEAD}\n{text}\n" if text[0] == "[" else f"{text}\n{HEAD}", tmp_path)

    assert said in caught.value.message


def test_an_alias_with_the_name_of_a_base_is_refused(adapt, tmp_path, library):
    """`legal-qa@base-7b` means the build for that base."""
    toml = tmp_path / "adapters.toml"
    whole = toml.read_text()
    adapt.ok("sync")

    toml.write_text(whole.replace('prod = "1.2"', 'base-7b = "1.2"'))
    for command in (("lock",), ("sync",)):
        assert "`base-7b` is a base, so `legal-qa@base-7b` already means something" in adapt.fails(16, *command)

    toml.write_text(whole.replace('prod = "1.2"', 'other = "1.2"'))
    adapt.ok("base", "add", make_base(tmp_path / "other", seed=9), "--as", "other")
    before = (tmp_path / "adapters.lock").read_bytes()
    assert "`other` is a base, so `legal-qa@other` already means something" in adapt.fails(15, "lock")
    assert (tmp_path / "adapters.lock").read_bytes() == before


def test_a_base_that_takes_the_name_of_an_alias_later_makes_its_use_a_refusal(adapt, tmp_path):
    adapt.ok("sync")
    adapt.ok("base", "add", make_base(tmp_path / "other", seed=9), "--as", "prod")

    assert "`prod` is a base" in adapt.fails(15, "info", "legal-qa@prod", "--path")
