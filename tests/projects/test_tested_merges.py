"""The policy `tests` of a project with a merge: the lines of its inputs' contracts that bind every merge must hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapterhub.formats.contract.reader import contract_in, read_rules
from adapterhub.formats.contract.results import Verdict
from tests.support.results import measured, with_contract
from tests.support.signing_homes import Homes, make_homes

PROJECT = """\
[project]
base = "base-7b"
[remotes.ours]
path = "published"
[adapters]
legal-qa = "*"
tables = "*"
[merges.both]
inputs = [ { adapter = "legal-qa", weight = 1.0 }, { adapter = "tables", weight = 1.0 } ]
[policy]
tests = "require"
"""


@pytest.fixture
def homes(tmp_path: Path) -> Homes:
    """Ben's project merges `legal-qa`, whose contract has lines that bind merges, and `tables`, whose has none.

    Both inputs have a PASS.
    """
    homes = make_homes(tmp_path)
    for name, lines in (("legal-qa", {}), ("tables", {"expects": (), "leave_alone": ()})):
        homes.add("1.0.0", name=name)
        with_contract(homes.ann.library, homes.ann.library.builds_named(name)[0], **lines)
        homes.ann.ok("push", f"{name}==1.0.1", "--to", "./published")
        homes.ben.ok("install", f"{name}@base-7b==1.0.1", "--from", "./published")
        measured(homes.ben.library, homes.ben.library.builds_named(name)[0])
    (homes.folder / "adapters.toml").write_text(PROJECT)
    return homes


def measured_merge(homes: Homes, verdict: Verdict = "PASS", *, by: str = "legal-qa", **changed: Any) -> None:
    """As if `adapt sync --test` had given this verdict on the merge, by the lines of one input that bind it."""
    [merge], [parent] = (homes.ben.library.builds_named(name) for name in ("both", by))
    contract = contract_in(parent.folder)
    assert contract is not None
    measured(
        homes.ben.library,
        parent,
        verdict,
        digest=merge.manifest.digest,
        contract=contract.for_merges().digest,
        **changed,
    )


def test_a_merge_comes_in_once_the_lines_that_bind_it_hold(homes: Homes) -> None:
    said = homes.ben.fails(14, "sync")

    assert "the merge has no PASS on this base for the lines that bind it, of legal-qa 1.0.1" in said
    assert "`adapt sync --test` tests everything, merges too" in said
    assert "`legal-qa`" not in said
    assert not (homes.folder / "adapters").exists()
    measured_merge(homes, "CHANGED")
    homes.ben.fails(14, "sync")
    measured_merge(homes)
    homes.ben.ok("sync", "--frozen")
    assert (homes.folder / "adapters" / "both").is_dir()


def test_a_merge_of_inputs_without_such_lines_needs_the_rules_of_the_project(homes: Homes) -> None:
    text = PROJECT.replace('{ adapter = "legal-qa", weight = 1.0 }, ', "").replace(
        "weight = 1.0 } ]", "weight = 0.5 } ]"
    )
    (homes.folder / "adapters.toml").write_text(text)

    assert "no line binds it: a merge needs a `never` or `leave_alone` line in a parent's contract" in homes.ben.fails(
        14, "sync"
    )
    rules = homes.folder / "never.jsonl"
    rules.write_text('{"never": "Where is the boat?", "not_contains": ["arr"]}\n')
    (homes.folder / "adapters.toml").write_text(text + 'tests-never = "never.jsonl"\n')
    assert "by the rules of the project for the lines that bind it, of tables 1.0.1" in homes.ben.fails(14, "sync")
    digest = read_rules(rules).digest
    for name in ("legal-qa", "tables"):
        measured(homes.ben.library, homes.ben.library.builds_named(name)[0], rules=digest)
    measured_merge(homes, by="tables", rules=digest)
    homes.ben.ok("sync")


def test_under_warn_a_merge_is_named_and_comes_in(homes: Homes) -> None:
    (homes.folder / "adapters.toml").write_text(PROJECT.replace("require", "warn"))
    done = homes.ben("sync")

    assert done.exit_code == 0, done.stderr
    assert "the merge has no PASS on this base" in done.stderr
