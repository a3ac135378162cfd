"""A version that reads like another never has other bytes: what `==` takes may exist once, wherever it is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from adapterhub.core.errors import AmbiguousSpec, ReleaseExists, SpecError
from adapterhub.core.specs import AdapterSpec, parse_released
from adapterhub.distribution.install import InstallPlan, plan_install
from adapterhub.formats.release import Release
from adapterhub.library.directory import BuildFolder, PublishedDirectory
from adapterhub.library.installed import Added
from adapterhub.library.library import Library
from adapterhub.library.transfer import copy
from tests.attacks.test_released_names import BAD, REPO, TAG, ann, put, release, server, tag
from tests.support.command_line import Adapt

__all__ = ["ann", "server"]
EQUAL = ["v1", "v1.0", "v1.0.0.0", "v01.0", "v0!1.0.0"]
LOCAL = ["v1.0.0+evil", "v1+1", "v1.0.0-1+x", "v9.9+evil"]


# ---------------------------------------------------------------- the registry
def remove(client: httpx.Client, repo: str) -> None:
    namespace, _, name = repo.partition("/")
    body = {"organization": namespace, "name": name}
    client.request("DELETE", "/api/repos/delete", json=body).raise_for_status()
    client.post("/api/repos/create", json=body).raise_for_status()
    put(client, "adapter_config.json", json.dumps({"peft_type": "LORA"}).encode())


def versions(client: httpx.Client) -> list[tuple[str, bool]]:
    told = client.get(f"/api/adapt/v1/adapters/{REPO}/versions").raise_for_status().json()["versions"]
    return [(one["version"], one["yanked"] is not None) for one in told]


@pytest.mark.parametrize("after", ["a release", "a yank", "a deleted tag", "a deleted repository"])
def test_no_spelling_of_a_released_version_gets_other_bytes(ann: httpx.Client, after: str) -> None:
    release(ann, untag=after == "a deleted tag")
    if after == "a yank":
        ann.post(f"/api/adapt/v1/adapters/{REPO}/yank", json={"version": "1.0.0", "reason": "x"}).raise_for_status()
    if after == "a deleted repository":
        remove(ann, REPO)
    put(ann, "adapter_model.safetensors", BAD)

    refused = [tag(ann, name) for name in EQUAL]

    assert {answer.status_code for answer in refused} == {409}
    assert all("1.0.0" in answer.json()["error"] for answer in refused)
    assert [version for version, _ in versions(ann)] == ([] if after.startswith("a deleted") else ["1.0.0"])


def test_no_local_version_is_released(ann: httpx.Client) -> None:
    release(ann, untag=False)
    put(ann, "adapter_model.safetensors", BAD)

    refused = [tag(ann, name) for name in LOCAL]

    assert {answer.status_code for answer in refused} == {422}
    assert all("has no local part" in answer.json()["error"] for answer in refused)
    assert versions(ann) == [("1.0.0", False)]


def test_a_yank_an_alias_and_a_result_name_a_version_in_any_spelling(ann: httpx.Client) -> None:
    release(ann, untag=False)
    alias = ann.post(f"/api/adapt/v1/adapters/{REPO}/aliases/prod", json={"targets": [{"version": "1", "weight": 1}]})
    ann.post(f"/api/adapt/v1/adapters/{REPO}/yank", json={"version": "v1.0", "reason": "x"}).raise_for_status()

    assert alias.raise_for_status().json()["targets"][0]["version"] == "1.0.0"
    assert versions(ann) == [("1.0.0", True)]
    assert ann.get(f"/api/adapt/v1/adapters/{REPO}/tests/1.0").raise_for_status().json()["results"] == []
    assert ann.get(f"/api/adapt/v1/adapters/{REPO}/tests/banana").status_code == 404
    assert tag(ann, TAG).status_code == 409


def test_a_tag_names_the_version_that_its_build_has(
    ann: httpx.Client, add: Callable[..., Added], library: Library
) -> None:
    build = add("x").build
    ann.post("/api/repos/create", json={"organization": "acme", "name": "x"}).raise_for_status()
    for name in ("adapter_config.json", "adapter_model.safetensors", "adapterhub.json"):
        put(ann, name, (build.folder / name).read_bytes()).raise_for_status()

    assert tag(ann, "v9.9").status_code == 409
    assert versions(ann) == []
    assert tag(ann, "v1.0").status_code == 200


# ---------------------------------------------------------------- a library and a folder
def published(library: Library, build: Added, place: Path) -> None:
    copy(library.releases(AdapterSpec.parse(build.build.full_name))[0], library, PublishedDirectory(place))


def plan(library: Library, text: str, place: Path) -> InstallPlan:
    return plan_install(library, AdapterSpec.parse(text), [PublishedDirectory(place)], wanted=None)


@pytest.mark.parametrize("version", ["1", "1.0", "1.0.0.0"])
def test_a_library_takes_no_other_spelling_of_a_version_that_it_has(
    add: Callable[..., Added], library: Library, tmp_path: Path, version: str
) -> None:
    add("qa", seed=1)
    other = Library(tmp_path / "other")
    strange = add("qa", seed=2, version=version, into=other)

    with pytest.raises(ReleaseExists):
        add("qa", seed=2, version=version)
    with pytest.raises(ReleaseExists, match=r"1\.0\.0, the same version as"):
        copy(Release(manifest=strange.build.manifest, namespace=None, origin="x"), other, library)

    assert [build.manifest.version for build in library.builds_named("qa")] == ["1.0.0"]


def test_a_folder_takes_no_other_spelling_of_a_version_that_it_has(
    add: Callable[..., Added], library: Library, tmp_path: Path
) -> None:
    published(library, add("qa", seed=1), tmp_path / "team")
    other = Library(tmp_path / "other")
    add("qa", seed=2, version="1.0", into=other)

    with pytest.raises(ReleaseExists):
        copy(other.releases(AdapterSpec.parse("qa"))[0], other, PublishedDirectory(tmp_path / "team"))

    assert [path.name for path in (tmp_path / "team" / "qa").iterdir()] == ["1.0.0-r4"]


def test_two_spellings_in_a_folder_of_strangers_are_never_chosen_between(
    add: Callable[..., Added], library: Library, tmp_path: Path
) -> None:
    published(library, add("qa", seed=1), tmp_path / "team")
    other = Library(tmp_path / "other")
    strange = add("qa", seed=2, version="1.0", into=other)
    copy(other.releases(AdapterSpec.parse("qa"))[0], other, BuildFolder(tmp_path / "team" / "strange"))
    empty = Library(tmp_path / "empty")

    for text in ("qa", "qa==1.0.0", "qa==1"):
        with pytest.raises(AmbiguousSpec, match="in 2 spellings"):
            plan(empty, text, tmp_path / "team")
    exact = plan(empty, f"qa#{strange.build.manifest.digest}", tmp_path / "team")

    assert exact.release.manifest.version == "1.0"


def test_an_exact_version_is_no_local_one(add: Callable[..., Added], library: Library, tmp_path: Path) -> None:
    published(library, add("qa", seed=1), tmp_path / "team")
    other = Library(tmp_path / "other")
    add("qa", seed=2, version="1.0.0+evil", into=other)
    copy(other.releases(AdapterSpec.parse("qa"))[0], other, BuildFolder(tmp_path / "team" / "strange"))

    chosen = plan(Library(tmp_path / "empty"), "qa==1.0.0", tmp_path / "team").release

    assert chosen.manifest.version == "1.0.0"


@pytest.mark.parametrize("text", ["1.0.0+evil", "0+abcdef123456", "v2+1"])
def test_a_released_version_has_no_local_part(text: str) -> None:
    with pytest.raises(SpecError, match="no local part"):
        parse_released(text)


def test_no_command_publishes_a_local_version(add: Callable[..., Added], tmp_path: Path) -> None:
    adapt = Adapt(tmp_path)
    add("qa", version="1.0.0+evil")

    pushed = adapt("push", "qa", "--to", str(tmp_path / "team"))
    added = adapt("add", str(tmp_path / "made" / "qa-0"), "--name", "other", "--version", "1.0.0+x", "--no-base")

    assert (pushed.exit_code, added.exit_code) == (2, 2)
    assert "local" in pushed.stderr
    assert "write `1.0.0`" in added.stderr
    assert not (tmp_path / "team").exists()
