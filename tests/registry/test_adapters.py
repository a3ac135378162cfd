"""The index by itself: rows and tags from real files, in a real database."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from adapterhub_registry.access.audit import By
from adapterhub_registry.database.db import refs, repos
from adapterhub_registry.errors import HttpRefusal
from adapterhub_registry.repos.adapter_facts import facts_of, tags_of_adapter, without_contradictions
from adapterhub_registry.repos.adapters import (
    NewTag,
    adapt_object,
    bury,
    index_commit,
    unyank,
    versions_of,
    warning_for,
    yank,
)
from adapterhub_registry.repos.search import AdapterQuery, search_adapters
from adapterhub_registry.storage.blobs import DiskBlobs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Row, delete, insert, select, true, update
from sqlalchemy.engine import Connection

from adapterhub.formats.manifest import MANIFEST_FILE, MEDIA_TYPES
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.installed import Added
from adapterhub.library.library import Library
from tests.support.tiny import make_adapter

WEIGHTS = "adapter_model.safetensors"


class AdapterCache:
    """Repositories written into the tables by hand, each commit a counter."""

    def __init__(self, connection: Connection, blobs: DiskBlobs) -> None:
        self.connection, self.blobs, self.count = connection, blobs, 0

    def repo(self, full_name: str) -> Row[Any]:
        found = self.connection.execute(select(repos).where(repos.c.full_name == full_name)).one_or_none()
        if found is None:
            namespace = full_name.partition("/")[0]
            values = {"full_name": full_name, "namespace": namespace, "folded": full_name, "private": False}
            values |= {"folded_namespace": namespace, "created_by": "u", "created_at": 0, "modified_at": 0}
            self.connection.execute(insert(repos).values(**values, head="0" * 40))
            return self.repo(full_name)
        return found

    def commit(self, full_name: str, files: Mapping[str, bytes], *, tag: str | None = None) -> list[str]:
        """Files become the head of main, then, with `tag`, a tagged commit; the tags of the head."""
        repo = self.repo(full_name)
        self.count += 1
        commit = f"{self.count:040x}"
        stored = {path: self.blobs.put([data]).sha256 for path, data in files.items()}
        tags = index_commit(self.connection, self.blobs, repo, commit, stored, writes=lambda _: True)
        if tag is not None:
            self.tag(full_name, commit, tag)
            index_commit(self.connection, self.blobs, repo, commit, stored, tag=NewTag(name=tag), writes=lambda _: True)
        return tags

    def tag(self, full_name: str, commit: str, tag: str) -> None:
        key = {"repo_id": self.repo(full_name).id, "kind": "tag", "name": tag}
        self.connection.execute(insert(refs).values(**key, commit_id=commit, created_at=0))

    def head(self) -> str:
        return f"{self.count:040x}"

    def found(self, **query: Any) -> list[tuple[str, str | None]]:
        page = search_adapters(self.connection, AdapterQuery(**query), true())
        return [(row.full_name, row.version) for row in page.rows]


@pytest.fixture
def shelf(connection: Connection, store: DiskBlobs) -> AdapterCache:
    return AdapterCache(connection, store)


def plain(folder: Path, **adapter: object) -> dict[str, bytes]:
    made = make_adapter(folder, **adapter)  # type: ignore[arg-type]
    return {path.name: path.read_bytes() for path in made.iterdir()}


@pytest.fixture
def built(tmp_path: Path, add: Callable[..., Added]) -> Callable[..., dict[str, bytes]]:
    """Files of a build with its manifest: `built("legal-qa", version="1.0.0", rank=4)`."""

    made = count()

    def make(name: str, **about: object) -> dict[str, bytes]:
        added = add(name, into=Library(tmp_path / f"home-{next(made)}"), **about)
        files = {path.name: path.read_bytes() for path in added.build.folder.iterdir()}
        return {name: data for name, data in files.items() if name in MEDIA_TYPES or name == MANIFEST_FILE}

    return make


def test_a_plain_adapter_is_known_by_its_files(shelf: AdapterCache, tmp_path: Path) -> None:
    tags = shelf.commit("acme/x", plain(tmp_path / "a", rank=8))

    assert {"lora", "lora-rank:8", "base_model:test/tiny", "base_model:adapter:test/tiny"} == set(tags)
    facts = adapt_object(shelf.connection, shelf.repo("acme/x").id, shelf.head())
    assert facts is not None
    assert tuple(facts[key] for key in ("rank", "alpha", "peft_type", "base", "target_modules", "dtype")) == (
        8,
        16.0,
        "LORA",
        "test/tiny",
        ("q_proj", "v_proj"),
        "F32",
    )
    assert facts["parameters"] == 2 * 2 * 2 * 8 * 8


def test_a_manifest_adds_the_base_fingerprint_name_task_and_version(
    shelf: AdapterCache, built: Callable[..., dict[str, bytes]], base: BaseRecord
) -> None:
    weights = base.fingerprint.weights[7:]

    tags = shelf.commit("acme/legal-qa-base-7b", built("legal-qa", task="legal", rank=4))

    assert {
        "adapterhub",
        "lora",
        "adapter-name:legal-qa",
        "adapter-task:legal",
        "lora-rank:4",
        f"base-sha256:{weights[:32]}",
        f"base-sha256:{weights}",
    } <= set(tags)
    assert shelf.found(base_sha256=weights, task="legal", rank_min=4, rank_max=4) == [
        ("acme/legal-qa-base-7b", "1.0.0")
    ]


def test_a_manifest_of_other_files_is_not_believed(shelf: AdapterCache, built: Callable[..., dict[str, bytes]]) -> None:
    files = built("legal-qa", rank=4)
    files[WEIGHTS] = built("legal-qa-2", rank=8, seed=3)[WEIGHTS]

    tags = shelf.commit("acme/x", files)

    assert "lora-rank:8" in tags
    assert not [t for t in tags if t.startswith(("base-sha256:", "adapter-name:"))]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"adapter_config.json": b"\xff"}, {"lora-rank:4"}),
        ({"adapter_config.json": b'{"peft_type": "LORA", "r": ' + b"9" * 300 + b"}"}, {"lora-rank:4"}),
        ({"adapter_config.json": b"[" * 100_000}, {"lora-rank:4"}),
        ({"adapter_config.json": b'{"auto_mapping": {"parent_library": "x"}, "peft_type": "LORA", "r": 7}'}, {"lora"}),
        ({WEIGHTS: b""}, {"lora", "lora-rank:4"}),
        ({WEIGHTS: b"\xff" * 100}, {"lora", "lora-rank:4"}),
        ({WEIGHTS: (90).to_bytes(8, "little") + b"{" * 100}, {"lora", "lora-rank:4"}),
        ({"adapterhub.json": b'{"schema": "adapterhub/1"}', "README.md": b"---\ntags: [\n---\n"}, {"lora"}),
        ({"README.md": b"---\npipeline_tag: text-generation\n---\n"}, {"adapter-task:text-generation"}),
        ({"README.md": b"---\npipeline_tag: x\ntags: [1, 'adapter-task:legal']\n---\n"}, {"adapter-task:legal"}),
    ],
)
def test_odd_files_are_indexed_as_far_as_they_can_be_read(
    shelf: AdapterCache, tmp_path: Path, change: dict[str, bytes], expected: set[str]
) -> None:
    tags = shelf.commit("acme/x", plain(tmp_path / "a", rank=4) | change)

    assert expected <= set(tags)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["adapter_config.json", WEIGHTS, "adapterhub.json", "README.md"]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=5),
    st.floats(0.2, 1),
)
def test_damaged_files_never_fail_a_commit(
    store: DiskBlobs, small: dict[str, bytes], name: str, edits: list[tuple[float, int]], cut: float
) -> None:
    damaged = bytearray(small[name])
    for place, value in edits:
        damaged[int(place * len(damaged))] = value
    files = small | {name: bytes(damaged[: int(cut * len(damaged))])}

    facts = facts_of({path: store.put([data]).sha256 for path, data in files.items()}, store)

    assert facts is not None
    assert all(len(tag) <= 256 for tag in tags_of_adapter(facts))


@pytest.fixture
def small(built: Callable[..., dict[str, bytes]]) -> dict[str, bytes]:
    card = b"---\nlicense: mit\ntags:\n- lora\n- adapter-task:legal\n---\n# text\n"
    return built("legal-qa", rank=2) | {"README.md": card}


def test_a_card_cannot_contradict_the_files(shelf: AdapterCache, built: Callable[..., dict[str, bytes]]) -> None:
    tags = shelf.commit("acme/x", built("legal-qa", rank=4))

    kept = without_contradictions(["law", "lora-rank:64", "base-sha256:" + "0" * 32, "adapter-task:maths"], tags)

    assert kept == ["law", "adapter-task:maths"]


def test_a_version_with_other_bytes_is_refused(shelf: AdapterCache, built: Callable[..., dict[str, bytes]]) -> None:
    shelf.commit("acme/x", built("legal-qa", seed=1), tag="v1.0.0")

    for tag in (None, "v1.0.0"):
        with pytest.raises(HttpRefusal, match=r"1\.0\.0 of `acme/x` exists with other bytes") as refusal:
            shelf.commit("acme/x", built("legal-qa", seed=2), tag=tag)
        assert refusal.value.status == 409


def test_the_same_bytes_may_be_released_again(shelf: AdapterCache, built: Callable[..., dict[str, bytes]]) -> None:
    files = built("legal-qa")
    shelf.commit("acme/x", files, tag="v1.0.0")
    shelf.connection.execute(delete(refs).where(refs.c.kind == "tag"))

    shelf.commit("acme/x", files | {"README.md": b"another card"}, tag="v1.0.0")

    assert [(shelf.head(), "1.0.0")] == [
        (row.commit_id, row.released_as) for row in versions_of(shelf.connection, shelf.repo("acme/x").id)
    ]


def test_one_namespace_has_one_build_of_a_version_for_each_base_and_rank(
    shelf: AdapterCache, built: Callable[..., dict[str, bytes]]
) -> None:
    shelf.commit("acme/x", built("legal-qa", rank=4, seed=1), tag="v1.0.0")
    shelf.commit("acme/y", built("legal-qa", rank=8, seed=1), tag="v1.0.0")
    shelf.commit("other/x", built("legal-qa", rank=4, seed=2), tag="v1.0.0")

    with pytest.raises(HttpRefusal, match="`acme/x` exists with other bytes"):
        shelf.commit("acme/z", built("legal-qa", rank=4, seed=3), tag="v1.0.0")
    shelf.connection.execute(update(repos).where(repos.c.full_name == "acme/x").values(private=True))
    with pytest.raises(HttpRefusal, match="of adapter `legal-qa` in `acme` exists with other bytes"):
        shelf.commit("acme/z", built("legal-qa", rank=4, seed=3), tag="v1.0.0")


def test_a_build_of_a_removed_repository_keeps_its_version_in_its_namespace(
    shelf: AdapterCache, built: Callable[..., dict[str, bytes]]
) -> None:
    first = built("legal-qa", rank=4, seed=1)
    shelf.commit("acme/x", first, tag="v1.0.0")
    bury(shelf.connection, shelf.repo("acme/x"))
    shelf.connection.execute(delete(repos))

    with pytest.raises(HttpRefusal, match=r"1\.0\.0 of adapter `legal-qa` in `acme` was removed and had other bytes"):
        shelf.commit("acme/z", built("legal-qa", rank=4, seed=3), tag="v1.0.0")
    shelf.commit("acme/eight", built("legal-qa", rank=8, seed=3), tag="v1.0.0")
    shelf.commit("acme/named", built("tax-qa", rank=4, seed=3), tag="v1.0.0")
    shelf.commit("acme/later", built("legal-qa", rank=4, seed=3, version="1.0.1"), tag="v1.0.1")
    shelf.commit("other/x", built("legal-qa", rank=4, seed=3), tag="v1.0.0")
    shelf.commit("acme/same", first, tag="v1.0.0")


def test_the_newest_release_stands_for_its_repository(
    shelf: AdapterCache, built: Callable[..., dict[str, bytes]]
) -> None:
    for version in ("1.9.0", "1.10.0", "1.2.0"):
        shelf.commit("acme/x", built("legal-qa", version=version), tag=f"v{version}")
    shelf.commit("acme/x", built("legal-qa", version="2.0.0.dev0"))

    assert shelf.found() == [("acme/x", "1.10.0")]


def test_a_yanked_release_leaves_searches_and_warns(
    shelf: AdapterCache, built: Callable[..., dict[str, bytes]]
) -> None:
    shelf.commit("acme/x", built("legal-qa", version="1.0.0"), tag="v1.0.0")
    shelf.commit("acme/x", built("legal-qa", version="1.1.0", seed=5), tag="v1.1.0")
    repo = shelf.repo("acme/x")

    yank(shelf.connection, repo, "1.1.0", reason="trained on leaked labels\nsee é", by=By("ann"))

    assert shelf.found() == [("acme/x", "1.0.0")]
    warning = warning_for(shelf.connection, repo.id, shelf.head())
    assert warning == r"yanked; version 1.1.0 was yanked: trained on leaked labels\nsee ?"
    unyank(shelf.connection, repo, "1.1.0", by=By("ann"))
    assert shelf.found() == [("acme/x", "1.1.0")]
    assert warning_for(shelf.connection, repo.id, shelf.head()) is None


def test_the_head_does_not_bring_back_yanked_bytes(shelf: AdapterCache, built: Callable[..., dict[str, bytes]]) -> None:
    shelf.commit("acme/x", built("legal-qa"), tag="v1.0.0")

    yank(shelf.connection, shelf.repo("acme/x"), "1.0.0", reason="wrong", by=By("ann"))

    assert shelf.found() == []


def test_yanking_what_was_never_released_is_refused(shelf: AdapterCache, tmp_path: Path) -> None:
    shelf.commit("acme/x", plain(tmp_path / "a"))

    with pytest.raises(HttpRefusal, match=r"no release 1\.0\.0") as refusal:
        yank(shelf.connection, shelf.repo("acme/x"), "1.0.0", reason="x", by=By("ann"))
    assert refusal.value.status == 404


def test_a_head_that_is_no_adapter_any_more_is_forgotten(shelf: AdapterCache, tmp_path: Path) -> None:
    shelf.commit("acme/x", plain(tmp_path / "a"))

    shelf.commit("acme/x", {"README.md": b"gone"})

    assert shelf.found() == []


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"q": "LEGAL acme"}, ["acme/legal"]),
        ({"q": "%"}, []),
        ({"q": "tiny"}, ["acme/maths", "acme/legal"]),
        ({"base": "test/tiny", "rank_min": 5}, ["acme/maths"]),
        ({"rank_max": 4}, ["acme/legal"]),
        ({"peft_type": "lora", "rank_min": 4}, ["acme/maths", "acme/legal"]),
        ({"base": "test/other"}, []),
        ({"task": "legal"}, []),
    ],
)
def test_conditions_are_all_met(
    shelf: AdapterCache, tmp_path: Path, query: dict[str, Any], expected: list[str]
) -> None:
    shelf.commit("acme/legal", plain(tmp_path / "a", rank=4))
    shelf.commit("acme/maths", plain(tmp_path / "b", rank=8))

    assert sorted(expected) == sorted(name for name, _ in shelf.found(**query))


@pytest.mark.parametrize(
    "query", [{"base_sha256": "abc"}, {"base_sha256": "g" * 64}, {"cursor": "x"}, {"q": "a " * 17}]
)
def test_questions_that_cannot_be_read_are_refused(shelf: AdapterCache, query: dict[str, Any]) -> None:
    with pytest.raises(HttpRefusal) as refusal:
        shelf.found(**query)

    assert refusal.value.status == 400
