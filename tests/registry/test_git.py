"""The stock git and git-lfs against a registry: clones, fetches, pulls, and what they are refused."""

from __future__ import annotations

import base64
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from adapterhub_registry.database.db import commits as commits_table
from adapterhub_registry.database.db import refs, repos
from adapterhub_registry.repos import commits
from adapterhub_registry.repos.git import history_of
from adapterhub_registry.settings import ServerLimits
from sqlalchemy import select, update

from tests.registry.conftest import ROOT
from tests.registry.pushing import Push
from tests.registry.running import Running, running
from tests.support.programs import needs

WEIGHTS = bytes(range(256)) * 300
numbers = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture
def repo(server: Running) -> str:
    high, low = divmod(next(numbers), 8)
    return server.create(f"ann/git{'abcdeghk'[high]}{'pqstuvxy'[low]}")  # no two look alike


def commit(server: Running, repo: str, files: dict[str, str | None], *, branch: str = "main", title: str = "t") -> str:
    """Commit regular files; None removes one."""
    lines: list[dict[str, Any]] = [{"key": "header", "value": {"summary": title}}]
    for path, text in files.items():
        if text is None:
            lines.append({"key": "deletedFile", "value": {"path": path}})
        else:
            content = base64.b64encode(text.encode()).decode()
            lines.append({"key": "file", "value": {"path": path, "content": content, "encoding": "base64"}})
    with server.client() as client:
        answer = client.post(f"/api/models/{repo}/commit/{branch}", content="\n".join(map(json.dumps, lines)))
    answer.raise_for_status()
    return str(answer.json()["commitOid"])


@dataclass(frozen=True)
class Git:
    """The stock git with an empty home, in which only git-lfs may be set up."""

    home: Path
    lfs: str = ""

    def run(self, *arguments: object, at: Path | None = None) -> subprocess.CompletedProcess[str]:
        known = {"HOME": str(self.home), "LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_NOSYSTEM": "1"}
        command = [needs("git"), "-c", "advice.detachedHead=false", *map(str, arguments)]
        environment = known | {"PATH": os.pathsep.join(filter(None, (os.environ["PATH"], self.lfs)))}
        return subprocess.run(
            command, cwd=at or self.home, env=environment, capture_output=True, text=True, check=False
        )

    def ok(self, *arguments: object, at: Path | None = None) -> str:
        done = self.run(*arguments, at=at)
        assert done.returncode == 0, f"git {arguments}: {done.stderr}"
        return done.stdout.strip()

    def refused(self, *arguments: object, at: Path | None = None) -> str:
        done = self.run(*arguments, at=at)
        assert done.returncode != 0, f"git {arguments}: {done.stdout}"
        assert "Traceback" not in done.stderr
        return done.stderr


@pytest.fixture
def git(tmp_path: Path) -> Git:
    return Git(tmp_path)


@pytest.fixture
def with_lfs(git: Git) -> Git:
    git = replace(git, lfs=str(Path(needs("git-lfs")).parent))  # git looks for its commands on the path
    git.ok("lfs", "install")
    return git


def as_user(server: Running, token: str) -> str:
    return server.url.replace("http://", f"http://me:{token}@")


def of(server: Running, repo: str) -> dict[str, str]:
    """The git id of each ref, as the server computes it."""
    registry = server.registry
    with registry.db.read() as connection:
        row = connection.execute(select(repos).where(repos.c.full_name == repo)).one()
        found = history_of(connection, registry.blobs, row, registry.settings.limits, registry.git)
    return {name.decode(): git.decode() for name, git in found.refs.items()}


