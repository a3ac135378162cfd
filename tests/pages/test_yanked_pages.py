"""The page of an adapter whose newest version is yanked: facts and copied lines are those of the newest that is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import huggingface_hub.constants
import pytest
from huggingface_hub import HfApi

from adapterhub.core.specs import parse_name
from adapterhub.distribution.hub import Hub
from adapterhub.formats.release import Release
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from adapterhub.library.transfer import copy
from tests.pages.conftest import Running, running
from tests.pages.test_registry_pages import HTML
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base

pytestmark = pytest.mark.slow

RANKS = {"1.0.0": 4, "1.1.0": 8}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """`acme/half` with 1.1.0 yanked, and `acme/none` with both versions yanked."""
    folder = tmp_path_factory.mktemp("yanked")
    library = Library(folder / "home")
    base = library.bases.add(make_base(folder / "base"), "base-7b")
    library.catalog.put_base(base)
    with pytest.MonkeyPatch.context() as patch, running(folder / "registry") as server:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        hub = Hub(endpoint=server.url, token=server.token)
        for repo, yanked in {"acme/half": ["1.1.0"], "acme/none": ["1.0.0", "1.1.0"]}.items():
            name = parse_name(repo.partition("/")[2])
            for version, rank in RANKS.items():
                made = make_adapter(folder / repo / version, rank=rank, seed=rank)
                about = Description(name=name, version=version, description=f"What {version} does")
                build = library.add(made, about, base=base).build
                release = Release(manifest=build.manifest, namespace=None, origin="home", base_hub_id="org/base")
                copy(release, library, hub.to(repo))
            for version in yanked:
                server.yank(repo, f"leaks in {version}", version)
        yield server


def page_of(registry: Running, repo: str) -> dict[str, object]:
    return registry.get(f"/{repo}?format=json").json()


def test_a_page_shows_the_newest_version_that_is_not_yanked(registry):
    page = page_of(registry, "acme/half")

    head, facts = page["head"], {fact["name"]: fact["text"] for fact in page["facts"]}
    assert (head["version"], facts["Method"], head["description"]) == (
        "1.0.0",
        "LoRA, rank 4, alpha 8",
        "What 1.0.0 does",
    )
    assert (head["newest"], head["notices"]) == ("1.0.0", [])
    assert all("/blob/v1.0.0/" in file["url"] for file in page["files"])
    assert next(link["url"] for link in head["tabs"] if link["text"] == "Weights") == "/acme/half/1.0.0"
    assert "What 1.1.0 does" not in httpx.get(f"{registry.url}/acme/half", headers=HTML).text


def test_every_copied_line_fetches_the_version_that_is_not_yanked(registry, online, tmp_path):
    page = page_of(registry, "acme/half")
    lines = {one["program"]: one["text"] for one in page["snippets"]}
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{mine['PATH']}"
    mine |= {"HF_HOME": str(tmp_path / "hf"), "PATH": path, "HF_HUB_DISABLE_TELEMETRY": "1"}

    def run(text: str) -> None:
        done = subprocess.run(["sh", "-ec", text], cwd=tmp_path, env=mine, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    assert lines["vLLM"].startswith(f"{lines['hf']}\n")
    run(f'vllm() {{ echo "$@" > served; }}\n{lines["vLLM"]}')
    assert rank_in(tmp_path / (tmp_path / "served").read_text().split()[-1].partition("=")[2]) == 4
    commit = registry.get("/api/models/acme/half/revision/v1.0.0").json()["sha"]
    assert f'from_pretrained(base, "acme/half", revision="{commit}")' in lines["PEFT"]  # `test_peft` loads such a one
    adapt = Adapt(tmp_path)
    run_adapt = page["head"]["install"].removeprefix("adapt ").split()
    adapt.ok(*run_adapt)
    assert [build.manifest.version for build in adapt.library.installed()] == ["1.0.0"]


def rank_in(folder: Path) -> int:
    return json.loads((folder / "adapter_config.json").read_text())["r"]


def test_a_page_of_yanked_versions_alone_says_so_and_gives_no_lines(registry):
    page = page_of(registry, "acme/none")

    assert (page["snippets"], page["head"]["install"]) == ([], "")
    [notice] = page["head"]["notices"]
    assert notice["text"] == "Every version is yanked; the newest, 1.1.0: leaks in 1.1.0"
    assert notice["text"] in httpx.get(f"{registry.url}/acme/none", headers=HTML).text


def test_weights_of_yanked_versions_alone_are_told_to_be_yanked(registry):
    weights = registry.get("/acme/none/1.1.0?format=json").json()["head"]

    assert any(badge["text"] == "Yanked" for badge in weights["badges"])
    assert weights["install"].startswith("adapt install acme/none==1.1.0 ")  # for an exact pin works


def test_a_version_that_is_not_the_newest_says_which_is_and_what_changed(registry):
    page = registry.get("/acme/none/1.0.0?format=json").json()
    old = registry.get("/acme/half/1.1.0?format=json").json()

    assert [notice["text"] for notice in page["head"]["notices"]] == ["Yanked: leaks in 1.0.0"]
    assert old["head"]["notices"][0]["link"] == {
        "text": "1.0.0",
        "url": "/acme/half/1.0.0",
        "is_here": False,
        "count": None,
    }
    assert (old["before"]["text"], old["changes"][0]) == ("1.0.0", "Rank 8, was 4.")


def test_a_tag_of_the_hub_still_names_what_the_card_says(registry, online):
    """The card of a version takes that version, also where it is read as the card of the repository."""
    card = HfApi(endpoint=registry.url).hf_hub_download("acme/half", "README.md", revision="v1.0.0")

    assert 'revision="v1.0.0"' in Path(card).read_text()
    assert "hf download acme/half --revision v1.0.0 " in Path(card).read_text()
