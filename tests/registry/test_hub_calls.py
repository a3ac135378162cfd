"""Calls of the Hub beyond files and commits: what is missing, histories, LFS files, and access requests."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import httpx
import pytest
from adapterhub_registry.upkeep.holdings import check_holdings

from tests.registry.pushing import Push
from tests.registry.running import Running

numbers = count()


@pytest.fixture
def repo(server: Running) -> str:
    high, low = divmod(next(numbers), 8)
    name = f"calls{'abcdeghk'[high]}{'pqstuvxy'[low]}"  # no two look alike
    server.post("/api/repos/create", {"name": name}).raise_for_status()
    return f"ann/{name}"


def commit(server: Running, repo: str, *, branch: str = "main", title: str = "t", **files: str) -> str:
    """Commit regular files; a name's `__` stands for a dot."""
    lines: list[dict[str, Any]] = [{"key": "header", "value": {"summary": title}}]
    for name, text in files.items():
        content = {"path": name.replace("__", "."), "content": text, "encoding": "base64"}
        lines.append({"key": "file", "value": content})
    body = "\n".join(json.dumps(line) for line in lines)
    with server.client() as client:
        answer = client.post(f"/api/models/{repo}/commit/{branch}", content=body)
    answer.raise_for_status()
    return str(answer.json()["commitOid"])


def titles(server: Running, repo: str, revision: str = "main") -> list[str]:
    return [one["title"] for one in server.get(f"/api/models/{repo}/commits/{revision}").json()]


# ---------------------------------------------------------------- what is missing
@pytest.mark.parametrize(
    ("method", "path", "reason"),
    [
        ("POST", "duplicate", "no copies made by the server"),
        ("GET", "likers", "no likes"),
        ("DELETE", "like", "no likes"),
        ("GET", "discussions", "no discussions and pull requests"),
        ("POST", "discussions/1/comment", "no discussions and pull requests"),
        ("POST", "lfs-files/duplicate", "no copies made by the server"),
        ("GET", "notebook/main/x.ipynb", "no call `GET …/notebook`"),
    ],
)
def test_a_call_that_the_registry_lacks_says_so(
    server: Running, repo: str, method: str, path: str, reason: str
) -> None:
    answer = server.send(method, f"/api/models/{repo}/{path}", {} if method == "POST" else None)

    assert (answer.status_code, answer.headers["x-error-code"]) == (501, "NotImplemented")
    assert reason in answer.json()["error"]


@pytest.mark.parametrize(
    "path", ["datasets", "collections", "spaces/ann/x/runtime", "settings/webhooks", "users/ann/likes"]
)
def test_what_the_registry_lacks_altogether_is_named(server: Running, path: str) -> None:
    answer = server.get(f"/api/{path}")

    assert answer.status_code == 501
    assert answer.json()["error"].startswith("this registry has no ")


def test_a_look_at_a_repository_of_another_kind_finds_none(server: Running, repo: str) -> None:
    for kind in ("datasets", "spaces"):
        answer = server.get(f"/api/{kind}/{repo}/revision/main")
        assert (answer.status_code, answer.headers["x-error-code"]) == (404, "RepoNotFound")
    assert server.get("/api/nothing/like/this").status_code == 404


@pytest.mark.parametrize("path", ["gpt2", "gpt2/revision/main", "gpt2/tree/main/a/b", "gpt2/refs", "gpt2/commits/main"])
def test_an_id_without_a_namespace_is_not_found(server: Running, path: str) -> None:
    for method in ("GET", "DELETE"):
        answer = server.send(method, f"/api/models/{path}")
        assert (answer.status_code, answer.headers["x-error-code"]) == (404, "RepoNotFound")


# ---------------------------------------------------------------- before a commit
def test_a_preupload_says_what_gitignore_names(server: Running, repo: str) -> None:
    files = [{"path": path, "size": 1, "sample": "YQ=="} for path in ("logs/a.txt", "a.txt")]

    def ignored(**more: str) -> list[bool]:
        answer = server.post(f"/api/models/{repo}/preupload/main", {"files": files, **more})
        return [file["shouldIgnore"] for file in answer.json()["files"]]

    before = ignored()
    with_the_upload = ignored(gitIgnore="*.txt\n!/a.txt\n")
    commit(server, repo, __gitignore="bG9ncy8K")  # logs/

    assert (before, with_the_upload, ignored()) == ([False, False], [True, False], [True, False])
    assert ignored(gitIgnore="") == [False, False]


