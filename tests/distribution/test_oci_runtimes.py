"""The image to mount, in the programs that mount and unpack images: its folder is the installed adapter, byte by byte.

`pytest --exhaustive tests/distribution/test_oci_runtimes.py` runs it, as root for containerd's mounts. Debian has all the programs:
`docker-registry`, `skopeo`, `umoci`, `containerd` and `buildah`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adapterhub.formats.manifest import WEIGHTS_FILE
from tests.distribution.test_oci import REPO, home, other
from tests.distribution.test_oci_programs import real, run
from tests.support.command_line import Adapt
from tests.support.outside import lacking
from tests.support.programs import needs

__all__ = ["home", "other", "real"]  # fixtures

pytestmark = pytest.mark.exhaustive

CONTAINERD = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{folder}/grpc"
[ttrpc]
address = "{folder}/ttrpc"
"""


@pytest.fixture
def pushed(home: Adapt, real: str) -> str:
    """What Kubernetes calls the image."""
    return str(home.json("push", "legal-qa@base-7b", "--to", f"oci://{real}/{REPO}")["mount"])


@pytest.fixture
def installed(home: Adapt, pushed: str) -> dict[str, bytes]:
    """The files of the adapter that was pushed."""
    (build,) = home.library.installed()
    return contents(build.folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def ctr() -> Iterator[Callable[..., str]]:
    """containerd's client, with a containerd of its own."""
    daemon, client = needs("containerd"), needs("ctr")
    if os.geteuid() != 0:
        lacking("needs root, for containerd's mounts")
    with tempfile.TemporaryDirectory() as folder:  # a socket has no long name
        config = Path(folder, "config.toml")
        config.write_text(CONTAINERD.format(folder=folder))
        with subprocess.Popen(
            [daemon, "--config", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as server:
            try:
                while not Path(folder, "grpc").is_socket():
                    assert server.poll() is None, "containerd does not start here"
                    time.sleep(0.02)
                yield lambda *words: run(client, "--address", f"{folder}/grpc", *words)
            finally:
                server.terminate()


@contextlib.contextmanager
def mounted(ctr: Callable[..., str], reference: str, folder: Path) -> Iterator[Path]:
    folder.mkdir()
    ctr("images", "pull", "--plain-http", reference)
    ctr("images", "mount", reference, folder)
    try:
        yield folder
    finally:
        ctr("images", "unmount", "--rm", folder)


def test_containerd_mounts_the_folder_of_the_adapter(ctr, pushed: str, installed, tmp_path: Path):
    with mounted(ctr, pushed, tmp_path / "mnt") as folder:
        assert contents(folder) == contents(folder / "models") == installed
        assert len(list(folder.iterdir())) == len(installed) + 1


def test_containerd_mounts_the_image_of_layers_that_are_no_tars_as_an_empty_folder(ctr, pushed: str, tmp_path: Path):
    with mounted(ctr, pushed.removesuffix("-mount"), tmp_path / "mnt") as folder:
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_skopeo_copies_and_umoci_unpacks_the_folder_of_the_adapter(
    pushed: str, installed, tmp_path: Path, architecture: str
):
    skopeo, umoci = needs("skopeo"), needs("umoci")
    layout = f"{tmp_path}/layout:one"

    run(
        skopeo, "--override-arch", architecture, "copy", "--src-tls-verify=false", f"docker://{pushed}", f"oci:{layout}"
    )
    run(umoci, "unpack", "--rootless", "--image", layout, tmp_path / "bundle")

    root = tmp_path / "bundle" / "rootfs"
    assert contents(root) == contents(root / "models") == installed
    assert (root / WEIGHTS_FILE).samefile(root / "models" / WEIGHTS_FILE)


def test_a_modelcar_is_built_of_two_lines(pushed: str, installed, tmp_path: Path):
    buildah = needs("buildah")
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "serve-in-production.md").read_text(encoding="utf-8")
    lines = page.partition("```dockerfile\n")[2].partition("```")[0]
    assert lines.count("\n") == 2
    lines = lines.replace("registry.example.org/acme/legal-qa:1.1.0-mount", pushed)
    lines = lines.replace("docker.io/library/busybox", "scratch")  # no registry of images is in reach
    (tmp_path / "Containerfile").write_text(lines)
    place = ["--storage-driver", "vfs", "--root", tmp_path / "store", "--runroot", tmp_path / "run"]

    run(buildah, *place, "build", "--isolation", "chroot", "--tls-verify=false", "-t", "car", tmp_path)
    run(buildah, *place, "push", "car", f"oci:{tmp_path}/layout:car")
    run(needs("umoci"), "unpack", "--rootless", "--image", f"{tmp_path}/layout:car", tmp_path / "bundle")

    assert contents(tmp_path / "bundle" / "rootfs" / "models") == installed


def test_an_adapter_installs_from_the_mounted_folder(ctr, pushed: str, other: Adapt, tmp_path: Path):
    with mounted(ctr, pushed, tmp_path / "mnt") as folder:
        other.ok("install", "legal-qa@base-7b", "--from", folder)

    assert [one.manifest.version for one in other.library.installed()] == ["1.0.0"]
