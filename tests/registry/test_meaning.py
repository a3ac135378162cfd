"""Search by meaning on a registry: the model by a command, vectors by a worker, and answers that no private build changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import numpy as np
import pytest
from adapterhub_registry import vectors
from adapterhub_registry.database.db import Database, adapters, meaning, repos
from adapterhub_registry.operations.commands import registry
from adapterhub_registry.vectors import Nearest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, event, func, insert, select, update

from adapterhub.distribution.hub import Hub, Search
from adapterhub.formats.meaning.model import MODEL, SIZE
from tests.registry.pushing import Push
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
        with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {server.token}"}) as client:
            for repo in ABOUT:
                Push(repo=repo, weights=weights()).run(client)
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
        with httpx.Client(base_url=other.url, headers={"Authorization": f"Bearer {other.token}"}) as client:
            Push(repo="acme/a", weights=weights()).run(client)
            Push(repo="acme/b", weights=weights()).run(client)
        assert vectors.make(other.registry.db, other.root) == 0  # without the model
        assert run(other, "meaning", str(minilm_base()))["waiting"] == 2
        assert vectors.make(other.registry.db, other.root) == 2
        other.send("DELETE", "/api/repos/delete", {"organization": "acme", "name": "a"}).raise_for_status()
        assert count(other) == 1
        other.post("/api/adapt/v1/adapters/acme/b/yank", {"version": "1.0.0", "reason": "x"}).raise_for_status()
        with other.registry.db.begin() as connection:
            vectors.forget_unnamed(connection)
        assert count(other) == 0


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Database:
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('held')}/registry.db")
    named = {"private": False, "created_by": "a", "created_at": 1, "modified_at": 1, "head": "0" * 40}
    with database.begin() as connection:
        for number in range(1, 5):
            name = {"full_name": f"a/{number}", "namespace": "a", "folded": f"a/{number}", "folded_namespace": "a"}
            connection.execute(insert(repos).values(id=number, **name, **named))
    return database


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 1), st.booleans(), st.booleans()), max_size=12))
def test_the_vectors_in_memory_follow_each_change_of_the_table(
    database: Database, steps: list[tuple[int, int, bool, bool]]
) -> None:
    nearest = Nearest(Path())
    with database.begin() as connection:
        connection.execute(delete(meaning))
    for repo, commit, comes, compares in steps:
        build = {"repo_id": repo, "commit_id": f"{commit:040x}"}
        vectors = np.random.default_rng(repo * 2 + commit).integers(-90, 90, (repo, SIZE), np.int8).tobytes()
        with database.begin() as connection:
            same = (meaning.c.repo_id == repo) & (meaning.c.commit_id == build["commit_id"])
            connection.execute(delete(meaning).where(same))
            if comes:
                connection.execute(insert(meaning).values(**build, model=MODEL, vectors=vectors))
        if compares:
            nearest._compared_at = -1e9
        with database.read() as connection:
            builds, block = nearest._read(connection)
            rows = connection.execute(select(meaning).order_by(meaning.c.id)).all()
        starts = [*block._starts.tolist(), len(block._rows)]
        held = [(build, block._rows[starts[at] : starts[at + 1]].tobytes()) for at, build in enumerate(builds)]
        there = [((row.repo_id, row.commit_id), row.vectors) for row in rows]
        live = [one for one in held if one[0] != (0, "")]
        # what is gone may stay until they are compared; it is no build that anyone may see
        assert live == there if compares else [one for one in live if one in there] == there
        assert all(not any(data) for build, data in held if build == (0, ""))


def test_a_new_build_has_no_other_vectors_read_again(database: Database) -> None:
    nearest, read = Nearest(Path()), []
    row = {"model": MODEL, "vectors": bytes(SIZE)}
    with database.begin() as connection:
        connection.execute(delete(meaning))
        connection.execute(insert(meaning), [row | {"repo_id": n, "commit_id": "a" * 40} for n in (1, 2, 3)])
    with database.read() as connection:
        before = nearest._read(connection)[1]
    with database.begin() as connection:
        connection.execute(insert(meaning).values(**row, repo_id=4, commit_id="a" * 40))
    with database.read() as connection:
        event.listen(database.engine, "before_cursor_execute", lambda *told: read.append((told[2], told[3])))
        builds, block = nearest._read(connection)
        nearest._read(connection)
        plans = [connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", given).all() for sql, given in list(read)]

    assert [number for number, _ in builds] == [1, 2, 3, 4]
    assert np.shares_memory(before._rows, block._rows)
    assert not any(step[-1].startswith("SCAN") for plan in plans for step in plan)


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