def test_a_name_of_a_branch_and_a_tag_means_the_tag_and_commits_go_to_the_branch(server: Running, repo: str) -> None:
    first = commit(server, repo, a="YQ==")
    server.post(f"/api/models/{repo}/tag/main", {"tag": "both"}).raise_for_status()
    server.post(f"/api/models/{repo}/branch/both", {}).raise_for_status()
    second = commit(server, repo, branch="both", b="Yg==")
    files = [{"path": "b", "size": 1, "sample": "YQ=="}]

    known = server.post(f"/api/models/{repo}/preupload/both", {"files": files}).json()["files"][0]["oid"]
    named = {
        rev: server.get(f"/api/models/{repo}/revision/{rev}").json()["sha"] for rev in ("both", "refs%2Fheads%2Fboth")
    }

    assert named == {"both": first, "refs%2Fheads%2Fboth": second}
    assert known is not None
    assert server.post(f"/api/models/{repo}/tag/main", {"tag": "main"}).status_code == 409


def test_a_branch_moves_with_overwrite_and_main_does_not(server: Running, repo: str) -> None:
    first, _ = commit(server, repo, a="YQ=="), commit(server, repo, b="YQ==")
    server.post(f"/api/models/{repo}/branch/dev", {}).raise_for_status()

    moved = server.post(f"/api/models/{repo}/branch/dev", {"startingPoint": first, "overwrite": True})
    main = server.post(f"/api/models/{repo}/branch/main", {"startingPoint": first, "overwrite": True})

    assert (moved.status_code, main.status_code) == (200, 403)
    assert server.get(f"/api/models/{repo}/revision/dev").json()["sha"] == first


# ---------------------------------------------------------------- histories
def test_commits_are_counted_and_told_as_html(server: Running, repo: str) -> None:
    commit(server, repo, title="<b>&", a="YQ==")

    answer = server.get(f"/api/models/{repo}/commits/HEAD?limit=1&expand[]=formatted")

    assert answer.headers["x-total-count"] == "2"
    assert answer.json()[0]["formatted"] == {"title": "&lt;b&gt;&amp;", "message": "<pre></pre>"}
    assert "formatted" not in server.get(f"/api/models/{repo}/commits/main").json()[0]


def test_a_squashed_branch_has_one_commit_with_its_files(server: Running, repo: str) -> None:
    old = [commit(server, repo, a=text) for text in ("YQ==", "Yg==")]
    server.post(f"/api/models/{repo}/branch/dev", {"startingPoint": old[0]}).raise_for_status()
    gone = commit(server, repo, c="Yw==")

    made = server.post(f"/api/models/{repo}/super-squash/main", {"message": "All at once"})

    assert titles(server, repo) == ["All at once"]
    assert titles(server, repo, "dev") == ["t", "initial commit"]
    assert server.get(f"/{repo}/resolve/main/a").text == "b"
    assert server.get(f"/{repo}/resolve/{made.json()['commitOid']}/c").text == "c"
    assert [server.get(f"/api/models/{repo}/revision/{one}").status_code for one in (*old, gone)] == [200, 404, 404]
    assert server.get(f"/api/models/{repo}/tree/main?expand=true").json()[0]["lastCommit"]["title"] == "All at once"
    assert check_holdings(server.registry.db, server.registry.blobs).problems == ()


def test_a_squash_leaves_releases(server: Running, repo: str) -> None:
    push = Push(repo=repo, weights=b"w" * 100)
    with server.client() as http:
        released = push.run(http)
        commit(server, repo, later="YQ==")
        server.post(f"/api/models/{repo}/super-squash/main", {}).raise_for_status()
        server.send("DELETE", f"/api/models/{repo}/tag/v1.0.0")
        server.post(f"/api/models/{repo}/super-squash/main", {}).raise_for_status()

        assert push.is_whole(http, released)
        assert titles(server, repo) == ["Squash the branch main"]


def test_a_squash_needs_a_branch_and_the_right_to_write(server: Running, repo: str) -> None:
    reader = server.registry.tokens.create("bob", "write")

    assert server.post(f"/api/models/{repo}/super-squash/none", {}).status_code == 404
    assert server.post(f"/api/models/{repo}/super-squash/main", {}, token=reader).status_code == 403


# ---------------------------------------------------------------- LFS files
def lfs_files(server: Running, repo: str) -> dict[str, dict[str, Any]]:
    return {file["filename"]: file for file in server.get(f"/api/models/{repo}/lfs-files").json()}


