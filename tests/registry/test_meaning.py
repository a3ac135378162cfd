"""Search by meaning on a registry: the model by a command, vectors by a worker, and answers that no private build changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from adapterhub_registry.database.db import adapters, repos
from adapterhub_registry.database.meaning_tables import meaning
from adapterhub_registry.meaning import vectors
from adapterhub_registry.operations.commands import registry
from click.testing import CliRunner
from sqlalchemy import func, select, update

from adapterhub.formats.meaning.model import MODEL
from tests.registry.pushing import Push
from tests.registry.running import Running, running
from tests.registry.test_derived import weights
from tests.support.real_encoder import minilm_base

ABOUT = {
    "acme/film-sentiment": "Positive or negative film reviews",
    "acme/tenancy": "Questions about leases, deposits and landlords",
    "acme/sql": "Writes database queries from plain sentences",
    "eve/secret": "Movie reviews: is this film good or bad?",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A registry with the model, four builds, one of them private, and their vectors."""
    with running(tmp_path_factory.mktemp("meaning") / "registry", derives=False) as server:
        with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {server.token}"}) as client:
            for repo in ABOUT:
                Push(repo=repo, weights=weights()).run(client)
        server.send("PUT", "/api/models/eve/secret/settings", {"private": True}).raise_for_status()
        with server.registry.db.begin() as connection:
            for repo, text in ABOUT.items():
                mine = select(repos.c.id).where(repos.c.full_name == repo).scalar_subquery()
                connection.execute(update(adapters).where(adapters.c.repo_id == mine).values(description=text))
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


def test_another_folder_than_the_model_is_refused(server: Running, tmp_path: Path) -> None:
    done = CliRunner().invoke(registry, ["meaning", str(tmp_path), "--root", str(tmp_path / "no")])
    assert done.exit_code != 0
