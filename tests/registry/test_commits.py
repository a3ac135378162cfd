"""Commits: what one holds and who wrote it, what makes a new one, and how revisions and history are read."""

from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace
from typing import Any

import pytest
from adapterhub_registry.access.callers import Caller
from adapterhub_registry.database.db import (
    adapters,
    blobs,
    commits,
    insert_new,
    places,
    refs,
    releases,
    repo_tags,
    repos,
)
from adapterhub_registry.database.trees import EMPTY, TreeFile
from adapterhub_registry.errors import HttpRefusal
from adapterhub_registry.names import RepoId
from adapterhub_registry.repos import commits as commits_module
from adapterhub_registry.repos.commits import (
    Delete,
    DeleteFolder,
    Operation,
    Proposal,
    Put,
    commit,
    file_at,
    find_commit,
    history,
    tree_of,
)
from adapterhub_registry.repos.git_patterns import ATTRIBUTES_FILE
from adapterhub_registry.repos.repos import Repos
from adapterhub_registry.settings import ServerLimits
from adapterhub_registry.storage.blobs import DiskBlobs, StoredBlob
from sqlalchemy import delete, event, insert, select, update
from sqlalchemy.engine import Connection

NOW = 1_700_000_000_000
ANN = Caller(user="ann", role="write", namespaces=("ann/*",))


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time that the server sees; a test sets `now`."""
    clock = SimpleNamespace(now=NOW)
    monkeypatch.setattr(commits_module, "now_ms", lambda: clock.now)
    return clock


@pytest.fixture
def desk(connection: Connection, store: DiskBlobs, clock: SimpleNamespace) -> Desk:
    """The repositories `ann/x` and `ann/y`, empty; the clock goes on one second."""
    made = Repos(store, anonymous_read=True, limits=ServerLimits())
    for name in ("ann/x", "ann/y"):
        made.create(connection, ANN, RepoId(name), private=False)
    clock.now = NOW + 1000
    return Desk(connection, store, made)


class Desk:
    """What tests do with a repository in their transaction."""

    def __init__(self, connection: Connection, store: DiskBlobs, repositories: Repos) -> None:
        self.connection, self.store, self.repos = connection, store, repositories

    def row(self, name: str = "ann/x") -> Any:
        return self.connection.execute(select(repos).where(repos.c.full_name == name)).one()

    def head(self, branch: str = "main", name: str = "ann/x") -> str:
        return find_commit(self.connection, self.row(name), branch)

    def branch(self, branch: str, start: str | None = None, name: str = "ann/x") -> None:
        self.repos.create_branch(self.connection, ANN, RepoId(name), branch, start=start)

    def commit(self, *operations: Operation, name: str = "ann/x", max_files: int = 100, **words: Any) -> str:
        usual: dict[str, Any] = {"branch": "main", "title": "t", "message": "m", "author": "ann", "parent": None}
        proposal = Proposal(operations=operations, **usual | words)
        return commit(self.connection, self.store, self.row(name), proposal, max_files=max_files)

    def one(self, commit_id: str) -> Any:
        return self.connection.execute(select(commits).where(commits.c.id == commit_id)).one()

    def count(self) -> int:
        return len(self.connection.execute(select(commits.c.id)).all())

    def files(self, commit_id: str, name: str = "ann/x") -> dict[str, int]:
        tree = tree_of(self.connection, self.row(name).id, commit_id)
        return {entry.path: entry.size for entry in tree.walk() if entry.path != ATTRIBUTES_FILE}


def put(path: str, content: bytes = b"content", *, lfs: bool = False) -> Put:
    digest = hashlib.sha256(content).hexdigest()
    return Put(path=path, blob=StoredBlob(digest, digest[:40], len(content)), lfs=lfs)


# ---------------------------------------------------------------- what is written
def test_the_first_commit_tells_git_which_files_go_by_lfs_and_is_of_its_repository_alone(desk: Desk) -> None:
    x, y = desk.one(desk.head()), desk.one(desk.head(name="ann/y"))
    (file,) = tree_of(desk.connection, desk.row().id, x.id).walk()
    text = b"".join(desk.store.open(file.sha256, 0, file.size)).decode()

    assert x.id != y.id
    assert (x.repo_id, x.parent, x.title) == (desk.row().id, None, "initial commit")
    assert (file.path, file.size, file.lfs, desk.row().used_bytes) == (".gitattributes", 1519, False, 1519)
    assert "*.safetensors filter=lfs diff=lfs merge=lfs -text\n" in text
    assert (x.message, x.author, x.created_at) == ("ann/x", "ann", NOW)


def test_a_commit_keeps_its_parent_words_author_and_time(desk: Desk) -> None:
    before = desk.head()
    made = desk.commit(put("a"), title="The title", message="The message", author="bob")

    row = desk.one(made)
    assert (row.repo_id, row.parent, row.title, row.message) == (desk.row().id, before, "The title", "The message")
    assert (row.author, row.created_at) == ("bob", NOW + 1000)
    assert tree_of(desk.connection, desk.row().id, made).root == row.root != EMPTY
    (ref,) = desk.connection.execute(select(refs).where(refs.c.repo_id == desk.row().id)).all()
    assert (ref.name, ref.commit_id, ref.created_at) == ("main", made, NOW + 1000)


def test_a_commit_is_named_by_the_sha1_of_all_that_it_says(desk: Desk) -> None:
    before, file = desk.head(), put("a")
    made = desk.commit(file, title="The title", message="The message", author="bob")

    changes = hashlib.sha256(json.dumps(["a", file.blob.sha256]).encode()).hexdigest()
    facts = [before, changes, "The title", "The message", "bob", NOW + 1000]
    assert made == hashlib.sha1(json.dumps(facts).encode(), usedforsecurity=False).hexdigest()


@pytest.mark.parametrize("lfs", [True, False])
def test_a_file_says_its_bytes_and_the_commit_that_gave_them(desk: Desk, clock: SimpleNamespace, *, lfs: bool) -> None:
    file = put("d/a", b"12345", lfs=lfs)
    made = desk.commit(file)
    clock.now += 1
    later = desk.commit(put("b"))

    blob = file.blob
    expected = TreeFile(
        path="d/a",
        sha256=blob.sha256,
        git_sha1=blob.git_sha1,
        size=5,
        lfs=lfs,
        changed_in=made,
        changed_at=NOW + 1000,
    )
    number = desk.row().id
    assert file_at(desk.connection, number, made, "d/a") == file_at(desk.connection, number, later, "d/a") == expected


def test_a_file_that_is_not_at_a_commit_is_named_with_the_commit(desk: Desk) -> None:
    head = desk.commit(put("a"))

    with pytest.raises(HttpRefusal, match="no file `b`") as refused:
        file_at(desk.connection, desk.row().id, head, "b")
    assert (refused.value.status, refused.value.headers["X-Repo-Commit"]) == (404, head)


def test_bytes_and_their_places_are_written_once(desk: Desk, clock: SimpleNamespace) -> None:
    first = desk.commit(put("a", b"one"), put("b", b"one"), put("c", b"two"))
    clock.now += 1
    second = desk.commit(put("d", b"one"), put("a", b"two"), Delete(path="b"))
    back = desk.commit(put("a", b"one"))

    one, two = put("", b"one").blob, put("", b"two").blob
    kept = {tuple(row) for row in desk.connection.execute(select(blobs).where(blobs.c.size == 3))}
    assert kept == {(blob.sha256, blob.git_sha1, 3, NOW + 1000, None) for blob in (one, two)}
    number = desk.row().id
    assert back not in {first, second}
    mine = select(places).where(places.c.path != ATTRIBUTES_FILE)
    assert {tuple(row) for row in desk.connection.execute(mine)} == {
        (number, one.sha256, "a", first),
        (number, one.sha256, "b", first),
        (number, two.sha256, "c", first),
        (number, one.sha256, "d", second),
        (number, two.sha256, "a", second),
    }


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_many_files_are_written_a_few_at_a_time_and_none_is_left_out(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(commits_module, "INSERT_ROWS", 2)
    sizes: list[int] = []

    def insert_and_count(connection: Connection, table: Any, rows: Any) -> None:
        if table is places:
            sizes.append(len(rows))
        insert_new(connection, table, rows)

    monkeypatch.setattr(commits_module, "insert_new", insert_and_count)
    desk.commit(*(put(str(n), bytes([n])) for n in range(count)))

    paths = set(desk.connection.scalars(select(places.c.path)))
    assert paths - {ATTRIBUTES_FILE} == {str(n) for n in range(count)}
    assert len(desk.connection.execute(select(blobs)).all()) == count + 1
    assert sizes == [2] * (count // 2) + [1] * (count % 2)


# ---------------------------------------------------------------- what makes a new commit
def test_a_change_is_applied_to_the_head_of_its_branch(desk: Desk) -> None:
    first = desk.commit(put("a", b"1"), put("d/b", b"22"), put("d/c", b"333"))
    desk.branch("dev", first)
    second = desk.commit(Delete(path="a"), put("e", b"4444"), branch="dev")
    third = desk.commit(DeleteFolder(path="d"), branch="dev")

    assert desk.files(first) == {"a": 1, "d/b": 2, "d/c": 3}
    assert desk.files(second) == {"d/b": 2, "d/c": 3, "e": 4}
    assert desk.files(third) == {"e": 4}
    assert (desk.head(), desk.head("dev")) == (first, third)
    assert [desk.one(made).parent for made in (second, third)] == [first, second]


def test_a_change_that_changes_nothing_makes_no_commit(desk: Desk, clock: SimpleNamespace) -> None:
    head = desk.commit(put("a"))
    count = desk.count()
    clock.now += 1

    assert desk.commit(put("a"), title="other", message="other", author="bob") == head
    assert desk.commit(put("b"), Delete(path="b")) == head
    assert desk.commit() == head
    assert (desk.count(), desk.head()) == (count, head)
    assert desk.row().modified_at == NOW + 1000


@pytest.mark.parametrize("digits", [7, 12, 40])
def test_a_commit_on_the_named_parent_is_made(desk: Desk, digits: int) -> None:
    parent = desk.head()

    made = desk.commit(put("a"), parent=parent[:digits])

    assert desk.one(made).parent == parent


@pytest.mark.parametrize(
    ("again", "same"),
    [
        ((put("a", b"new"), Delete(path="b")), True),
        ((Delete(path="b"), put("a", b"new")), True),
        ((put("a", b"new"), put("c"), Delete(path="b"), Delete(path="c")), True),
        ((put("a", b"new"),), False),
        ((Delete(path="b"),), False),
        ((put("a", b"else"), Delete(path="b")), False),
        ((put("a", b"new"), Delete(path="b"), put("c")), False),
        ((), False),
        ((Delete(path="none"),), False),
    ],
)
@pytest.mark.parametrize("digits", [7, 40])
def test_the_same_change_on_the_same_parent_sent_again_is_the_commit_it_made(
    desk: Desk, clock: SimpleNamespace, again: tuple[Operation, ...], digits: int, *, same: bool
) -> None:
    parent = desk.commit(put("a", b"old"), put("b"))
    head = desk.commit(put("a", b"new"), Delete(path="b"), parent=parent)
    count = desk.count()
    clock.now += 1

    if same:
        assert desk.commit(*again, parent=parent[:digits], title="other words") == head
    else:
        with pytest.raises(
            HttpRefusal, match=f"parent commit {parent[:digits]} is not the head .* is {head}"
        ) as refused:
            desk.commit(*again, parent=parent[:digits])
        assert (refused.value.status, refused.value.code) == (412, "StaleParent")
    assert (desk.count(), desk.head()) == (count, head)


def test_the_same_change_on_another_parent_is_refused(desk: Desk) -> None:
    first = desk.head()
    second = desk.commit(put("a", b"1"))
    head = desk.commit(put("b", b"2"))

    for parent in (first, "f" * 40, desk.head(name="ann/y")):
        with pytest.raises(HttpRefusal, match="is not the head"):
            desk.commit(put("b", b"2"), parent=parent)
    assert desk.commit(put("b", b"2"), parent=second) == head


def test_a_repository_with_its_first_commit_only_refuses_another_parent(desk: Desk) -> None:
    with pytest.raises(HttpRefusal, match="is not the head"):
        desk.commit(parent="f" * 40)


def test_a_change_that_was_made_in_another_repository_is_not_this_one(desk: Desk) -> None:
    other = desk.head(name="ann/y")
    desk.commit(put("a"), name="ann/y")

    with pytest.raises(HttpRefusal, match="is not the head"):
        desk.commit(put("a"), parent=other)


def test_a_branch_that_moved_meanwhile_refuses_the_commit(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    head = desk.head()

    def move(*_args: Any) -> None:  # as a transaction would that does not wait for the lock
        desk.connection.execute(update(refs).where(refs.c.name == "main").values(commit_id="f" * 40))

    monkeypatch.setattr(commits_module, "check_tree", move)
    with pytest.raises(HttpRefusal, match=f"parent commit {head} is not the head") as refused:
        desk.commit(put("a"))
    assert (refused.value.status, desk.head()) == (412, "f" * 40)


def test_a_branch_that_is_not_there_takes_no_commit(desk: Desk) -> None:
    desk.branch("dev", name="ann/y")
    desk.repos.create_tag(desk.connection, ANN, RepoId("ann/x"), "tag", at="main", message=None)

    for branch in ("dev", "tag", "none"):
        with pytest.raises(HttpRefusal, match=f"`ann/x` has no revision `{branch}`") as refused:
            desk.commit(put("a"), branch=branch)
        assert (refused.value.status, refused.value.code) == (404, "RevisionNotFound")


def test_a_commit_moves_its_own_branch_only(desk: Desk) -> None:
    first = desk.head()
    desk.branch("dev")
    desk.repos.create_tag(desk.connection, ANN, RepoId("ann/x"), "tag", at="main", message=None)
    made = desk.commit(put("a"))

    assert [desk.head(name) for name in ("main", "dev", "tag")] == [made, first, first]
    assert desk.head(name="ann/y") != made


def test_a_commit_holds_as_many_files_as_it_may(desk: Desk) -> None:
    desk.commit(put("a"), put("b"), max_files=3)

    with pytest.raises(HttpRefusal, match="at most 3 files; this commit would make 4"):
        desk.commit(put("c"), max_files=3)
    desk.commit(put("c"), Delete(path="a"), max_files=3)
    assert desk.files(desk.head()).keys() == {"b", "c"}


# ---------------------------------------------------------------- what listings know
CARD = b"---\npipeline_tag: text-generation\nlibrary_name: transformers\ntags: [zeta, alpha]\n---\n"
CONFIG = {"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": 8, "task_type": "CAUSAL_LM"}


def stored(desk: Desk, path: str, content: bytes) -> Put:
    return Put(path=path, blob=desk.store.put([content], size=len(content)), lfs=False)


def test_a_commit_to_main_describes_the_repository(desk: Desk) -> None:
    other = desk.row("ann/y")
    made = desk.commit(stored(desk, "README.md", CARD), stored(desk, "config.json", b'{"model_type": "llama"}'))

    row = desk.row()
    assert (row.head, row.modified_at, row.pipeline_tag) == (made, NOW + 1000, "text-generation")
    assert (row.library_name, row.used_bytes - 1519) == ("transformers", len(CARD) + len(b'{"model_type": "llama"}'))
    assert json.loads(row.card)["tags"] == ["zeta", "alpha"]
    assert json.loads(row.config) == {"model_type": "llama"}
    assert {"alpha", "zeta"} <= tags_of(desk)
    assert desk.row("ann/y") == other


def tags_of(desk: Desk, name: str = "ann/x") -> set[str]:
    return set(desk.connection.scalars(select(repo_tags.c.tag).where(repo_tags.c.repo_id == desk.row(name).id)))


def test_a_description_follows_the_head_of_main(desk: Desk) -> None:
    desk.commit(stored(desk, "README.md", CARD), name="ann/y")
    other = tags_of(desk, "ann/y")
    desk.commit(stored(desk, "README.md", CARD))
    made = desk.commit(Delete(path="README.md"))

    row = desk.row()
    assert (row.head, row.pipeline_tag, row.library_name, row.used_bytes) == (made, None, None, 1519)
    assert (row.card, tags_of(desk) & {"alpha", "zeta"}) == ("{}", set())
    assert tags_of(desk, "ann/y") == other != set()


def test_a_commit_to_another_branch_describes_nothing(desk: Desk) -> None:
    before = desk.row()._asdict()
    desk.branch("dev")
    desk.commit(stored(desk, "README.md", CARD), branch="dev")

    after = desk.row()._asdict()
    assert after.pop("most_bytes") == before.pop("most_bytes") + len(CARD)
    assert after == before
    assert tags_of(desk) == set()


@pytest.mark.parametrize(
    ("card", "library", "task"),
    [
        (None, "peft", "CAUSAL_LM"),
        (CARD, "transformers", "text-generation"),
        (b"---\npipeline_tag: ''\nlibrary_name: 3\n---\n", "peft", "CAUSAL_LM"),
        (b"---\npipeline_tag: " + b"p" * 201 + b"\nlibrary_name: " + b"l" * 200 + b"\n---\n", "l" * 200, "p" * 200),
    ],
)
def test_an_adapter_without_a_card_is_described_by_its_config(
    desk: Desk, card: bytes | None, library: str, task: str
) -> None:
    files = [stored(desk, "adapter_config.json", json.dumps(CONFIG).encode())]
    files += [stored(desk, "README.md", card)] if card is not None else []
    made = desk.commit(*files)

    (adapter,) = desk.connection.execute(select(adapters)).all()
    assert (adapter.commit_id, adapter.is_head, adapter.is_listed) == (made, True, True)
    row = desk.row()
    assert row.library_name == library
    assert row.pipeline_tag == (adapter.task if task == "CAUSAL_LM" else task)
    assert any(tag.endswith("org/base") for tag in tags_of(desk))


# ---------------------------------------------------------------- revisions
def test_a_revision_is_a_branch_a_tag_or_a_commit(desk: Desk) -> None:
    first = desk.head()
    second = desk.commit(put("a"))
    desk.branch("dev", first)
    desk.repos.create_tag(desk.connection, ANN, RepoId("ann/x"), "good", at=first, message=None)

    named = {
        "main": second,
        "dev": first,
        "good": first,
        "refs/heads/main": second,
        "refs/heads/dev": first,
        "refs/tags/good": first,
        first: first,
        second[:7]: second,
        second[:39]: second,
    }
    assert {revision: find_commit(desk.connection, desk.row(), revision) for revision in named} == named


@pytest.mark.parametrize(
    "revision",
    [
        "none",
        "",
        "MAIN",
        "refs/tags/main",
        "refs/heads/good",
        "refs/heads/",
        "heads/main",
        "refs/pr/1",
        "f" * 40,
        "f" * 7,
    ],
)
def test_what_names_no_commit_is_refused_with_its_name(desk: Desk, revision: str) -> None:
    desk.repos.create_tag(desk.connection, ANN, RepoId("ann/x"), "good", at="main", message=None)

    with pytest.raises(HttpRefusal, match=f"`ann/x` has no revision `{revision}`") as refused:
        find_commit(desk.connection, desk.row(), revision)
    assert refused.value.status == 404


def test_a_commit_or_branch_of_another_repository_is_no_revision(desk: Desk) -> None:
    other = desk.commit(put("a"), name="ann/y")
    desk.branch("dev", name="ann/y")

    for revision in (other, other[:7], other[:12], "dev", "refs/heads/dev"):
        with pytest.raises(HttpRefusal, match="no revision"):
            find_commit(desk.connection, desk.row(), revision)


def test_digits_that_begin_two_commits_name_neither(desk: Desk) -> None:
    values = {"root": EMPTY, "title": "", "message": "", "author": "ann", "created_at": 1, "repo_id": desk.row().id}
    one, two = "abcdef01" + "0" * 32, "abcdef02" + "0" * 32
    for made in (one, two):
        desk.connection.execute(insert(commits).values(id=made, **values))

    with pytest.raises(HttpRefusal, match="no revision `abcdef0`"):
        find_commit(desk.connection, desk.row(), "abcdef0")
    assert [find_commit(desk.connection, desk.row(), digits) for digits in ("abcdef01", two)] == [one, two]


def test_the_tree_of_a_commit_is_looked_up_within_its_repository(desk: Desk) -> None:
    made = desk.commit(put("a"))
    other = desk.row("ann/y").id
    values = {"root": EMPTY, "title": "", "message": "", "author": "ann", "created_at": 1}
    desk.connection.execute(insert(commits).values(id=made, repo_id=other, **values))

    assert desk.files(made) == {"a": 7}
    assert desk.files(made, "ann/y") == {}


# ---------------------------------------------------------------- one file
@pytest.mark.parametrize(
    ("revision", "statements"),
    [
        ("main", 1),
        ("both", 1),
        ("side", 1),
        ("old", 1),
        ("HEAD", None),
        ("refs/heads/both", None),
        ("refs/tags/both", None),
    ],
)
def test_a_file_is_found_in_one_query_as_in_several(desk: Desk, revision: str, statements: int | None) -> None:
    old = desk.commit(*(put(f"f/{n}", bytes([n])) for n in range(60)))
    desk.branch("both")
    desk.branch("side")
    desk.commit(put("f/0", b"side"), branch="side")
    new = desk.commit(put("f/0", b"new"))
    row = desk.row()
    named = {"repo_id": row.id, "kind": "tag", "name": "both", "commit_id": new, "created_at": NOW}
    desk.connection.execute(insert(refs).values(named))
    yank = {"version": "1.0.0", "tag": "v1.0.0", "digest": "d", "created_at": 1, "yanked_at": 2, "yanked_reason": "bad"}
    desk.connection.execute(insert(releases).values(repo_id=row.id, commit_id=old, yanked_by="ann", **yank))
    asked: list[str] = []
    event.listen(desk.connection, "before_cursor_execute", lambda *arguments: asked.append(arguments[2]))

    for at in (revision.replace("old", old), revision.replace("old", old[:9])):
        asked.clear()
        found = desk.repos.find_file(desk.connection, ANN, RepoId("ann/x"), at, "f/0")
        took = len(asked)
        commit_id = find_commit(desk.connection, row, at)
        assert (found.repo_id, found.commit_id) == (row.id, commit_id)
        assert found.entry == file_at(desk.connection, row.id, commit_id, "f/0")
        assert found.warning == ("yanked; version 1.0.0 was yanked: bad" if commit_id == old else None)
        if statements is not None and at != old[:9]:
            assert took <= statements + 2  # the tree of 61 files has an index above its leaves


# ---------------------------------------------------------------- history
@pytest.fixture
def five(desk: Desk, clock: SimpleNamespace) -> list[str]:
    """The commits of `ann/x`, newest first."""
    made = [desk.head()]
    for n in range(4):
        clock.now += 1
        made.append(desk.commit(put("a", bytes([n])), title=f"{n}"))
    return made[::-1]


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("start", [0, 1, 4])
def test_a_page_of_history_goes_from_a_commit_to_its_ancestors(
    desk: Desk, five: list[str], start: int, limit: int
) -> None:
    rows, following = history(desk.connection, desk.row().id, five[start], limit=limit)

    end = start + limit
    assert [row.id for row in rows] == five[start:end]
    assert following == (five[end] if end < len(five) else None)
    assert [row.title for row in rows] == ["3", "2", "1", "0", "initial commit"][start:end]


@pytest.mark.parametrize(("bound", "count"), [(1, 1), (12, 1), (13, 2), (24, 2), (25, 3), (48, 4), (49, 5)])
def test_long_words_make_a_page_shorter(
    desk: Desk, five: list[str], monkeypatch: pytest.MonkeyPatch, bound: int, count: int
) -> None:
    monkeypatch.setattr(commits_module, "HISTORY_CHARACTERS", bound)
    desk.connection.execute(update(commits).values(title="12345", message="1234567"))

    rows, following = history(desk.connection, desk.row().id, five[0], limit=100)

    assert len(rows) == count
    assert following == (five[count] if count < 5 else None)


def test_history_reads_the_commits_of_its_repository(desk: Desk, five: list[str]) -> None:
    values = {"root": EMPTY, "title": "of another", "message": "", "author": "ann", "created_at": 1}
    desk.connection.execute(insert(commits).values(id=five[0], repo_id=desk.row("ann/y").id, **values))

    rows, _ = history(desk.connection, desk.row().id, five[0], limit=1)

    assert [row.title for row in rows] == ["3"]


def test_a_page_of_history_is_one_query(desk: Desk, five: list[str]) -> None:
    row = desk.row()
    asked: list[str] = []
    driver: Any = desk.connection.connection.dbapi_connection
    driver.set_trace_callback(asked.append)

    history(desk.connection, row.id, five[0], limit=5)

    assert len(asked) == 1


def test_a_commit_of_a_removed_repository_is_gone(desk: Desk, five: list[str]) -> None:
    row = desk.row()
    desk.connection.execute(delete(repos).where(repos.c.id == row.id))

    with pytest.raises(HttpRefusal, match="no revision"):
        find_commit(desk.connection, row, five[0])
