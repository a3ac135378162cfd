"""What other commands do with contracts: install, merge, resize and upgrade ask, and keep or refuse."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import adapterhub
from adapterhub.core.errors import BehaviourChanged
from adapterhub.formats.cards.metadata import read_metadata
from adapterhub.formats.contract.reader import read_contract
from adapterhub.formats.manifest import CONTRACT_FILE
from adapterhub.library.store.catalog import Installed
from adapterhub.projects.lock.lockfile import read_lock
from tests.support.command_line import Adapt
from tests.support.contracts import RECORD, recorded_library, write_examples
from tests.support.signing_homes import statement_of
from tests.support.standin_vllm import make_standin

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


def build(adapt: Adapt, name: str, version: str = "") -> Installed:
    return next(
        one for one in adapt.library.installed() if one.full_name == name and one.manifest.version.startswith(version)
    )


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

    warned = adapt("install", "liar@base-7b", "--from", "./lying", "--test=warn")
    assert (warned.exit_code, names(adapt)) == (0, {"a 1.0.1", "liar 1.0.0"})
    assert "warning: `liar 1.0.0` has changed" in warned.stderr
    assert adapt("install", "a", "--dtype", "float32").exit_code == 2


def test_an_install_is_asked_on_a_base_of_four_bits(adapt: Adapt) -> None:
    pytest.importorskip("bitsandbytes")
    words = ("install", "a@base-7b==1.0.1", "--from", "./published", "--load-in", "4bit")
    [document] = json.loads(adapt.ok(*words, "--test=warn", "--json"))
    [tested] = document["tests"]
    adapt.ok("remove", "a", "--yes")
    done = adapt(*words, "--test")

    assert tested["load_in"] == "4bit"
    passed = tested["verdict"] == "PASS"
    assert (done.exit_code, names(adapt)) == ((0, {"a 1.0.1"}) if passed else (3, set()))


def test_a_push_sends_what_passes_and_nothing_else(adapt: Adapt) -> None:
    adapt.ok("install", "a@base-7b==1.0.1", "--from", "./published")
    adapt.ok("install", "liar@base-7b", "--from", "./lying")
    adapt.ok("add", "./b", "--name", "b", "--base", "base-7b")
    adapt.ok("key", "new", "me", "--unencrypted")
    for name, code in (("liar", 3), ("b", 17)):
        for more in ((), ("--dry-run",)):
            refused = adapt("push", name, "--to", "./out", "--test", *more)
            assert (refused.exit_code, (adapt.folder / "out").exists()) == (code, False)
            assert "Nothing was sent" in refused.stderr
    with pytest.raises(BehaviourChanged):
        adapterhub.Library(adapt.library.root).push("liar", to=adapt.folder / "out", test="keep")

    untested = adapt("push", "a", "--to", "./plain")
    document = json.loads(adapt.ok("push", "a", "--to", "./out", "--sign", "--test", "--json"))
    signed = list((adapt.folder / "out" / "a" / ".tests").glob("*/*.json"))
    again = adapt("push", "a", "--to", "./plain")
    for path in adapt.library.root.glob("cache/tests/*/*.json"):
        value = json.loads(path.read_text())
        path.write_text(json.dumps(value | {"time": value["time"] - 12.5 * 86400}))
    late = adapt("push", "a", "--to", "./plain")

    assert [statement_of(path)["predicate"]["result"] for path in signed] == [
        "PASSED"
    ]  # went along, as it was asked to
    assert re.search(r"contract: \d+ goldens, not tested here\n", untested.stderr)
    assert re.search(r"contract: \d+ goldens, tested today: PASS on base-7b, drift 0\.0.*\n", again.stderr)
    assert re.search(r"contract: \d+ goldens, not tested for 12 days: PASS on base-7b, drift 0\.0.*\n", late.stderr)
    assert (document["tests"][0]["verdict"], document["created"], document["signed"]) == ("PASS", True, True)
    assert "no contract" in adapt("push", "b", "--to", "./out").stderr
    shown = json.loads(adapt.ok("push", "a", "--to", "./out", "--dry-run", "--json"))["card"]
    cards = [read_metadata(path.read_text()).values for path in (adapt.folder / "out").glob("**/README.md")]
    widgets = [card["widget"] for card in cards if "widget" in card]
    assert widgets == [read_metadata(shown).values["widget"]]
    warned = adapt("push", "liar", "--to", "./out", "--test=warn")
    assert (warned.exit_code, "warning: `liar 1.0.0` has changed" in warned.stderr) == (0, True)


def test_a_contract_that_comes_along_is_told_and_shown(adapt: Adapt) -> None:
    came = adapt("install", "a@base-7b==1.0.1", "--from", "./published")
    shown = adapt.ok("info", "a")
    path = build(adapt, "a").folder / CONTRACT_FILE
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b'"loss":', b'"loss": '))

    assert "it has a contract; `adapt test a` asks it on your base" in came.stderr
    assert re.search(r"^contract\t\d+ goldens, not tested here$", shown, re.MULTILINE)
    assert re.search(r"^contract\t.*evals.jsonl", adapt.ok("info", "a"), re.MULTILINE)


def test_an_upgrade_takes_a_drop_in_and_no_other(adapt: Adapt) -> None:
    adapt.ok("install", "a@base-7b==1.0.1", "--from", "./published")
    refused = adapt("upgrade", "a", "--from", "./published", "--test")

    assert (refused.exit_code, names(adapt)) == (3, {"a 1.0.1"})
    assert "not upgraded: a  1.0.1 -> 1.1.0  behaviour changed" in refused.stdout
    accepted = json.loads(adapt.ok("upgrade", "a", "--from", "./published", "--test=warn", "--json"))
    assert (accepted[0]["kept"], accepted[0]["tests"][0]["verdict"]) == (True, "CHANGED")
    assert names(adapt) == {"a 1.0.1", "a 1.1.0"}


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
    adapt.ok("contract", "record", "b", "--tests", "tests.toml", "--max-new-tokens", "4", "--margin", "0.01")
    before = names(adapt)
    for output in ("broken", "./broken"):
        refused = adapt("merge", "a", "b", "-o", output, "--test")
        assert (refused.exit_code, names(adapt)) == (3, before)
        assert "`leave_alone` line `own`" in refused.stderr
        assert all(f"{name:20}  same" in refused.stderr for name in ("a", "b"))
        assert not (adapt.folder / "broken").exists()
    with pytest.raises(BehaviourChanged):
        adapterhub.Library(adapt.library.root).merge(["a", "b"], output="broken", test=True)
    adapt.ok("merge", "a", "b", "-o", "untested")


def test_a_resize_that_changes_the_adapter_is_not_written(adapt: Adapt) -> None:
    adapt.ok("install", "a@base-7b==1.0.1", "--from", "./published")
    refused = adapt("resize", "a", "--rank", "1", "-o", "small", "--test")
    kept = json.loads(adapt.ok("resize", "a", "--rank", "4", "--dtype", "float32", "-o", "whole", "--test", "--json"))

    assert (refused.exit_code, names(adapt)) == (3, {"a 1.0.1", "whole 1.0.1"})
    assert "the result has changed. Nothing was written" in refused.stderr
    assert kept["tests"][0]["verdict"] == "PASS"


def contract_of(folder: Path) -> bytes | None:
    path = folder / CONTRACT_FILE
    return path.read_bytes() if path.exists() else None


def test_the_same_adapter_in_another_form_keeps_its_contract(adapt: Adapt) -> None:
    adapt.ok("install", "a@base-7b==1.0.1", "--from", "./published")
    adapt.ok("add", "./b", "--name", "b", "--base", "base-7b")
    own = contract_of(build(adapt, "a").folder)
    resized = adapt("resize", "a", "--rank", "2", "-o", "small")
    adapt.ok("merge", "a", "--dtype", "bfloat16", "-o", "halved")
    adapt.ok("resize", "a", "--rank", "4", "-o", "./beside")
    both = adapt("merge", "a", "b", "-o", "both")
    half = adapt("merge", "a", "--weights", "0.5", "-o", "half")
    (adapt.folder / "small.toml").write_text(adapt.ok("show", "small", "--recipe"))

    assert own is not None
    assert "the result carries the contract of `a==1.0.1`, untested: `adapt test` asks it" in resized.stderr
    assert all("`a==1.0.1` has a contract, and the result carries none" in one.stderr for one in (both, half))
    assert [contract_of(build(adapt, name).folder) for name in ("small", "halved")] == [own, own]
    assert [contract_of(build(adapt, name).folder) for name in ("both", "half")] == [None, None]
    assert contract_of(adapt.folder / "beside") == own
    assert build(adapt, "small").manifest.prompt == build(adapt, "a").manifest.prompt
    assert json.loads(adapt.ok("test", "halved", "--json"))[0]["verdict"] == "PASS"
    again = json.loads(adapt.ok("merge", "--recipe", "small.toml", "--json", "-o", "small"))
    assert (again["as_recorded"], again["created"]) == (True, False)


def test_a_contract_that_was_changed_is_not_carried(adapt: Adapt) -> None:
    adapt.ok("install", "a@base-7b==1.0.1", "--from", "./published")
    path = build(adapt, "a").folder / CONTRACT_FILE
    first, second, *rest = path.read_bytes().splitlines(keepends=True)
    path.unlink()
    path.write_bytes(b"".join((first, *rest)))

    assert second.startswith(b"{")
    for output in ("small", "./small"):
        assert adapt("resize", "a", "--rank", "2", "-o", output).exit_code == 12
    assert names(adapt) == {"a 1.0.1"}
    assert not (adapt.folder / "small").exists()


PROJECT = """\
[project]
base = "base-7b"