def forget(server: Running, repo: str, *digests: str, rewrite: bool = True) -> httpx.Response:
    body = {"deletions": {"sha": list(digests), "rewriteHistory": rewrite}}
    return server.post(f"/api/models/{repo}/lfs-files/batch", body)


def test_an_lfs_file_goes_from_every_commit_and_its_bytes_with_it(server: Running, repo: str) -> None:
    push = Push(repo=repo, weights=b"secret" * 50)
    commit(server, repo, a="YQ==")
    with server.client() as http:
        with_file = push.commit(http)
    last = commit(server, repo, b="Yg==")
    before = lfs_files(server, repo)

    answer = forget(server, repo, push.oid)

    assert before["adapter_model.safetensors"]["ref"] == "main"
    assert (answer.status_code, lfs_files(server, repo)) == (200, {})
    assert [file["rfilename"] for file in server.get(f"/api/models/{repo}").json()["siblings"]] == [
        ".gitattributes",
        "a",
        "adapter_config.json",
        "b",
    ]
    assert titles(server, repo) == ["t", "push", "t", "initial commit"]
    for commit_id in (with_file, last):
        assert server.get(f"/{repo}/resolve/{commit_id}/adapter_model.safetensors").status_code == 404
    changed = {
        entry["path"]: entry["lastCommit"]["title"]
        for entry in server.get(f"/api/models/{repo}/tree/main?expand=true").json()
    }
    assert changed == {".gitattributes": "initial commit", "a": "t", "adapter_config.json": "push", "b": "t"}
    assert check_holdings(server.registry.db, server.registry.blobs).problems == ()
    with server.client() as http:  # the digest alone gives the bytes to no one
        again = push.commit(http)
    assert again not in {with_file, last}


def test_an_lfs_file_of_a_release_stays(server: Running, repo: str) -> None:
    push = Push(repo=repo, weights=b"released" * 50)
    with server.client() as http:
        released = push.run(http)
        server.send("DELETE", f"/api/models/{repo}/tag/v1.0.0")

        answer = forget(server, repo, push.oid)

        assert answer.status_code == 409
        assert "belongs to the released version 1.0.0" in answer.json()["error"]
        assert push.is_whole(http, released)


def test_an_lfs_file_that_is_not_there_and_a_history_that_stays_are_refused(server: Running, repo: str) -> None:
    assert forget(server, repo, "a" * 64).status_code == 400
    assert forget(server, repo, "a" * 64, rewrite=False).status_code == 501
    assert forget(server, repo, "nonsense").status_code == 400


# ---------------------------------------------------------------- access requests
@pytest.fixture
def bob(server: Running) -> str:
    """A token of a user who may write elsewhere."""
    return server.registry.tokens.create("bob", "write")


def gate(server: Running, repo: str, how: str) -> None:
    server.send("PUT", f"/api/models/{repo}/settings", {"gated": how}).raise_for_status()


def reads(server: Running, repo: str, token: str | None) -> int:
    return server.get(f"/{repo}/resolve/main/.gitattributes", token=token).status_code


def handle(server: Running, repo: str, status: str, token: str = "", **more: str) -> httpx.Response:
    path = f"/api/models/{repo}/user-access-request/handle"
    return server.post(path, {"user": "bob", "status": status, **more}, token=token)


def users(server: Running, repo: str, status: str) -> list[str]:
    found = server.get(f"/api/models/{repo}/user-access-request/{status}").json()
    return [request["user"]["user"] for request in found]


def test_who_asks_a_gated_repository_waits_for_its_owner(server: Running, repo: str, bob: str) -> None:
    gate(server, repo, "manual")
    refused = server.get(f"/{repo}/resolve/main/.gitattributes", token=bob)
    asked = server.post(f"/{repo}/ask-access", {"why": "research"}, token=bob)
    waiting = server.get(f"/api/models/{repo}/user-access-request/pending").json()

    assert (refused.status_code, refused.headers["x-error-code"]) == (403, "GatedRepo")
    assert f"POST /{repo}/ask-access" in refused.json()["error"]
    assert (asked.json(), reads(server, repo, bob)) == ({"status": "pending"}, 403)
    assert [(one["user"]["user"], one["fields"]) for one in waiting] == [("bob", {"why": "research"})]
    assert [handle(server, repo, "accepted").status_code, reads(server, repo, bob)] == [200, 200]
    assert [handle(server, repo, "rejected", rejectionReason="no").status_code, reads(server, repo, bob)] == [200, 403]
    assert server.post(f"/{repo}/ask-access", {}, token=bob).status_code == 403
    assert [users(server, repo, status) for status in ("pending", "accepted", "rejected")] == [[], [], ["bob"]]
    assert handle(server, repo, "pending").status_code == 200
    assert reads(server, repo, None) == 403


