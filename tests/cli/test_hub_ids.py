"""The Hub id of a base: where it comes from, where it is kept, and what shows it."""

from __future__ import annotations

import json

import pytest

from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base


@pytest.fixture
def adapt(tmp_path) -> Adapt:
    make_base(tmp_path / "base")
    return Adapt(tmp_path)


def card_of(adapt: Adapt, name: str = "qa") -> str:
    return adapt.json("push", name, "--to", "./out", "--dry-run")["card"]


def test_the_id_given_with_a_base_is_kept_and_shown(adapt):
    adapt.ok("base", "add", "./base", "--as", "base-7b", "--hub-id", "acme/base-7b")

    assert adapt.json("base", "list")[0]["hub_id"] == "acme/base-7b"
    assert adapt.json("base", "show", "base-7b")["hints"]["hub_id"] == "acme/base-7b"
    assert "acme/base-7b" in adapt.ok("base", "list")
    assert adapt.json("base", "show", "acme/base-7b")["alias"] == "base-7b"


def test_an_id_that_is_set_later_is_in_the_cards_of_older_adapters(adapt):
    adapt.ok("base", "add", "./base", "--as", "base-7b")
    make_adapter(adapt.folder / "made", base="/home/ann/base")
    adapt.ok("add", "./made", "--name", "qa", "--base", "base-7b")
    assert "base_model" not in card_of(adapt)

    adapt.ok("base", "set", "base-7b", "--hub-id", "acme/base-7b")

    assert "base_model: acme/base-7b" in card_of(adapt)
    assert "base_model:adapter:acme/base-7b" in adapt.json("push", "qa", "--to", "./out", "--dry-run")["tags"]
    assert "acme/base-7b" in adapt.ok("info", "qa")
    adapt.ok("push", "qa", "--to", "./out")
    (readme,) = (adapt.folder / "out").rglob("README.md")
    assert "base_model: acme/base-7b" in readme.read_text()


def test_metadata_that_a_hub_would_refuse_is_told_when_the_adapter_is_added(adapt):
    (make_adapter(adapt.folder / "made") / "README.md").write_text("---\nlicense: mit\nlanguage: english\n---\n")

    done = adapt("add", "./made", "--name", "qa")

    assert done.exit_code == 0
    assert "`push` will refuse the metadata of `README.md`" in done.stderr
    assert "(line 3); mend it and add again" in done.stderr
    refused = adapt.fails(16, "push", "qa", "--to", "acme/qa", "--dry-run")
    assert '"language" with value "english"' in refused
    assert "--version" in refused


def test_adding_a_base_again_keeps_its_id(adapt):
    adapt.ok("base", "add", "./base", "--as", "base-7b", "--hub-id", "acme/base-7b")
    adapt.ok("base", "add", "./base", "--as", "base-7b")

    assert adapt.json("base", "show", "base-7b")["hints"]["hub_id"] == "acme/base-7b"


def test_a_base_in_the_cache_of_the_hub_has_the_id_of_its_repository(adapt):
    snapshot = adapt.folder / "hub" / "models--acme--base-7b" / "snapshots" / ("0" * 40)
    make_base(snapshot)
    adapt.ok("base", "add", str(snapshot))

    (listed,) = adapt.json("base", "list")
    assert (listed["alias"], listed["hub_id"]) == ("base-7b", "acme/base-7b")


@pytest.mark.parametrize("hub_id", ["/home/ann/base", "./base", "acme/base/7b", "acme/..", "https://x.org/a/b"])
def test_what_is_no_id_is_refused_and_nothing_is_registered(adapt, hub_id):
    done = adapt("base", "add", "./base", "--as", "base-7b", "--hub-id", hub_id)

    assert done.exit_code == 2
    assert "--hub-id: expected a Hub id such as org/model" in done.stderr
    assert adapt.json("base", "list") == []


def test_a_record_of_before_has_no_id_and_can_get_one(adapt):
    adapt.ok("base", "add", "./base", "--as", "base-7b")
    path = adapt.folder / "home" / "bases" / "base-7b.json"
    assert json.loads(path.read_text())["hub"] is None

    adapt.ok("base", "set", "base-7b", "--hub-id", "acme/base-7b")

    assert json.loads(path.read_text())["hub"] == "acme/base-7b"
