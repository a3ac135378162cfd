"""What the Hub's own client downloaded installs without a network, with every byte checked."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from tests.registry.running import Running
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base

pytestmark = pytest.mark.slow


class World:
    """`ann` publishes `json` as `TEAM/json-smol`; `bob` has no server, only a cache that the stock client filled."""

    def __init__(self, folder: Path, server: Running, team: str) -> None:
        self.folder, self.server, self.team, self.cache = folder, server, team, folder / "hub"
        self.ann, self.bob = Adapt(folder, "ann"), Adapt(folder, "bob")
        make_base(folder / "base")
        for home in (self.ann, self.bob):
            home.ok("base", "add", "./base", "--as", "base-7b")
        self.ann.ok("remote", "add", "ours", server.url, "--namespaces", team)
        self.ann.ok("remote", "login", "ours", "--token", server.token)
        make_adapter(folder / "made")
        self.ann.ok("add", "./made", "--name", "json", "--base", "base-7b", "--task", "forms")
        self.ann.ok("push", "json", "--to", f"{team}/json-smol")
        self.digest = self.ann.json("show", "json")["digest"]

    def download(self, revision: str | None = None) -> Path:
        api = HfApi(endpoint=self.server.url, token=self.server.token)
        return Path(api.snapshot_download(f"{self.team}/json-smol", revision=revision, cache_dir=self.cache))


@pytest.fixture
def world(tmp_path, server, online, request, monkeypatch) -> World:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return World(tmp_path, server, f"t{zlib.crc32(request.node.name.encode())}")


@pytest.mark.parametrize("name", ["json", "json-smol"])
def test_a_download_of_the_stock_client_installs_offline(world, name):
    world.download()

    (done,) = world.bob.json("install", f"{world.team}/{name}@base-7b", "--offline")

    assert (done["name"], done["digest"], done["version"]) == (f"{world.team}/json", world.digest, "1.0.0")
    assert "in the Hugging Face cache" in done["source"]
    assert world.bob.json("verify", f"{world.team}/json")[0]["status"] == "ok"


def test_a_changed_byte_in_the_cache_is_refused_and_nothing_is_kept(world):
    weights = (world.download() / "adapter_model.safetensors").resolve()
    weights.chmod(0o644)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)

    assert "adapter_model.safetensors" in world.bob.fails(12, "install", f"{world.team}/json", "--offline")
    assert world.bob.json("list") == []


def test_a_partial_download_and_another_namespace_are_passed_over(world):
    snapshot = world.download()
    (snapshot / "adapter_model.safetensors").unlink()

    assert "Hugging Face cache" in world.bob.fails(10, "install", f"{world.team}/json", "--offline")
    assert world.bob("install", "other/json", "--offline").exit_code == 10
    assert world.bob("install", "json", "--offline").exit_code == 10


def test_a_plain_repository_gets_the_version_of_the_tag_it_was_downloaded_by(world):
    api = HfApi(endpoint=world.server.url, token=world.server.token)
    repo = f"{world.team}/plain"
    api.create_repo(repo)
    api.upload_folder(repo_id=repo, folder_path=world.folder / "made")
    api.create_tag(repo, tag="v2.1")
    api.snapshot_download(repo, revision="v2.1", cache_dir=world.cache)

    (done,) = world.bob.json("install", repo, "--offline")

    assert (done["name"], done["version"]) == (repo, "2.1")


def test_a_namespace_that_belongs_to_a_remote_is_not_taken_from_the_cache(world):
    world.download()
    world.bob.ok("remote", "add", "ours", world.server.url, "--namespaces", world.team)

    refused = world.bob("install", f"{world.team}/json", "--offline")

    assert refused.exit_code == 14
    assert world.bob.json("list") == []


def test_a_snapshot_is_added_as_the_manifest_beside_it_says(world):
    snapshot = world.download()

    done = world.bob.json("add", snapshot)

    assert (done["name"], done["version"], done["digest"], done["created"]) == ("json", "1.0.0", world.digest, True)
    assert world.bob.json("info", "json")["task"] == "forms"
    assert world.bob.json("add", snapshot, "--base", "base-7b")["created"] is False
    assert world.bob.library.verify_build(next(iter(world.bob.library.installed()))).status == "ok"


def test_a_snapshot_that_is_described_otherwise_is_another_adapter(world):
    done = world.bob.json("add", world.download(), "--name", "mine", "--version", "2.0")

    assert (done["name"], done["version"]) == ("mine", "2.0")
    assert done["digest"] != world.digest


def test_a_folder_that_differs_from_its_manifest_is_refused(world, tmp_path):
    share = tmp_path / "share"
    world.ann.ok("pull", "json", share)
    (share / "adapter_config.json").write_text("{}")

    assert "adapter_config.json" in world.bob.fails(12, "add", share)
    assert world.bob.json("list") == []


def test_a_locked_project_syncs_from_the_cache(world, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    (project / "adapters.toml").write_text(
        f'[project]\nbase = "base-7b"\n\n[remotes.reg]\nurl = "{world.server.url}"\nnamespaces = ["{world.team}"]\n\n'
        f'[adapters]\nqa = "{world.team}/json"\n'
    )
    Adapt(project, "../ann").ok("sync")
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("adapters.toml", "adapters.lock"):
        (copy / name).write_text((project / name).read_text())
    bob = Adapt(copy, "../bob")
    assert bob("sync", "--frozen", "--offline").exit_code == 13
    world.download()

    bob.ok("sync", "--frozen", "--offline")

    assert bob.json("list")[0]["digest"] == world.digest
