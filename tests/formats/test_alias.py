"""Names of aliases, their targets as text, and which target a request key has."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from adapterhub.core.digests import Digest
from adapterhub.core.errors import SpecError, UsageProblem
from adapterhub.formats.alias import Alias, AliasMove, AliasTarget, check_targets, parse_alias, parse_target

KEYS = [f"user-{number}" for number in range(2000)]


def target(version: str, weight: float = 1.0) -> AliasTarget:
    return AliasTarget(version=version, digest=Digest(f"sha256:{version[-1] * 64}"), weight=weight)


def alias(*targets: AliasTarget) -> Alias:
    return Alias(adapter="legal-qa", name="prod", moves=(AliasMove(action="set", at=0.0, by="ann", targets=targets),))


@pytest.mark.parametrize(
    "text", ["1.2", "v1.2", "main", "master", "latest", "deadbeef", "Prod", "a/b", "", "-x", "a@b"]
)
def test_a_version_a_branch_or_a_commit_is_no_alias(text):
    with pytest.raises(SpecError):
        parse_alias(text)


@pytest.mark.parametrize(
    ("text", "spec", "weight"),
    [
        ("legal-qa==1.2", "legal-qa==1.2", None),
        ("legal-qa==1.2=0.9", "legal-qa==1.2", 0.9),
        ("acme/legal-qa>=1,<2=1e1", "acme/legal-qa>=1,<2", 10.0),
        ("legal-qa=3", "legal-qa", 3.0),
        ("legal-qa", "legal-qa", None),
        ("legal-qa#sha256:12345678=2", "legal-qa#sha256:12345678", 2.0),
    ],
)
def test_a_weight_follows_a_single_sign(text, spec, weight):
    found, number = parse_target(text)

    assert (str(found), number) == (spec, weight)


@pytest.mark.parametrize("text", ["legal-qa==1.2=0", "legal-qa==1.2=-1", "legal-qa==1.2=1e999", "legal-qa==1.2=1.2.3"])
def test_a_weight_is_a_number_above_zero(text):
    with pytest.raises(SpecError, match="above 0"):
        parse_target(text)


def test_an_alias_has_some_targets_and_each_once():
    with pytest.raises(UsageProblem, match="1 to 16 targets"):
        check_targets("legal-qa@prod", [])
    with pytest.raises(UsageProblem, match="twice"):
        check_targets("legal-qa@prod", [target("1.2"), target("1.2")])


def test_the_shares_of_the_keys_are_those_of_the_weights():
    canary = alias(target("1.2", 90), target("1.3", 10))

    count = Counter(canary.for_key(key).version for key in KEYS)

    assert 0.08 < count["1.3"] / len(KEYS) < 0.12
    assert canary.main.version == "1.2"


def test_a_key_keeps_its_target_however_the_targets_are_written():
    one, other = alias(target("1.2", 0.9), target("1.3", 0.1)), alias(target("1.3", 1), target("1.2", 9))

    assert [one.for_key(key).version for key in KEYS] == [other.for_key(key).version for key in KEYS]


def test_moved_weights_move_as_few_keys_as_they_can():
    before = alias(target("1.2", 0.9), target("1.3", 0.1))
    after = alias(target("1.2", 0.7), target("1.3", 0.3))

    pairs = [(before.for_key(key).version, after.for_key(key).version) for key in KEYS]

    assert ("1.3", "1.2") not in pairs
    assert 0.17 < pairs.count(("1.2", "1.3")) / len(KEYS) < 0.23


def test_another_alias_takes_other_keys_for_its_canary():
    prod = alias(target("1.2"), target("1.3"))
    other = replace(prod, name="beta")

    same = sum(prod.for_key(key) == other.for_key(key) for key in KEYS)

    assert 0.4 < same / len(KEYS) < 0.6
