"""The recipe of docs/how-to/scale-serving.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.inference.engines.two_replicas import ADAPTERS, run

pytestmark = pytest.mark.engine


def test_replicas_bear_the_failure_of_their_registry_and_the_loss_of_one(
    tmp_path: Path, tell: Callable[[str, str], None]
) -> None:
    report = run(tmp_path)

    assert len(report.lives_on) == ADAPTERS
    assert all(len(places) == 1 for places in report.lives_on.values()), report
    assert report.unknown_names == {"down": [424], "hanging": [424]}, report
    assert report.right == {"down": 1.0, "hanging": 1.0}, report
    assert report.same_tokens, report
    assert report.seconds_until_answered < 60
    shares = [sum(places == [at] for places in report.lives_on.values()) for at in (1, 2)]
    tell("adapters on each of two replicas", f"{shares[0]} and {shares[1]}")
    tell("requests that failed after one was killed", str(report.failed_after_kill))
    tell("until the other answered for its first adapter", f"{report.seconds_until_answered:.1f} s")
