"""Released versions: what stays of them when their repository goes, and which refs may have their names."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from adapterhub_registry.access.callers import Caller
from adapterhub_registry.database.db import adapters, refs, releases, repos
from adapterhub_registry.database.db import tombstones as graves
from adapterhub_registry.errors import HttpRefusal
from adapterhub_registry.names import RepoId
from adapterhub_registry.repos import adapters as adapters_module
from adapterhub_registry.repos import aliases
from adapterhub_registry.repos.adapter_facts import AdapterFacts
from adapterhub_registry.repos.commits import Delete, Proposal, Put, commit
from adapterhub_registry.repos.repos import Repos
from adapterhub_registry.settings import ServerLimits
from adapterhub_registry.storage.blobs import DiskBlobs
from sqlalchemy import delete, insert, select
from sqlalchemy.engine import Connection

NOW = 1_700_000_000_000
ANN = Caller(user="ann", role="write", namespaces=("ann/*", "bob/*"))
DIGEST, OTHER = "d" * 64, "e" * 64
ADAPTER = AdapterFacts(digest=DIGEST, name="qa", base_model="org/base", base_sha256="b" * 64, rank=8)
GRAVE = {
    "full_name": "ann/gone",
    "version": "1.0.0",
    "namespace": "ann",
    "digest": OTHER,
    "name": "qa",
    "base_sha256": "b" * 64,
    "base_model": "org/base",
    "rank": 8,
    "created_at": 1,
}


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters_module, "now_ms", lambda: NOW)


@pytest.fixture
def desk(store: DiskBlobs) -> Repos:
    return Repos(store, anonymous_read=True, limits=ServerLimits(refs=3))


def create(connection: Connection, desk: Repos, name: str = "ann/x") -> Any:
    return desk.create(connection, ANN, RepoId(name), private=False)


def release(connection: Connection, repo: Any, version: str = "1.0.0", *, digest: str = DIGEST) -> None:
    values = {"version": version, "tag": f"v{version}", "commit_id": repo.head, "digest": digest, "created_at": 1}
    connection.execute(insert(releases).values(repo_id=repo.id, **values))


def index(connection: Connection, repo: Any, commit_id: str, **about: Any) -> None:
    values: dict[str, Any] = {"digest": DIGEST, "methods": "[]", "target_modules": "[]", "words": ""}
    values |= {"is_head": False, "is_listed": False, "created_at": 1} | about
    connection.execute(insert(adapters).values(repo_id=repo.id, commit_id=commit_id, **values))


def buried(connection: Connection) -> list[dict[str, Any]]:
    rows = connection.execute(select(graves).order_by(graves.c.full_name, graves.c.version))
    return [dict(row) for row in rows.mappings()]


def bury(connection: Connection, **other: Any) -> None:
    connection.execute(insert(graves).values(**GRAVE | other))


def check(conflict: str | None, act: Callable[..., None], *given: Any, **more: Any) -> None:
    """The act goes through, or is refused as a conflict in these words."""
    if conflict is None:
        act(*given, **more)
    else:
        with pytest.raises(HttpRefusal, match=conflict) as told:
            act(*given, **more)
        assert told.value.status == 409


# ---------------------------------------------------------------- tombstones
def test_a_tombstone_keeps_the_version_its_bytes_and_whose_adapter_it_was(connection: Connection, desk: Repos) -> None:
    row = create(connection, desk)
    release(connection, row)
    about = {"name": "qa", "base_sha256": "b" * 64, "base_model": "org/base", "rank": 8}
    index(connection, row, row.head, **about)
    index(connection, row, "f" * 40, name="of another commit")

    adapters_module.bury(connection, row)

    kept = {
        "full_name": "ann/x",
        "version": "1.0.0",
        "version_key": "1",
        "namespace": "ann",
        "digest": DIGEST,
        "created_at": NOW,
    }
    assert buried(connection) == [kept | about]


def test_a_release_whose_adapter_is_not_indexed_any_more_gets_its_tombstone(
    connection: Connection, desk: Repos
) -> None:
    row, other = create(connection, desk), create(connection, desk, "ann/other")
    release(connection, row)
    release(connection, row, "2.0.0", digest=OTHER)
    release(connection, other, "3.0.0")
    index(connection, other, row.head, name="of another repository")

    adapters_module.bury(connection, row)

    found = [(grave["full_name"], grave["version"], grave["digest"], grave["name"]) for grave in buried(connection)]
    assert found == [("ann/x", "1.0.0", DIGEST, None), ("ann/x", "2.0.0", OTHER, None)]


def test_an_older_tombstone_stays(connection: Connection, desk: Repos) -> None:
    row = create(connection, desk)
    bury(connection, full_name="ann/x")
    release(connection, row)

    adapters_module.bury(connection, row)

    assert buried(connection) == [GRAVE | {"full_name": "ann/x", "version_key": "1"}]


def test_a_repository_without_releases_leaves_no_tombstone(connection: Connection, desk: Repos) -> None:
    adapters_module.bury(connection, create(connection, desk))

    assert buried(connection) == []


@pytest.mark.parametrize(
    ("grave", "refused"),
    [
        # the same adapter in the same namespace
        ({}, True),
        ({"version": "1"}, True),
        ({"version": "1.0.1"}, False),
        ({"digest": DIGEST}, False),
        ({"namespace": "bob"}, False),
        ({"name": "other"}, False),
        ({"name": None}, False),
        ({"base_sha256": "c" * 64}, False),
        ({"base_sha256": None}, False),
        ({"base_model": "org/other"}, False),
        ({"base_model": None}, False),
        ({"rank": 9}, False),
        ({"rank": None}, False),
        # the same repository, whatever adapter
        ({"full_name": "ann/x", "name": None, "rank": 9, "base_model": None, "base_sha256": None}, True),
        ({"full_name": "ann/x", "version": "1.0.1"}, False),
        ({"full_name": "ann/x", "digest": DIGEST}, False),
    ],
)
def test_a_removed_version_gets_no_other_bytes_here_or_for_the_same_adapter(
    connection: Connection, desk: Repos, grave: dict[str, Any], *, refused: bool
) -> None:
    row = create(connection, desk)
    bury(connection, **grave)

    # another repository may have been private, so its name is not told
    holder = "`ann/x`" if grave.get("full_name") == "ann/x" else "adapter `qa` in `ann`"
    match = rf"release 1(\.0\.0)? of {holder} was removed"
    check(match if refused else None, adapters_module.check_buried_release, connection, row, "1.0.0", ADAPTER)


@pytest.mark.parametrize("unknown", ["base_sha256", "base_model", "rank"])
def test_what_is_unknown_of_an_adapter_equals_what_was_unknown(
    connection: Connection, desk: Repos, unknown: str
) -> None:
    row = create(connection, desk)
    bury(connection, **{unknown: None})

    with pytest.raises(HttpRefusal, match="release 1"):
        adapters_module.check_buried_release(connection, row, "1.0.0", replace(ADAPTER, **{unknown: None}))


def test_an_adapter_without_a_name_is_compared_within_its_repository_only(connection: Connection, desk: Repos) -> None:
    row, nameless = create(connection, desk), replace(ADAPTER, name=None)
    bury(connection, name=None)

    adapters_module.check_buried_release(connection, row, "1.0.0", nameless)
    bury(connection, name=None, full_name="ann/x")
    with pytest.raises(HttpRefusal, match="of `ann/x` was removed"):
        adapters_module.check_buried_release(connection, row, "1.0.0", nameless)


@pytest.mark.parametrize(
    ("grave", "refused"),
    [
        ({"full_name": "ann/x"}, True),
        ({"full_name": "ann/x", "digest": DIGEST}, True),
        ({"full_name": "ann/x", "version": "1.0.0.0"}, True),
        ({"full_name": "ann/x", "version": "1.0.1"}, False),
        ({}, False),
    ],
)
def test_a_commit_without_an_adapter_is_no_removed_version(
    connection: Connection, desk: Repos, grave: dict[str, Any], *, refused: bool
) -> None:
    row = create(connection, desk)
    bury(connection, **grave)

    adapters_module.check_buried_tag(connection, row, None)
    match = r"release 1\.0\.0(\.0)? of `ann/x` was removed"
    check(match if refused else None, adapters_module.check_buried_tag, connection, row, "1.0.0")


@pytest.mark.parametrize(
    ("grave", "refused"),
    [({}, True), ({"digest": DIGEST}, False), ({"version": "1.0.1"}, False), ({"full_name": "ann/x"}, False)],
)
def test_a_repository_brings_no_other_bytes_to_a_name(
    connection: Connection, desk: Repos, grave: dict[str, Any], *, refused: bool
) -> None:
    row, other = create(connection, desk), create(connection, desk, "ann/other")
    release(connection, row)
    release(connection, other, "1.0.1")
    bury(connection, **grave)

    match = r"release 1\.0\.0 of `ann/gone` was removed"
    check(match if refused else None, adapters_module.check_buried_arrival, connection, row, "ann/gone")


# ---------------------------------------------------------------- names of refs
CASES = [
    ("branch", "v1.0.0", True),
    ("branch", "V1.0.0", True),
    ("branch", "v1", True),
    ("branch", "v01.0.0", True),
    ("branch", "v1.0.\uff10", True),
    ("branch", "\uff561.0.0", True),
    ("branch", "release/v1.0.0", False),
    ("branch", "1.0.0", False),
    ("branch", "v1.0.1", False),
    ("branch", "dev", False),
    ("tag", "v1.0.0", False),
    ("tag", "v01.0.0", False),
    ("tag", "V1.0.0", True),
    ("tag", "V1.0.1", False),
    ("tag", "dev", False),
]


@pytest.mark.parametrize("where", ["released here", "buried here", "released and buried elsewhere"])
@pytest.mark.parametrize(("kind", "name", "refused"), CASES)
def test_no_new_ref_takes_the_name_of_a_released_version(
    connection: Connection, desk: Repos, kind: aliases.Kind, name: str, where: str, *, refused: bool
) -> None:
    row, other = create(connection, desk), create(connection, desk, "ann/other")
    if where == "released here":
        release(connection, row)
    elif where == "buried here":
        bury(connection, full_name="ann/x")
    else:
        release(connection, other)
        bury(connection)

    match = rf"`{re.escape(name)}` names the released version 1\.0\.0 of `ann/x`"
    check(
        match if refused and "elsewhere" not in where else None, aliases.check_new, connection, row, kind, name, most=9
    )


def test_the_name_that_counts_is_the_one_that_the_repository_has_now(connection: Connection, desk: Repos) -> None:
    row = create(connection, desk)
    bury(connection, full_name="ann/y")
    connection.execute(repos.update().where(repos.c.id == row.id).values(full_name="ann/y"))

    with pytest.raises(HttpRefusal, match="names the released version"):
        aliases.check_new(connection, row, "branch", "v1.0.0", most=9)


@pytest.mark.parametrize(
    ("kind", "name", "place"), [("branch", "one", "heads"), ("tag", "one", "heads"), ("tag", "two", "tags")]
)
def test_a_tag_takes_no_name_of_another_ref_and_a_branch_none_of_another_branch(
    connection: Connection, desk: Repos, kind: aliases.Kind, name: str, place: str
) -> None:
    row, other = create(connection, desk), create(connection, desk, "ann/y")
    desk.create_branch(connection, ANN, RepoId("ann/x"), "one", start=None)
    desk.create_tag(connection, ANN, RepoId("ann/x"), "two", at="main", message=None)

    with pytest.raises(HttpRefusal, match=f"refs/{place}/{name} already exists in `ann/x`") as refused:
        aliases.check_new(connection, row, kind, name, most=9)
    assert refused.value.status == 409
    aliases.check_new(connection, other, kind, name, most=9)


def test_a_repository_has_as_many_refs_as_it_may(connection: Connection, desk: Repos) -> None:
    create(connection, desk, "ann/y")
    row = create(connection, desk)
    for name in ("one", "two"):
        desk.create_branch(connection, ANN, RepoId("ann/x"), name, start=None)

    with pytest.raises(HttpRefusal, match="at most 3 branches and tags") as refused:
        desk.create_tag(connection, ANN, RepoId("ann/x"), "three", at="main", message=None)
    assert (refused.value.status, refused.value.code) == (413, "TooLarge")
    aliases.check_new(connection, row, "tag", "three", most=4)


@pytest.mark.parametrize("name", ["", "refs/heads/x", "a b", "0123abc", "HEAD"])
def test_what_cannot_name_a_ref_is_refused(connection: Connection, desk: Repos, name: str) -> None:
    with pytest.raises(HttpRefusal, match="is not a valid name for a branch or tag") as refused:
        aliases.check_new(connection, create(connection, desk), "tag", name, most=9)
    assert refused.value.status == 400


def test_refs_of_one_repository_are_made_one_after_the_other(
    connection: Connection, desk: Repos, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = create(connection, desk), create(connection, desk, "ann/y")
    locked: list[str] = []
    monkeypatch.setattr(aliases, "lock_name", lambda _connection, name: locked.append(name))
    aliases.check_new(connection, x, "branch", "one", most=9)
    aliases.check_new(connection, x, "tag", "two", most=9)
    aliases.check_arrival(connection, x, "ann/z")
    aliases.check_new(connection, y, "tag", "two", most=9)

    assert locked[0] == locked[1] == locked[2] != locked[3]


@pytest.mark.parametrize(
    ("kind", "name", "own", "refused"),
    [
        ("branch", "v1.0.0", False, True),
        ("branch", "v1.0.0", True, True),
        ("branch", "V1.0.0", False, True),
        ("tag", "v1.0.0", False, True),
        ("tag", "v1.0.0", True, False),
        ("tag", "V1.0.0", True, True),
        ("branch", "v1.0.1", False, False),
        ("tag", "v1.0.1", True, False),
        ("branch", "dev", False, False),
    ],
)
def test_no_ref_arrives_at_a_name_where_it_would_stand_for_another_release(
    connection: Connection, desk: Repos, kind: str, name: str, *, own: bool, refused: bool
) -> None:
    row, other = create(connection, desk), create(connection, desk, "ann/other")
    for number, ref in ((row.id, name), (other.id, "v1.0.0")):
        connection.execute(insert(refs).values(repo_id=number, kind=kind, name=ref, commit_id=row.head, created_at=1))
    release(connection, row if own else other)
    bury(connection)

    aliases.check_arrival(connection, row, "ann/elsewhere")
    match = rf"`{name}` names the released version 1\.0\.0 of `ann/gone`"
    check(match if refused else None, aliases.check_arrival, connection, row, "ann/gone")


# ---------------------------------------------------------------- a release, from end to end
def push(connection: Connection, desk: Repos, rank: int) -> str:
    """Commit an adapter; the new head."""
    content = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": rank}).encode()
    blob = desk._blobs.put([content], hashlib.sha256(content).hexdigest(), len(content))
    put = Put(path="adapter_config.json", blob=blob, lfs=False)
    proposal = Proposal(branch="main", title="t", message="", author="ann", parent=None, operations=(put,))
    row = desk.find(connection, ANN, RepoId("ann/x"))
    return commit(connection, desk._blobs, row, proposal, max_files=9)


def listed(connection: Connection) -> list[str]:
    return list(connection.scalars(select(adapters.c.commit_id).where(adapters.c.is_listed)))


def test_a_version_tag_releases_the_commit_that_it_names(connection: Connection, desk: Repos) -> None:
    create(connection, desk)
    first = push(connection, desk, 8)
    second = push(connection, desk, 4)
    desk.create_tag(connection, ANN, RepoId("ann/x"), "v1.0.0", at=first, message=None)

    (made,) = connection.execute(select(releases)).all()
    assert (made.version, made.tag, made.commit_id) == ("1.0.0", "v1.0.0", first)
    heads = {row.commit_id: row.is_head for row in connection.execute(select(adapters))}
    assert heads == {first: False, second: True}
    assert listed(connection) == [first]

    desk.delete_tag(connection, ANN, RepoId("ann/x"), "v1.0.0")
    assert listed(connection) == [second]
    assert list(connection.scalars(select(releases.c.version))) == ["1.0.0"]


def test_the_tag_of_a_version_comes_back_on_its_own_bytes_only(connection: Connection, desk: Repos) -> None:
    create(connection, desk)
    first, second = push(connection, desk, 8), push(connection, desk, 4)
    x = RepoId("ann/x")
    desk.create_tag(connection, ANN, x, "v1.0.0", at=first, message=None)
    desk.delete_tag(connection, ANN, x, "v1.0.0")

    with pytest.raises(HttpRefusal, match=r"release 1\.0\.0 of `ann/x` exists with other bytes"):
        desk.create_tag(connection, ANN, x, "v1.0.0", at=second, message=None)
    connection.execute(delete(refs).where(refs.c.kind == "tag"))
    desk.create_tag(connection, ANN, x, "v1.0.0", at=first, message=None)


def test_the_tag_of_a_version_moves_in_one_step_to_its_own_bytes_only(connection: Connection, desk: Repos) -> None:
    create(connection, desk)
    x = RepoId("ann/x")
    first = push(connection, desk, 8)
    desk.create_tag(connection, ANN, x, "v1.0.0", at=first, message=None)
    other, again = push(connection, desk, 4), push(connection, desk, 8)
    named = select(refs.c.commit_id).where(refs.c.kind == "tag")

    with pytest.raises(HttpRefusal, match=r"already exists in `ann/x`"):
        desk.create_tag(connection, ANN, x, "v1.0.0", at=again, message=None)
    with pytest.raises(HttpRefusal, match=r"release 1\.0\.0 of `ann/x` exists"), connection.begin_nested():
        desk.create_tag(connection, ANN, x, "v1.0.0", at=other, message=None, overwrites=True)
    assert list(connection.scalars(named)) == [first]
    desk.create_tag(connection, ANN, x, "v1.0.0", at=again, message=None, overwrites=True)
    assert list(connection.scalars(named)) == list(connection.scalars(select(releases.c.commit_id))) == [again]
    desk.create_tag(connection, ANN, x, "new", at=first, message=None, overwrites=True)
    assert set(connection.scalars(named)) == {again, first}


def test_a_commit_whose_adapter_was_removed_is_no_released_version(connection: Connection, desk: Repos) -> None:
    row = create(connection, desk)
    push(connection, desk, 8)
    gone = Proposal(
        branch="main",
        title="t",
        message="",
        author="ann",
        parent=None,
        operations=(Delete(path="adapter_config.json"),),
    )
    commit(connection, desk._blobs, row, gone, max_files=9)
    bury(connection, full_name="ann/x")

    with pytest.raises(HttpRefusal, match=r"release 1\.0\.0 of `ann/x` was removed"):
        desk.create_tag(connection, ANN, RepoId("ann/x"), "v1.0.0", at="main", message=None)
