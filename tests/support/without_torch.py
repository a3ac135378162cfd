"""Skips what needs torch where it is not installed: on a Python for which a machine has no torch, all else is tested."""

from __future__ import annotations

import re
from collections.abc import Generator
from importlib.util import find_spec
from typing import TypeVar

import pytest

IS_NEEDED = find_spec("torch") is None
_WANTS = re.compile(r"No module named '(?:torch|transformers|peft)\b|needs? the packages? `torch`")
_Report = TypeVar("_Report", pytest.CollectReport, pytest.TestReport)


class WithoutTorch:
    """A file or test that failed for want of torch is skipped."""

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """Skip a file that imports torch."""
        return _skipped((yield))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Skip a test that calls what needs torch."""
        return _skipped((yield))


def _skipped(report: _Report) -> _Report:
    if report.failed and _WANTS.search(report.longreprtext):
        report.outcome = "skipped"
        report.longrepr = (report.nodeid.partition("::")[0], 0, "Skipped: needs torch")
    return report