def files_of(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and ".git" not in path.relative_to(folder).parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


# ---------------------------------------------------------------- clones
@pytest.mark.parametrize("address", ["{}", "{}.git", "models/{}", "models/{}.git"])
def test_a_clone_has_the_files_and_the_history(server: Running, repo: str, git: Git, address: str) -> None:
    commit(server, repo, {"README.md": "one", "a/b/c.txt": "deep", "a-b": "", "a/b.txt": "é"}, title="first")
    last = commit(server, repo, {"README.md": "two\n"}, title="second\n\nwith words")

    there = git.home / "clone"
    git.ok("clone", f"{server.url}/{address.format(repo)}", there)

    wanted = {"README.md": b"two\n", "a/b/c.txt": b"deep", "a-b": b"", "a/b.txt": "é".encode()}
    found = files_of(there)
    assert {path: found[path] for path in wanted} == wanted
    assert found.keys() - wanted == {".gitattributes"}
    assert git.ok("log", "--format=%s", at=there).splitlines() == ["second", "first", "initial commit"]
    assert git.ok("log", "-1", "--format=%an %(trailers:key=Registry-Commit,valueonly)", at=there) == f"ann {last}"
    assert git.ok("fsck", "--strict", at=there) == ""
    assert git.ok("status", "--porcelain", at=there) == ""
    assert git.ok("rev-parse", "--abbrev-ref", "HEAD", at=there) == "main"


def test_branches_tags_and_aliases_are_refs(server: Running, repo: str, git: Git) -> None:
    first = commit(server, repo, {"a": "1"})
    server.post(f"/api/models/{repo}/branch/feat%2Fx", {"startingPoint": first}).raise_for_status()
    commit(server, repo, {"a": "2"}, branch="feat%2Fx")
    server.post(f"/api/models/{repo}/tag/{first}", {"tag": "light"}).raise_for_status()
    server.post(f"/api/models/{repo}/tag/{first}", {"tag": "heavy", "message": "why\nso"}).raise_for_status()

    there = git.home / "clone"
    git.ok("clone", f"{server.url}/{repo}", there)

    assert git.ok("show", "origin/feat/x:a", at=there) == "2"
    assert git.ok("cat-file", "-t", "light", at=there) == "commit"
    assert git.ok("cat-file", "-t", "heavy", at=there) == "tag"
    assert git.ok("tag", "-l", "--format=%(contents)", "heavy", at=there) == "why\nso"
    assert git.ok("rev-parse", "heavy^{commit}", at=there) == git.ok("rev-parse", "light", at=there)
    assert git.ok("fsck", "--strict", at=there) == ""


def test_a_clone_of_one_tag_has_its_files(server: Running, repo: str, git: Git) -> None:
    first = commit(server, repo, {"a": "1"})
    server.post(f"/api/models/{repo}/tag/{first}", {"tag": "old", "message": "m"}).raise_for_status()
    commit(server, repo, {"a": "2"})

    there = git.home / "clone"
    git.ok("clone", "--branch", "old", "--depth", "1", f"{server.url}/{repo}", there)

    assert (there / "a").read_text() == "1"
    assert git.ok("rev-list", "--count", "HEAD", at=there) == "1"


def test_refs_that_git_cannot_store_beside_each_other_do_not_break_a_clone(
    server: Running, repo: str, git: Git
) -> None:
    for name in ("a", "a%2Fb", "x%2F.hidden", "y.lock%2Fz"):
        server.post(f"/api/models/{repo}/branch/{name}", {}).raise_for_status()

    there = git.home / "clone"
    git.ok("clone", f"{server.url}/{repo}", there)

    listed = git.ok("for-each-ref", "--format=%(refname:lstrip=3)", "refs/remotes/origin", at=there).split()
    assert sorted(listed) == ["HEAD", "a", "main"]


# ---------------------------------------------------------------- fetches
def test_a_fetch_and_a_pull_get_what_is_new(server: Running, repo: str, git: Git) -> None:
    commit(server, repo, {"a": "1", "d/x": "x", "d/y": "y"})
    there = git.home / "clone"
    git.ok("clone", f"{server.url}/{repo}", there)
    commit(server, repo, {"a": "2", "d/x": None, "d/y": None, "e/z": "z"})
    commit(server, repo, {"d": "a file in place of a folder", "e/z": None, "e": "too"})

    git.ok("fetch", at=there)
    assert git.ok("show", "origin/main~1:a", at=there) == "2"
    git.ok("pull", "--ff-only", at=there)

    found = files_of(there)
    del found[".gitattributes"]
    assert found == {"a": b"2", "d": b"a file in place of a folder", "e": b"too"}
    assert git.ok("fsck", "--strict", at=there) == ""
    assert "pack-reused" not in git.run("fetch", at=there).stderr


def test_a_fetch_sends_only_what_the_client_lacks(server: Running, repo: str, git: Git) -> None:
    commit(server, repo, {f"f{n}": str(n) for n in range(40)})
    there = git.home / "clone"
    git.ok("clone", f"{server.url}/{repo}", there)
    commit(server, repo, {"f0": "new"})

    said = git.run("-c", "fetch.unpackLimit=1", "fetch", "-v", "--progress", at=there).stderr

    assert "Receiving objects: 100% (3/3)" in said  # a commit, a folder, a file


def test_work_of_ones_own_does_not_hinder_a_fetch(server: Running, repo: str, git: Git) -> None:
    commit(server, repo, {"a": "1"})
    there = git.home / "clone"
    git.ok("clone", f"{server.url}/{repo}", there)
    for n in range(120):  # more than a first round of negotiation, so that its requests are compressed
        git.ok("-c", "user.name=x", "-c", "user.email=x@x", "commit", "--allow-empty", "-q", "-m", n, at=there)
    commit(server, repo, {"a": "2"})

    git.ok("fetch", at=there)

    assert git.ok("show", "origin/main:a", at=there) == "2"
    assert git.ok("merge-base", "HEAD", "origin/main", at=there) == git.ok("rev-parse", "origin/main~1", at=there)


def test_a_shallow_clone_grows_to_the_whole_history(server: Running, repo: str, git: Git) -> None:
    for n in range(6):
        commit(server, repo, {"a": str(n)}, title=str(n))
    there = git.home / "clone"
    git.ok("clone", "--depth", "2", f"{server.url}/{repo}", there)

    def count() -> str:
        assert git.ok("fsck", "--strict", at=there) == ""
        return git.ok("rev-list", "--count", "origin/main", at=there)

    assert count() == "2"
    commit(server, repo, {"a": "new"})
    git.ok("fetch", at=there)
    assert count() == "3"
    git.ok("fetch", "--depth", "4", at=there)
    assert count() == "4"
    git.ok("fetch", "--unshallow", at=there)
    assert count() == "8"
    git.ok("fetch", "--depth", "1", at=there)
    assert count() == "1"


def test_one_commit_is_fetched_by_its_id(server: Running, repo: str, git: Git) -> None:
    commit(server, repo, {"a": "1"})
    wanted = of(server, repo)["refs/heads/main"]
    commit(server, repo, {"a": "2"})

    git.ok("init", "-q", "here")
    git.ok("fetch", f"{server.url}/{repo}", wanted, at=git.home / "here")
    assert git.ok("show", "FETCH_HEAD:a", at=git.home / "here") == "1"
    unknown = git.refused("fetch", f"{server.url}/{repo}", "1" * 40, at=git.home / "here")
    assert f"remote error: `{repo}` has no commit {'1' * 40}" in unknown


def test_a_client_of_the_first_protocol_is_answered(server: Running, repo: str, git: Git) -> None:
    commit(server, repo, {"a": "1"})

    for version in (0, 1, 2):
        git.ok("-c", f"protocol.version={version}", "clone", f"{server.url}/{repo}", git.home / str(version))
        assert (git.home / str(version) / "a").read_text() == "1"


# ---------------------------------------------------------------- ids
def test_the_ids_are_those_of_git_and_the_same_on_every_server(
    server: Running, repo: str, git: Git, tmp_path: Path
) -> None:
    commit(server, repo, {"b/c": "1", "b-c": "2", "b.c": "3", "b/d/e": "4", "z": "5"}, title="words")
    commit(server, repo, {"b/d/e": None, "z": "6"})
    server.post(f"/api/models/{repo}/tag/main", {"tag": "t", "message": "m"}).raise_for_status()
    before = of(server, repo)
    git.ok("clone", f"{server.url}/{repo}", git.home / "clone")
    git.ok("add", "--renormalize", ".", at=git.home / "clone")

    assert git.ok("write-tree", at=git.home / "clone") == git.ok("rev-parse", "HEAD^{tree}", at=git.home / "clone")
    registry = server.registry
    with registry.db.read() as connection:
        row = connection.execute(select(repos).where(repos.c.full_name == repo)).one()
        fresh = history_of(connection, registry.blobs, row, registry.settings.limits, type(registry.git)())
    assert {name.decode(): found.decode() for name, found in fresh.refs.items()} == before


def test_a_rewritten_history_has_other_ids_at_once(server: Running, repo: str, git: Git) -> None:
    commit(server, repo, {"a": "1"})
    push = server.push(repo, WEIGHTS, version="words")
    commit(server, repo, {"b": "2"})
    there = git.home / "clone"
    git.ok("-c", "filter.lfs.smudge=", "clone", f"{server.url}/{repo}", there)
    before = of(server, repo)

    doomed = {"deletions": {"sha": [push.oid], "rewriteHistory": True}}
    server.post(f"/api/models/{repo}/lfs-files/batch", doomed).raise_for_status()

    after = of(server, repo)
    assert after["refs/heads/main"] != before["refs/heads/main"]
    git.ok("fetch", at=there)
    assert git.ok("rev-parse", "origin/main", at=there) == after["refs/heads/main"]
    assert "adapter_model.safetensors" not in git.ok("ls-tree", "-r", "--name-only", "origin/main", at=there)
    assert git.ok("fsck", "--strict", at=there) == ""


# ---------------------------------------------------------------- LFS
def test_git_lfs_fetches_the_weights(server: Running, repo: str, with_lfs: Git) -> None:
    server.push(repo, WEIGHTS)
    there = with_lfs.home / "clone"

    with_lfs.ok("clone", f"{server.url}/{repo}", there)

    assert (there / "adapter_model.safetensors").read_bytes() == WEIGHTS
    assert with_lfs.ok("status", "--porcelain", at=there) == ""
    pointer = with_lfs.ok("show", "HEAD:adapter_model.safetensors", at=there)
    assert pointer.startswith("version https://git-lfs.github.com/spec/v1\noid sha256:")
    assert with_lfs.ok("tag", at=there) == "v1.0.0"


def test_git_lfs_fetches_private_weights_with_the_token_of_the_clone(server: Running, repo: str, with_lfs: Git) -> None:
    private = server.create(f"{repo}-private", private=True)
    server.push(private, WEIGHTS)
    there = with_lfs.home / "clone"

    with_lfs.ok("clone", f"{as_user(server, server.token)}/{private}", there)

    assert (there / "adapter_model.safetensors").read_bytes() == WEIGHTS


def send_by_lfs(server: Running, repo: str, *paths: str, text: bytes) -> None:
    """Commit one content by LFS at some paths, as clients send what is large or binary."""
    push = Push(repo=repo, weights=text)
    named = [{"path": path, "algo": "sha256", "oid": push.oid, "size": len(text)} for path in paths]
    lines = [{"key": "header", "value": {"summary": "by LFS"}}, *({"key": "lfsFile", "value": one} for one in named)]
    with server.client() as client:
        push.send(client)
        body = "\n".join(map(json.dumps, lines))
        client.post(f"/api/models/{repo}/commit/main", content=body).raise_for_status()


def test_files_of_lfs_that_no_rule_names_are_whole_in_a_clone(server: Running, repo: str, with_lfs: Git) -> None:
    commit(server, repo, {"config.json": "{}", "sub/notes": "regular"})
    large = ["tokenizer.json", "sub/a [b]*?.json", "sub/x.png", "y.png", "sub/blob", "adapter.bin"]
    send_by_lfs(server, repo, *large, text=WEIGHTS)
    there = with_lfs.home / "clone"

    with_lfs.ok("clone", f"{server.url}/{repo}", there)

    found = files_of(there)
    assert {path for path, content in found.items() if content == WEIGHTS} == set(large)
    assert (found["config.json"], found["sub/notes"]) == (b"{}", b"regular")
    words = "filter=lfs diff=lfs merge=lfs -text"
    added = [f"{pattern} {words}" for pattern in ("*.png", "/sub/a??b???.json", "/sub/blob", "/tokenizer.json")]
    assert found[".gitattributes"].decode().splitlines()[-4:] == added
    assert with_lfs.ok("status", "--porcelain", at=there) == ""
    assert with_lfs.ok("lfs", "ls-files", "--name-only", at=there).splitlines() == sorted(large)


def test_lines_for_lfs_follow_the_files_and_the_rules_of_the_repository(
    server: Running, repo: str, with_lfs: Git
) -> None:
    def seen() -> list[str]:
        there = with_lfs.home / f"clone{next(numbers)}"
        with_lfs.ok("clone", f"{server.url}/{repo}", there)
        assert with_lfs.ok("status", "--porcelain", at=there) == ""
        assert with_lfs.ok("fsck", "--strict", at=there) == ""
        path = there / ".gitattributes"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.partition(" ")[0] for line in lines if "filter=lfs" in line][-2:]

    default = ["*.zst", "*tfevents*"]
    send_by_lfs(server, repo, "a.json", text=WEIGHTS)
    assert seen() == ["*tfevents*", "*.json"]
    commit(server, repo, {"b.json": "{}"})
    assert seen() == ["*tfevents*", "/a.json"]
    commit(server, repo, {".gitattributes": "*.json filter=lfs -text\nb.json -filter\n*.txt text"})
    assert seen() == ["*.json"]
    commit(server, repo, {".gitattributes": None})
    assert seen() == ["/a.json"]
    commit(server, repo, {"a.json": None})
    assert seen() == []
    first = server.get(f"/api/models/{repo}/commits/main").json()[-1]["id"]
    old = server.get(f"/{repo}/resolve/{first}/.gitattributes").text
    commit(server, repo, {".gitattributes": old})
    assert seen() == default


