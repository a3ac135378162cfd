"""A repository of as many files as fit, as deep as they may lie: no request takes the registry much memory or space."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from adapterhub_registry.database.schema import metadata
from adapterhub_registry.upkeep.holdings import check_holdings
from sqlalchemy import func, select

from tests.registry.conftest import Served, serving
from tests.registry.running import running
from tests.registry.shared_servers import Postgres, postgres

FILES, SOME_FILES, DEEPEST = 20_000, 5_000, 32
MOST_MEMORY, MOST_GROWTH = 80 << 20, 20_000
CONTENT = b"x"
OID = hashlib.sha256(CONTENT).hexdigest()
REPO = "acme/large"
API = f"/api/models/{REPO}"


def header(summary: str = "x") -> dict[str, object]:
    return {"key": "header", "value": {"summary": summary}}


def regular(path: str, content: bytes) -> dict[str, object]:
    value = {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}
    return {"key": "file", "value": value}


def known(path: str) -> dict[str, object]:
    """A file with the content that the repository holds already."""
    return {"key": "lfsFile", "value": {"path": path, "algo": "sha256", "oid": OID, "size": len(CONTENT)}}


def commit(client: httpx.Client, *lines: dict[str, object], branch: str = "main", api: str = API) -> httpx.Response:
    body = "\n".join(json.dumps(line) for line in (header(), *lines))
    return client.post(f"{api}/commit/{branch}", content=body)


def wide(number: int) -> str:
    return f"data/part-{number:05}-of-20000.safetensors"


def deep(number: int) -> str:
    """A path of nearly 1,024 bytes, each of whose folders holds it alone."""
    return "/".join([f"{number:05}-{'d' * 24}"] * DEEPEST) + "/x"


def fill(client: httpx.Client, paths: list[str]) -> None:
    client.post("/api/repos/create", json={"organization": "acme", "name": "large"}).raise_for_status()
    first = {"key": "deletedFile", "value": {"path": ".gitattributes"}}  # of every new repository
    commit(client, regular(paths[0], CONTENT), first).raise_for_status()
    commit(client, *map(known, paths)).raise_for_status()


def as_user(url: str, token: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=600)


# ------------------------------------------------------------ memory
class Memory:
    """The memory of a process: what it took at its start, and the most it took during a call."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")
        self._idle = self._bytes("VmRSS")

    def _bytes(self, name: str) -> int:
        lines = (self._folder / "status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) << 10

    def peak_of(self, call: Callable[[], object]) -> int:
        (self._folder / "clear_refs").write_text("5")  # the peak is that of from now on
        call()
        return self._bytes("VmHWM") - self._idle


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("registry"), ()) as server:
        yield server


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak memory of a process")
def test_no_request_takes_much_memory_whatever_the_repository_holds(served: Served) -> None:
    paths = [wide(n) if n % 2 else deep(n) for n in range(FILES)]
    with as_user(served.url, served.token) as ann, httpx.Client(base_url=served.url, timeout=600) as anyone:
        anyone.get("/api/models").raise_for_status()
        memory, peaks = Memory(served.pid), dict[str, int]()

        def ask(name: str, call: Callable[[], httpx.Response]) -> httpx.Response:
            answers = []
            peaks[name] = memory.peak_of(lambda: answers.append(call().raise_for_status()))
            return answers[0]

        ask("commit of all", lambda: fill(ann, paths) or anyone.get(API))  # type: ignore[func-returns-value]
        tree = f"{API}/tree/main"
        first = ask("one entry", lambda: anyone.get(tree, params={"recursive": "true", "limit": 1}))
        page = ask("a page", lambda: anyone.get(tree, params={"recursive": "true"}))
        ask("the next page", lambda: anyone.get(page.links["next"]["url"]))
        ask("a page with commits", lambda: anyone.get(tree, params={"recursive": "true", "expand": "true"}))
        top = ask("a flat page", lambda: anyone.get(tree))
        ask("a page of a folder", lambda: anyone.get(f"{tree}/data"))
        some = {"paths": paths[1::2], "expand": "true"}
        facts = ask("facts of many paths", lambda: anyone.post(f"{API}/paths-info/main", data=some))
        folders = [path.rpartition("/")[0] for path in paths[:4000:2]]
        ask("facts of deep folders", lambda: anyone.post(f"{API}/paths-info/main", json={"paths": folders}))
        info = ask("info", lambda: anyone.get(API))
        ask("info with sizes", lambda: anyone.get(API, params={"blobs": "true"}))
        listing = ask("listing with files", lambda: anyone.get("/api/models", params={"full": "true"}))
        ask("a commit of one file", lambda: commit(ann, regular(paths[0], b"y")))
        ask("a branch", lambda: ann.post(f"{API}/branch/other", json={}))
        emptied = [{"key": "deletedFolder", "value": {"path": "data"}}]
        emptied += [{"key": "deletedFolder", "value": {"path": path.partition("/")[0]}} for path in paths[::2]]
        ask("a commit that removes all", lambda: commit(ann, *emptied, branch="other"))

        assert {name: f"{peak >> 20} MiB" for name, peak in peaks.items() if peak > MOST_MEMORY} == {}
        assert (len(first.json()), len(page.json()), len(facts.json())) == (1, 1000, 10_000)
        assert (len(top.json()), top.json()[0]["type"]) == (1000, "directory")
        for answer in (info.json(), listing.json()[0]):
            assert sorted(file["rfilename"] for file in answer["siblings"]) == sorted(paths)
        assert anyone.get(f"{API}/tree/other").json() == []


