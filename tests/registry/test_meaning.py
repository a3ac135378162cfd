"""Search by meaning on a registry: the model by a command, vectors by a worker, and answers that no private build changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from adapterhub_registry import vectors
from adapterhub_registry.database.db import adapters, meaning, repos
from adapterhub_registry.database.steps import drop
from adapterhub_registry.operations.commands import registry
from click.testing import CliRunner
from sqlalchemy import delete, func, select, update

from adapterhub.distribution.hub import Hub, Search
from adapterhub.formats.meaning.model import MODEL
from tests.registry.running import Running, running
from tests.registry.test_derived import weights
from tests.support.real_encoder import minilm_base

ABOUT = {
    "acme/film-sentiment": "Positive or negative film reviews",
    "acme/tenancy": "Questions about leases, deposits and landlords",
    "acme/sql": "Writes database queries from plain sentences",
    "acme/gated": "Cooking for guests",
    "eve/secret": "Movie reviews: is this film good or bad?",
}
EXAMPLES = {"acme/tenancy": "May the landlord keep my deposit?", "acme/gated": "Does the recipe work with oat milk?"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A registry with the model, four builds, one of them private, and their vectors."""
    with running(tmp_path_factory.mktemp("meaning") / "registry", derives=False) as server:
        for repo in ABOUT:
            server.push(repo, weights())
        server.send("PUT", "/api/models/eve/secret/settings", {"private": True}).raise_for_status()
        server.send("PUT", "/api/models/acme/gated/settings", {"gated": "manual"}).raise_for_status()
        with server.registry.db.begin() as connection:
            for repo, text in ABOUT.items():
                mine = select(repos.c.id).where(repos.c.full_name == repo).scalar_subquery()
                told = {"description": text, "examples": EXAMPLES.get(repo, "")}
                connection.execute(update(adapters).where(adapters.c.repo_id == mine).values(**told))
        run(server, "meaning", str(minilm_base()))
        run(server, "worker", "--once")
        yield server


def run(server: Running, *arguments: str) -> dict[str, object]:
    done = CliRunner().invoke(registry, [*arguments, "--root", str(server.root), "--json"], catch_exceptions=False)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def count(server: Running) -> int:
    with server.registry.db.read() as connection:
        return connection.scalar(select(func.count()).select_from(meaning)) or 0


def test_a_worker_makes_vectors_once_and_again_on_request(server: Running) -> None:
    assert count(server) == len(ABOUT)
    assert run(server, "meaning") == {"model": MODEL, "waiting": 0}
    assert run(server, "worker", "--once")["vectors"] == 0
    with server.registry.db.begin() as connection:
        connection.execute(update(meaning).values(model="of before"))
    assert run(server, "meaning")["waiting"] == len(ABOUT)

    assert run(server, "worker", "--once")["vectors"] == len(ABOUT) == count(server)


def test_vectors_go_with_their_builds(server: Running, tmp_path: Path) -> None:
    with running(tmp_path / "other", derives=False) as other:
        for repo in ("acme/a", "acme/b"):
            other.push(repo, weights())
        assert vectors.make(other.registry.db, other.root) == 0  # without the model
        assert run(other, "meaning", str(minilm_base()))["waiting"] == 2
        assert vectors.make(other.registry.db, other.root) == 2
        other.remove("acme/a")
        assert count(other) == 1
        other.yank("acme/b", "x")
        drop(other.registry.db, vectors.unneeded())
        assert count(other) == 0


def asked(server: Running, q: str, *, token: str | None = None, **query: str) -> httpx.Response:
    more = {"rank_by": "relevance", "q": q} | query
    return server.get(f"/api/adapt/v1/adapters?{urlencode(more)}", token=token)


def found(server: Running, q: str, **query: Any) -> list[str]:
    answer = asked(server, q, **query).raise_for_status().json()
    assert answer["by"] == "meaning"
    return [one["repo"] for one in answer["adapters"]]


def test_a_question_finds_what_it_means_and_says_why(server: Running) -> None:
    (first, *_) = asked(server, "who pays when the tenant breaks something").json()["adapters"]
    assert first["repo"] == "acme/tenancy"
    (first, *_) = asked(server, "is this movie good or bad").json()["adapters"]
    assert first["matched"] == {"part": "description", "text": ABOUT["acme/film-sentiment"]}
    (first, *_) = asked(server, "can my landlord keep the deposit I paid").json()["adapters"]
    assert first["matched"] == {"part": "prompt", "text": EXAMPLES["acme/tenancy"]}
    assert first["score"] > 0.5
    assert found(server, "films", by="meaning", task="nothing") == []
    assert asked(server, "films").json()["by"] == "words"  # one word alone
    assert asked(server, "good films", by="words").json()["by"] == "words"
    assert "acme/film-sentiment" in server.get("/?q=is+this+movie+good").text


@pytest.mark.usefixtures("online")
def test_a_client_says_how_to_search_and_what_the_scores_compare(server: Running) -> None:
    hub = Hub(endpoint=server.url, token=server.token)
    (first, *_) = hub.search(Search(text="is this movie good or bad"))
    assert (first.repo, first.by) == ("eve/secret", "meaning")
    assert hub.search(Search(text="the tenancy", by="words"))[0].by == "words"
    assert hub.search(Search(text="landlords", by="meaning"))[0].repo == "acme/tenancy"


def test_a_private_build_is_not_seen_and_changes_nothing(server: Running) -> None:
    question = "is this movie good or bad"
    assert found(server, question, token="")[:1] == ["eve/secret"]
    with_it = asked(server, question).json()
    with server.registry.db.begin() as connection:
        hidden = select(repos.c.id).where(repos.c.private)
        connection.execute(delete(meaning).where(meaning.c.repo_id.in_(hidden)))
    without = asked(server, question).json()
    assert vectors.make(server.registry.db, server.root) == 1

    assert with_it == without
    assert next(one["repo"] for one in with_it["adapters"]) == "acme/film-sentiment"
    assert "eve/secret" not in str(with_it)


def test_examples_in_a_gated_repository_are_neither_shown_nor_compared(server: Running) -> None:
    question = EXAMPLES["acme/gated"]
    hits = {one["repo"]: one for one in asked(server, question).json()["adapters"]}
    assert hits.get("acme/gated", {"score": 0, "matched": {"part": "description"}})["matched"]["part"] == "description"
    assert hits.get("acme/gated", {"score": 0})["score"] < 0.8


def test_a_server_without_the_model_searches_by_words(tmp_path: Path) -> None:
    with running(tmp_path / "other", derives=False) as other:
        assert asked(other, "good films").json()["by"] == "words"
        refused = asked(other, "good films", by="meaning")
        assert (refused.status_code, "lacks the model" in refused.text) == (400, True)


def test_another_folder_than_the_model_is_refused(server: Running, tmp_path: Path) -> None:
    done = CliRunner().invoke(registry, ["meaning", str(tmp_path), "--root", str(tmp_path / "no")])
    assert done.exit_code != 0
