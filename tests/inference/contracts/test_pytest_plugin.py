"""The pytest plug-in: it costs a run nothing, and says what is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from adapterhub.formats.documents import toml_of
from adapterhub.inference.contracts.runners import PLUGIN, plugin_name

pytest_plugins = ["pytester"]
PYPROJECT = Path(__file__).resolve().parents[3] / "pyproject.toml"
ASKS = "def test_it(adapted):\n    assert adapted('hi')\n"


def test_the_package_announces_the_plugin_and_importing_it_loads_nothing_else() -> None:
    project = toml_of(PYPROJECT.read_bytes())["project"]
    code = f"import sys, {PLUGIN}; print(*sorted(m for m in sys.modules if m.partition('.')[0] in {{'adapterhub', 'torch'}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert project["entry-points"]["pytest11"] == {"adapterhub": PLUGIN}
    assert done.stdout.split() == ["adapterhub", "adapterhub.api", "adapterhub.api.contracts", PLUGIN]


def test_without_an_adapter_its_tests_are_skipped_with_the_reason(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ADAPTERHUB_TEST_SPEC", raising=False)
    pytester.makepyfile(ASKS)
    done = pytester.runpytest_inprocess("-p", plugin_name(), "-rs")

    done.assert_outcomes(skipped=1)
    done.stdout.fnmatch_lines(["*no adapter is named: `pytest --adapt-spec SPEC`*"])


def test_an_adapter_that_is_not_there_fails_its_tests_without_a_traceback(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTERHUB_HOME", str(pytester.path / "home"))
    pytester.makepyfile(ASKS)
    done = pytester.runpytest_subprocess("-p", plugin_name(), "--adapt-spec", "legal-qa")

    done.assert_outcomes(errors=1)
    assert "legal-qa" in done.stdout.str()
    assert "Traceback" not in done.stdout.str()