def test_a_repository_that_accepts_by_itself_gives_its_files_to_who_asks(server: Running, repo: str, bob: str) -> None:
    gate(server, repo, "auto")
    before = reads(server, repo, bob)

    answers = [server.post(f"/{repo}/ask-access", None, token=bob).json() for _ in range(2)]

    assert (before, answers, reads(server, repo, bob)) == (403, [{"status": "accepted"}] * 2, 200)
    assert server.post(f"/api/models/{repo}/user-access-request/cancel", {}, token=bob).status_code == 200
    assert reads(server, repo, bob) == 403


@pytest.mark.usefixtures("online")
def test_the_client_lists_and_answers_those_who_ask(server: Running, repo: str, bob: str) -> None:
    gate(server, repo, "manual")
    server.post(f"/{repo}/ask-access", {"why": "research"}, token=bob).raise_for_status()
    api = server.api

    [request] = api.list_pending_access_requests(repo)
    api.accept_access_request(repo, request.username)

    assert (request.username, request.status, request.fields) == ("bob", "pending", {"why": "research"})
    assert [one.username for one in api.list_accepted_access_requests(repo)] == ["bob"]
    assert (list(api.list_pending_access_requests(repo)), reads(server, repo, bob)) == ([], 200)


def test_an_owner_grants_access_to_a_user_who_did_not_ask(server: Running, repo: str, bob: str) -> None:
    gate(server, repo, "manual")
    path = f"/api/models/{repo}/user-access-request/grant"

    answers = [server.post(path, {"user": user}).status_code for user in ("bob", "bob", "nobody")]

    assert (answers, reads(server, repo, bob)) == ([200, 400, 404], 200)
    assert handle(server, repo, "accepted").status_code == 404  # is accepted


def test_a_listed_request_has_an_id_that_answers_it(server: Running, repo: str, bob: str) -> None:
    gate(server, repo, "manual")
    server.post(f"/{repo}/ask-access", {}, token=bob)
    place = f"/api/models/{repo}/user-access-request"

    (listed,) = server.get(f"{place}/pending").json()
    answers = [
        server.post(f"{place}/handle", {"requestId": number, "status": "accepted"}).status_code
        for number in ("zz", "6e6f626f6479", listed["requestId"])
    ]

    assert answers == [400, 404, 200]
    assert reads(server, repo, bob) == 200


def test_only_who_writes_to_a_repository_answers_and_lists_its_requests(server: Running, repo: str, bob: str) -> None:
    gate(server, repo, "manual")
    server.post(f"/{repo}/ask-access", {}, token=bob)

    assert handle(server, repo, "accepted", token=bob).status_code == 403
    assert server.post(f"/api/models/{repo}/user-access-request/grant", {"user": "bob"}, token=bob).status_code == 403
    assert server.get(f"/api/models/{repo}/user-access-request/pending", token=bob).status_code == 403
    assert server.post(f"/{repo}/ask-access", {}, token=None).status_code == 401
    assert server.post(f"/{repo}/ask-access", {"why": "x" * 20_000}, token=bob).status_code == 400
    assert (handle(server, repo, "maybe").status_code, reads(server, repo, bob)) == (400, 403)


def test_a_repository_without_a_gate_has_no_requests(server: Running, repo: str, bob: str) -> None:
    assert server.post(f"/{repo}/ask-access", {}, token=bob).status_code == 400
    assert server.get(f"/api/models/{repo}/user-access-request/pending").status_code == 400


def test_the_bytes_of_a_gated_repository_are_not_given_away_by_their_digest(
    server: Running, repo: str, bob: str
) -> None:
    push = Push(repo=repo, weights=b"gated" * 50)
    with server.client() as http:
        push.commit(http)
    gate(server, repo, "manual")
    server.post("/api/repos/create", {"name": "mine"}, token=bob)
    item = {"oid": push.oid, "size": len(push.weights)}
    body = {"operation": "upload", "objects": [item]}

    def must_send() -> bool:
        answer = server.post("/bob/mine.git/info/lfs/objects/batch", body, token=bob)
        return "actions" in answer.json()["objects"][0]

    before = must_send()
    server.post(f"/api/models/{repo}/user-access-request/grant", {"user": "bob"}).raise_for_status()

    assert (before, must_send()) == (True, False)
