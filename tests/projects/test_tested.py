"""The policy `tests` of a project: no build comes in without a contract that it passed on the base of the project."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapterhub.core.digests import digest_of
from adapterhub.core.errors import Malformed, NotFound
from adapterhub.formats.contract.contract import ENCODERS
from adapterhub.formats.contract.reader import read_rules
from adapterhub.formats.contract.standards import Bounds
from adapterhub.library.store.catalog import Installed
from adapterhub.projects.lock.lockfile import lock_text, parse_lock, read_lock
from adapterhub.projects.project import read_project
from adapterhub.projects.values import Lock, Policy
from tests.support.contracts import small_contract
from tests.support.results import measured, signed, with_contract
from tests.support.signing_homes import Homes, make_homes

OTHER = digest_of(b"another base")
RULES = '{"never": "Where is the boat?", "not_contains": ["arr"]}\n'


@pytest.fixture
def homes(tmp_path: Path) -> Homes:
    """Ann publishes `legal-qa` with a contract; Ben has a project that wants it, and no results."""
    homes = make_homes(tmp_path)
    homes.add("1.0.0")
    with_contract(homes.ann.library, next(homes.ann.library.installed()))
    homes.ann.ok("push", "legal-qa==1.0.1", "--to", "./published")
    return homes


def write_project(homes: Homes, policy: str = 'tests = "require"') -> None:
    (homes.folder / "adapters.toml").write_text(
        f'[project]\nbase = "base-7b"\n[remotes.ours]\npath = "published"\n[adapters]\nlegal-qa = "*"\n[policy]\n{policy}\n'
    )


def is_synced(homes: Homes) -> bool:
    return (homes.folder / "adapters" / "legal-qa").is_dir()


def build_of(homes: Homes, home: str) -> Installed:
    library = getattr(homes, home).library
    [build] = [one for one in library.installed() if one.manifest.version == "1.0.1"]
    return build


def test_without_a_result_nothing_changes_in_the_project_and_a_pass_lets_it_in(homes: Homes) -> None:
    write_project(homes)
    said = homes.ben.fails(14, "sync")
    assert "`legal-qa` legal-qa 1.0.1: has no PASS on this base" in said
    assert "adapt test NAME" in said
    assert not is_synced(homes)

    measured(homes.ben.library, build_of(homes, "ben"), "CHANGED")
    assert "has no PASS" in homes.ben.fails(14, "sync")
    measured(homes.ben.library, build_of(homes, "ben"))
    homes.ben.ok("sync", "--frozen")

    assert is_synced(homes)
    measured(homes.ben.library, build_of(homes, "ben"), "CHANGED", engine="a newer one")
    homes.ben.fails(14, "sync")


def test_a_build_without_a_contract_is_named(homes: Homes) -> None:
    homes.publish("1.1.0", sign=False)
    write_project(homes)

    assert "`legal-qa` legal-qa 1.1.0: has no contract" in homes.ben.fails(14, "lock")
    assert "`legal-qa` legal-qa 1.1.0: has no contract" in homes.ben.fails(14, "sync")
    assert not (homes.folder / "adapters.lock").exists()
    write_project(homes, 'tests = "warn"')
    done = homes.ben("lock")
    assert (done.exit_code, "`legal-qa` legal-qa 1.1.0: has no contract" in done.stderr) == (0, True)


def test_a_loose_contract_proves_nothing(homes: Homes) -> None:
    homes.add("2.0.0")
    [build] = [one for one in homes.ann.library.installed() if one.manifest.version == "2.0.0"]
    loose = with_contract(homes.ann.library, build, bounds=Bounds(same=0.2))
    homes.ann.ok("push", f"legal-qa=={loose.manifest.version}", "--to", "./published")
    write_project(homes)

    assert "its contract is too loose: `same` 0.2, expected at least 0.5" in homes.ben.fails(14, "sync")
    codes = {f["code"] for one in homes.ann.json("audit", "--offline")["adapters"] for f in one["findings"]}
    assert {"A_CONTRACT_LOOSE", "A_NO_CONTRACT"} <= codes


def test_a_signed_result_counts_once_its_tester_is_trusted(homes: Homes) -> None:
    signed(homes.ann.library, build_of(homes, "ann"), "ann")
    homes.ann.ok("push", "legal-qa==1.0.1", "--to", "./published")
    write_project(homes)

    assert "the key is not trusted" in homes.ben.fails(14, "sync")
    homes.trust("ann", "--scope", "other-*")
    assert "the key is not trusted for this adapter" in homes.ben.fails(14, "sync")
    homes.trust("ann", "--scope", "legal-*")
    homes.ben.ok("sync")

    assert is_synced(homes)


def test_sync_finds_a_result_that_was_published_after_the_build(homes: Homes) -> None:
    homes.trust()
    write_project(homes)
    homes.ben.fails(14, "sync")

    signed(homes.ann.library, build_of(homes, "ann"), "ann")
    homes.ann.ok("push", "legal-qa==1.0.1", "--to", "./published")
    homes.ben.ok("sync")

    assert is_synced(homes)


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"base_weights": OTHER}, f"the result by `ann` is about another base, {OTHER[:19]}…"),
        ({"contract": OTHER}, "the result by `ann` is about another contract"),
        ({"rules": OTHER}, "was measured by other rules"),
        ({"verdict": "CHANGED"}, "the result by `ann` says CHANGED"),
    ],
)
def test_a_result_about_something_else_is_told_and_does_not_count(
    homes: Homes, result: dict[str, Any], said: str
) -> None:
    homes.trust()
    signed(homes.ann.library, build_of(homes, "ann"), "ann", **result)
    homes.ann.ok("push", "legal-qa==1.0.1", "--to", "./published")
    write_project(homes)

    assert said in homes.ben.fails(14, "sync")
    assert not is_synced(homes)
    codes = {f["code"] for one in homes.ben.json("audit", "--offline")["adapters"] for f in one["findings"]}
    assert ("A_RESULT_OTHER_BASE" in codes) is ("base_weights" in result)


def test_tests_by_and_max_age_narrow_what_counts(homes: Homes) -> None:
    homes.trust()
    signed(homes.ann.library, build_of(homes, "ann"), "ann")
    homes.ann.ok("push", "legal-qa==1.0.1", "--to", "./published")
    write_project(homes, 'tests = "require"\ntests-by = ["eve"]')
    assert "`tests-by` does not name the key" in homes.ben.fails(14, "sync")

    measured(homes.ben.library, build_of(homes, "ben"))
    homes.ben.fails(14, "sync")  # what is measured here is not Eve's either
    write_project(homes, 'tests = "require"\ntests-by = ["ann"]\ntests-max-age = "0h"')
    assert "`tests-max-age` is 0h" in homes.ben.fails(14, "sync")
    write_project(homes, 'tests = "require"\ntests-by = ["ann"]\ntests-max-age = "1d"')
    homes.ben.ok("sync")
    write_project(homes, 'tests = "require"\ntests-by = ["local"]')
    homes.ben.ok("sync")


def test_warn_says_so_and_goes_on_and_off_is_silent(homes: Homes) -> None:
    write_project(homes, 'tests = "warn"')
    done = homes.ben("sync")

    assert (done.exit_code, is_synced(homes)) == (0, True)
    assert "has no PASS on this base" in done.stderr
    write_project(homes, 'tests = "off"')
    assert "PASS" not in homes.ben("sync").stderr


def test_a_pass_counts_only_with_the_rules_of_the_project(homes: Homes) -> None:
    (homes.folder / "tests").mkdir()
    (homes.folder / "tests" / "never.jsonl").write_text(RULES)
    write_project(homes, 'tests = "require"\ntests-never = "tests/never.jsonl"')
    homes.ben.fails(14, "sync")
    measured(homes.ben.library, build_of(homes, "ben"))
    assert "by the rules of the project" in homes.ben.fails(14, "sync")

    rules = read_rules(homes.folder / "tests" / "never.jsonl")
    measured(homes.ben.library, build_of(homes, "ben"), rules=rules.digest)
    homes.ben.ok("sync")
    (homes.folder / "tests" / "never.jsonl").write_text(RULES.replace("arr", "ahoy"))
    homes.ben.fails(14, "sync")
    (homes.folder / "tests" / "never.jsonl").unlink()
    assert f"no such file: `{homes.folder}/tests/never.jsonl`" in homes.ben.fails(10, "sync")


def test_a_pass_counts_only_within_the_bounds_of_the_project(homes: Homes) -> None:
    homes.trust()
    signed(homes.ann.library, build_of(homes, "ann"), "ann", bounds={"same": 0.9, "kl": 0.05})
    homes.ann.ok("push", "legal-qa==1.0.1", "--to", "./published")
    write_project(homes, 'tests = "require"\ntests-bounds = { same = 0.95, kl = 0.05 }')
    said = homes.ben.fails(14, "sync")
    assert "has no PASS on this base within `tests-bounds`" in said
    assert "the result by `ann` was measured with a looser bound than `tests-bounds`: `same`" in said

    measured(homes.ben.library, build_of(homes, "ben"), bounds={"same": 0.96, "kl": 0.06})
    homes.ben.fails(14, "sync")
    measured(homes.ben.library, build_of(homes, "ben"), bounds={"same": 0.96, "kl": 0.05})
    homes.ben.ok("sync")
    write_project(homes, 'tests = "require"\ntests-bounds = { same = 1 }')
    homes.ben.fails(14, "sync")
    signed(homes.ann.library, build_of(homes, "ann"), "ann", bounds={"same": 1.0})
    homes.ann.ok("push", "legal-qa==1.0.1", "--to", "./published")
    homes.ben.ok("sync")


def test_a_pass_outweighs_no_changed_of_a_check_that_measured_the_base_alone(homes: Homes) -> None:
    write_project(homes)
    homes.ben.fails(14, "sync")  # brings the build
    library, build = homes.ben.library, build_of(homes, "ben")
    measured(library, build)
    homes.ben.ok("sync")
    measured(library, build, "CHANGED", base_alone=True)
    homes.ben.fails(14, "sync")
    measured(library, build, engine="a newer one")
    homes.ben.fails(14, "sync")
    homes.trust()
    signed(homes.ann.library, build_of(homes, "ann"), "ann")
    homes.ann.ok("push", "legal-qa==1.0.1", "--to", "./published")
    assert "did not measure the base alone, and one that did says CHANGED" in homes.ben.fails(14, "sync")

    measured(library, build, base_alone=True)
    homes.ben.ok("sync")


def test_a_tester_s_weaker_pass_does_not_supersede_his_stronger_changed(homes: Homes) -> None:
    homes.trust()
    library, build = homes.ann.library, build_of(homes, "ann")
    signed(library, build, "ann", "CHANGED", base_alone=True)
    signed(library, build, "ann")
    homes.ann.ok("push", "legal-qa==1.0.1", "--to", "./published")
    write_project(homes)
    said = homes.ben.fails(14, "sync")
    assert "did not measure the base alone, and one that did says CHANGED" in said
    assert "says CHANGED; " in said

    signed(library, build, "ann", base_alone=True)
    homes.ann.ok("push", "legal-qa==1.0.1", "--to", "./published")
    homes.ben.ok("sync")


def test_a_changed_within_looser_bounds_counts_and_one_within_tighter_bounds_does_not(homes: Homes) -> None:
    write_project(homes, 'tests = "require"\ntests-bounds = { same = 0.95 }')
    homes.ben.fails(14, "sync")
    library, build = homes.ben.library, build_of(homes, "ben")
    measured(library, build, bounds={"same": 0.96})
    measured(library, build, "CHANGED", bounds={"same": 1.0})
    homes.ben.ok("sync")
    measured(library, build, "CHANGED", bounds={"same": 0.9})
    homes.ben.fails(14, "sync")


def test_a_pass_on_other_files_of_the_base_does_not_count(homes: Homes) -> None:
    write_project(homes)
    homes.ben.fails(14, "sync")
    measured(homes.ben.library, build_of(homes, "ben"))
    homes.ben.ok("sync")
    path = homes.ben.library.bases.get("base-7b").path
    assert path is not None
    (path / "config.json").write_text("{}")

    homes.ben.fails(14, "sync")


@pytest.mark.parametrize("bounds", [Bounds(cosine=0), Bounds(kl=100), Bounds(kl=0.51), Bounds(cosine=0.49)])
def test_bounds_that_allow_everything_are_too_loose(bounds: Bounds) -> None:
    assert bounds.loose
    assert not Bounds().loose


def test_bounds_of_a_project_only_tighten() -> None:
    tight = Bounds(same=0.99, kl=0.01).no_looser_than({"same": 0.95, "kl": 0.02, "retention": 0.99})

    assert tight == Bounds(same=0.99, kl=0.01, retention=0.99)


def test_the_user_s_own_default_holds_in_a_project_that_asks_for_less(homes: Homes) -> None:
    write_project(homes, 'tests = "warn"')
    homes.ben.ok("contract", "policy", "require", "--bound", "same=0.95")
    said = homes.ben.fails(14, "sync")
    assert "your own `adapt contract policy require` refuses what did not pass its contract" in said
    measured(homes.ben.library, build_of(homes, "ben"))
    homes.ben.fails(14, "sync")
    measured(homes.ben.library, build_of(homes, "ben"), bounds={"same": 0.95})
    homes.ben.ok("sync")

    lock = (homes.folder / "adapters.lock").read_text()
    assert ('tests = "warn"' in lock, "0.95" in lock) == (True, False)


def test_rules_join_a_contract_under_names_that_none_of_its_lines_can_have(tmp_path: Path) -> None:
    (tmp_path / "never.jsonl").write_text(RULES + '\n{"id": "x", "never": "hi", "not_contains": ["ho"]}\n')
    rules = read_rules(tmp_path / "never.jsonl")
    joined = rules.added_to(small_contract())

    assert [line.id for line in joined.nevers] == ["n", "project/rule-1", "project/x"]
    assert rules.digest == read_rules(tmp_path / "never.jsonl").digest
    assert not any(rules.bind(replace(small_contract(), kind=kind)) for kind in ENCODERS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no rule"),
        ("{}\n", "expected an object with the key `never`"),
        ('{"expect": "hi", "contains": ["a"]}\n', "expected an object with the key `never`"),
        ('{"never": "hi"}\n', "demands nothing"),
        ('{"never": "hi", "not_contains": ["a"], "pattern": ".*"}\n', "no such key"),
        ('{"never": "hi", "never": "ho"}\n', "given twice"),
        ("[1]\n", "expected an object"),
        ("\x00\n", "line 1"),
        ('{"id": "a", "never": "q", "not_contains": ["a"]}\n' * 2, "names another line"),
        (RULES * 300, "256 lines"),
        ('{"leave_alone": "hi", "answer": "a", "tokens": [-1], "loss": 1}\n', "tokens"),
    ],
)
def test_rules_that_cannot_be_read_are_refused_with_the_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "never.jsonl").write_text(text)

    with pytest.raises(Malformed, match=said):
        read_rules(tmp_path / "never.jsonl")


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ('tests = "always"', "expected one of off, warn, require"),
        ('tests-max-age = "2026-01-01"', "expected an age such as `90d`"),
        ('tests-never = "../never.jsonl"', "expected a path inside the project"),
        ('tests-never = "/etc/passwd"', "expected a path inside the project"),
        ('tests-by = ["a b"]', "not a valid key name"),
        ("tests-bounds = { some = 1.0 }", "no bound `some`; there are same, retention"),
        ("tests-bounds = { same = 1.5 }", "expected a number from 0 to 1"),
        ('tests-bounds = { same = "most" }', "expected a finite number, got text"),
        ("tests-bounds = 1", "expected a table"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused(tmp_path: Path, policy: str, said: str) -> None:
    (tmp_path / "adapters.toml").write_text(f"[policy]\n{policy}\n")

    with pytest.raises(Malformed, match=said):
        read_project(tmp_path)


def test_a_lock_keeps_the_policy() -> None:
    policy = Policy(
        tests="require",
        tests_by=("local", "ann"),
        tests_max_age="90d",
        tests_bounds=("kl=0.01", "same=0.95"),
        tests_never="tests/never.jsonl",
    )
    lock = Lock(base=None, policy=policy)

    assert parse_lock(lock_text(lock)) == lock
    with pytest.raises(Malformed, match=r"tests-bounds\[1\]: bound `same` 7: expected a number from 0 to 1"):
        parse_lock(lock_text(lock).replace("same=0.95", "same=7"))
    assert 'tests = "require"\ntests-by = [ "local", "ann" ]' in lock_text(lock)


def test_the_lock_names_the_contract_where_the_policy_looks_at_tests(homes: Homes) -> None:
    write_project(homes, "max-rank = 64")
    homes.ben.ok("lock")
    assert "contract" not in (homes.folder / "adapters.lock").read_text()
    write_project(homes, 'tests = "warn"')
    homes.ben.ok("lock")

    [entry] = read_lock(homes.folder).adapters
    assert entry.contract == small_contract().digest
    text = (homes.folder / "adapters.lock").read_text()
    with pytest.raises(Malformed, match=r"contract: is not the digest of `evals\.jsonl`"):
        parse_lock(text.replace(f'contract = "{entry.contract}"', f'contract = "{OTHER}"'))


def test_a_missing_file_of_rules_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no such file: `.*never\.jsonl`"):
        read_rules(tmp_path / "never.jsonl")
