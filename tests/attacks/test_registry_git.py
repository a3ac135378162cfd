"""git over HTTP: hostile requests, hostile repositories, and what they may learn or cost."""

from __future__ import annotations

import gzip
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from adapterhub_registry.api.hub.git import UNPACKED_BYTES

from tests.attacks.raw_http import head_of, line_to
from tests.attacks.test_registry_trees import CONTENT, Memory, as_user, commit, known, regular
from tests.registry.conftest import Served, serving
from tests.registry.running import Running, running
from tests.registry.test_git import Git, files_of, git, of  # noqa: F401 - a fixture
from tests.registry.test_git import commit as commit_texts

FLUSH, DONE = b"0000", b"0009done\n"
FILES = 20_000

MOST_OF_CLONE = 112 << 20
"""Bytes above those of an idle server; what one clone takes moves by a few MiB."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("registry")) as server:
        for repo in ("acme/open", "acme/shut"):
            server.create(repo, private=repo.endswith("shut"))
            commit_texts(server, repo, {"a": repo})
        yield server


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("registry"), ()) as server:
        yield server


def packet(text: str) -> bytes:
    return f"{len(text) + 4:04x}{text}".encode()


def ask(server: Running, body: bytes, *, repo: str = "acme/open", **headers: str) -> httpx.Response:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(f"{server.url}/{repo}/git-upload-pack", content=body, headers=given, timeout=60)


def head(server: Running, repo: str = "acme/open") -> str:
    return of(server, repo)["refs/heads/main"]


# ------------------------------------------------------------ requests
@pytest.mark.parametrize(
    "body",
    [
        b"", b"000", b"zzzz", b"-001", b"+009", b"0x09", b"0003", b"0002", b"0001", b"fff0want", packet("want x"), packet("want " + "1" * 64),
        packet("want " + "g" * 40), packet("WANT " + "1" * 40), packet("have " + "1" * 40), packet("filter blob:none"),
        packet("want \xe9" + "1" * 38), b"0032want " + b"\0" * 41, b"\xff" * 4096, DONE,
    ],
)  # fmt: skip
def test_no_request_that_is_not_one_of_git_is_an_error_of_the_server(server: Running, body: bytes) -> None:
    answer = ask(server, body)

    assert answer.status_code in {200, 400}, answer.text
    assert b"PACK" not in answer.content
    if answer.status_code == 400:
        assert answer.headers["content-type"].startswith("text/plain")
        assert "not a request of git" in answer.text


@pytest.mark.parametrize("deepen", ["0", "-1", "99999999999", "1e3", "", "²", "1 1"])
def test_a_depth_that_is_none_is_refused(server: Running, deepen: str) -> None:
    body = packet(f"want {head(server)} shallow\n") + packet(f"deepen {deepen}") + FLUSH + DONE

    assert ask(server, body).status_code == 400


@pytest.mark.parametrize("deepen", [1, 2_147_483_647, 9_999_999_999])
def test_any_depth_takes_no_more_than_the_history(server: Running, deepen: int) -> None:
    body = packet(f"want {head(server)} shallow\n") + packet(f"deepen {deepen}") + FLUSH + DONE
    answer = ask(server, body)

    assert (answer.status_code, answer.content.count(b"PACK")) == (200, 1)


def test_no_want_reaches_a_commit_of_another_repository(server: Running) -> None:
    body = packet(f"want {head(server, 'acme/shut')}\n") + FLUSH + DONE
    answer = ask(server, body)

    assert answer.content[4:].startswith(b"ERR `acme/open` has no commit ")
    assert ask(server, body, repo="acme/shut").status_code == 401


def test_a_have_tells_nothing_of_another_repository(server: Running) -> None:
    want = packet(f"want {head(server)} multi_ack_detailed\n") + FLUSH
    answers = [
        ask(server, want + packet(f"have {have}\n") + FLUSH).content for have in (head(server, "acme/shut"), "1" * 40)
    ]

    assert answers == [b"0008NAK\n"] * 2


def test_many_wants_and_many_haves_cost_their_length(server: Running) -> None:
    wants = (
        packet(f"want {head(server)} multi_ack_detailed side-band-64k\n") + packet(f"want {head(server)}\n") * 10_000
    )
    haves = (
        b"".join(packet(f"have {number:040x}\n") for number in range(20_000)) + packet(f"have {head(server)}\n") * 9000
    )

    answer = ask(server, wants + FLUSH + haves + DONE)

    assert answer.status_code == 200
    assert answer.content.startswith(packet(f"ACK {head(server)} common\n") + packet(f"ACK {head(server)}\n"))
    assert answer.content.count(b"ACK ") == 2
    assert ask(server, wants + wants[88:] * 4).status_code == 413


def test_a_compressed_body_unpacks_to_no_more_than_its_bound(server: Running) -> None:
    bomb = gzip.compress(b"\0" * (UNPACKED_BYTES * 10))
    good = gzip.compress(packet(f"want {head(server)}\n") + FLUSH + DONE)

    assert len(bomb) < 1 << 20
    assert ask(server, bomb, content_encoding="gzip").status_code == 413
    assert ask(server, gzip.compress(bomb), content_encoding="gzip").status_code == 400  # unpacked once, and no request
    assert ask(server, good, content_encoding="gzip").content.startswith(b"0008NAK\nPACK")
    assert ask(server, good[:-12], content_encoding="gzip").status_code == 400
    assert ask(server, b"plain", content_encoding="gzip").status_code == 400
    assert ask(server, good, content_encoding="gzip, gzip").status_code == 415
    assert ask(server, good, content_encoding="br").status_code == 415


def test_no_other_route_takes_a_compressed_body(server: Running) -> None:
    for path in (
        "/api/models/acme/open/paths-info/main",
        "/acme/open.git/info/lfs/objects/batch",
        "/acme/git-upload-pack/x",
    ):
        sent = {"content-encoding": "gzip"}
        assert httpx.post(server.url + path, content=gzip.compress(b"{}"), headers=sent).status_code == 415


@pytest.mark.parametrize("repo", ["acme/shut", "acme/none"])
@pytest.mark.parametrize("path", ["/git-upload-pack", ".git/info/lfs/objects/batch", "/git-receive-pack"])
def test_no_body_is_read_of_one_who_may_not_read_the_repository(server: Running, repo: str, path: str) -> None:
    with line_to(server.url) as line:
        line.send(head_of("POST", f"/{repo}{path}", "Content-Length: 1000000", "Content-Type: application/json"))
        answer = line.answer()

    assert answer.status == (501 if "receive" in path else 401)


@pytest.mark.parametrize("given", ["", "Basic", "Basic !", "Basic YQ==", "Basic Og==", "Basic YTo=", f"Basic {'YTpi' * 2000}", "Basic YTpiw6k="])  # fmt: skip
def test_a_malformed_password_is_no_token(server: Running, given: str) -> None:
    place = f"{server.url}/acme/open/info/refs?service=git-upload-pack"
    answer = httpx.get(place, headers={"Authorization": given})

    assert (answer.status_code, answer.headers["www-authenticate"][:6]) == (401, "Basic ")


# ------------------------------------------------------------ repositories
def test_hostile_names_and_words_leave_the_clone_of_a_reader_alone(server: Running, git: Git) -> None:  # noqa: F811
    repo = server.create("acme/hostile")
    words = "\n\nauthor x <x> 1 +0000\nparent " + "1" * 40 + "\ngpgsig x\n\n\x1b[31m"
    names = (
        "-rf",
        "a b",
        "\u202ecod.exe",
        "é",
        "con.txt",
        ".gitmodules",
        "a\u200c/.g\u200cit",
        "~/x",
        "%2e%2e/x",
        ":(top)",
    )
    commit_texts(
        server, repo, dict.fromkeys(names, '[submodule "x"]\n path = x\n url = --upload-pack=touch\n'), title=words
    )

    there = git.home / "clone"
    git.ok("clone", f"{server.url}/{repo}", there)

    assert {*names, ".gitattributes"} == files_of(there).keys()
    assert git.ok("rev-list", "--count", "HEAD", at=there) == "2"
    assert git.ok("log", "-1", "--format=%P", at=there) == git.ok("rev-parse", "HEAD~", at=there)
    assert git.ok("log", "-1", "--format=%an", at=there) == "ann"


def test_a_name_for_another_system_is_refused_by_git_and_changes_nothing(server: Running, git: Git) -> None:  # noqa: F811
    repo = server.create("acme/short")
    commit_texts(server, repo, {"git~1/hooks/post-checkout": "#!/bin/sh\ntouch /tmp/hit\n"})

    said = git.refused("clone", f"{server.url}/{repo}", "clone")

    assert "invalid path 'git~1/hooks/post-checkout'" in said


def test_rules_that_would_take_for_ever_do_not(server: Running, git: Git) -> None:  # noqa: F811
    repo = server.create("acme/rules")
    rules = "".join(f"{'*a' * 60}{number} filter=lfs\n" for number in range(400))
    commit_texts(server, repo, {".gitattributes": rules, "big/.gitattributes": "x" * 200_000})
    api = f"/api/models/{repo}"
    with server.client() as client:
        commit(client, regular("a" * 200, CONTENT), api=api).raise_for_status()
        commit(
            client, *(known(f"{'b' * 200}/{number}{'a' * 200}") for number in range(100)), api=api
        ).raise_for_status()

    git.ok("clone", "--bare", f"{server.url}/{repo}", "clone")
    added = git.ok("show", "HEAD:.gitattributes", at=git.home / "clone").splitlines()[400:]
    assert len(added) == 100


def test_what_is_lost_on_the_way_becomes_words_of_git(server: Running, git: Git) -> None:  # noqa: F811
    repo = server.create("acme/lost")
    commit_texts(server, repo, {"a": "kept", "b": "lost in a moment"})
    listed = server.get(f"/api/models/{repo}/tree/main").json()
    oid = next(file["oid"] for file in listed if file["path"] == "b")
    done = subprocess.run(["git", "hash-object", "--stdin"], input=b"lost in a moment", capture_output=True, check=True)
    assert done.stdout.decode().strip() == oid
    for path in (server.root / "blobs").rglob("*"):
        if path.is_file() and path.read_bytes() == b"lost in a moment":
            path.unlink()

    said = git.refused("clone", f"{server.url}/{repo}", "clone")

    assert "remote error: no blob" in said or "remote: no blob" in said, said


# ------------------------------------------------------------ memory
@pytest.mark.exhaustive
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak memory of a process")
def test_no_clone_takes_much_memory_whatever_the_repository_holds(served: Served, git: Git) -> None:  # noqa: F811
    worlds = {
        "wide": [f"{'w' * 200}-{n:05}/{'x' * 200}" for n in range(FILES - 1000)],
        "flat": [f"{n:05}-{'y' * 240}" for n in range(FILES - 1)],
        "deep": ["/".join(f"{n:x}-{'z' * 20}-{at}" for at in range(31)) for n in range(FILES // 2)],
    }
    with as_user(served.url, served.token) as ann:
        for name, paths in worlds.items():
            ann.post("/api/repos/create", json={"organization": "acme", "name": name}).raise_for_status()
            api = f"/api/models/acme/{name}"
            commit(ann, regular(paths[0], CONTENT), api=api).raise_for_status()
            commit(ann, *map(known, paths[1:]), api=api).raise_for_status()
    git.run("ls-remote", f"{served.url}/acme/none")
    memory, peaks, said = Memory(served.pid), dict[str, int](), dict[str, str]()
    for name in worlds:
        place = f"{served.url}/acme/{name}"
        peaks[name] = memory.peak_of(lambda: said.update({name: git.run("clone", "--bare", place, name).stderr}))  # noqa: B023

    assert {name: f"{peak >> 20} MiB" for name, peak in peaks.items() if peak > MOST_OF_CLONE} == {}
    assert "more than 20000 folders" in said["deep"]
    for name in ("wide", "flat"):
        listed = git.ok("ls-tree", "-r", "--name-only", "HEAD", at=git.home / name).split()
        assert sorted(listed) == sorted([".gitattributes", *worlds[name]])