def test_a_download_link_ends_with_the_right_for_which_it_was_signed(server: Running, repo: str) -> None:
    push = server.push(repo, WEIGHTS)
    body = {"operation": "download", "objects": [{"oid": push.oid, "size": len(WEIGHTS)}, {"oid": "0" * 64, "size": 1}]}
    token = server.registry.tokens.create("bob", "read")

    def href(token: str | None) -> str:
        answer = server.post(f"/{repo}.git/info/lfs/objects/batch", body, token=token)
        found, missing = answer.raise_for_status().json()["objects"]
        assert missing["error"]["code"] == 404
        return str(found["actions"]["download"]["href"]).removeprefix(server.url)

    links = [href(None), href(token)]
    assert [server.get(link, token=None).content == WEIGHTS for link in links] == [True, True]
    part = server.client().get(links[0], headers={"Range": "bytes=5-9"})
    assert (part.status_code, part.content) == (206, WEIGHTS[5:10])

    server.registry.tokens.revoke(next(one.id for one in server.registry.tokens.records() if one.user == "bob"))
    assert [server.get(link, token=None).status_code for link in links] == [200, 401]
    server.send("PUT", f"/api/models/{repo}/settings", {"private": True}).raise_for_status()
    assert [server.get(link, token=None).status_code for link in links] == [404, 401]
    assert server.get(f"{links[0][:-4]}AAAA", token=None).status_code == 403


