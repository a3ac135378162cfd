"""The word for a result: works, drifts, broken, cannot run."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adapterhub.formats.contract.results import Attested, Tested, TestedCase, statement
from tests.support.contracts import SOME

GOLDEN = TestedCase(id="golden-1", kind="golden", verdict="CHANGED")


@pytest.mark.parametrize(
    ("outcome", "facts"),
    [
        ("works", {"verdict": "PASS"}),
        ("works", {"verdict": "PASS", "drift": 0.2, "bounds": {"drift": 100.0}}),
        ("drifts", {"verdict": "PASS", "drift": 0.21, "bounds": {"drift": 100.0}}),
        ("works", {"verdict": "PASS", "drift": 0.4, "bounds": {"drift": 0.5}}),
        ("drifts", {"verdict": "CHANGED", "retention": 0.5, "same": 0.1, "cases": (GOLDEN,)}),
        ("broken", {"verdict": "CHANGED", "retention": 0.49}),
        ("broken", {"verdict": "CHANGED"}),
        ("broken", {"verdict": "CHANGED", "retention": 0.9, "broken": ("no-effect: it adds nothing",)}),
        ("drifts", {"verdict": "CHANGED", "kl": 0.5}),
        ("broken", {"verdict": "CHANGED", "kl": 0.51}),
        ("broken", {"verdict": "CHANGED", "cosine": 0.4}),
        ("drifts", {"verdict": "CHANGED", "effect": 0.6}),
        ("cannot_run", {"verdict": "UNKNOWN", "reason": "refused"}),
        ("", {"verdict": "NONE"}),
    ],
)
def test_verdict_and_numbers_make_one_word(outcome: str, facts: dict[str, Any]) -> None:
    result = Tested(name="a", **facts)

    assert result.outcome == outcome
    assert Tested.from_json(result.to_json()).outcome == outcome


def test_a_pass_that_lost_an_answer_is_stated_and_read_again() -> None:
    facts: dict[str, Any] = {"digest": SOME, "contract": SOME, "base_weights": SOME, "weights": SOME}
    result = Tested(name="a", verdict="PASS", drift=0.3, cases=(GOLDEN,), **facts)
    stated = statement(result)
    said = Attested.parse(json.dumps(stated).encode())

    assert stated is not None
    assert stated["predicate"]["warnedTests"] == ["golden-1"]
    assert (said.verdict, said.outcome, said.drift) == ("PASS", "drifts", 0.3)


@pytest.mark.parametrize("kind", ["expect", "never", "test", "leave_alone"])
def test_a_demand_that_fails_is_broken_however_much_is_left(kind: str) -> None:
    line = TestedCase(id="l", kind=kind, verdict="CHANGED")
    result = Tested(name="a", verdict="CHANGED", retention=1.0, cases=(line,))

    assert result.outcome == ("drifts" if kind == "leave_alone" else "broken")
