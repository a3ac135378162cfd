"""What other commands do with contracts: install, merge, resize and upgrade ask, and keep or refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import adapterhub
from adapterhub.core.errors import BehaviourChanged
from adapterhub.formats.contract.contract import CONTRACT_FILE
from tests.support.command_line import Adapt
from tests.support.contracts import RECORD, recorded_library, write_examples

pytestmark = pytest.mark.filterwarnings("ignore")

RULES = '{goldens}\n[[never]]\nid = "no-zero"\ninput = "who"\nnot_contains = ["0"]\n'
BOUND = '[[leave_alone]]\nid = "own"\ninput = "we"\n'
ASKED = ("who", "fine", "we", "no", "go on", "ask me", "me too", "see me")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters and publications; no test writes here.

    `./published` has `a` with its contract and, as another version of it, the weights of `b`; `./lying` has the weights
    of `b` with the contract of `a`.
    """
    folder = tmp_path_factory.mktemp("gates")
    adapt = recorded_library(folder)
    adapt.ok("push", "a", "--to", "./published")
    contract = next(adapt.library.root.glob("adapters/*/a/1.0.1-*")) / CONTRACT_FILE
    shutil.copy(contract, folder / "b" / CONTRACT_FILE)
    adapt.ok("add", "./b", "--name", "liar", "--base", "base-7b")
    adapt.ok("push", "liar", "--to", "./lying")
    (folder / "b" / CONTRACT_FILE).unlink()
    adapt.ok("add", "./b", "--name", "a", "--version", "1.1.0", "--base", "base-7b")
    adapt.ok("push", "a==1.1.0", "--to", "./published")
    adapt.ok("remove", "a==1.1.0", "liar", "--yes")
    return folder


@pytest.fixture
def adapt(made: Path, tmp_path: Path) -> Adapt:
    """A library of its own on the same base, with copies of what is published."""
    shutil.copytree(made, tmp_path / "own", ignore=shutil.ignore_patterns("home"))
    adapt = Adapt(tmp_path / "own")
    adapt.ok("base", "add", "./base", "--as", "base-7b")
    return adapt


def names(adapt: Adapt) -> set[str]:
    return {f"{build.full_name} {build.manifest.version}" for build in adapt.library.installed()}


def test_an_install_keeps_what_passes_and_nothing_else(adapt: Adapt) -> None:
    lying = adapt("install", "liar@base-7b", "--from", "./lying", "--test")
    without = adapt("install", "a@base-7b", "--from", "./published", "--test")

    assert (lying.exit_code, without.exit_code, names(adapt)) == (3, 17, set())
    assert "answers changed, at most 2 may" in lying.stderr
    assert "has no contract" in without.stderr
    assert list((adapt.library.root / "tmp").iterdir()) == []

    document = json.loads(adapt.ok("install", "a@base-7b==1.0.1", "--from", "./published", "--test", "--json"))
    again = json.loads(adapt.ok("install", "a@base-7b==1.0.1", "--from", "./published", "--test", "--json"))
    assert (document[0]["tests"][0]["verdict"], names(adapt)) == ("PASS", {"a 1.0.1"})
    assert [again[0]["present"], again[0]["tests"][0]["is_cached"]] == [True, True]
    assert json.loads(adapt.ok("test", "a", "--json"))[0]["is_cached"]

    warned = adapt("install", "liar@base-7b", "--from", "./lying", "--test-warn")
    assert (warned.exit_code, names(adapt)) == (0, {"a 1.0.1", "liar 1.0.0"})
    assert "warning: `liar 1.0.0` has changed" in warned.stderr
    assert adapt("install", "a", "--test", "--test-warn").exit_code == 2
    assert adapt("install", "a", "--test-dtype", "float32").exit_code == 2


