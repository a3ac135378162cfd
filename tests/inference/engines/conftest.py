"""Nothing here is collected unless an interpreter with vLLM is named; what was measured is told at the end."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

collect_ignore_glob = [] if os.environ.get("ADAPTERHUB_VLLM_PYTHON") else ["test_*.py"]
FIGURES = pytest.StashKey[dict[str, str]]()


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Puts a figure, under its name, into the table at the end of the run."""
    return request.config.stash.setdefault(FIGURES, {}).__setitem__


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    figures = config.stash.get(FIGURES, {})
    if figures:
        terminalreporter.section("figures")
        width = max(map(len, figures))
        for name, figure in figures.items():
            terminalreporter.line(f"{name:{width}}  {figure}")
