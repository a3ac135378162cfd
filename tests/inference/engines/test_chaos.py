"""The recipe of docs/how-to/serve-in-production.md, while its parts fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.inference.engines.chaos import TARGET, run

pytestmark = pytest.mark.engine


def test_base_and_loaded_adapters_answer_right_while_registry_and_replicas_fail(
    tmp_path: Path, tell: Callable[[str, str], None]
) -> None:
    report = run(tmp_path)
    table = "\n".join(report.lines())

    assert report.wrong == 0, table
    assert report.right_share >= TARGET, table
    assert report.failed_twice == 0, table
    assert all(report.checks.values()), table
    for number, line in enumerate(report.lines()):
        tell(f"chaos {number:2}", line)
