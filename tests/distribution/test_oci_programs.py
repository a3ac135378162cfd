"""What `adapt` pushes is read by ORAS and Skopeo, and what they push by `adapt`, with Docker's registry in between.

`pytest --exhaustive tests/distribution/test_oci_programs.py` runs it. Debian has the three: `docker-registry`, `oras`, `skopeo`.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adapterhub.formats.manifest import WEIGHTS_FILE
from tests.distribution.test_oci import REPO, home, other, signer
from tests.support.command_line import Adapt
from tests.support.programs import needs
from tests.support.tiny import make_adapter

__all__ = ["home", "other"]  # fixtures

pytestmark = pytest.mark.exhaustive

PASSWORD_FILE = "ana:$2b$05$abcdefghijklmnopqrstuuLK7U1u6pVRmL7L1BBM2aS35PSZnDXlK\n"  # noqa: S105 - bcrypt of `s3cret`
CONFIG = """\
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {folder}/data}}}}
http: {{addr: "{host}"}}
"""
AUTH = "auth: {{htpasswd: {{realm: tests, path: {folder}/passwords}}}}\n"


def run(*command: str | Path) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def registry(folder: Path, config: str) -> Iterator[str]:
    """Docker's registry on a free port of loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    (folder / "config.yml").write_text(config.format(folder=folder, host=host))
    (folder / "passwords").write_text(PASSWORD_FILE)
    with subprocess.Popen(
        [needs("docker-registry"), "serve", folder / "config.yml"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            while server.poll() is None and not answers(host):
                time.sleep(0.02)
            assert server.poll() is None
            yield host
        finally:
            server.terminate()


def answers(host: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{host}/v2/"):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


@pytest.fixture
def real(tmp_path: Path, online: None) -> Iterator[str]:
    with registry(tmp_path, CONFIG) as host:
        yield host


@pytest.fixture
def oras() -> Callable[..., str]:
    program = needs("oras")
    return lambda verb, *rest: run(program, verb, "--plain-http", *rest)


def test_oras_writes_the_files_that_were_pushed_and_finds_the_signature(home: Adapt, other: Adapt, real, oras):
    signer(home, other)
    home.ok("push", "legal-qa@base-7b", "--to", f"oci://{real}/{REPO}", "--sign")
    (build,) = home.library.installed()

    oras("pull", f"{real}/{REPO}:1.0.0", "--output", home.folder / "out")
    beside = json.loads(oras("discover", "--format", "json", f"{real}/{REPO}:1.0.0"))

    assert (home.folder / "out" / WEIGHTS_FILE).read_bytes() == (build.folder / WEIGHTS_FILE).read_bytes()
    kinds = {one["artifactType"] for one in beside["manifests"]}
    assert kinds == {"application/vnd.adapterhub.signature.v1", "application/vnd.adapterhub.mount.v1"}
    other.ok("install", "legal-qa@base-7b", "--from", home.folder / "out")
    assert next(iter(other.library.installed())).manifest == build.manifest


def test_skopeo_copies_an_adapter_that_then_installs(home: Adapt, other: Adapt, real):
    home.ok("push", "legal-qa@base-7b", "--to", f"oci://{real}/{REPO}")
    skopeo = needs("skopeo")

    origin, target = f"docker://{real}/{REPO}:1.0.0", f"docker://{real}/mirror/legal-qa:1.0.0"
    run(skopeo, "copy", "--src-tls-verify=false", "--dest-tls-verify=false", origin, target)
    told = json.loads(run(skopeo, "inspect", "--tls-verify=false", "--raw", target))
    other.ok("install", "mirror/legal-qa@base-7b", "--remote", f"oci://{real}")

    assert told["annotations"]["vnd.adapterhub.task"] == "legal"
    assert next(iter(other.library.installed())).manifest == next(iter(home.library.installed())).manifest


def test_what_oras_pushed_installs(home: Adapt, other: Adapt, real, oras, monkeypatch):
    folder = make_adapter(home.folder / "trained", rank=2)
    monkeypatch.chdir(folder)

    oras("push", f"{real}/{REPO}:2.1", "adapter_config.json", WEIGHTS_FILE)
    other.ok("install", f"{REPO}==2.1", "--remote", f"oci://{real}")

    (got,) = other.library.installed()
    assert (got.manifest.version, got.manifest.rank) == ("2.1", 2)
    assert (got.folder / WEIGHTS_FILE).read_bytes() == (folder / WEIGHTS_FILE).read_bytes()


def test_a_login_of_oras_is_good_for_adapt(home: Adapt, other: Adapt, tmp_path, monkeypatch, online):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with registry(tmp_path, CONFIG + AUTH) as host:
        assert "answered 401" in home.fails(14, "push", "legal-qa", "--to", f"oci://{host}/{REPO}")
        run(needs("oras"), "login", "--plain-http", "--username", "ana", "--password", "s3cret", host)

        home.ok("push", "legal-qa", "--to", f"oci://{host}/{REPO}")
        other.ok("install", f"{REPO}@base-7b", "--remote", f"oci://{host}")
