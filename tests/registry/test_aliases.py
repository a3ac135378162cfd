"""Aliases in the registry: names that move between the versions of a repository, as our client and the Hub's see them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.registry.running import Running
from tests.registry.test_adapt_api import V1, namespace, publish

__all__ = ["namespace", "publish"]


@pytest.fixture
def repo(namespace: str, publish: Any) -> str:
    for number in (1, 2, 3):
        publish("legal-qa", version=f"1.{number}", seed=number)
    return f"{namespace}/legal-qa"


def moved(server: Running, repo: str, alias: str, *targets: tuple[str, float], status: int = 200) -> dict[str, Any]:
    body = {"targets": [{"version": version, "weight": weight} for version, weight in targets]}
    answer = server.post(f"{V1}/adapters/{repo}/aliases/{alias}", body)
    assert answer.status_code == status, answer.text
    return answer.json()


def versions(facts: dict[str, Any]) -> list[str]:
    return [target["version"] for target in facts["targets"]]


def test_an_alias_moves_and_its_history_says_who_moved_it(server: Running, repo: str) -> None:
    first = moved(server, repo, "prod", ("1.1", 1))
    moved(server, repo, "prod", ("1.2", 0.9), ("1.3", 0.1))
    again = moved(server, repo, "prod", ("1.2", 0.9), ("1.3", 0.1))
    back = server.post(f"{V1}/adapters/{repo}/aliases/prod/rollback", {}).json()

    assert (first["repo"], first["adapter"], versions(first), versions(back)) == (repo, "legal-qa", ["1.1"], ["1.1"])
    assert versions(again) == ["1.2", "1.3"]
    moves = server.get(f"{V1}/adapters/{repo}/aliases/prod/history").json()["moves"]
    assert [(move["action"], versions(move)) for move in moves] == [
        ("set", ["1.1"]), ("set", ["1.2", "1.3"]), ("rollback", ["1.1"])
    ]  # fmt: skip
    assert all(move["by"].startswith("ann (token ") for move in moves)
    nothing = server.post(f"{V1}/adapters/{repo}/aliases/prod/rollback", {})
    assert (nothing.status_code, "has no earlier target to roll back to" in nothing.text) == (404, True)


def test_an_alias_is_found_by_its_repository_or_by_its_adapter(
    server: Running, namespace: str, publish: Any, repo: str
) -> None:
    publish("summarize", repo=f"{namespace}/summarize-base-7b", version="2.0")
    moved(server, repo, "prod", ("1.1", 1))
    moved(server, f"{namespace}/summarize-base-7b", "prod", ("2.0", 1))

    found = [
        server.get(f"{V1}/aliases/{namespace}/{name}/{alias}").json()["aliases"]
        for name, alias in (
            ("legal-qa", "prod"),
            ("summarize", "prod"),
            ("summarize-base-7b", "prod"),
            ("legal-qa", "x"),
        )
    ]

    assert [[one["repo"] for one in some] for some in found] == [
        [repo], [f"{namespace}/summarize-base-7b"], [f"{namespace}/summarize-base-7b"], []
    ]  # fmt: skip
    listed = server.get(f"{V1}/adapters/{repo}/aliases").json()["aliases"]
    assert [(one["alias"], versions(one)) for one in listed] == [("prod", ["1.1"])]


def test_a_hub_client_sees_a_branch_that_moves(server: Running, repo: str, online: None, tmp_path: Any) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    api = server.api
    tags = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo).tags}

    commits = []
    for targets in ([("1.1", 1.0)], [("1.2", 0.9), ("1.3", 0.1)]):
        moved(server, repo, "prod", *targets)
        branches = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo).branches}
        folder = api.snapshot_download(repo, revision="prod", cache_dir=tmp_path / "cache")
        commits.append((branches["prod"], folder.rpartition("/")[2], api.model_info(repo, revision="prod").sha))

    assert commits == [(tags["v1.1"],) * 3, (tags["v1.2"],) * 3]
    for change in (
        lambda: api.create_branch(repo, branch="prod"),
        lambda: api.create_tag(repo, tag="prod"),
        lambda: api.delete_branch(repo, branch="prod"),
        lambda: api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=repo, revision="prod"),
    ):
        with pytest.raises(HfHubHTTPError):
            change()
    api.create_branch(repo, branch="mine")
    moved(server, repo, "mine", ("1.1", 1), status=409)


def test_a_removed_alias_is_gone_for_clients_and_comes_back_by_a_rollback(server: Running, repo: str) -> None:
    moved(server, repo, "prod", ("1.1", 1))
    gone = server.post(f"{V1}/adapters/{repo}/aliases/prod/remove", {})

    assert (gone.status_code, gone.json()["targets"], gone.json()["action"]) == (200, [], "remove")
    assert server.get(f"/api/models/{repo}/revision/prod").status_code == 404
    assert server.post(f"{V1}/adapters/{repo}/aliases/prod/remove", {}).status_code == 404
    assert versions(server.post(f"{V1}/adapters/{repo}/aliases/prod/rollback", {}).json()) == ["1.1"]
    assert server.get(f"/api/models/{repo}/revision/prod").status_code == 200


@pytest.mark.parametrize(
    ("alias", "targets", "status"),
    [
        ("main", [("1.1", 1)], 409),
        ("v1.1", [("1.1", 1)], 409),
        ("Prod", [("1.1", 1)], 409),
        ("prod", [("9.9", 1)], 404),
        ("prod", [("1.1", 1), ("1.1", 2)], 400),
        ("prod", [("1.1", 0)], 422),
        ("prod", [("1.1", -1)], 422),
        ("prod", [], 422),
    ],
)
def test_what_no_alias_can_be_is_refused(
    server: Running, repo: str, alias: str, targets: list[tuple[str, float]], status: int
) -> None:
    moved(server, repo, alias, *targets, status=status)

    assert server.get(f"{V1}/adapters/{repo}/aliases").json()["aliases"] == []


def test_a_yanked_version_becomes_no_target_and_one_that_is_stays(server: Running, repo: str) -> None:
    moved(server, repo, "prod", ("1.1", 1))
    server.yank(repo, "leaked", "1.1")

    refused = moved(server, repo, "beta", ("1.1", 1), status=409)

    assert "is yanked" in refused["error"]
    assert [versions(one) for one in server.get(f"{V1}/adapters/{repo}/aliases").json()["aliases"]] == [["1.1"]]


def test_only_writers_move_an_alias_and_nobody_sees_a_private_one(server: Running, repo: str) -> None:
    moved(server, repo, "prod", ("1.1", 1))
    reader = server.registry.tokens.create("bob", "read", namespaces=["*"])
    body = {"targets": [{"version": "1.2"}]}

    refused = [
        server.post(f"{V1}/adapters/{repo}/aliases/{path}", value, token=token).status_code
        for token in (reader, None)
        for path, value in (("prod", body), ("prod/rollback", {}), ("prod/remove", {}))
    ]

    assert refused == [403, 403, 403, 401, 401, 401]
    server.api.update_repo_settings(repo, private=True)
    team, _, name = repo.partition("/")
    seen = [
        server.get(path, token=None) for path in (f"{V1}/aliases/{team}/{name}/prod", f"{V1}/adapters/{repo}/aliases")
    ]
    assert [(answer.status_code, answer.json().get("aliases")) for answer in seen] == [(200, []), (404, None)]


def test_a_move_is_an_event_and_a_deleted_repository_takes_its_aliases_with_it(server: Running, repo: str) -> None:
    start = server.get(f"{V1}/events").json()["next"]
    moved(server, repo, "prod", ("1.1", 1))
    moved(server, repo, "prod", ("1.2", 1))

    told = server.get(f"{V1}/events?since={start}").json()["events"]

    assert [(event["type"], event["data"]["repo"]) for event in told] == [("alias.moved", repo)] * 2
    data = told[1]["data"]
    assert (data["alias"], data["adapter"], versions(data), [one["version"] for one in data["before"]]) == (
        "prod", "legal-qa", ["1.2"], ["1.1"]
    )  # fmt: skip
    api = server.api
    api.delete_repo(repo)
    api.create_repo(repo)
    assert server.get(f"{V1}/adapters/{repo}/aliases").json()["aliases"] == []
