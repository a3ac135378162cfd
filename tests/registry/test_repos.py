"""Repositories: who finds, reads and changes one, and which names, branches and tags it may have."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from adapterhub_registry.access.callers import ANONYMOUS, Caller
from adapterhub_registry.api.hub.upload import check_no_pull_request
from adapterhub_registry.database.db import blobs, commits, refs, releases, repos, tombstones, uploads
from adapterhub_registry.errors import HttpRefusal
from adapterhub_registry.names import RepoId
from adapterhub_registry.repos import aliases as aliases_module
from adapterhub_registry.repos import quotas
from adapterhub_registry.repos import repos as repos_module
from adapterhub_registry.repos.commits import Proposal, Put, commit, find_commit
from adapterhub_registry.repos.repos import RepoChange, Repos
from adapterhub_registry.settings import ServerLimits
from adapterhub_registry.storage.blobs import DiskBlobs, StoredBlob
from sqlalchemy import insert, select, update
from sqlalchemy.engine import Connection

NOW = 1_700_000_000_000
REPO, PRIVATE, GATED, HIDDEN_GATED = (RepoId(f"ann/{name}") for name in ("open", "private", "gated", "both"))
ANN = Caller(user="ann", role="write", namespaces=("ann/*",), label="ann-write", token_id=1)
READER = Caller(user="ann", role="read", namespaces=("ann/*",), label="ann-read", token_id=2)
STRANGER = Caller(user="bob", role="write", namespaces=("bob/*",), label="bob-write", token_id=3)
ADMIN = Caller(user="root", role="admin", namespaces=("*",), label="root-admin", token_id=4)
CALLERS = {"nobody": ANONYMOUS, "stranger": STRANGER, "reader": READER, "owner": ANN, "admin": ADMIN}


@dataclass(frozen=True)
class Desk:
    """The registry within one transaction, which is undone after the test."""

    repos: Repos
    closed: Repos
    connection: Connection
    store: DiskBlobs


@pytest.fixture
def desk(connection: Connection, store: DiskBlobs, monkeypatch: pytest.MonkeyPatch) -> Desk:
    for module in (repos_module, aliases_module):
        monkeypatch.setattr(module, "now_ms", lambda: NOW)
    limits = ServerLimits(namespace_repos=6, refs=3)
    made = Repos(store, anonymous_read=True, limits=limits)
    return Desk(made, Repos(store, anonymous_read=False, limits=limits), connection, store)


@pytest.fixture
def four(desk: Desk) -> Desk:
    """A public, a private and a gated repository of ann, and one that is both."""
    for name in (REPO, PRIVATE, GATED, HIDDEN_GATED):
        create(desk, name, private=name in {PRIVATE, HIDDEN_GATED})
    for name in (GATED, HIDDEN_GATED):
        desk.repos.change(desk.connection, ANN, name, RepoChange(gated="manual"))
    return desk


def create(desk: Desk, name: str, *, private: bool = False, caller: Caller = ADMIN) -> Any:
    return desk.repos.create(desk.connection, caller, RepoId(name), private=private)


def row_of(desk: Desk, name: str) -> Any:
    return desk.connection.execute(select(repos).where(repos.c.full_name == name)).one()


def status_of(action: Callable[[], object]) -> int:
    """What the caller gets: 200, or the status of the refusal."""
    try:
        action()
    except HttpRefusal as refusal:
        return refusal.status
    return 200


def write(desk: Desk, name: str, path: str, content: bytes) -> StoredBlob:
    digest = hashlib.sha256(content).hexdigest()
    blob = StoredBlob(digest, digest[:40], len(content))
    put = Put(path=path, blob=blob, lfs=False)
    proposal = Proposal(branch="main", title="t", message="", author="ann", parent=None, operations=(put,))
    commit(desk.connection, desk.store, row_of(desk, name), proposal, max_files=10)
    return blob


def refs_of(desk: Desk, name: str) -> set[tuple[str, str]]:
    rows = desk.connection.execute(select(refs.c.kind, refs.c.name).where(refs.c.repo_id == row_of(desk, name).id))
    return {(row.kind, row.name) for row in rows}


# ---------------------------------------------------------------- who finds, reads and changes
ORDER = (REPO, PRIVATE, GATED, HIDDEN_GATED)
FOUND = {
    ("find", "nobody"): (200, 404, 200, 404),
    ("find", "stranger"): (200, 404, 200, 404),
    ("find", "reader"): (200, 200, 200, 200),
    ("find", "owner"): (200, 200, 200, 200),
    ("find", "admin"): (200, 200, 200, 200),
    ("find_files", "nobody"): (200, 404, 403, 404),
    ("find_files", "stranger"): (200, 404, 403, 404),
    ("find_files", "reader"): (200, 200, 200, 200),
    ("find_files", "owner"): (200, 200, 200, 200),
    ("find_files", "admin"): (200, 200, 200, 200),
    ("find_writable", "nobody"): (401, 404, 401, 404),
    ("find_writable", "stranger"): (403, 404, 403, 404),
    ("find_writable", "reader"): (403, 403, 403, 403),
    ("find_writable", "owner"): (200, 200, 200, 200),
    ("find_writable", "admin"): (200, 200, 200, 200),
}


@pytest.mark.parametrize(("way", "who"), FOUND)
def test_each_caller_finds_reads_and_changes_what_its_token_is_for(four: Desk, way: str, who: str) -> None:
    def find(within: Repos, name: RepoId) -> None:
        row = getattr(within, way)(four.connection, CALLERS[who], name)
        assert row.full_name == name

    answers = tuple(status_of(lambda name=name: find(four.repos, name)) for name in ORDER)
    closed = tuple(status_of(lambda name=name: find(four.closed, name)) for name in ORDER)

    assert answers == FOUND[way, who]
    assert closed == ((401,) * 4 if who == "nobody" else answers)
    assert status_of(lambda: find(four.repos, RepoId("ann/none"))) == 404


@pytest.mark.parametrize("who", CALLERS)
def test_each_caller_lists_what_it_finds(four: Desk, who: str) -> None:
    create(four, "bob/private", private=True)
    create(four, "ANN2/private", private=True)

    def listed(within: Repos) -> set[str]:
        condition = within.visible(CALLERS[who])
        return set(four.connection.scalars(select(repos.c.full_name).where(condition)))

    public, mine = {REPO, GATED}, {REPO, PRIVATE, GATED, HIDDEN_GATED}
    expected: set[str] = {
        "nobody": public,
        "stranger": public | {"bob/private"},
        "reader": mine,
        "owner": mine,
        "admin": mine | {"bob/private", "ANN2/private"},
    }[who]
    assert listed(four.repos) == expected
    assert listed(four.closed) == (set() if who == "nobody" else expected)


@pytest.mark.parametrize(
    ("glob", "matches"),
    [
        ("a_n/*", []),
        ("a?n/*", ["ann/private", "ann/both"]),
        ("a%/*", []),
        ("ann/p*", ["ann/private"]),
        ("ann/privat?", ["ann/private"]),
        ("ann/?", []),
        ("Ann/*", []),
        ("*/both", ["ann/both"]),
        ("ann\\/*", []),
    ],
)
def test_a_pattern_lists_what_it_reaches(four: Desk, glob: str, matches: list[str]) -> None:
    caller = Caller(user="eve", role="read", namespaces=(glob,))
    condition = four.repos.visible(caller) & repos.c.private

    listed = list(four.connection.scalars(select(repos.c.full_name).where(condition).order_by(repos.c.id)))

    assert listed == matches
    assert [name for name in (PRIVATE, HIDDEN_GATED) if caller.reaches(name)] == matches


def test_a_pattern_takes_the_marks_of_sql_as_letters(desk: Desk) -> None:
    create(desk, "a_n/x", private=True)
    create(desk, "abn/x", private=True)
    caller = Caller(user="eve", role="read", namespaces=("a_n/*",))

    listed = list(desk.connection.scalars(select(repos.c.full_name).where(desk.repos.visible(caller))))

    assert listed == ["a_n/x"]


def test_refusals_name_the_repository_and_the_token(four: Desk) -> None:
    with pytest.raises(HttpRefusal, match="the token `bob-write` \\(write\\) cannot change `ann/open`"):
        four.repos.find_writable(four.connection, STRANGER, REPO)
    with pytest.raises(HttpRefusal, match="repository `ann/private` not found"):
        four.repos.find(four.connection, STRANGER, PRIVATE)
    with pytest.raises(HttpRefusal, match="Access to model `ann/gated` is restricted") as gated:
        four.repos.find_files(four.connection, STRANGER, GATED)
    assert gated.value.code == "GatedRepo"


@pytest.mark.parametrize("name", [REPO, PRIVATE])
@pytest.mark.parametrize("who", ["nobody", "stranger", "reader"])
@pytest.mark.parametrize("act", ["delete", "move", "change", "branch", "unbranch", "tag", "untag", "create"])
def test_a_caller_that_may_not_write_changes_nothing(four: Desk, act: str, who: str, name: RepoId) -> None:
    for ref in ("branch", "tag"):
        four.connection.execute(
            insert(refs).values(repo_id=row_of(four, name).id, kind=ref, name=ref, commit_id="0" * 40, created_at=0)
        )
    caller, do, connection = CALLERS[who], four.repos, four.connection
    acts: dict[str, Callable[[], object]] = {
        "delete": lambda: do.delete(connection, caller, name),
        "move": lambda: do.move(connection, caller, name, RepoId("bob/y")),
        "change": lambda: do.change(connection, caller, name, RepoChange(private=name == REPO)),
        "branch": lambda: do.create_branch(connection, caller, name, "new", start=None),
        "unbranch": lambda: do.delete_branch(connection, caller, name, "branch"),
        "tag": lambda: do.create_tag(connection, caller, name, "new", at="main", message=None),
        "untag": lambda: do.delete_tag(connection, caller, name, "tag"),
        "create": lambda: do.create(connection, caller, RepoId("ann/new"), private=False),
    }
    before = row_of(four, name), refs_of(four, name)

    refused = {"nobody": 401, "stranger": 403, "reader": 403}[who]
    hidden = name == PRIVATE and who != "reader" and act != "create"
    assert status_of(acts[act]) == (404 if hidden else refused)
    assert (row_of(four, name), refs_of(four, name)) == before


# ---------------------------------------------------------------- bytes by their digest
@pytest.mark.parametrize(
    ("name", "who", "known"),
    [
        (REPO, "stranger", True),
        (PRIVATE, "stranger", False),
        (GATED, "stranger", False),
        (HIDDEN_GATED, "stranger", False),
        (GATED, "nobody", False),
        (REPO, "owner", True),
        (PRIVATE, "owner", True),
        (GATED, "owner", True),
        (GATED, "reader", True),
        (HIDDEN_GATED, "admin", True),
    ],
)
def test_a_digest_opens_only_bytes_that_the_caller_can_read(four: Desk, name: str, who: str, *, known: bool) -> None:
    blob = write(four, name, "x", b"content")
    elsewhere = create(four, "bob/mine").id

    assert four.repos.known_blob(four.connection, CALLERS[who], elsewhere, blob.sha256) == (blob if known else None)


def test_one_readable_holder_of_the_bytes_is_enough(four: Desk) -> None:
    for name in (GATED, PRIVATE):
        blob = write(four, name, "x", b"content")
    elsewhere = create(four, "bob/mine").id
    before = four.repos.known_blob(four.connection, STRANGER, elsewhere, blob.sha256)
    write(four, REPO, "y", b"content")

    assert before is None
    assert four.repos.known_blob(four.connection, STRANGER, elsewhere, blob.sha256) == blob


def test_bytes_are_known_where_they_were_sent_and_nowhere_else(four: Desk) -> None:
    here, there = row_of(four, PRIVATE).id, create(four, "bob/mine").id
    blob, other = (four.store.put([content]) for content in (b"here", b"there"))
    four.repos.record_upload(four.connection, here, "ann", blob, token_id=7)
    four.repos.record_upload(four.connection, there, "bob", other)

    def known(repo_id: int, sha256: str) -> StoredBlob | None:
        return four.repos.known_blob(four.connection, STRANGER, repo_id, sha256)

    assert (known(here, blob.sha256), known(there, other.sha256)) == (blob, other)
    assert (known(there, blob.sha256), known(here, other.sha256), known(here, "e" * 64)) == (None, None, None)


def test_an_upload_is_written_down_once_with_who_sent_it_and_its_mark_of_damage_goes(four: Desk) -> None:
    number = row_of(four, REPO).id
    blob = four.store.put([b"sent"])
    four.repos.record_upload(four.connection, number, "ann", blob, token_id=7)
    quotas.mark(four.connection, [blob.sha256])
    damaged = four.repos.known_blob(four.connection, ANN, number, blob.sha256)
    four.repos.record_upload(four.connection, number, "bob", blob, token_id=8)

    assert damaged is None
    mine = select(blobs).where(blobs.c.sha256 == blob.sha256)
    assert four.connection.execute(mine).all() == [(*blob, NOW, None)]
    assert four.connection.execute(select(uploads)).all() == [(number, blob.sha256, "ann", NOW, 7)]


def test_an_upload_for_a_repository_that_is_gone_is_refused(four: Desk) -> None:
    gone, blob = max(row_of(four, name).id for name in ORDER) + 1, four.store.put([b"late"])

    with pytest.raises(HttpRefusal, match="was removed during the upload") as refused:
        four.repos.record_upload(four.connection, gone, "ann", blob)

    assert (refused.value.status, refused.value.code) == (404, "RepoNotFound")
    assert four.connection.execute(select(blobs).where(blobs.c.sha256 == blob.sha256)).all() == []


# ---------------------------------------------------------------- names
@pytest.mark.parametrize("private", [True, False])
def test_a_new_repository_has_one_commit_on_main(desk: Desk, *, private: bool) -> None:
    row = create(desk, "ann/X-1", private=private, caller=ANN)

    (ref,) = desk.connection.execute(select(refs)).all()
    (first,) = desk.connection.execute(select(commits)).all()
    assert (row.full_name, row.namespace, row.private, row.gated, row.created_by) == (
        "ann/X-1",
        "ann",
        private,
        None,
        "ann",
    )
    assert (row.folded, row.folded_namespace) == ("~ann/X-1" if private else "ann/xl", "ann")
    assert (row.created_at, row.modified_at, row.head) == (NOW, NOW, first.id)
    assert (ref.repo_id, ref.kind, ref.name, ref.commit_id, ref.created_at) == (row.id, "branch", "main", first.id, NOW)
    assert (first.repo_id, first.parent, first.author) == (row.id, None, "ann")


NEAR = [
    ("ann/open", 409),
    ("ann/Open", 409),
    ("ann/o-p.e_n", 400),
    ("ann/0pen", 400),
    ("Ann/other", 400),
    ("a-nn/other", 400),
    ("ann/opens", 200),
    ("anna/open", 200),
    ("ann/private", 409),
    ("ann/Private", 200),
]


@pytest.mark.parametrize("act", ["create", "create private", "move"])
@pytest.mark.parametrize(("name", "status"), NEAR)
def test_no_name_is_taken_twice_or_looks_like_a_public_one(desk: Desk, act: str, name: str, status: int) -> None:
    create(desk, REPO)
    create(desk, PRIVATE, private=True)
    if act == "move":
        create(desk, "zoe/source")
        answer = status_of(lambda: desk.repos.move(desk.connection, ADMIN, RepoId("zoe/source"), RepoId(name)))
    else:
        answer = status_of(lambda: create(desk, name, private=act == "create private"))

    assert answer == status


def test_a_private_namespace_is_not_told_of(desk: Desk) -> None:
    create(desk, PRIVATE, private=True)

    assert create(desk, "Ann/other").full_name == "Ann/other"


def test_refusals_of_a_name_say_which_one_it_is_near(desk: Desk) -> None:
    create(desk, REPO)

    with pytest.raises(HttpRefusal, match="A model repository called `ann/open` already exists"):
        create(desk, REPO)
    with pytest.raises(HttpRefusal, match="A model repository called `ann/open` already exists"):
        create(desk, "ann/Open")
    with pytest.raises(HttpRefusal, match="`ann/0pen` looks too much like `ann/open`"):
        create(desk, "ann/0pen")


def test_names_that_look_alike_are_made_one_after_the_other(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    locked: list[str | None] = []
    monkeypatch.setattr(repos_module, "lock_name", lambda _connection, name: locked.append(name))
    for name in ("acme/x", "bob/x"):
        create(desk, name)
    assert status_of(lambda: create(desk, "A-cme/y")) == 400

    acme, bob, alike = locked
    assert acme == alike
    assert len({acme, bob, None}) == 3


def test_a_namespace_has_as_many_repositories_as_it_may(desk: Desk) -> None:
    answers = [status_of(lambda n=n: create(desk, f"ann/{'abcdefgh'[n]}")) for n in range(7)]

    assert answers == [200] * 6 + [400]
    assert status_of(lambda: create(desk, "bob/a")) == 200


def test_a_private_repository_of_an_earlier_version_makes_room_for_a_public_name(desk: Desk) -> None:
    create(desk, "ann/sleepy", private=True)
    create(desk, "zoe/other")
    desk.connection.execute(update(repos).where(repos.c.full_name == "ann/sleepy").values(folded="ann/sleepy"))

    create(desk, "ann/Sleepy")

    folded = {row.full_name: row.folded for row in desk.connection.execute(select(repos))}
    assert folded == {"ann/sleepy": "~ann/sleepy", "zoe/other": "zoe/other", "ann/Sleepy": "ann/sleepy"}


# ---------------------------------------------------------------- moving, changing, removing
@pytest.mark.parametrize("private", [True, False])
def test_a_moved_repository_is_found_by_its_old_name_too(desk: Desk, *, private: bool) -> None:
    number = create(desk, "ann/X", private=private).id
    create(desk, "ann/stays")

    desk.repos.move(desk.connection, ADMIN, RepoId("ann/X"), RepoId("Bob-1/y"))

    row = row_of(desk, "Bob-1/y")
    assert (row.id, row.namespace, row.folded_namespace) == (number, "Bob-1", "bobl")
    assert row.folded == ("~Bob-1/y" if private else "bobl/y")
    assert desk.repos.find(desk.connection, ADMIN, RepoId("ann/x")).id == number
    assert [
        status_of(lambda: desk.repos.delete(desk.connection, ADMIN, RepoId("ann/X"))),
        status_of(lambda: desk.repos.move(desk.connection, ADMIN, RepoId("ann/X"), RepoId("ann/Z"))),
    ] == [409, 409]
    assert row_of(desk, "ann/stays").namespace == "ann"


def test_an_old_name_belongs_to_the_repository_that_takes_it(desk: Desk) -> None:
    create(desk, "ann/one")
    desk.repos.move(desk.connection, ANN, RepoId("ann/one"), RepoId("ann/two"))

    taken = create(desk, "ann/one")
    desk.repos.delete(desk.connection, ANN, RepoId("ann/one"))

    assert taken.id != row_of(desk, "ann/two").id
    assert status_of(lambda: desk.repos.find(desk.connection, ANN, RepoId("ann/one"))) == 404


def test_an_old_name_tells_nothing_of_a_private_repository(desk: Desk) -> None:
    create(desk, "ann/one", private=True)
    desk.repos.move(desk.connection, ANN, RepoId("ann/one"), RepoId("ann/two"))

    assert status_of(lambda: desk.repos.find(desk.connection, STRANGER, RepoId("ann/one"))) == 404


def test_an_id_is_found_in_any_case_and_rights_go_by_its_own(desk: Desk) -> None:
    public, private = create(desk, "ann/CaSe"), create(desk, "ann/Mine", private=True)

    found = [desk.repos.find_writable(desk.connection, ANN, RepoId(name)).id for name in ("ANN/case", "ann/mINE")]

    assert found == [public.id, private.id]
    assert status_of(lambda: desk.repos.find(desk.connection, STRANGER, RepoId("ann/mine"))) == 404
    assert status_of(lambda: desk.repos.find_writable(desk.connection, STRANGER, RepoId("BOB/case"))) == 404


def test_a_private_name_in_another_case_does_not_hide_a_public_one(desk: Desk) -> None:
    create(desk, "ann/Twin", private=True)
    open_one = create(desk, "ann/twin")

    assert desk.repos.find(desk.connection, STRANGER, RepoId("ann/TWIN")).id == open_one.id
    assert desk.repos.find(desk.connection, STRANGER, RepoId("ann/Twin")).id == open_one.id
    assert status_of(lambda: desk.repos.find(desk.connection, ANN, RepoId("ann/TWIN"))) == 404  # both: it is unclear


def test_a_repository_moves_to_a_name_that_looks_like_its_own(desk: Desk) -> None:
    create(desk, "ann/ax1")

    desk.repos.move(desk.connection, ANN, RepoId("ann/ax1"), RepoId("ann/ax-l"))

    assert row_of(desk, "ann/ax-l").folded == "ann/axl"


@pytest.mark.parametrize(
    ("source", "target", "status"),
    [("ann/x", "bob/x", 403), ("bob/x", "ann/x", 404), ("ann/x", "ann/y", 200)],
)
def test_a_token_moves_only_within_what_it_writes(desk: Desk, source: str, target: str, status: int) -> None:
    create(desk, source, private=True)

    assert status_of(lambda: desk.repos.move(desk.connection, ANN, RepoId(source), RepoId(target))) == status


@pytest.mark.parametrize(
    ("was_private", "change", "private", "gated"),
    [
        (False, RepoChange(), False, "auto"),
        (True, RepoChange(), True, "auto"),
        (False, RepoChange(private=True), True, "auto"),
        (True, RepoChange(private=False), False, "auto"),
        (True, RepoChange(private=True), True, "auto"),
        (False, RepoChange(private=False), False, "auto"),
        (False, RepoChange(gated="manual"), False, "manual"),
        (False, RepoChange(gated="no"), False, None),
        (True, RepoChange(private=False, gated="no"), False, None),
    ],
)
def test_a_change_sets_what_it_names_and_nothing_else(
    desk: Desk, change: RepoChange, gated: str | None, *, was_private: bool, private: bool
) -> None:
    create(desk, "ann/X", private=was_private)
    create(desk, "ann/other")
    other = row_of(desk, "ann/other")
    desk.repos.change(desk.connection, ANN, RepoId("ann/X"), RepoChange(gated="auto"))

    row = desk.repos.change(desk.connection, ANN, RepoId("ann/X"), change)

    assert row == row_of(desk, "ann/X")
    assert (row.private, row.gated, row.folded) == (private, gated, "~ann/X" if private else "ann/x")
    assert row_of(desk, "ann/other") == other


def test_what_becomes_public_is_compared_with_what_looks_like_it(desk: Desk) -> None:
    create(desk, "ann/Xy", private=True)
    create(desk, "ann/xy")

    def publish(name: str) -> int:
        return status_of(lambda: desk.repos.change(desk.connection, ANN, RepoId(name), RepoChange(private=False)))

    assert publish("ann/Xy") == 409
    assert row_of(desk, "ann/Xy").private
    assert publish("ann/xy") == 200


def test_a_removed_repository_leaves_the_others_and_the_versions_it_released(desk: Desk) -> None:
    gone, stays = create(desk, "ann/x"), create(desk, "ann/y")
    for row in (gone, stays):
        values = {"version": "1.0.0", "tag": "v1.0.0", "commit_id": row.head, "digest": "d" * 64, "created_at": 1}
        desk.connection.execute(insert(releases).values(repo_id=row.id, **values))

    desk.repos.delete(desk.connection, ANN, RepoId("ann/x"))

    assert list(desk.connection.scalars(select(repos.c.full_name))) == ["ann/y"]
    assert list(desk.connection.scalars(select(tombstones.c.full_name))) == ["ann/x"]
    assert list(desk.connection.scalars(select(commits.c.repo_id))) == [stays.id]


def test_a_moved_repository_leaves_the_versions_it_released(desk: Desk) -> None:
    row = create(desk, "ann/x")
    values = {"version": "1.0.0", "tag": "v1.0.0", "commit_id": row.head, "digest": "d" * 64, "created_at": 1}
    desk.connection.execute(insert(releases).values(repo_id=row.id, **values))

    desk.repos.move(desk.connection, ANN, RepoId("ann/x"), RepoId("ann/y"))

    assert list(desk.connection.scalars(select(tombstones.c.full_name))) == ["ann/x"]


@pytest.mark.parametrize("kind", ["release", "branch"])
def test_no_repository_moves_to_where_its_version_had_other_bytes(desk: Desk, kind: str) -> None:
    row = create(desk, "ann/x")
    grave = {"full_name": "ann/y", "version": "1.0.0", "namespace": "ann", "digest": "e" * 64, "created_at": 1}
    desk.connection.execute(insert(tombstones).values(**grave))
    if kind == "release":
        values = {"version": "1.0.0", "tag": "v1.0.0", "commit_id": row.head, "digest": "d" * 64, "created_at": 1}
        desk.connection.execute(insert(releases).values(repo_id=row.id, **values))
    else:
        desk.repos.create_branch(desk.connection, ANN, RepoId("ann/x"), "v1.0.0", start=None)

    with pytest.raises(HttpRefusal, match=r"1\.0\.0 of `ann/y`"):
        desk.repos.move(desk.connection, ANN, RepoId("ann/x"), RepoId("ann/y"))


# ---------------------------------------------------------------- branches and tags
def test_a_branch_and_a_tag_name_the_commit_that_they_were_made_at(desk: Desk) -> None:
    first = create(desk, "ann/x").head
    write(desk, "ann/x", "a", b"a")
    head, name = row_of(desk, "ann/x").head, RepoId("ann/x")
    desk.repos.create_branch(desk.connection, ANN, name, "old", start=first)
    desk.repos.create_tag(desk.connection, ANN, name, "new", at="main", message="why")

    found = {
        row.name: (row.kind, row.commit_id, row.message, row.created_at)
        for row in desk.connection.execute(select(refs).where(refs.c.name != "main"))
    }
    assert head != first
    assert found == {"old": ("branch", first, None, NOW), "new": ("tag", head, "why", NOW)}


def test_a_branch_without_a_start_begins_at_the_head_of_main(desk: Desk) -> None:
    create(desk, "ann/x")
    write(desk, "ann/x", "a", b"a")
    desk.repos.create_branch(desk.connection, ANN, RepoId("ann/x"), "dev", start=None)

    row = row_of(desk, "ann/x")
    assert find_commit(desk.connection, row, "dev") == row.head


def test_a_branch_or_tag_that_is_removed_takes_no_other_with_it(desk: Desk) -> None:
    for name in (RepoId("ann/x"), RepoId("ann/y")):
        create(desk, name)
        desk.repos.create_branch(desk.connection, ANN, name, "one", start=None)
        desk.repos.create_tag(desk.connection, ANN, name, "two", at="main", message=None)
    x, everything = RepoId("ann/x"), {("branch", "main"), ("branch", "one"), ("tag", "two")}

    wrong = [
        status_of(lambda: desk.repos.delete_branch(desk.connection, ANN, x, "two")),
        status_of(lambda: desk.repos.delete_tag(desk.connection, ANN, x, "one")),
        status_of(lambda: desk.repos.delete_tag(desk.connection, ANN, x, "main")),
        status_of(lambda: desk.repos.delete_branch(desk.connection, ANN, x, "main")),
    ]
    assert (wrong, refs_of(desk, x)) == ([404, 404, 404, 403], everything)
    desk.repos.delete_branch(desk.connection, ANN, x, "one")
    assert refs_of(desk, x) == everything - {("branch", "one")}
    desk.repos.delete_tag(desk.connection, ANN, x, "two")
    assert (refs_of(desk, x), refs_of(desk, "ann/y")) == ({("branch", "main")}, everything)


def test_a_branch_that_is_not_there_is_named(desk: Desk) -> None:
    create(desk, "ann/x")

    with pytest.raises(HttpRefusal, match="Invalid rev id: `ann/x` has no branch `none`"):
        desk.repos.delete_branch(desk.connection, ANN, RepoId("ann/x"), "none")
    with pytest.raises(HttpRefusal, match="`ann/x` has no revision `none`"):
        desk.repos.create_tag(desk.connection, ANN, RepoId("ann/x"), "v1", at="none", message=None)


@pytest.mark.parametrize(
    ("asked", "refused"), [(None, 200), ("", 200), ("0", 200), ("1", 501), ("true", 501), ("True", 501)]
)
def test_a_pull_request_is_refused(asked: str | None, refused: int) -> None:
    assert status_of(lambda: check_no_pull_request(asked)) == refused


def test_the_refusal_of_a_pull_request_says_what_to_do() -> None:
    with pytest.raises(HttpRefusal, match="no pull requests; commit to a branch") as refused:
        check_no_pull_request("1")
    assert refused.value.code == "NotImplemented"
