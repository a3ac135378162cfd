"""The recipe of docs/how-to/scale-serving.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines.two_replicas import ADAPTERS, run

pytestmark = pytest.mark.engine


def test_each_adapter_lives_on_one_replica_and_the_other_takes_over(tmp_path: Path) -> None:
    report = run(tmp_path)

    assert len(report.lives_on) == ADAPTERS
    assert all(len(places) == 1 for places in report.lives_on.values()), report
    assert report.same_tokens, report
    assert report.seconds_until_answered < 60
