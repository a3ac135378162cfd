"""Programs that pip cannot install. `needs("strace")` is the one way in which a test gets at them.

    apt-get install $(python -m tests.support.programs)

installs every one that a test asks for, on Debian.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.outside import asks, lacking

PROGRAMS = "ADAPTERHUB_TEST_PROGRAMS"
"""The folders to look in, where they are not those of PATH."""
PACKAGES = {
    "WebKitWebDriver": "webkit2gtk-driver",
    "Xvfb": "xvfb",
    "ctr": "containerd",
    "go": "golang-go golang-golang-x-mod-dev",
    "ip": "iproute2",
    "node": "nodejs",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}


TESTS = Path(__file__).resolve().parent.parent


def asked_for(folder: Path = TESTS) -> Iterator[str]:
    """The programs that the files in `folder` ask for, each as often as it is asked for.

    Raises:
        ValueError: one is not written as text, so that only a run could tell.
    """
    for path in sorted(folder.rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        if path != Path(__file__) and not any(
            isinstance(node, ast.ImportFrom) and node.module == "tests.support.programs" for node in nodes
        ):
            continue  # another function has that name there
        for node in nodes:
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "needs":
                if not isinstance(node.args[0], ast.Constant):
                    raise ValueError(f"{path}:{node.lineno}: write the program that it needs as text")
                yield str(node.args[0].value)


def packages(folder: Path = TESTS) -> list[str]:
    """The packages of Debian that have them."""
    return sorted({name for program in asked_for(folder) for name in PACKAGES.get(program, program).split()})


def needs(program: str) -> str:
    """The path of `program`; without it the test skips with the reason, and fails where `CI` is set."""
    asks()
    path = shutil.which(program, path=os.environ.get(PROGRAMS))
    if path is None:
        lacking(f"needs `{program}` (`apt-get install {PACKAGES.get(program, program)}`)")
    return path


def needs_chromium() -> str:
    """The path of Debian's Chromium, or of the Chrome that some machines have in its place."""
    asks()
    found = (shutil.which(name, path=os.environ.get(PROGRAMS)) for name in ("chromium", "google-chrome"))
    return next(filter(None, found), None) or needs("chromium")


def needs_strace() -> str:
    """The path of a strace that may trace here."""
    path = needs("strace")
    probe = subprocess.run([path, "-qq", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        lacking(f"needs the right to trace processes (CAP_SYS_PTRACE): {probe.stderr.strip()}")
    return path


if __name__ == "__main__":
    print(*packages())  # noqa: T201 - for the command line of apt-get
