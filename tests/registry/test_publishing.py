"""A version in one request, and a repository of many versions: nothing that a push or a read does grows with them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from adapterhub_registry.settings import ServerLimits
from sqlalchemy import event

from adapterhub.core.errors import AdapterHubError, DigestMismatch, NoCompatibleRelease, ReleaseExists
from adapterhub.core.ranks import ANY_RANK
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.choosing import first_fitting
from adapterhub.distribution.hub import Hub
from adapterhub.distribution.hub._push import HubRepository
from adapterhub.formats.manifest import CARD_FILE, CONTRACT_FILE, MANIFEST_FILE, WEIGHTS_FILE
from adapterhub.formats.release import Release
from adapterhub.library.bases.requested import requested_base
from adapterhub.library.installed import Added
from adapterhub.library.library import Library
from adapterhub.library.transfer import copy
from tests.registry.many_versions import add_versions
from tests.registry.proxy import Proxy
from tests.registry.running import Running, running
from tests.registry.shared_servers import Postgres

numbers = count(1)
FEW, MANY = 30, 530
STEP = 20  # instructions of SQLite's machine between two calls of its handler


@pytest.fixture(autouse=True)
def _online(online: None) -> None:
    """The Hub's client speaks to the server."""


@pytest.fixture
def repo() -> str:
    return f"team{next(numbers)}/agent"


def hub_of(server: Running | Proxy, token: str | None = None) -> Hub:
    return Hub(endpoint=server.url, token=token or getattr(server, "token", None))


def push(library: Library, added: Added, place: HubRepository) -> None:
    copy(Release(manifest=added.build.manifest, namespace=None, origin="home"), library, place)


def files_at(server: Running, repo: str, revision: str) -> dict[str, str]:
    told = server.get(f"/api/models/{repo}/tree/{revision}").json()
    return {one["path"]: one.get("lfs", one)["oid"] for one in told}


