"""The Hub client's own tests, against our registry.

    python -m tests.hub.upstream_suite [CHECKOUT_OR_ARCHIVE] [--version VERSION] [--write]

Takes the tests from the source archive of the version that is installed here, by default from the package index, and
runs them in a throw-away environment against a registry on loopback. `expected_failures.toml` names each test of the
newest version that fails, grouped by reason. The exit code is 1 when another test fails, or when one of these passes;
so it is for an older version, which has other tests. `--write` adds the unexpected failures to the group `new` and
drops the tests that pass now. Takes about five minutes on two cores, so CI does not run this.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import tomli_w
from adapterhub_registry.access.tokens import Tokens
from adapterhub_registry.database.db import Database

from tests.registry.conftest import LIMITS, Served, serving

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).resolve().parent
EXPECTED = HERE / "expected_failures.toml"
PACKAGES = (
    "pytest>=9",
    "pytest-asyncio",
    "pytest-mock",
    "pytest-timeout",
    "jinja2",
    "jedi",
    "numpy",
    "pillow",
    "fastapi",
)
FILES = (
    "test_auth",
    "test_cli",
    "test_commit_api",
    "test_commit_scheduler",
    "test_copy_files",
    "test_file_download",
    "test_hf_api",
    "test_hf_file_system",
    "test_hub_mixin",
    "test_lfs",
    "test_repocard",
    "test_snapshot_download",
    "test_utils_errors",
    "test_verification",
    "test_xet_download",
    "test_xet_upload",
)
"""The files that speak to a hub about repositories. Others are about buckets, inference, or no server at all."""
USERS = {
    "": ("hub-user", ["hub-user/*", "valid_org/*"]),
    "OTHER_": ("DVUser", ["DVUser/*"]),
    "ENTERPRISE_": ("EnterpriseAdmin", ["EnterpriseAdmin/*", "EnterpriseOrgPrivate/*"]),
}
SECONDS_PER_TEST = 120


@contextlib.contextmanager
def suite(source: Path | None, version: str) -> Iterator[Path]:
    """A folder with `tests`, ready to run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if source is None:
            wanted = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", f"huggingface_hub=={version}"]
            subprocess.run([sys.executable, "-m", "pip", "download", "-q", "-d", name, *wanted], check=True)
            source = next(folder.glob("*.tar.gz"))
        if source.is_file():
            with tarfile.open(source) as archive:
                archive.extractall(folder / "archive", filter="data")
            source = next((folder / "archive").iterdir())
        tests = folder / "suite" / "tests"
        shutil.copytree(source / "tests", tests)
        (tests / "__init__.py").touch()  # their archive leaves out this file and the next
        if not (tests / "conftest.py").exists():
            (tests / "conftest.py").write_text("from upstream_plugin import RepoFactory\n", encoding="utf-8")
        (folder / "suite" / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        shutil.copy(HERE / "upstream_plugin.py", folder / "suite")
        yield folder / "suite"


def environment(folder: Path, version: str) -> Path:
    """The interpreter of a new environment that holds the client."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        wanted = [f"huggingface_hub=={version}", *PACKAGES]
        subprocess.run([str(python), "-m", "pip", "install", "-q", *wanted], check=True)
    return python


def constants_for(served: Served) -> dict[str, str]:
    """The users and the address that the suite knows as constants, with tokens of this registry."""
    database = Database(f"sqlite:///{served.root / 'registry.db'}")
    found = {"ENDPOINT_STAGING": served.url, "FULL_NAME": USERS[""][0], "ENTERPRISE_ORG": "EnterpriseOrgPrivate"}
    for prefix, (user, namespaces) in USERS.items():
        found |= {
            f"{prefix}USER": user,
            f"{prefix}TOKEN": Tokens(database).create(user, "write", namespaces=namespaces),
        }
    database.close()
    return found


def run(python: Path, folder: Path, served: Served, more: list[str]) -> dict[str, tuple[str, str]]:
    """The outcome of each test and, for a failure, its reason."""
    outcomes = folder / "outcomes"
    outcomes.touch()
    hub = {"PYTHONPATH": str(folder), "UPSTREAM_OUTCOMES": str(outcomes)}
    hub |= {"UPSTREAM_SUITE": json.dumps(constants_for(served)), "HTTPS_PROXY": "http://127.0.0.1:9"}  # no other hub
    files = [path for name in FILES if (folder / (path := f"tests/{name}.py")).exists()]  # older versions lack some
    options = ["-q", "-p", "upstream_plugin", "-m", "not production", f"--timeout={SECONDS_PER_TEST}", "--tb=short"]
    subprocess.run(
        [str(python), "-m", "pytest", *options, "-p", "no:cacheprovider", *(more or files)],
        env=served.environment(folder / "home", **hub) | {"PYTHONPATH": str(folder)},
        cwd=folder,
        check=False,
    )
    found: dict[str, tuple[str, str]] = {}
    for line in outcomes.read_text(encoding="utf-8").splitlines():
        told = json.loads(line)
        if found.get(told["test"], ("",))[0] != "failed":
            found[told["test"]] = (told["outcome"], told["why"])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", nargs="?", type=Path, help="a checkout, or the source archive (default: fetched)")
    parser.add_argument("--version", default=metadata.version("huggingface_hub"), help="of the client [%(default)s]")
    parser.add_argument("--write", action="store_true", help="bring the list of expected failures up to date")
    parser.add_argument("--environment", type=Path, help="a folder for the environment, kept for the next run")
    parser.add_argument("--tests", nargs="*", default=[], help="some tests only; with them, no expectation is checked")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = stack.enter_context(suite(options.source, options.version))
        python = environment(options.environment or temporary / "environment", options.version)
        (temporary / "registry").mkdir()
        served = stack.enter_context(serving(temporary / "registry", LIMITS))
        outcomes = run(python, folder, served, options.tests)
    if options.tests:
        return 0
    return judge(outcomes, write=options.write)


def judge(outcomes: dict[str, tuple[str, str]], *, write: bool) -> int:
    """Print what differs from the expectations; 1 when anything does."""
    groups: dict[str, Any] = tomllib.loads(EXPECTED.read_text(encoding="utf-8")) if EXPECTED.exists() else {}
    expected = {test for group in groups.values() for test in group["tests"]}
    may_pass = {test for group in groups.values() if group.get("may_pass") for test in group["tests"]}
    failed = {test: why for test, (outcome, why) in outcomes.items() if outcome == "failed"}
    new, mended = sorted(failed.keys() - expected), sorted(expected - failed.keys() - may_pass)
    for test in new:
        sys.stdout.write(f"unexpected failure: {test}\n    {failed[test][:600]}\n")
    for test in mended:
        sys.stdout.write(f"expected to fail, {outcomes.get(test, ('did not run',))[0]}: {test}\n")
    passed = sum(outcome == "passed" for outcome, _ in outcomes.values())
    sys.stdout.write(f"{passed} passed, {len(failed)} failed, {len(failed) - len(new)} of them as expected\n")
    if write:
        for group in groups.values():
            group["tests"] = [test for test in group["tests"] if test not in mended]
        if new:
            groups.setdefault("new", {"reason": "not looked at yet", "tests": []})["tests"] += new
        EXPECTED.write_text(tomli_w.dumps({k: v for k, v in groups.items() if v["tests"]}), encoding="utf-8")
    return 1 if new or mended or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