# ---------------------------------------------------------------- who may
def test_what_is_not_there_and_what_is_private_answer_alike_without_a_token(
    server: Running, repo: str, git: Git
) -> None:
    private = server.create(f"{repo}-private", private=True)
    answers = []
    for name in (private, f"{repo}-nothing"):
        for call in ("info/refs?service=git-upload-pack", "info/refs", "info/refs?service=git-receive-pack"):
            answer = server.get(f"/{name}/{call}", token=None)
            told = answer.text.replace(name, "NAME")
            headers = {one: text for one, text in answer.headers.items() if one not in {"date", "x-request-id"}}
            answers.append((call, answer.status_code, told, headers.get("www-authenticate")))
    assert answers[:3] == answers[3:]
    assert [status for _, status, _, _ in answers[:3]] == [401, 401, 501]
    assert "Authentication failed" in git.refused("clone", f"{as_user(server, 'adp_wrong')}/{private}", "x")
    assert "Invalid credentials" in git.refused("clone", f"{as_user(server, 'adp_wrong')}/{private}", "x")


def test_a_token_clones_what_its_user_may_read(server: Running, repo: str, git: Git) -> None:
    private = server.create(f"{repo}-private", private=True)
    stranger = server.registry.tokens.create("bob", "read")

    git.ok("clone", f"{as_user(server, server.token)}/{private}", "mine")
    refused = git.refused("clone", f"{as_user(server, stranger)}/{private}", "theirs")

    assert f"repository `{private}` not found" in refused
    assert "hf upload" in git.refused("push", at=git.home / "mine")


