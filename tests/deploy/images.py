"""Builds and runs images with Debian's buildah, without privileges of its own: `chroot` isolation, the network of the machine.

No registry of images is needed: the base is a Debian that mmdebstrap makes (two minutes), or the tar that
`ADAPTERHUB_TEST_ROOT` names, and stands in for the image that a Containerfile names by an argument.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.programs import needs

ROOT_TAR = "ADAPTERHUB_TEST_ROOT"
DEBIAN = "trixie"
PACKAGES = "python3-venv,python3-pip,python3-numpy,ca-certificates"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


class Images:
    """The images of one test run, in a store of their own in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        driver = "overlay" if os.geteuid() == 0 else "vfs"
        store = ("--root", folder / "store", "--runroot", folder / "run", "--storage-driver", driver)
        self._buildah = (needs("buildah"), *store)
        limits = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
        most = {
            name: resource.getrlimit(kind)[1] for name, kind in limits.items()
        }  # buildah wants more than it may have
        self._limits = [f"--ulimit={name}={one}:{one}" for name, one in most.items() if one != resource.RLIM_INFINITY]

    def buildah(self, *words: str | Path) -> str:
        """What it prints."""
        done = subprocess.run([*map(str, (*self._buildah, *words))], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout.strip()

    def debian(self, name: str) -> None:
        """Make the image `name`: Debian with Python and pip."""
        tar = os.environ.get(ROOT_TAR) or str(self.folder / "root.tar")
        if not Path(tar).exists():
            subprocess.run(
                [needs("mmdebstrap"), "--quiet", "--variant=minbase", f"--include={PACKAGES}", DEBIAN, tar], check=True
            )
        self.derived(name, "scratch", Path(tar))

    def derived(self, name: str, base: str, added: Path, to: str = "/", without: str = "") -> None:
        """Make an image of another and files, without a file of the other."""
        container = self.buildah("from", "--pull=never", *self._limits, base)
        self.buildah("add", container, added, to)
        if without:
            self.buildah("run", "--isolation=chroot", container, "--", "rm", without)
        self.buildah("commit", "--quiet", "--rm", container, name)

    def build(self, name: str, containerfile: Path, context: Path, **arguments: str) -> None:
        """Build an image as its Containerfile says; `arguments` are its build arguments."""
        mounts = ["--volume", f"{self._pip_conf()}:/etc/pip.conf:ro"]
        if own := os.environ.get("SSL_CERT_FILE"):  # a machine behind a proxy that reads along
            mounts += ["--volume", f"{own}:{CERTIFICATES}:ro"]
        given = [f"--build-arg={key}={value}" for key, value in arguments.items()]
        options = ("--isolation=chroot", "--pull=never", "--format=docker", *self._limits, *mounts, *given)
        self.buildah("build", *options, "-f", containerfile, "-t", name, context)

    def _pip_conf(self) -> Path:
        """What pip is told here: where packages are, and whom to trust."""
        kept = {name: os.environ.get(f"PIP_{name.upper()}") for name in ("index_url", "extra_index_url", "timeout")}
        lines = [f"{name.replace('_', '-')} = {value}" for name, value in kept.items() if value]
        path = self.folder / "pip.conf"
        path.write_text("\n".join(["[global]", f"cert = {CERTIFICATES}", *lines]) + "\n")
        return path

    def config(self, name: str) -> dict[str, Any]:
        """The configuration that a runtime reads: its command, its user, its variables."""
        found: dict[str, Any] = json.loads(self.buildah("inspect", "--type", "image", name))["Docker"]["config"]
        return found

    def container(self, name: str) -> str:
        """A container of an image."""
        return self.buildah("from", "--pull=never", *self._limits, name)

    def command(
        self,
        container: str,
        words: Sequence[str],
        *,
        mounts: Mapping[str, str] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> list[str]:
        """The command line that runs `words` in a container, as the account of its image."""
        options = [f"--volume={here}:{there}" for there, here in (mounts or {}).items()]
        options += [f"--env={name}={value}" for name, value in (variables or {}).items()]
        return [*map(str, self._buildah), "run", "--isolation=chroot", *options, container, "--", *words]

    def run(self, container: str, words: Sequence[str], **surroundings: Mapping[str, str]) -> str:
        """What a command prints that ends."""
        command = self.command(container, words, **surroundings)
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    @contextlib.contextmanager
    def running(
        self, container: str, words: Sequence[str], health: str, **surroundings: Mapping[str, str]
    ) -> Iterator[Path]:
        """A server, from the moment at which `health` answers; yields the file of what it says."""
        log = self.folder / f"{container}.log"
        with (
            log.open("wb") as said,
            subprocess.Popen(
                self.command(container, words, **surroundings), stdout=said, stderr=subprocess.STDOUT
            ) as server,
        ):
            try:
                while not _answers(health):
                    assert server.poll() is None, log.read_text()
                    time.sleep(0.1)
                yield log
            finally:
                server.send_signal(signal.SIGTERM)

    def clear(self) -> None:
        """Remove all, which may belong to other accounts."""
        self.buildah("rm", "--all")
        self.buildah("rmi", "--all", "--force")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False