def test_long_messages_make_shorter_pages_of_commits(served: Served) -> None:
    api = "/api/models/acme/talks"
    with as_user(served.url, served.token) as ann:
        ann.post("/api/repos/create", json={"organization": "acme", "name": "talks"}).raise_for_status()
        for number in range(4):
            value = {"summary": f"{number}", "description": "m" * 700_000}
            lines = [{"key": "header", "value": value}, regular("x", f"{number}".encode())]
            ann.post(f"{api}/commit/main", content="\n".join(map(json.dumps, lines))).raise_for_status()

        sizes, titles, url = [], [], f"{api}/commits/main"
        while url:
            page = ann.get(url)
            sizes.append(len(page.json()))
            titles += [found["title"] for found in page.json()]
            url = page.links.get("next", {}).get("url", "")

    assert sizes == [2, 2, 1]
    assert titles == ["3", "2", "1", "0", "initial commit"]


# ------------------------------------------------------------ pages and bounds
@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A repository of some files, and a few that lie as deep as they may."""
    with running(tmp_path_factory.mktemp("small")) as server, as_user(server.url, server.token) as ann:
        fill(ann, ["a/x", "a-b", "a.b/c/d", "a/y/z", "z", *map(deep, range(3)), *map(wide, range(40))])
        yield ann


def walked(client: httpx.Client, path: str, **query: object) -> list[dict[str, object]]:
    found, url = [], str(httpx.URL(f"{API}/tree/main{path}", params={name: str(v) for name, v in query.items()}))
    while url:
        page = client.get(url)
        found += page.raise_for_status().json()
        url = page.links.get("next", {}).get("url", "")
    return found


@pytest.mark.parametrize("recursive", ["true", "false"])
@pytest.mark.parametrize("folder", ["", "/a", "/data"])
def test_pages_of_any_size_make_the_same_tree(small: httpx.Client, folder: str, recursive: str) -> None:
    whole = walked(small, folder, recursive=recursive)

    for limit in (1, 3, 7):
        assert walked(small, folder, recursive=recursive, limit=limit) == whole
    names = [str(entry["path"]) for entry in whole]
    assert len(set(names)) == len(names)
    assert names == sorted(names, key=lambda name: name.replace("/", "\0"))


def test_a_tree_shows_each_file_and_each_folder_on_its_way_once(small: httpx.Client) -> None:
    files = ["a/x", "a-b", "a.b/c/d", "a/y/z", "z", *map(deep, range(3)), *map(wide, range(40))]
    folders = {path[:at] for path in files for at, letter in enumerate(path) if letter == "/"}

    deep_tree = {(entry["type"], entry["path"]) for entry in walked(small, "", recursive="true")}
    flat = {(entry["type"], entry["path"]) for entry in walked(small, "")}

    assert deep_tree == {("file", path) for path in files} | {("directory", path) for path in folders}
    assert flat == {(kind, path) for kind, path in deep_tree if "/" not in str(path)}


def test_the_name_of_a_folder_changes_with_what_lies_in_it_and_not_beside_it(small: httpx.Client) -> None:
    def oids() -> dict[object, object]:
        return {entry["path"]: entry["oid"] for entry in walked(small, "", recursive="true") if entry["type"] != "file"}

    before = oids()
    commit(small, regular("a/y/z", b"other")).raise_for_status()
    between = oids()
    commit(small, known("a/y/z")).raise_for_status()

    assert {path for path in before if before[path] != between[path]} == {"a", "a/y"}
    assert oids() == before


def test_a_path_that_is_too_deep_is_refused_and_nothing_is_committed(small: httpx.Client) -> None:
    head = small.get(API).json()["sha"]
    too_deep = "/".join(["d" * 20] * (DEEPEST + 1)) + "/x"

    refused = [commit(small, make(too_deep)) for make in (known, lambda path: regular(path, b"x"))]

    assert [answer.status_code for answer in refused] == [400, 400]
    assert "expected a path of at most 32 folders" in refused[0].json()["error"]
    assert small.get(API).json()["sha"] == head


def test_a_repository_has_no_more_branches_and_tags_than_one_answer_holds(tmp_path: Path) -> None:
    with running(tmp_path) as server, as_user(server.url, server.token) as ann:
        server.registry.repos._limits = type(server.registry.settings.limits)(refs=3)
        fill(ann, ["x"])

        made = [ann.post(f"{API}/branch/b{n}", json={}).status_code for n in range(3)]
        tagged = ann.post(f"{API}/tag/main", json={"tag": "t"}).status_code

    assert (made, tagged) == ([200, 200, 413], 413)


def test_commits_at_once_on_several_branches_lose_no_file(database: str | None, tmp_path: Path) -> None:
    branches = ["main", "b1", "b2"]
    with running(tmp_path, database_url=database) as server, as_user(server.url, server.token) as ann:
        fill(ann, [wide(n) for n in range(300)])
        for name in branches[1:]:
            ann.post(f"{API}/branch/{name}", json={}).raise_for_status()

        def add(number: int) -> int:
            name = branches[number % len(branches)]
            return commit(ann, regular(f"new/{number}", b"x"), branch=name).status_code

        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(add, range(18)))
        held = {
            name: {file["rfilename"] for file in ann.get(f"{API}/revision/{name}").json()["siblings"]}
            for name in branches
        }
        checked = check_holdings(server.registry.db, server.registry.blobs)

    assert answers == [200] * 18
    for at, name in enumerate(branches):
        assert held[name] == {*(wide(n) for n in range(300)), *(f"new/{n}" for n in range(at, 18, len(branches)))}
    assert checked.problems == ()


# ------------------------------------------------------------ growth
@pytest.fixture(scope="module")
def pg() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str | None:
    """The URL of a new registry in each kind of database; None is SQLite in the registry's folder."""
    return None if request.param == "sqlite" else request.getfixturevalue("pg").new_registry()