def test_a_gated_repository_is_cloned_by_whom_its_owners_accept(server: Running, repo: str, git: Git) -> None:
    commit(server, repo, {"a": "1"})
    server.send("PUT", f"/api/models/{repo}/settings", {"gated": "auto"}).raise_for_status()
    token = server.registry.tokens.create("bob", "read")

    assert "terminal prompts disabled" in git.refused("clone", f"{server.url}/{repo}", "nobody")
    assert "restricted" in git.refused("clone", f"{as_user(server, token)}/{repo}", "before")
    server.post(f"/{repo}/ask-access", {}, token=token).raise_for_status()
    git.ok("clone", f"{as_user(server, token)}/{repo}", "after")


def test_a_registry_that_wants_tokens_is_cloned_with_one(tmp_path: Path, git: Git) -> None:
    with running(tmp_path / "closed", anonymous_read=False) as server:
        repo = server.create("ann/closed")
        assert "terminal prompts disabled" in git.refused("clone", f"{server.url}/{repo}", "nobody")
        git.ok("clone", f"{as_user(server, server.token)}/{repo}", "ann")


def test_git_tells_that_a_version_was_yanked(server: Running, repo: str, git: Git) -> None:
    server.push(repo, WEIGHTS)
    server.yank(repo, "leaks")

    said = git.run("-c", "filter.lfs.smudge=", "clone", "--progress", f"{server.url}/{repo}", "x")

    assert "remote: yanked; version 1.0.0 was yanked: leaks" in said.stderr


