"""The `hf` command against the registry, in both ways of uploading."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx
import pytest
from adapterhub_registry.settings import ServerLimits

from tests.registry.conftest import XET_ALONE, Served
from tests.registry.running import running

Hf = Callable[..., "subprocess.CompletedProcess[str]"]
HF = [sys.executable, "-c", "import sys; from huggingface_hub.cli.hf import main; sys.argv[0] = 'hf'; main()"]
WEIGHTS = bytes(range(256)) * 5000


@pytest.fixture
def hf(served: Served, tmp_path: Path, mode: Mapping[str, str]) -> Hf:
    environment = served.environment(tmp_path / "home", HF_TOKEN=served.token, **mode)

    def run(*arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([*HF, *arguments], env=environment, capture_output=True, text=True, check=False)
        if ok:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
    (folder / "adapter_model.safetensors").write_bytes(WEIGHTS)
    return folder


@pytest.fixture
def repo(request: pytest.FixtureRequest) -> str:
    name = "".join(c for c in request.node.name if c.isalpha())
    return f"cli/{name[:90]}"


def test_upload_then_download(hf: Hf, folder: Path, repo: str, tmp_path: Path) -> None:
    hf("upload", repo, str(folder), ".")
    hf("download", repo, "--local-dir", str(tmp_path / "back"))

    assert (tmp_path / "back" / "adapter_model.safetensors").read_bytes() == WEIGHTS
    assert (tmp_path / "back" / "adapter_config.json").exists()


@pytest.mark.parametrize(
    ("limit", "mode"),
    [("namespace_bytes=1000000", "xet"), ("token_upload_bytes_per_day=1000000", "lfs")],
    indirect=["mode"],
)
def test_a_reached_quota_is_one_readable_sentence(
    mode: Mapping[str, str], folder: Path, tmp_path: Path, limit: str
) -> None:
    with running(tmp_path / "limited", limits=ServerLimits().with_values((limit,))) as server:
        served = Served(server.url, server.token, server.root, 0)
        environment = served.environment(tmp_path / "home", HF_TOKEN=served.token, **mode)
        command = [*HF, "upload", "acme/x", str(folder), "."]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)

        (reason,) = [line for line in done.stderr.splitlines() if "quota" in line]
        assert done.returncode == 1
        assert reason.startswith("quota reached: ")
        assert " of 1.0 MB; 1.3 MB more do not fit, so nothing was published" in reason or "in a day" in reason
        assert "Traceback" not in done.stderr
        assert "permission" not in done.stderr


@XET_ALONE
def test_cache_verify_finds_a_flipped_byte(hf: Hf, folder: Path, repo: str, tmp_path: Path) -> None:
    hf("upload", repo, str(folder), ".")
    hf("download", repo)
    sound = hf("cache", "verify", repo)
    (blob,) = [p for p in (tmp_path / "home").rglob("blobs/*") if p.is_file() and p.stat().st_size == len(WEIGHTS)]
    blob.chmod(0o644)
    blob.write_bytes(WEIGHTS[:-1] + b"\x00")

    damaged = hf("cache", "verify", repo, ok=False)

    assert sound.returncode == 0
    assert damaged.returncode != 0
    assert "adapter_model.safetensors" in damaged.stdout + damaged.stderr


@XET_ALONE
def test_tags(hf: Hf, folder: Path, repo: str) -> None:
    hf("upload", repo, str(folder), ".")
    hf("repos", "tag", "create", repo, "v1.0", "-m", "the first")

    listed = hf("repos", "tag", "list", repo).stdout
    hf("repos", "tag", "delete", repo, "v1.0", "-y")

    assert "v1.0" in listed
    assert "v1.0" not in hf("repos", "tag", "list", repo).stdout


@XET_ALONE
def test_repositories_are_made_listed_and_removed(hf: Hf, repo: str, served: Served) -> None:
    headers, body = {"Authorization": f"Bearer {served.token}"}, {"user": "cli", "role": "write"}
    made = httpx.post(f"{served.url}/api/adapt/v1/tokens", headers=headers, json=body).raise_for_status()
    as_cli = ("--token", made.json()["token"])
    hf("repos", "create", repo.partition("/")[2], *as_cli)

    listed = hf("repos", "list", "--format", "json", *as_cli).stdout
    hf("repos", "delete", repo, "-y", *as_cli)

    assert repo in listed
    assert repo not in hf("repos", "list", "--format", "json", *as_cli).stdout


@XET_ALONE
def test_models_are_listed_by_tag(hf: Hf, folder: Path, repo: str) -> None:
    hf("upload", repo, str(folder), ".")

    found = hf("models", "list", "--filter", "lora-rank:4", "--author", "cli", "--format", "json").stdout
    told = hf("models", "info", repo).stdout

    assert repo in found
    assert repo in told


@XET_ALONE
def test_login_keeps_a_token_that_is_good(served: Served, tmp_path: Path, mode: Mapping[str, str]) -> None:
    environment = served.environment(tmp_path / "home", **mode)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*HF, *arguments], env=environment, capture_output=True, text=True, check=False)

    login = run("auth", "login", "--token", served.token)
    who = run("auth", "whoami")
    wrong = run("auth", "login", "--token", "adp_" + "a" * 32 + "_00000000")

    assert login.returncode == 0, login.stderr
    assert "admin" in who.stdout
    assert wrong.returncode != 0
