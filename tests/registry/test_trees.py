"""Trees of files: whatever commits change, a tree reads as the plain list of its files, and shares what did not change."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from adapterhub_registry.database.db import Database, nodes, repos
from adapterhub_registry.database.trees import EMPTY, NODE_BYTES, FileTree, Totals, TreeFile, key_of, stored_node
from adapterhub_registry.errors import HttpRefusal
from adapterhub_registry.repos.commits import Delete, DeleteFolder, Operation, Put, changes_of, check_tree
from adapterhub_registry.storage.blobs import StoredBlob
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, func, insert, select
from sqlalchemy.engine import Connection

NAMES = st.lists(st.sampled_from(["a", "b", "a-b", "a.b", "a b", "é", "\U0010ffff"]), min_size=1, max_size=4)
PATHS = NAMES.map("/".join)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('trees') / 'registry.db'}")
    yield database
    database.close()


def new_repo(connection: Connection) -> int:
    number = (connection.scalar(select(func.max(repos.c.id))) or 0) + 1
    name = f"n/{number}"
    named = {"full_name": name, "namespace": "n", "folded": name, "folded_namespace": "n"}
    about = {"private": False, "created_by": "n", "created_at": 0, "modified_at": 0, "head": ""}
    connection.execute(insert(repos).values(id=number, **named, **about))
    return number


def entry(path: str, content: int = 0) -> TreeFile:
    digest = random.Random(f"{path} {content}").randbytes(32).hex()
    return TreeFile(
        path=path,
        sha256=digest,
        git_sha1=digest[:40],
        size=content,
        lfs=False,
        changed_in=digest[:40],
        changed_at=content,
    )


def edited(tree: FileTree, edits: dict[str, TreeFile | None]) -> FileTree:
    return tree.changed([(path, edits[path]) for path in sorted(edits, key=key_of)])


def files_of(tree: FileTree) -> list[TreeFile]:
    return list(tree.walk())


def nodes_of(connection: Connection, repo_id: int) -> int:
    return connection.scalar(select(func.count()).where(nodes.c.repo_id == repo_id)) or 0


def test_a_tree_reads_as_the_files_that_were_put_whatever_the_edits(database: Database) -> None:
    rng = random.Random(7)
    names = [f"{rng.choice('abc')}/{rng.choice(['x', 'x-y', 'x/z'])}/{n:04}" for n in range(1000)]
    with database.begin() as connection:
        tree, held = FileTree(connection, new_repo(connection), EMPTY), dict[str, TreeFile]()
        for step, count in enumerate([700, 1, 1, 200, 500, 1, 950, 1, 300]):
            edits: dict[str, TreeFile | None] = {
                name: entry(name, step) if name not in held or rng.random() < 0.3 else None
                for name in rng.sample(names, count)
            }
            tree = edited(tree, edits)
            held = {name: put for name, put in (held | edits).items() if put is not None}

            assert files_of(tree) == [held[name] for name in sorted(held, key=key_of)]
            assert tree.totals() == sum((put.totals for put in held.values()), Totals())
            for folder in ("a", "a/x", "b/x-y", "c", "d"):
                below = [name for name in sorted(held, key=key_of) if name.startswith(f"{folder}/")]
                assert [found.path for found in tree.walk(folder)] == below
                assert tree.totals(folder) == sum((held[name].totals for name in below), Totals())
            for name in rng.sample(names, 50):
                assert tree.find(name) == held.get(name)
        assert edited(tree, dict.fromkeys(held)).root == EMPTY


def test_a_walk_goes_on_after_any_file(database: Database) -> None:
    paths = sorted([f"{a}/{b}" for a in ("a", "a-b", "b") for b in range(300)] + ["a.b", "z"], key=key_of)
    with database.begin() as connection:
        tree = edited(FileTree(connection, new_repo(connection), EMPTY), {path: entry(path) for path in paths})

        for at in range(0, len(paths), 97):
            assert [found.path for found in tree.walk(after=paths[at])] == paths[at + 1 :]
        assert next(tree.walk(past="a")).path == "a-b/0"
        assert next(tree.walk(past="b")).path == "z"


def test_one_change_of_many_files_writes_the_nodes_on_its_way_only(database: Database) -> None:
    paths = [f"data/part-{n:05}.safetensors" for n in range(4000)]
    with database.begin() as connection:
        repo_id = new_repo(connection)
        tree = edited(FileTree(connection, repo_id, EMPTY), {path: entry(path) for path in paths})
        before = nodes_of(connection, repo_id)
        for n, path in enumerate(random.Random(1).sample(paths, 20)):
            tree = edited(tree, {path: entry(path, n + 1)})

        assert nodes_of(connection, repo_id) - before <= 20 * 4  # its leaf and three floors above
        sizes = [len(body) for body in connection.scalars(select(nodes.c.body).where(nodes.c.repo_id == repo_id))]
        assert max(sizes) < NODE_BYTES * 1.2


def test_the_longest_paths_make_a_tree_as_any_others(database: Database) -> None:
    paths = sorted((f"{n:03}" + "/" + "x" * 250 for n in range(300)), key=key_of)
    paths = [f"{path}/{'y' * 250}/{'z' * 250}/{'w' * 250}" for path in paths]
    with database.begin() as connection:
        tree = edited(FileTree(connection, new_repo(connection), EMPTY), {path: entry(path) for path in paths})
        tree = edited(tree, {paths[7]: entry(paths[7], 1)})

        assert [found.path for found in tree.walk()] == paths
        assert tree.totals().files == 300


def test_files_that_go_leave_no_thin_nodes(database: Database) -> None:
    paths = [f"{n:05}" for n in range(3000)]
    with database.begin() as connection:
        tree = edited(FileTree(connection, new_repo(connection), EMPTY), {path: entry(path) for path in paths})
        few = edited(tree, dict.fromkeys(path for n, path in enumerate(paths) if n % 50))
        reads = set[str]()
        few = FileTree(connection, few.repo_id, few.root)
        load = few._load
        few._load = lambda ids: [reads.add(i) for i in ids] and load(ids)  # type: ignore[method-assign]

        assert [found.path for found in few.walk()] == paths[::50]
        assert len(reads) <= 50  # of more than 300


@given(st.dictionaries(PATHS, st.integers(0, 2)), st.lists(st.tuples(st.sampled_from("pdf"), PATHS, st.integers(0, 2))))
def test_operations_change_what_they_would_change_in_a_plain_list(
    database: Database, held: dict[str, int], steps: list[tuple[str, str, int]]
) -> None:
    plain: dict[str, int] | None = dict(held)
    operations: list[Operation] = []
    for kind, path, content in steps:
        made = entry(path, content)
        put = Put(path=path, blob=StoredBlob(made.sha256, made.git_sha1, content), lfs=False)
        operations.append(put if kind == "p" else Delete(path=path) if kind == "d" else DeleteFolder(path=path))
        if plain is None:
            continue
        if kind == "p":
            plain[path] = content
            continue
        gone = [path] if kind == "d" and path in plain else [name for name in plain if name.startswith(f"{path}/")]
        for name in gone:
            del plain[name]
        plain = plain if gone else None

    with database.begin() as connection:
        tree = edited(
            FileTree(connection, new_repo(connection), EMPTY), {path: entry(path, c) for path, c in held.items()}
        )
        if plain is None:
            with pytest.raises(HttpRefusal, match="doesn't exist"):
                changes_of(tree, operations)
            return
        changes = changes_of(tree, operations)

        after = {path: content for path, content in held.items() if path not in changes}
        after |= {path: put.blob.size for path, put in changes.items() if put is not None}
        assert after == plain
        assert list(changes) == sorted(changes, key=key_of)
        assert all(held.get(path) != (put and put.blob.size) for path, put in changes.items())
        if not any(_is_file_and_folder(held)):
            if any(_is_file_and_folder(plain)):
                with pytest.raises(HttpRefusal, match="cannot be both a file and a folder"):
                    check_tree(tree, changes, 100)
            else:
                check_tree(tree, changes, 100)


def _is_file_and_folder(paths: dict[str, int]) -> Iterator[bool]:
    return (any(other.startswith(f"{path}/") for other in paths) for path in paths)


def test_the_nodes_of_a_repository_go_with_it(database: Database) -> None:
    with database.begin() as connection:
        mine, other = new_repo(connection), new_repo(connection)
        for repo_id in (mine, other):
            edited(FileTree(connection, repo_id, EMPTY), {f"{n}": entry(f"{n}") for n in range(500)})
        connection.execute(delete(repos).where(repos.c.id == mine))

        assert (nodes_of(connection, mine), nodes_of(connection, other) > 1) == (0, True)
        kept = connection.execute(select(nodes.c.id, nodes.c.body)).all()
        assert all(stored_node(row.id, row.body) is not None for row in kept)
