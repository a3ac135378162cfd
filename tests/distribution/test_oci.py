"""Adapters in an OCI registry: what is pushed there, and that it comes back the same, signed and tested as it was."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapterhub.formats.manifest import MANIFEST_FILE, WEIGHTS_FILE
from tests.support.command_line import Adapt
from tests.support.oci_registry import OciServer, serving
from tests.support.tiny import make_adapter

REPO = "acme/legal-qa"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"


@pytest.fixture(params=[True, False], ids=["referrers", "fallback tag"])
def registry(request: pytest.FixtureRequest, online: None) -> Iterator[OciServer]:
    with serving(refers=request.param) as server:
        yield server


@pytest.fixture
def plain(online: None) -> Iterator[OciServer]:
    with serving() as server:
        yield server


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, add, base) -> Adapt:
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_RUNTIME_DIR", "ADAPTERHUB_TOKEN", "ADAPTERHUB_REMOTE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    add("legal-qa", task="legal", rank=4, description="Answers on contracts.")
    return Adapt(tmp_path)


@pytest.fixture
def other(home: Adapt, base) -> Adapt:
    """Another user, who has the base alone."""
    made = Adapt(home.folder, home="other")
    record = made.library.bases.add(Path(home.folder / "base"), "base-7b")
    made.library.catalog.put_base(record)
    return made


def test_a_pushed_build_is_a_modelpack_image_whose_layers_are_its_files(home, plain):
    sent = home.json("push", "legal-qa@base-7b", "--to", f"{plain.address}/{REPO}")

    image = plain.manifest(REPO, "1.0.0")
    build = next(iter(home.library.installed()))
    layers = {one["annotations"]["org.opencontainers.image.title"]: one for one in image["layers"]}
    assert image["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert image["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    assert layers[WEIGHTS_FILE]["mediaType"] == "application/vnd.cncf.model.weight.v1.raw"
    assert layers[WEIGHTS_FILE]["digest"] == build.manifest.file(WEIGHTS_FILE).sha256
    assert layers[MANIFEST_FILE]["digest"] == build.manifest.digest
    assert set(layers) == {"adapter_config.json", WEIGHTS_FILE, MANIFEST_FILE, "README.md"}
    assert image["annotations"]["vnd.adapterhub.base"] == build.base.fingerprint.weights
    config = json.loads(plain.blobs[REPO, image["config"]["digest"]])
    assert config["descriptor"]["name"] == "legal-qa"
    assert config["modelfs"] == {"type": "layers", "diffIds": [one["digest"] for one in image["layers"]]}
    assert (sent["created"], sent["sent_files"]) == (True, 2)
    assert sent["url"].startswith(f"{plain.address}/{REPO}:1.0.0@sha256:")
    assert plain.tags(REPO) == ["1.0.0"]


def test_a_signed_build_comes_back_with_signature_and_origin(home, other, registry):
    home.ok("key", "new", "ana", "--no-password")
    home.ok("push", "legal-qa@base-7b", "--to", f"{registry.address}/{REPO}", "--sign", "--key", "ana")
    home.ok("key", "show", "ana", "--out", home.folder / "ana.pub")
    other.ok("key", "trust", "ana", home.folder / "ana.pub")
    other.ok("key", "policy", "require")

    other.ok("install", f"{REPO}@base-7b", "--remote", registry.address)

    (build,) = other.library.installed()
    assert build.manifest == next(iter(home.library.installed())).manifest
    assert other.library.origins.of(build.manifest.digest).place == registry.address
    assert other.json("verify", f"{REPO}@base-7b")["signature"]["status"] == "trusted"