def body(version: str = "1.0.0", *, files: dict[str, bytes] | None = None, **changed: Any) -> bytes:
    content = {MANIFEST_FILE: b"{}"} if files is None else files
    listed = [
        {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for path, data in content.items()
    ]
    line = {"version": version, "title": "x", "files": listed} | changed
    return json.dumps(line).encode() + b"\n" + b"".join(content.values())


def sent(server: Running, repo: str, raw: bytes, token: str = "") -> httpx.Response:
    with server.client(token) as client:
        return client.post(f"/api/adapt/v1/adapters/{repo}/versions", content=raw)


def versions(server: Running, repo: str, **query: object) -> dict[str, Any]:
    answer = httpx.get(
        f"{server.url}/api/adapt/v1/adapters/{repo}/versions",
        params=query,  # type: ignore[arg-type]
        headers={"Authorization": f"Bearer {server.token}"},
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


# ---------------------------------------------------------------- one request
def test_a_version_goes_in_two_requests_and_lies_there_as_one_that_went_by_the_hubs(
    server: Running, proxy: Proxy, library: Library, add: Callable[..., Added], repo: str, monkeypatch: Any
) -> None:
    for name in (repo, f"{repo}-2"):
        server.create(name)
    builds = [add("agent", rank=4, seed=1), add("agent", rank=4, seed=2, version="1.0.1")]
    proxy.seen.clear()
    for build in builds:
        push(library, build, hub_of(proxy, server.token).to(repo))

    asked = [(one.method, one.path.partition("?")[0]) for one in proxy.seen]
    assert asked == [
        ("GET", "/api/adapt/v1/ahead"),
        ("POST", f"/api/adapt/v1/adapters/{repo}/versions"),
    ] * len(builds)

    monkeypatch.setattr(Hub, "features", frozenset(hub_of(server).features - {"publish", "pages"}))
    for build in builds:
        push(library, build, hub_of(server).to(f"{repo}-2"))
    for tag in ("v1.0.0", "v1.0.1", "main"):
        ours, theirs = files_at(server, repo, tag), files_at(server, f"{repo}-2", tag)
        assert ours.keys() == theirs.keys()
        # the card names the repository
        assert {p: d for p, d in ours.items() if p != CARD_FILE} == {p: d for p, d in theirs.items() if p != CARD_FILE}


def test_a_new_version_leaves_no_file_that_only_an_earlier_one_has(
    server: Running, library: Library, add: Callable[..., Added], repo: str
) -> None:
    server.create(repo)
    with server.client() as client:
        lines = [
            {"key": "header", "value": {"summary": "x"}},
            *(
                {"key": "file", "value": {"path": path, "content": "eA==", "encoding": "base64"}}
                for path in ("notes.txt", CONTRACT_FILE)
            ),
        ]
        client.post(f"/api/models/{repo}/commit/main", content="\n".join(map(json.dumps, lines))).raise_for_status()

    push(library, add("agent"), hub_of(server).to(repo))

    assert "notes.txt" in files_at(server, repo, "v1.0.0")
    assert CONTRACT_FILE not in files_at(server, repo, "v1.0.0")


def test_a_version_that_is_there_is_found_by_its_name_in_any_spelling(
    server: Running, library: Library, add: Callable[..., Added], repo: str, tmp_path: Path
) -> None:
    server.create(repo)
    added = add("agent", seed=1)
    push(library, added, hub_of(server).to(repo))
    before = files_at(server, repo, "main")

    push(library, added, hub_of(server).to(repo))  # the same again
    other = Library(tmp_path / "other")
    with pytest.raises(ReleaseExists, match=r"another build tagged `v1\.0\.0`"):
        push(other, add("agent", seed=2, into=other), hub_of(server).to(repo))
    third = Library(tmp_path / "third")
    with pytest.raises(ReleaseExists, match=r"has `v1\.0\.0`, the same version as 1\.0"):
        push(third, add("agent", seed=3, version="1.0", into=third), hub_of(server).to(repo))

    assert files_at(server, repo, "main") == before
    assert versions(server, repo)["versions"][0]["version"] == "1.0.0"


def test_weights_that_change_while_they_are_sent_make_no_version(
    server: Running, library: Library, add: Callable[..., Added], repo: str
) -> None:
    server.create(repo)
    build = add("agent").build
    place = hub_of(server).to(repo)
    release = Release(manifest=build.manifest, namespace=None, origin="home")
    with place.receive(release) as receiver:
        for entry in build.manifest.files:
            with library.open(release, entry) as stream:
                receiver.put(entry, stream)
        kept = library.store.blob_path(build.manifest.file(WEIGHTS_FILE).sha256)  # type: ignore[union-attr]
        kept.chmod(0o644)
        raw = bytearray(kept.read_bytes())
        raw[-1] ^= 1
        kept.write_bytes(raw)
        with pytest.raises(DigestMismatch, match=WEIGHTS_FILE):
            receiver.publish()

    assert versions(server, repo)["versions"] == []
    assert files_at(server, repo, "main").keys() == {".gitattributes"}


@pytest.mark.parametrize(
    ("raw", "status", "words"),
    [
        (b"", 400, "first line"),
        (b"[]\n", 400, "first line"),
        (b"x" * 70_000, 400, "at most 65536 bytes"),
        (body(version="1.0.0/x"), 400, "version"),
        (body(more=1), 400, "more"),
        (body(files={"evil.py": b""}), 400, "a version holds only"),
        (body(files={"../adapter.json": b""}), 400, "a version holds only"),
        (body(files={CARD_FILE: b"x"}), 400, "the manifest of the version"),
        (body(files={}), 400, "files"),
        (body() + b"!", 400, "no byte after the last file"),
        (body()[:-1], 400, "expected 2 as announced"),
        (body()[:-2] + b"[]", 400, "digest"),
        (body(files={MANIFEST_FILE: b"{}", CARD_FILE: b"a" * (9 << 20)}), 413, "limit"),
        (body(), 400, "expected an adapter"),
        (body(files={MANIFEST_FILE: b"{}", "adapter_config.json": b"{}"}, version="1.0+local"), 422, "local"),
    ],
)
def test_a_body_that_is_wrong_leaves_nothing(server: Running, repo: str, raw: bytes, status: int, words: str) -> None:
    server.create(repo)
    before = server.get(f"/api/models/{repo}/refs").json()

    answer = sent(server, repo, raw)

    assert (answer.status_code, words in answer.text) == (status, True), answer.text
    assert server.get(f"/api/models/{repo}/refs").json() == before


def test_a_version_goes_only_to_a_repository_that_the_token_may_change(server: Running, repo: str) -> None:
    server.create(repo)
    reader = server.registry.tokens.create("rita", role="read", namespaces=["*"])

    assert sent(server, f"{repo}-none", body()).status_code == 404
    assert sent(server, repo, body(), reader).status_code == 403


# ---------------------------------------------------------------- with an alias
def targets(server: Running, repo: str) -> dict[str, str]:
    told = server.get(f"/api/adapt/v1/adapters/{repo}/aliases").json()["aliases"]
    return {one["alias"]: one["targets"][0]["version"] for one in told}


def moves(server: Running, repo: str) -> list[dict[str, Any]]:
    told = server.get("/api/adapt/v1/events?since=0").json()["events"]
    return [one["data"] for one in told if one["type"] == "alias.moved" and one["data"]["repo"] == repo]


def test_an_alias_moves_in_the_request_of_its_version(
    server: Running, proxy: Proxy, library: Library, add: Callable[..., Added], repo: str
) -> None:
    server.create(repo)
    push(library, add("agent", version="1"), hub_of(server).to(repo))
    place = hub_of(proxy, server.token).to(repo)
    place.alias = "live"
    builds = [add("agent", version=version, seed=int(version)) for version in ("2", "3")]
    proxy.seen.clear()
    for build in builds:
        push(library, build, place)

    assert [one.method for one in proxy.seen] == ["GET", "POST"] * 2
    assert targets(server, repo) == {"live": "3"}
    told = [(one["before"], one["targets"][0]["version"], one["by"]) for one in moves(server, repo)]
    assert [(bool(before), version) for before, version, _ in told] == [(False, "2"), (True, "3")]

    push(library, builds[0], place)  # it is there: only the alias goes back
    assert targets(server, repo) == {"live": "2"}


@pytest.mark.parametrize("lacking", [{"publish-alias"}, {"publish-alias", "publish", "pages"}])
def test_an_alias_moves_after_the_version_where_the_server_cannot_do_both(
    server: Running, library: Library, add: Callable[..., Added], repo: str, lacking: set[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(Hub, "features", frozenset(hub_of(server).features - lacking))
    for version in ("1", "2"):
        place = hub_of(server).to(repo)
        place.alias = "live"
        push(library, add("agent", version=version), place)
    assert targets(server, repo) == {"live": "2"}


def test_a_version_whose_alias_may_not_move_is_not_published(
    server: Running, library: Library, add: Callable[..., Added], repo: str
) -> None:
    server.create(repo)
    push(library, add("agent", version="1"), hub_of(server).to(repo))
    server.post(f"/api/models/{repo}/branch/live", {}).raise_for_status()
    before = server.get(f"/api/models/{repo}/refs").json()
    place = hub_of(server).to(repo)
    for taken, words in (("live", "already exists"), ("v1", "v1"), ("a/b", "a name holds only")):
        place.alias = taken
        with pytest.raises(AdapterHubError, match=words):
            push(library, add("agent", version="2"), place)

    assert server.get(f"/api/models/{repo}/refs").json() == before
    assert [one["version"] for one in versions(server, repo)["versions"]] == ["1"]
    assert moves(server, repo) == []


def test_versions_with_an_alias_and_moves_of_it_wait_for_each_other(
    pg: Postgres,
    library: Library,
    add: Callable[..., Added],
    repo: str,
    tmp_path: Path,
    amount: Callable[[int, int], int],
) -> None:
    builds = [add("agent", version=f"{number}", seed=number) for number in range(1, amount(6, 40))]
    with running(tmp_path / "registry", database_url=pg.new_registry(), derives=False) as server:
        server.create(repo)
        place = hub_of(server).to(repo)
        place.alias = "live"
        push(library, builds[0], place)
        done = threading.Event()

        def move() -> list[int]:
            found = []
            while not done.is_set():
                for verb in ("", "/remove"):  # then a publish makes it anew, which looks at all refs
                    path = f"/api/adapt/v1/adapters/{repo}/aliases/live{verb}"
                    found.append(server.post(path, {} if verb else {"targets": [{"version": "1"}]}).status_code)
            return found

        with ThreadPoolExecutor(1) as threads:
            moving = threads.submit(move)
            try:
                for build in builds[1:]:
                    push(library, build, place)
            finally:
                done.set()
            assert set(moving.result()) == {200}
        push(library, builds[-1], place)
        assert targets(server, repo) == {"live": builds[-1].build.manifest.version}


# ---------------------------------------------------------------- lists
def test_versions_come_by_pages_in_the_order_of_versions(
    server: Running, library: Library, add: Callable[..., Added], repo: str
) -> None:
    server.create(repo)
    push(library, add("agent", version="0.1"), hub_of(server).to(repo))
    for version in ("1.0rc1", "1.0", "1.10", "1.9.dev1", "1.9"):
        push(library, add("agent", version=version), hub_of(server).to(repo))
    wanted = ["1.10", "1.9", "1.9.dev1", "1.0", "1.0rc1", "0.1"]

    first = versions(server, repo, limit=4)
    second = versions(server, repo, limit=4, below=first["next_below"])
    one = server.get(f"/api/adapt/v1/adapters/{repo}/versions/1.0.0")

    assert [one["version"] for one in versions(server, repo)["versions"]] == wanted
    assert [one["version"] for page in (first, second) for one in page["versions"]] == wanted
    assert (first["next_below"], second["next_below"]) == ("1.0", None)
    assert one.json() == versions(server, repo, digest=one.json()["digest"][7:])["versions"][0]
    assert server.get(f"/api/adapt/v1/adapters/{repo}/versions/3").status_code == 404
    assert server.get(f"/api/adapt/v1/adapters/{repo}/versions?below=x").status_code == 400
    assert [one.version for one in hub_of(server).versions(repo)] == wanted


def test_the_newest_versions_decide_only_where_no_other_can(
    server: Running, library: Library, add: Callable[..., Added], repo: str
) -> None:
    server.create(repo)
    push(library, add("agent", version="9.0rc1"), hub_of(server).to(repo))
    push(library, add("agent", version="0.0.999"), hub_of(server).to(repo))
    add_versions(server.registry.db, server.registry.blobs, repo, range(FEW))  # type: ignore[arg-type]
    hub = hub_of(server)

    def chosen(text: str) -> str:
        spec = AdapterSpec.parse(text)
        found = first_fitting(library, spec, [hub], requested_base(spec.base, library.bases), ANY_RANK)
        assert found is not None
        return found[0].manifest.version

    assert chosen(f"{repo}@base-7b") == "0.0.999"
    assert chosen(repo) == "0.0.999"  # all are for one base
    assert chosen(f"{repo}<0.0.5") == "0.0.4"  # beyond the newest
    assert chosen(f"{repo}@base-7b>=0.0.1,<0.0.9,<0.0.5") == "0.0.4"
    assert chosen(f"{repo}==0.0.3") == "0.0.3"
    with pytest.raises(NoCompatibleRelease):
        chosen(f"{repo}==7")


# ---------------------------------------------------------------- ten thousand
@contextlib.contextmanager
def instructions(server: Running) -> Iterator[Callable[[], int]]:
    """Count what SQLite's machine does for the server: unlike times, it is the same in each run."""
    total = 0

    def counted() -> int:
        nonlocal total
        total += STEP
        return 0

    def watch(connection: Any, *_: object) -> None:
        connection.set_progress_handler(counted, STEP)

    event.listen(server.registry.db.engine, "checkout", watch)
    try:
        yield lambda: total
    finally:
        event.remove(server.registry.db.engine, "checkout", watch)


def taken_with_few_and_many(
    server: Running, repo: str, works: dict[str, Callable[[], None]]
) -> dict[str, tuple[int, int]]:
    """What each work takes with few and with many versions."""
    taken: dict[str, list[int]] = {}
    with instructions(server) as done:
        for numbers_of in (range(FEW), range(FEW, MANY)):
            add_versions(server.registry.db, server.registry.blobs, repo, numbers_of)  # type: ignore[arg-type]
            for what, work in works.items():
                least = []
                for _ in range(3):  # the server's own work in between counts, too
                    start = done()
                    work()
                    least.append(done() - start)
                taken.setdefault(what, []).append(min(least))
    return {what: (few, many) for what, (few, many) in taken.items()}


def grown_of(taken: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """What takes more with many versions."""
    return {what: (few, many) for what, (few, many) in taken.items() if many > 1.3 * few + 400}


def test_pushes_and_reads_do_as_much_in_a_repository_of_many_versions(
    server: Running, library: Library, add: Callable[..., Added], repo: str, tmp_path: Path
) -> None:
    namespace = repo.partition("/")[0]
    server.create(repo)
    push(library, add("agent", version="0.1"), hub_of(server).to(repo))
    made = count(2)

    def push_one() -> None:
        push(library, add("agent", version=f"0.{next(made)}"), hub_of(server).to(repo))

    def push_with_alias() -> None:
        place = hub_of(server).to(repo)
        place.alias = "live"
        push(library, add("agent", version=f"0.{next(made)}"), place)

    def push_by_the_hubs_api() -> None:
        hub = hub_of(server)
        hub._features = hub.features - {"publish"}
        push(library, add("agent", version=f"0.{next(made)}"), hub.to(repo))

    def resolve(text: str) -> Callable[[], None]:
        def work() -> None:
            spec = AdapterSpec.parse(text)
            assert first_fitting(library, spec, [hub_of(server)], requested_base(spec.base, library.bases), ANY_RANK)

        return work

    def move() -> None:
        version = ("0.0.1", "0.0.2")[next(made) % 2]
        path = f"/api/adapt/v1/adapters/{repo}/aliases/prod"
        server.post(path, {"targets": [{"version": version}]}).raise_for_status()

    def read(path: str) -> Callable[[], None]:
        return lambda: server.get(path).raise_for_status() and None

    works: dict[str, Callable[[], None]] = {
        "push": push_one,
        "push with an alias": push_with_alias,
        "push by the Hub's API": push_by_the_hubs_api,
        "newest": resolve(f"{repo}@base-7b"),
        "newest for any base": resolve(repo),
        "exact": resolve(f"{repo}==0.0.3"),
        "below a version": resolve(f"{repo}@base-7b>=0.0.1,<0.0.9,<0.0.5"),
        "alias moves": move,
        "alias": read(f"/api/adapt/v1/aliases/{repo}/prod"),
        "aliases": read(f"/api/adapt/v1/adapters/{repo}/aliases"),
        "page of versions": read(f"/api/adapt/v1/adapters/{repo}/versions?limit=20"),
        "page": read(f"/{repo}"),
        "page of a version": read(f"/{repo}/0.0.3"),
        "file": read(f"/{repo}/resolve/v0.0.3/{MANIFEST_FILE}"),
        "model": read(f"/api/models/{repo}"),
        "search": read(f"/api/adapt/v1/adapters?q={namespace}"),
    }
    taken = taken_with_few_and_many(server, repo, works)

    assert not grown_of(taken)
    assert taken["push"][0] > 1000  # something was counted


def test_quotas_count_nothing_anew_while_there_is_room(
    tmp_path: Path, library: Library, add: Callable[..., Added], repo: str
) -> None:
    made = count(2)
    with running(tmp_path / "registry", limits=ServerLimits(namespace_bytes=1 << 40), derives=False) as server:
        server.create(repo)
        push(library, add("agent", version="0.1"), hub_of(server).to(repo))
        whole, parts = hub_of(server), hub_of(server)
        parts._features = parts.features - {"publish"}

        def push_to(hub: Hub) -> Callable[[], None]:
            return lambda: push(library, add("agent", version=f"0.{next(made)}"), hub.to(repo))

        works = {"push": push_to(whole), "push by the Hub's API": push_to(parts)}
        taken = taken_with_few_and_many(server, repo, works)

    assert not grown_of(taken)