[remotes.published]
path = "{published}"

[adapters]
liar = ">=1"
"""


def test_a_sync_changes_no_folder_unless_all_builds_pass(adapt: Adapt, tmp_path: Path) -> None:
    adapt.ok("install", "a@base-7b==1.0.1", "--from", "./published")
    adapt.ok("push", "a", "--to", "./lying")
    adapt.ok("add", "./b", "--name", "b", "--base", "base-7b")
    adapt.ok("push", "b", "--to", "./lying")
    work = Adapt(tmp_path / "work", "../own/home")
    work.folder.mkdir()
    manifest = work.folder / "adapters.toml"
    manifest.write_text(PROJECT.format(published="../own/lying") + 'a = ">=1"\nb = ""\n')
    refused = work("sync", "--test")

    assert (refused.exit_code, list(work.folder.glob("adapters/*"))) == (3, [])
    assert "these builds do not pass their contracts. No folder was changed" in refused.stderr
    assert "liar 1.0.0: CHANGED" in refused.stderr
    assert "not tested, for want of a contract: `b` 1.0.0" in refused.stderr
    with pytest.raises(BehaviourChanged):
        adapterhub.Project(work.folder, library=work.library.root).sync(test="keep")
    assert work("sync", "--test=warn").exit_code == 0

    manifest.write_text(PROJECT.format(published="../own/lying").replace("liar", "a"))
    document = json.loads(work.ok("sync", "--test", "--json"))
    assert [(one["name"], one["verdict"], one["is_cached"]) for one in document["tests"]] == [("a", "PASS", True)]


def test_an_upgrade_of_a_project_takes_a_drop_in_and_no_other(adapt: Adapt, tmp_path: Path) -> None:
    work = Adapt(tmp_path / "work", "../own/home")
    work.folder.mkdir()
    project = PROJECT.format(published="../own/published")
    (work.folder / "adapters.toml").write_text(project.replace('liar = ">=1"', 'a = "==1.0.1"'))
    work.ok("sync")
    (work.folder / "adapters.toml").write_text(project.replace("liar", "a"))
    refused = work("upgrade", "--test")

    assert (refused.exit_code, read_lock(work.folder).adapters[0].version) == (3, "1.0.1"), refused.stderr
    assert "not upgraded: a  1.0.1 -> 1.1.0  behaviour changed: " in refused.stderr

    adapt.ok("add", "./a", "--name", "a", "--version", "1.2.0", "--base", "base-7b")
    adapt.ok("push", "a==1.2.0", "--to", "./published")
    taken = json.loads(work.ok("upgrade", "a", "--test", "--json"))
    assert [(one["from"], one["to"], one["kept"]) for one in taken["tests"]] == [("1.0.1", "1.2.0", True)]
    assert [(one["version"], one["done"]) for one in taken["sync"]["adapters"]] == [("1.2.0", "replaced")]

    adapt.ok("add", "./b", "--name", "a", "--version", "1.3.0", "--base", "base-7b")
    adapt.ok("push", "a==1.3.0", "--to", "./published")
    bare = work("upgrade", "--test")
    assert (bare.exit_code, "1.2.0 -> 1.3.0  no contract to be held to" in bare.stderr) == (17, True)
    upgraded = adapterhub.Project(work.folder, library=work.library.root).upgrade(test="warn")
    assert [(one.tested.verdict, one.kept) for one in upgraded.tests] == [("NONE", True)]
    assert read_lock(work.folder).adapters[0].version == "1.3.0"


def test_a_build_that_cannot_stay_is_not_replaced_by_one_that_has_changed(adapt: Adapt, tmp_path: Path) -> None:
    work = Adapt(tmp_path / "work", "../own/home")
    work.folder.mkdir()
    project = PROJECT.format(published="../own/published")
    (work.folder / "adapters.toml").write_text(project.replace('liar = ">=1"', 'a = "==1.0.1"'))
    work.ok("sync")
    (work.folder / "adapters.toml").write_text(project.replace('liar = ">=1"', 'a = ">1.0.1"'))
    refused = work("upgrade", "--test")

    assert (refused.exit_code, read_lock(work.folder).adapters[0].version) == (3, "1.0.1")
    assert "`a` cannot stay as locked" in refused.stderr
    assert work("upgrade", "--test", "--dry-run").exit_code == 2


def test_a_server_starts_only_with_what_passes_on_its_base(adapt: Adapt, tmp_path: Path) -> None:
    adapt.ok("install", "a@base-7b==1.0.1", "--from", "./published")
    adapt.ok("install", "liar@base-7b", "--from", "./lying")
    adapt.ok("add", "./b", "--name", "b", "--base", "base-7b")
    options = ("--base", "base-7b", "--python", make_standin(tmp_path / "vllm"), "--dry-run")
    plan = adapt.json("serve", "a", *options, "--test")

    assert [(one["name"], one["verdict"]) for one in plan["tests"]] == [("a", "PASS")]
    assert "`liar 1.0.0` has changed" in adapt.fails(3, "serve", "liar", *options, "--test")
    assert "`b 1.0.0` has no contract. It is not served" in adapt.fails(17, "serve", "b", *options, "--test")
    assert "2 of 3 adapters cannot be served" in adapt.fails(11, "serve", "a", "b", "liar", *options, "--test")
    assert adapt("serve", "liar", *options, "--test=warn").exit_code == 0
    adapt.ok("contract", "policy", "require")
    adapt.ok("serve", "a", *options)
    assert "has no PASS on this base" in adapt.fails(14, "serve", "liar", *options, "--test=warn")


def test_a_merge_of_a_project_comes_in_once_it_keeps_what_binds_it(adapt: Adapt, tmp_path: Path) -> None:
    adapt.ok("install", "a@base-7b==1.0.1", "--from", "./published")
    adapt.ok("add", "./b", "--name", "b", "--base", "base-7b")
    goldens = "".join(f'[[golden]]\ninput = "{text}"\n' for text in ASKED)
    (adapt.folder / "tests.toml").write_text(RULES.format(goldens=goldens).replace('"0"', '"zebra"'))
    adapt.ok("contract", "record", "b", "--tests", "tests.toml", "--max-new-tokens", "4", "--margin", "0.01")
    adapt.ok("push", "b", "--to", "./published")
    work = Adapt(tmp_path / "work", "../own/home")
    work.folder.mkdir()
    text = PROJECT.format(published="../own/published").replace('liar = ">=1"', 'a = "==1.0.1"\nb = "*"\n') + (
        '[merges.both]\ninputs = [ { adapter = "a", weight = 0.001 }, { adapter = "b", weight = 1.0 } ]\n'
        '[policy]\ntests = "require"\n'
    )
    (work.folder / "adapters.toml").write_text(text)
    said = work.fails(14, "sync")
    assert "the merge has no PASS on this base for the lines that bind it, of b 1.0.1" in said

    document = work.json("sync", "--test")
    assert [(one["name"], one["verdict"]) for one in document["tests"]] == [
        (name, "PASS") for name in ("a", "b", "both")
    ]
    assert document["tests"][-1]["goldens"] == 0
    work.ok("sync", "--frozen")
    [golden, *_] = read_contract(build(adapt, "b", "1.0.1").folder / CONTRACT_FILE).goldens
    rule = {"never": golden.asked, "not_contains": [golden.answer.strip()]}
    (work.folder / "never.jsonl").write_text(json.dumps(rule) + "\n")
    (work.folder / "adapters.toml").write_text(text + 'tests-never = "never.jsonl"\n')
    assert re.search(
        r"both 1\.0\.0\S*: CHANGED, 1 of 2 `never` lines are broken; `project/rule-1`", work.fails(3, "sync", "--test")
    )


def test_weights_are_tuned_on_the_contracts_of_the_parents(adapt: Adapt) -> None:
    pytest.importorskip("cma")
    adapt.ok("install", "a@base-7b==1.0.1", "--from", "./published")
    adapt.ok("add", "./b", "--name", "b", "--base", "base-7b")
    done = adapt("merge", "a", "b", "--tune", "contracts", "--tune-budget", "8", "-o", "tuned", "--json")
    document = json.loads(done.stdout)
    weights = dict(zip("ab", document["tuning"]["weights"], strict=True))

    assert "no contract asks for the task of `b==1.0.0`" in done.stderr
    assert weights["a"] > 2 * abs(weights["b"])
    assert document["tuning"]["single_losses"][0] < document["tuning"]["base_loss"]
    assert adapt("merge", "b", "./a", "--tune", "contracts", "-o", "none").exit_code == 17
    tuned = adapterhub.Library(adapt.library.root).tune(["a", "b"], "contracts", base="base-7b", budget=8)
    assert list(tuned.weights) == document["tuning"]["weights"]


def test_a_full_contract_is_tied_to_the_digests_of_the_build(adapt: Adapt) -> None:
    write_examples(adapt.folder / "examples.jsonl")
    adapt.ok("install", "a@base-7b==1.0.1", "--from", "./published")
    full = build(adapt, "a").folder / CONTRACT_FILE
    adapt.ok(*RECORD, "--digests")
    [hidden] = json.loads(adapt.ok("test", "a", "--tests", full, "--json"))
    other = read_contract(full)
    other = replace(other, goldens=other.goldens[:-1])
    (adapt.folder / "other.jsonl").write_bytes(other.to_bytes())
    told = adapt("test", "a", "--tests", "other.jsonl")
    [named] = json.loads(adapt("test", "a", "--tests", "other.jsonl", "--json").stdout)

    assert (hidden["verdict"], hidden["version"]) == ("PASS", "1.0.2")
    assert hidden["contract"] == build(adapt, "a", "1.0.2").manifest.file(CONTRACT_FILE).sha256
    assert (told.exit_code, "other-contract" in told.stdout) == (17, True)
    assert (named["reason"], named["contract"]) == ("other-contract", hidden["contract"])
    assert adapt("test", "a").exit_code == 17


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
