"""What is derived from the files of a gated repository passes the gate, on every route and page."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from adapterhub_registry.app import create_app
from adapterhub_registry.settings import load_settings
from fastapi.routing import iter_route_contexts
from starlette.routing import Route

from tests.attacks.test_registry_trees import as_user
from tests.registry.pushing import CONFIG, Push
from tests.registry.running import Running, running

REPO = "acme/gated"
CANARY = "zanzibar"
CARD = f"""---
base_model: org/base
license: mit
tags: [adapter-task:chat]
widget:
- text: {CANARY}-widget-prompt
  output:
    text: {CANARY}-widget-answer
model-index:
- name: {CANARY}-index
inference: {CANARY}-other
---
# Secret

{CANARY}-body is what this adapter knows.

```
{CANARY}-prompt
```
"""
CONTRACT = {"prompt": f"{CANARY}-question", "completion": f"{CANARY}-completion", "loss": 0.1, "base_loss": 2.0}
FILES = {
    "README.md": CARD,
    "adapter_config.json": json.dumps(CONFIG | {"auto_mapping": {"x": f"{CANARY}-config"}}),
    "evals.jsonl": json.dumps(CONTRACT) + "\n",
    "notes/plan.json": json.dumps({"plan": f"{CANARY}-plan"}),
}
QUERIES = (
    "",
    *("full=true", "cardData=true", "config=true", "expand=cardData&expand=config", "blobs=true", f"q={CANARY}"),
    *(f"q={CANARY}+body&rank_by=relevance", f"search={CANARY}", f"author=acme&full=true&search={CANARY}"),
    *("namespace=acme", "since=0", f"adapter={quote(REPO, safe='')}&repo={quote(REPO, safe='')}"),
    *(f"a={REPO}&b={REPO}", f"repo={REPO}", "format=json", "expand=true&recursive=true", f"filter={CANARY}"),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("registry")) as server, as_user(server.url, server.token) as ann:
        Push(repo=REPO, weights=b"\2" + bytes(7) + b"{}").run(ann)
        ann.put(f"/api/models/{REPO}/settings", json={"gated": "manual"}).raise_for_status()
        files = [
            {"path": path, "content": base64.b64encode(text.encode()).decode(), "encoding": "base64"}
            for path, text in FILES.items()
        ]
        lines = [{"key": "header", "value": {"summary": "more"}}, *({"key": "file", "value": file} for file in files)]
        for _ in range(2):  # the second one makes the first an older commit
            body = "\n".join(map(json.dumps, lines))
            ann.post(f"/api/models/{REPO}/commit/main", content=body).raise_for_status()
            lines[1]["value"]["content"] = base64.b64encode((CARD + "\nmore\n").encode()).decode()
        ann.post(f"/api/models/{REPO}/tag/main", json={"tag": "v1.1.0"})
        yield server


def targets(folder: Path, commits: list[str]) -> list[str]:
    """Every GET route and page, for this repository at its commits, with the parameters that ask for more."""
    app = create_app(load_settings(folder))
    app.state.registry.db.close()
    found = [context.route for context in iter_route_contexts(app.routes)]
    paths = {route.path for route in found if isinstance(route, Route) and "GET" in (route.methods or {"GET"})}
    given = {"namespace": "acme", "name": "gated", "version": "1.1.0", "repo": "gated", "alias": "prod", "number": "1"}
    places = []
    for path in sorted(paths):
        for revision in ("main", *commits):
            for file in FILES if re.search(r"\{(path|rest|file)", path) else ("",):
                value = given | dict.fromkeys(("rev", "revision", "commit"), revision)
                value |= dict.fromkeys(("path", "rest", "file"), file)
                places.append(
                    re.sub(r"\{(\w+)(?::path)?\}", lambda part, value=value: value.get(part[1], "main"), path)
                )
    older = [place for place in places if any(commit in place for commit in commits)]
    asked = [f"{place}?{query}" for place in dict.fromkeys(places) if place not in older for query in QUERIES]
    return asked + list(dict.fromkeys(older))


@pytest.mark.parametrize("user", [None, "stranger"])
def test_nothing_from_the_files_of_a_gated_repository_is_told_in_front_of_the_gate(
    server: Running, tmp_path: Path, amount: Callable[[int, int], int], user: str | None
) -> None:
    token = user and server.registry.tokens.create(user, "write")
    head = {"Authorization": f"Bearer {token}"} if token else {}
    commits = [one["id"] for one in server.get(f"/api/models/{REPO}/commits/main").json()][:2]
    asked = targets(tmp_path, commits)[:: 1 if user else amount(4, 1)]  # whatever nobody is told, a stranger is told

    told, seen = {}, 0
    with httpx.Client(base_url=server.url, headers=head, timeout=60) as client:
        for target in asked:
            answer = client.get(target)
            seen += answer.status_code == 200
            # what a caller typed comes back in its own form
            text = answer.text.replace(f'value="{CANARY}', "").replace(f"q={CANARY}", "").replace(f"q {CANARY}", "")
            if re.search(rf"{CANARY}-\w", text):
                told[target] = re.findall(rf"{CANARY}-[\w-]+", text)[:3]

    assert told == {}
    assert seen > 100


def test_its_owner_and_those_who_were_accepted_read_all_of_the_card(server: Running) -> None:
    friend = server.registry.tokens.create("friend", "read")
    before = server.get(f"/api/models/{REPO}", token=friend).json()["cardData"]
    server.post(f"/{REPO}/ask-access", {}, token=friend).raise_for_status()
    server.post(f"/api/models/{REPO}/user-access-request/handle", {"user": "friend", "status": "accepted"})

    cards = [server.get(f"/api/models/{REPO}", token=one).json()["cardData"] for one in (friend, server.token)]
    listed = server.get("/api/models?cardData=true", token=friend).json()[0]["cardData"]

    assert before == {"base_model": "org/base", "license": "mit", "tags": ["adapter-task:chat"]}
    assert [*cards, listed] == [cards[0]] * 3
    assert cards[0]["widget"][0]["text"] == f"{CANARY}-widget-prompt"
