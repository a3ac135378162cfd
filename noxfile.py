"""The development commands, each as a session: `.venv/bin/nox -s fast`; `.venv/bin/nox --list` shows them all.

Sessions run in the environment that nox runs in, so they need no second set-up; only `site` makes its own. Arguments
after `--` reach the tool: `nox -s fast -- -x tests/core/test_specs.py`. CI calls the same sessions on every supported
Python.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "fast"]

MEMORY = Path("/dev/shm")  # noqa: S108 - folders of our own in it
NEEDED_BYTES = 8_000_000_000
BENCHES = sorted(path.stem for path in Path("tests/bench").glob("bench_*.py"))


def _run(session: nox.Session, module: str, *arguments: str, **environment: str) -> None:
    session.run(sys.executable, "-m", module, *arguments, external=True, env=environment)


def _pytest(session: nox.Session, *arguments: str) -> None:
    """Run pytest with its files in memory where it has room: on a disk, tests wait for each of many thousand files."""
    arguments = ("-n", "auto", *arguments, *session.posargs)
    if "TMPDIR" in os.environ or not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < NEEDED_BYTES:
        _run(session, "pytest", *arguments)
        return
    with tempfile.TemporaryDirectory(prefix="tests-", dir=MEMORY) as folder:
        _run(session, "pytest", *arguments, TMPDIR=folder)


@nox.session
def lint(session: nox.Session) -> None:
    """Check rules and format with ruff."""
    _run(session, "ruff", "check", ".")
    _run(session, "ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of both packages with mypy."""
    _run(session, "mypy")


@nox.session
def fast(session: nox.Session) -> None:
    """Run the tests that start no process or server and make no model."""
    _pytest(session, "-m", "not slow")


@nox.session(name="all")
def all_(session: nox.Session) -> None:
    """Run all tests, as the README's command does."""
    _pytest(session)


@nox.session
def exhaustive(session: nox.Session) -> None:
    """Run all tests, with every case where `all` takes a sample."""
    _pytest(session, "--exhaustive")


@nox.session
def docs(session: nox.Session) -> None:
    """Write the generated parts of the reference, check the prose, run the pages' examples; then `site`."""
    session.run(sys.executable, "docs/generate.py", external=True)
    _run(session, "tests.prose")
    _pytest(session, "tests/test_docs.py", "tests/test_website.py")
    session.notify("site")


@nox.session(venv_backend="venv", reuse_venv=True)
def site(session: nox.Session) -> None:
    """Build the documentation site into build/site, with Sphinx in an environment of its own."""
    session.install("-q", "-r", "docs/website/requirements.txt", "-e", ".[registry]")
    session.run("python", "-m", "docs.website", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Build a release into `dist/`: wheel, source archive, SBOM, manual pages; needs `.[release]`."""
    shutil.rmtree("dist", ignore_errors=True)
    _run(session, "build")
    (wheel,) = Path("dist").glob("*.whl")
    _run(session, "twine", "check", "--strict", *map(str, Path("dist").iterdir()))
    _run(session, "check_wheel_contents", str(wheel))
    _run(session, "docs.man", "dist/man")
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder, "bin", "python")
        _run(session, "venv", "--without-pip", folder)
        _run(session, "pip", "--python", str(python), "install", "-q", str(wheel))
        document = f"dist/{wheel.name.removesuffix('-py3-none-any.whl')}.cdx.json"
        options = (
            "--pyproject",
            "pyproject.toml",
            "--mc-type",
            "library",
            "--output-reproducible",
            "--spec-version",
            "1.6",
        )
        _run(session, "cyclonedx_py", "environment", *options, "--output-file", document, str(python))


@nox.session
def bench(session: nox.Session) -> None:
    """Run one benchmark: `nox -s bench -- cli --runs 7`; without a name, list them."""
    if not session.posargs:
        session.error(f"name one of: {', '.join(name.removeprefix('bench_') for name in BENCHES)}")
    name, *arguments = session.posargs
    _run(session, f"tests.bench.bench_{name}", *arguments)