def taken(database: str | None, root: Path) -> int:
    """The bytes in use in a database."""
    if database is None:
        with contextlib.closing(sqlite3.connect(root / "registry.db")) as connection:
            pages, free, size = (
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count", "page_size")
            )
            return int((pages - free) * size)
    import psycopg

    tables = "SELECT sum(pg_total_relation_size(relid)) FROM pg_stat_user_tables"
    with psycopg.connect(database) as connection:
        return int(connection.execute(tables).fetchone()[0])  # type: ignore[index]


def test_a_small_commit_adds_little_to_a_large_repository(database: str | None, tmp_path: Path) -> None:
    count = 10
    with running(tmp_path, database_url=database) as server, as_user(server.url, server.token) as ann:
        fill(ann, [wide(n) for n in range(SOME_FILES - count)])  # to write all of them again would take 500 kB
        before = taken(database, tmp_path)

        for number in range(count):
            commit(ann, regular(wide(number * 499), f"{number}".encode())).raise_for_status()
        on_main = taken(database, tmp_path)
        ann.post(f"{API}/branch/side", json={}).raise_for_status()
        for number in range(count):
            commit(ann, regular(f"new/{number}", f"{number}".encode()), branch="side").raise_for_status()
        on_side = taken(database, tmp_path)

        assert (on_main - before) // count <= MOST_GROWTH
        assert (on_side - on_main) // count <= MOST_GROWTH
        ann.request("DELETE", "/api/repos/delete", json={"organization": "acme", "name": "large"}).raise_for_status()
        with server.registry.db.read() as connection:
            left = [
                connection.scalar(select(func.count()).select_from(metadata.tables[name]))
                for name in ("commits", "refs", "nodes", "places")
            ]
        assert left == [0, 0, 0, 0]