def test_an_upgrade_takes_a_drop_in_and_no_other(adapt: Adapt) -> None:
    adapt.ok("install", "a@base-7b==1.0.1", "--from", "./published")
    refused = adapt("upgrade", "a", "--from", "./published", "--test")

    assert (refused.exit_code, names(adapt)) == (3, {"a 1.0.1"})
    assert "not upgraded: a  1.0.1 -> 1.1.0  behaviour changed" in refused.stdout
    accepted = json.loads(adapt.ok("upgrade", "a", "--from", "./published", "--test", "--accept-changes", "--json"))
    assert (accepted[0]["kept"], accepted[0]["tests"][0]["verdict"]) == (True, "CHANGED")
    assert names(adapt) == {"a 1.0.1", "a 1.1.0"}
    assert adapt("upgrade", "--accept-changes").exit_code == 2


def test_a_merge_keeps_the_rules_of_all_parents_or_is_not_written(adapt: Adapt) -> None:
    adapt.ok("install", "a@base-7b==1.0.1", "--from", "./published")
    adapt.ok("add", "./b", "--name", "b", "--base", "base-7b")
    document = json.loads(adapt.ok("merge", "a", "b", "--weights", "1,0.001", "-o", "both", "--test", "--json"))
    both = next(build for build in adapt.library.installed() if build.manifest.name == "both")

    assert [(one["name"], one["same"]) for one in document["tests"]] == [("a", 1.0)]
    assert both.manifest.metrics["test_same_a"] == 1
    assert both.manifest.file(CONTRACT_FILE) is None

    goldens = "".join(f'[[golden]]\ninput = "{text}"\n' for text in ASKED)
    (adapt.folder / "tests.toml").write_text(RULES.format(goldens=goldens) + BOUND)
    adapt.ok("test", "--record", "b", "--tests", "tests.toml", "--max-new-tokens", "4", "--margin", "0.01")
    before = names(adapt)
    for output in ("broken", "./broken"):
        refused = adapt("merge", "a", "b", "-o", output, "--test")
        assert (refused.exit_code, names(adapt)) == (3, before)
        assert "`leave_alone` line `own`" in refused.stderr
        assert all(f"{name:20}  same" in refused.stderr for name in ("a", "b"))
        assert not (adapt.folder / "broken").exists()
    with pytest.raises(BehaviourChanged):
        adapterhub.Library(adapt.library.root).merge(["a", "b"], name="broken", test=True)
    adapt.ok("merge", "a", "b", "-o", "untested")


def test_a_resize_that_changes_the_adapter_is_not_written(adapt: Adapt) -> None:
    adapt.ok("install", "a@base-7b==1.0.1", "--from", "./published")
    refused = adapt("resize", "a", "--rank", "1", "-o", "small", "--test")
    kept = json.loads(adapt.ok("resize", "a", "--rank", "4", "--dtype", "float32", "-o", "whole", "--test", "--json"))

    assert (refused.exit_code, names(adapt)) == (3, {"a 1.0.1", "whole 1.0.1"})
    assert "the result has changed. Nothing was written" in refused.stderr
    assert kept["tests"][0]["verdict"] == "PASS"


def test_what_has_no_contract_is_not_tested_in_silence(adapt: Adapt) -> None:
    adapt.ok("add", "./b", "--name", "b", "--base", "base-7b")

    assert adapt("resize", "b", "--rank", "2", "--test").exit_code == 17
    assert adapt("merge", "b", "./a", "-o", "m", "--test").exit_code == 17
    assert names(adapt) == {"b 1.0.0"}


def test_a_contract_for_a_release_lies_beside_it(adapt: Adapt) -> None:
    write_examples(adapt.folder / "examples.jsonl")
    adapt.ok("install", "a@base-7b==1.1.0", "--from", "./published")
    adapt.ok(*RECORD, "--detached", "./beside")
    beside = adapt.folder / "beside" / "a-1.1.0.tests.jsonl"

    assert json.loads(adapt.ok("test", "a", "--tests", beside, "--json"))[0]["verdict"] == "PASS"
    assert names(adapt) == {"a 1.1.0"}