def test_a_removed_repository_is_gone_and_a_renamed_one_is_found(server: Running, repo: str, git: Git) -> None:
    commit(server, repo, {"a": "1"})
    git.ok("clone", f"{server.url}/{repo}", "x")
    move = {"fromRepo": repo, "toRepo": f"{repo}-moved"}
    server.post("/api/repos/move", move).raise_for_status()
    git.ok("fetch", at=git.home / "x")
    server.remove(f"{repo}-moved")

    assert "terminal prompts disabled" in git.refused("fetch", at=git.home / "x")


def test_a_password_is_a_token_for_git_only(server: Running, repo: str) -> None:
    given = base64.b64encode(f"me:{server.token}".encode()).decode()
    headers = {"Authorization": f"Basic {given}"}
    with server.client() as client:
        asked = [f"/{repo}/info/refs?service=git-upload-pack", f"/api/models/{repo}", f"/{repo}/resolve/main/x", "/"]
        assert [client.get(path, headers=headers).status_code for path in asked] == [200, 401, 401, 401]


def test_a_clone_counts_as_a_download(server: Running, repo: str, git: Git) -> None:
    git.ok("clone", f"{server.url}/{repo}", "x")
    git.ok("fetch", at=git.home / "x")
    server.registry.downloads.flush()

    assert server.get(f"/api/models/{repo}").json()["downloads"] == 1


