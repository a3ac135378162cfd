"""Programs that pip cannot install. `needs("strace")` is the one way in which a test gets at them."""

from __future__ import annotations

import os
import shutil
import subprocess

from tests.support.outside import asks, lacking

PROGRAMS = "ADAPTERHUB_TEST_PROGRAMS"
"""The folders to look in, where they are not those of PATH."""
PACKAGES = {"node": "nodejs", "setpriv": "util-linux", "unshare": "util-linux"}


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
