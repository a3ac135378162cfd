"""Both images are built from the wheel alone, start as they say, and carry an adapter from its author to its user.

`pytest --exhaustive tests/deploy/test_images.py` runs it. Debian has the programs: `apt-get install buildah mmdebstrap`.
"""

from __future__ import annotations

import json
import re
import shutil
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from adapterhub.formats.manifest import WEIGHTS_FILE
from tests.deploy.images import Images
from tests.deploy.kubernetes import ROOT, SERVE, manifests
from tests.registry.shared_servers import free_ports
from tests.support.command_line import Adapt
from tests.support.standin_vllm import make_standin

pytestmark = pytest.mark.exhaustive

REGISTRY = ROOT / "registry" / "deploy" / "Containerfile"
CONFIG, FILES = (one["data"] for one in manifests() if one["kind"] == "ConfigMap")
POD = next(one for one in manifests() if one["kind"] == "StatefulSet")["spec"]["template"]["spec"]
SERVING = POD["containers"][0]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that both images are built of: it holds the wheel, and nothing else."""
    from hatchling.build import build_wheel

    folder = tmp_path_factory.mktemp("dist")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        build_wheel(str(folder))
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Iterator[Images]:
    """Both, on a Debian in place of their bases; vLLM's has the stand-in for vLLM."""
    made = Images(tmp_path_factory.mktemp("images"))
    made.debian("localhost/python")
    made.build("localhost/registry", REGISTRY, wheel, PYTHON="localhost/python")
    standin = made.folder / "vllm"
    make_standin(standin)
    made.derived(
        "localhost/vllm",
        "localhost/python",
        standin / "site",
        to="/usr/local/lib/python3.13/dist-packages",
        without="/usr/lib/python3.13/EXTERNALLY-MANAGED",  # as in vLLM's image
    )
    made.build("localhost/serve", SERVE / "Containerfile", wheel, VLLM="localhost/vllm")
    yield made
    made.clear()
    shutil.rmtree(made.folder, ignore_errors=True)


@dataclass(frozen=True)
class Server:
    url: str
    token: str


@pytest.fixture
def registry(images: Images) -> Iterator[Server]:
    """The image of the registry, which runs as its own configuration says, on a free port."""
    config = images.config("localhost/registry")
    (port,) = map(str, free_ports(1))
    words = [word.replace("8000", port) for word in (*config["Entrypoint"], *config["Cmd"])]
    container = images.container("localhost/registry")
    url = f"http://127.0.0.1:{port}"
    with images.running(container, words, f"{url}/healthz") as log:
        check = [word.replace("8000", port) for word in config["Healthcheck"]["Test"]]
        assert (check[0], images.run(container, check[1:])) == ("CMD", "")
        (token,) = re.findall(r"admin token .*: (\S+)", log.read_text())
        yield Server(url=url, token=token)


@pytest.fixture
def author(registry: Server, tmp_path: Path, add, base, online: None) -> Adapt:
    add("legal-qa", task="legal", rank=4)
    made = Adapt(tmp_path).having(ADAPTERHUB_TOKEN=registry.token)
    made.ok("remote", "add", "ours", registry.url, "--namespaces", "acme")
    made.ok("push", "legal-qa@base-7b", "--to", "acme/legal-qa", "--remote", "ours")
    return made


def test_what_is_pushed_to_the_image_of_the_registry_installs_from_it(registry: Server, author: Adapt, tmp_path: Path):
    from huggingface_hub import HfApi

    other = Adapt(tmp_path, home="other").having(ADAPTERHUB_TOKEN=registry.token)
    other.ok("base", "add", tmp_path / "base", "--as", "base-7b")
    other.ok("remote", "add", "ours", registry.url, "--namespaces", "acme")

    other.ok("install", "acme/legal-qa@base-7b")

    (sent,), (got,) = author.library.installed(), other.library.installed()
    assert got.manifest == sent.manifest
    assert (got.folder / WEIGHTS_FILE).read_bytes() == (sent.folder / WEIGHTS_FILE).read_bytes()
    assert WEIGHTS_FILE in HfApi(endpoint=registry.url, token=registry.token).list_repo_files("acme/legal-qa")


def test_an_image_runs_as_an_account_without_rights(images: Images):
    for name in ("localhost/registry", "localhost/serve"):
        assert images.config(name)["User"] == "10001"
        assert images.run(images.container(name), ["id", "-u"]).strip() == "10001"


def test_an_image_holds_the_wheel_and_none_of_the_sources(images: Images):
    for name, python in {"localhost/registry": "/venv/bin/python", "localhost/serve": "python3"}.items():
        container = images.container(name)
        place = images.run(container, [python, "-c", "import adapterhub; print(adapterhub.__file__)"])
        assert re.search(r"(site|dist)-packages/adapterhub/__init__.py$", place.strip())
        left = images.run(container, ["sh", "-c", "ls -d /src /tmp/wheel /tmp/vllm.txt 2>/dev/null || true"])
        assert left == ""


@pytest.fixture
def replica(images: Images, registry: Server, author: Adapt, tmp_path: Path) -> Iterator[str]:
    """A pod of `docs/deploy/serve`: its script twice, then its server, with the volumes and variables of its manifests."""
    library, mounted = tmp_path / "volume", tmp_path / "mounted"
    for folder in (library, mounted):
        folder.mkdir()
    library.chmod(0o777)  # as `fsGroup` has it
    for name, text in FILES.items():
        (mounted / name).write_text(text)
    volumes = {"library": library, "models": tmp_path / "models", "config": mounted}
    model = shutil.copytree(tmp_path / "base", tmp_path / "models" / Path(CONFIG["BASE_FOLDER"]).name)
    for path in model.iterdir():
        path.chmod(0o644)
    mounts = {
        f"{one['mountPath']}{':ro' if one.get('readOnly') else ''}": str(volumes[one["name"]])
        for one in SERVING["volumeMounts"]
        if one["name"] in volumes
    }
    variables = {**CONFIG, "REGISTRY_URL": registry.url, "ADAPTERHUB_TOKEN": registry.token}
    container = images.container("localhost/serve")
    for _ in range(2):
        images.run(container, POD["initContainers"][0]["command"], mounts=mounts, variables=variables)
    (port,) = map(str, free_ports(1))
    entry = [word.replace("8000", port) for word in images.config("localhost/serve")["Entrypoint"]]
    told = [word.replace("$(BASE)", CONFIG["BASE"]) for word in SERVING["args"]]
    url = f"http://127.0.0.1:{port}"
    with images.running(container, [*entry, *told], f"{url}/health", mounts=mounts, variables=variables):
        yield url


def test_a_replica_fetches_the_adapters_of_its_arguments_and_answers(replica: str, author: Adapt):
    (build,) = author.library.installed()
    asked = urllib.request.Request(
        f"{replica}/v1/completions", data=json.dumps({"model": "acme/legal-qa", "prompt": "x"}).encode()
    )
    with urllib.request.urlopen(asked) as answer:
        said = json.loads(answer.read())

    assert Path(said["path"]).name == build.manifest.digest.replace(":", "-")


def test_the_image_makes_a_key(images: Images):
    said = images.run(
        images.container("localhost/serve"), [*images.config("localhost/serve")["Entrypoint"], "--new-key"]
    )

    assert re.search(r"sha256:[0-9a-f]{64}", said)