def test_a_registry_that_no_git_asks_does_without_its_library(tmp_path: Path) -> None:
    code = (
        "import sys; from adapterhub_registry.app import create_app; from adapterhub_registry.settings import load_settings;"
        f"from pathlib import Path; create_app(load_settings(Path({str(tmp_path / 'root')!r})));"
        "sys.exit('dulwich' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "registry")])}

    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


# ---------------------------------------------------------------- bounds
LIMITS: dict[str, tuple[ServerLimits, str]] = {
    "commits": (ServerLimits(git_commits=5), "more than 5 commits"),
    "entries": (ServerLimits(git_entries=20), "more than 20 entries of changed folders"),
    "bytes": (ServerLimits(git_pack_bytes=3000), "more than 3000 bytes that git would get"),
}


@pytest.mark.parametrize("kind", LIMITS)
def test_what_is_beyond_a_limit_is_refused_in_words_that_git_prints(tmp_path: Path, git: Git, kind: str) -> None:
    limits, words = LIMITS[kind]
    with running(tmp_path / "small", limits=limits) as server:
        repo = server.create("ann/huge")
        for n in range(6):
            commit(server, repo, {f"f{n}": "x" * 500 + str(n)})

        said = git.refused("clone", f"{server.url}/{repo}", "x")

        assert f"`{repo}` has {words}" in said
        assert f"hf download {repo}" in said
        assert server.get(f"/{repo}/resolve/main/f0").status_code == 200


def test_a_long_history_is_cloned_in_bounded_steps(server: Running, repo: str, git: Git) -> None:
    registry = server.registry
    with registry.db.begin() as connection:
        row = connection.execute(select(repos).where(repos.c.full_name == repo)).one()
        head = commits.find_commit(connection, row, "main")
        blobs = [registry.blobs.put([text], size=len(text)) for text in (b"1\n", b"2\n")]
        for n in range(400):
            tree = commits.tree_of(connection, row.id, head)
            put = commits.Put(path=f"d{n % 7}/f", blob=blobs[n // 7 % 2], lfs=False)
            head = commits.write(connection, tree, head, {put.path: put}, (f"c{n}", "", "ann"))
        connection.execute(update(refs).where(refs.c.repo_id == row.id).values(commit_id=head))

    git.ok("clone", f"{server.url}/{repo}", "x")

    assert git.ok("rev-list", "--count", "HEAD", at=git.home / "x") == "401"
    assert git.ok("fsck", "--strict", at=git.home / "x") == ""
    with registry.db.read() as connection:
        told = select(commits_table.c.id).where(commits_table.c.repo_id == row.id)
        assert len(connection.scalars(told).all()) == 401


def test_one_caller_takes_a_share_of_the_slots(server: Running, repo: str) -> None:
    slots = server.app.state.git_slots
    with slots.hold(None), slots.hold(None), slots.hold(None), slots.hold(None):
        refused = server.get(f"/{repo}/info/refs?service=git-upload-pack", token=None)
        assert (refused.status_code, refused.headers["content-type"]) == (429, "text/plain; charset=utf-8")
        assert server.get(f"/{repo}/info/refs?service=git-upload-pack").status_code == 200
