"""Calls pytest on a user's tests of an adapter, and reads its JUnit XML."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points, version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from adapterhub.core.arguments import path_of
from adapterhub.core.errors import EngineFailed, UsageProblem, shown
from adapterhub.formats.contract.results import TestedCase, Verdict
from adapterhub.inference.contracts.runners.tools import MAX_REPORT_BYTES, Ran, run_tool

PLUGIN: Final = "adapterhub.api.contracts.pytest_plugin"
"""The module of the entry point; of `api`, which holds the faces for Python."""

_RAN: Final = (0, 1, 5)
"""pytest's exit codes for: all passed, some failed, no test was found."""
_SHOWN: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class PytestRun:
    """What pytest ran: a case for each test, and its version."""

    cases: tuple[TestedCase, ...]
    engine: str
    ran: Ran


def ensure_pytest() -> None:
    """Refuse to go on without pytest.

    Raises:
        UsageProblem: it is not installed beside this Python.
    """
    if find_spec("pytest") is None:
        raise UsageProblem("the tool `pytest` is not installed", hint="`pip install pytest` installs it")


def plugin_name() -> str:
    """What `-p` takes: the entry point's name, or the module where the installed package does not announce it yet."""
    return next((entry.name for entry in entry_points(group="pytest11") if entry.value == PLUGIN), PLUGIN)


def run_pytest(task: Path, work: Path, environ: Mapping[str, str], *, budget_s: float) -> PytestRun:
    """Run the tests at `task` with the plugin in; `environ` names the adapter. The report goes into `work`.

    Raises:
        EngineFailed: pytest ended without a report, or could not collect the tests.
        UsageProblem: there are no such tests.
    """
    named = path_of(task).absolute()
    if not named.exists():
        raise UsageProblem(f"`--task {shown(str(task), 200)}`: there is no such file or folder")
    report = work / "report.xml"
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    words += ["-p", plugin_name(), f"--junitxml={report}", str(named)]
    folder = named if named.is_dir() else named.parent
    ran = run_tool(words, folder=folder, environ=environ, budget_s=budget_s)
    if not ran.is_over and ran.code not in _RAN:
        raise ran.failed("pytest")
    cases = () if ran.is_over else _cases(report, ran)
    return PytestRun(cases=cases, engine=f"pytest {version('pytest')}", ran=ran)


def _cases(report: Path, ran: Ran) -> tuple[TestedCase, ...]:
    from xml.etree import ElementTree as ET

    try:
        if report.stat().st_size > MAX_REPORT_BYTES:
            raise EngineFailed(f"`pytest` wrote a report of more than {MAX_REPORT_BYTES >> 20} MB")
        root = ET.parse(report).getroot()  # noqa: S314 - written by the pytest that ran the user's own tests
    except (OSError, ET.ParseError):
        raise ran.failed("pytest") from None
    found: dict[str, TestedCase] = {}
    for case in root.iter("testcase"):
        verdict: Verdict = "PASS"
        problem = ""
        for child in case:
            if child.tag in ("failure", "error"):
                verdict, problem = "CHANGED", child.get("message") or child.tag
            elif child.tag == "skipped" and verdict == "PASS":
                verdict, problem = "UNKNOWN", child.get("message") or "skipped"
        name = "::".join(filter(None, (case.get("classname"), case.get("name"))))
        if name not in found or verdict == "CHANGED":  # a teardown that fails is a second case of the same name
            found[name] = TestedCase(id=name, kind="test", verdict=verdict, problem=problem[:_SHOWN])
    return tuple(found.values())
