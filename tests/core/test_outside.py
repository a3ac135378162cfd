"""What lies outside the repository: skipped on a user's machine, wanted in CI, and written down."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.outside import RECORD
from tests.support.programs import asked_for, packages

ROOT = Path(__file__).resolve().parent.parent.parent
CONFTEST = """
from tests.support.outside import Recording

def pytest_configure(config):
    config.pluginmanager.register(Recording())
"""
TESTS = """
import pytest
from tests.support.programs import needs
from tests.support.shared_data import shared

@pytest.fixture(scope="module")
def shell():
    return needs("sh")

@pytest.fixture
def shell_in_a_folder(shell, tmp_path):
    return shell

def test_itself(): assert needs("sh").endswith("/sh")
def test_not(): pass
def test_first_by_a_fixture(shell): pass
def test_second_by_a_fixture(shell_in_a_folder): pass
def test_lacking(): needs("no-such-program")
def test_without_data(): shared("no-such-data")
"""


def told(folder: Path, text: str = TESTS, **environ: str) -> str:
    """What pytest says of these tests."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_inner.py").write_text(text)
    kept = {k: v for k, v in os.environ.items() if k not in ("CI", RECORD) and not k.startswith("PYTEST")}
    kept |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rsfE", "--rootdir", str(folder), str(folder)]
    done = subprocess.run(command, env=kept | environ, cwd=folder, text=True, capture_output=True, check=False)
    return done.stdout


def test_a_lacking_program_skips_with_its_reason(tmp_path):
    said = told(tmp_path)

    assert "4 passed, 2 skipped" in said
    assert "needs `no-such-program` (`apt-get install no-such-program`)" in said


@pytest.mark.parametrize("environ", [{"CI": "true"}, {RECORD: "{folder}"}])
def test_a_lacking_program_fails_in_ci(tmp_path, environ):
    said = told(tmp_path, **{name: value.format(folder=tmp_path) for name, value in environ.items()})

    assert "FAILED test_inner.py::test_lacking - Failed: needs `no-such-program`" in said
    assert "1 failed, 4 passed, 1 skipped" in said


def test_every_test_that_asked_is_written_down_and_no_other(tmp_path):
    (tmp_path / "asked").mkdir()

    told(tmp_path, **{RECORD: str(tmp_path / "asked")})

    asked = [line for file in (tmp_path / "asked").iterdir() for line in file.read_text().splitlines()]
    names = ("itself", "first_by_a_fixture", "second_by_a_fixture", "lacking", "without_data")
    assert asked == [f"test_inner.py::test_{name}" for name in names]


def test_no_file_asks_while_it_is_imported_in_ci(tmp_path):
    said = told(tmp_path, "from tests.support.programs import needs\nneeds('sh')\n", **{RECORD: str(tmp_path)})

    assert "not while a file is imported" in said
    assert "1 error" in said


# ---------------------------------------------------------------- the programs themselves
IMPORT = "from tests.support.programs import needs\n"


def test_what_tests_ask_for_is_read_from_their_calls(tmp_path):
    (tmp_path / "test_a.py").write_text(f"{IMPORT}def test(): needs('strace'), a.needs('a'), needs_it(), needs('node')")
    (tmp_path / "test_b.py").write_text(f"{IMPORT}TEXT = \"needs('zsh')\"\ndef test(): needs('ip'); needs('strace')")
    (tmp_path / "test_c.py").write_text("def needs(name): ...\nneeds('another')")

    assert list(asked_for(tmp_path)) == ["strace", "node", "ip", "strace"]
    assert packages(tmp_path) == ["iproute2", "nodejs", "strace"]


def test_a_program_that_only_a_run_could_tell_is_an_error_that_names_its_place(tmp_path):
    (tmp_path / "test_a.py").write_text(f"{IMPORT}for program in programs: needs(program)")

    with pytest.raises(ValueError, match=r"test_a\.py:2: write the program that it needs as text"):
        packages(tmp_path)


def test_the_exhaustive_workflow_installs_each_program_before_its_tests():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "exhaustive.yml").read_text("utf-8"))["jobs"]
    runs = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    installs, tests = runs["exhaustive"][-2:]
    [words] = re.findall(r"\$\(\.venv/bin/python -m (tests\.support\.programs)\)", installs)

    printed = subprocess.run([sys.executable, "-m", words], cwd=ROOT, text=True, capture_output=True, check=True).stdout

    assert "apt-get install" in installs
    assert tests == ".venv/bin/nox -s exhaustive"
    assert printed.split() == packages()
    assert {"strace", "buildah", "umoci", "containerd", "docker-registry", "nginx", "chromium"} <= {*packages()}
    assert all(re.fullmatch("[a-z0-9.+-]+", name) for name in packages())
    assert runs["engines"][-1] == ".venv/bin/python -m tests.engines"
