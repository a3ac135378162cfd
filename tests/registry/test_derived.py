"""The records of weights in a registry: made after each push, within bounds, by any number of workers, and gone with gc."""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from adapterhub_registry import worker
from adapterhub_registry.app import open_registry
from adapterhub_registry.database.db import adapters, derived, now_ms, parents
from adapterhub_registry.operations.commands import registry
from adapterhub_registry.settings import load_settings
from adapterhub_registry.upkeep.space import free_space
from click.testing import CliRunner
from safetensors.torch import save
from sqlalchemy import select, update

from adapterhub.formats.derived.record import DerivedRecord
from tests.registry.running import Running, running
from tests.support.adapter_folders import PREFIX, random_delta


def weights(seed: int = 0, *, rank: int = 8, scale: float = 1.0) -> bytes:
    tensors = {}
    for layer in range(2):
        update = random_delta(seed + layer, out=24, width=16, rank=rank)
        tensors[f"{PREFIX}model.layers.{layer}.self_attn.q_proj.lora_A.weight"] = update.a * scale
        tensors[f"{PREFIX}model.layers.{layer}.self_attn.q_proj.lora_B.weight"] = update.b
    return save(tensors)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    """A registry that leaves the records to workers."""
    with running(tmp_path / "registry", derives=False) as server:
        yield server


def rows(server: Running) -> list[Any]:
    with server.registry.db.read() as connection:
        return list(connection.execute(select(derived)).all())


def test_a_push_waits_for_nothing_and_the_server_makes_its_record(tmp_path: Path) -> None:
    with running(tmp_path / "registry") as server:
        server.push("acme/a", weights())

        until = time.monotonic() + 60
        while rows(server)[0].state == "waiting" and time.monotonic() < until:
            time.sleep(0.05)
        [row] = rows(server)

    record = DerivedRecord.from_json(json.loads(zlib.decompress(row.record)))
    assert (row.state, row.norm) == ("made", record.norm)
    assert [module.rank for module in record.modules] == [8, 8]


def test_a_worker_makes_what_waits_once_and_anew_on_request(server: Running) -> None:
    server.push("acme/a", weights())
    server.push("acme/same", weights())
    server.push("acme/b", weights(7))
    here = ["worker", "--root", str(server.root), "--once", "--json"]

    first, second, third = (CliRunner().invoke(registry, [*here, *more]) for more in ([], [], ["--rebuild"]))

    assert [json.loads(done.output) for done in (first, second, third)] == [
        {"records": n, "bases": 0, "vectors": 0} for n in (2, 0, 2)
    ]
    assert {row.state for row in rows(server)} == {"made"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (weights(rank=4), "expected rank 8"),
        (b"\x40" + bytes(7) + b"{" * 80, "cannot be read"),
        (save({f"{PREFIX}x.ia3_l": random_delta(1, out=2, width=2, rank=1).a}), "holds no low-rank updates"),
    ],
    ids=["another rank", "no safetensors", "no factors"],
)
def test_weights_without_figures_are_taken_in_and_the_record_says_why(
    server: Running, content: bytes, reason: str
) -> None:
    server.push("acme/a", content)

    worker.work(server.registry.db, server.registry.blobs)

    [row] = rows(server)
    assert row.state == "none"
    assert reason in row.reason


def test_weights_that_end_the_worker_are_given_up_after_three_attempts(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.push("acme/a", weights())
    monkeypatch.setattr(worker, "CLAIM_MS", 0)
    for _ in range(worker.MOST_ATTEMPTS):
        child = os.fork()
        if child == 0:  # dies while it reads, as one that the kernel ends for want of memory
            monkeypatch.setattr(worker, "open_build", lambda *_: os._exit(9))
            worker.work(*_opened(server.root))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9

    worker.work(server.registry.db, server.registry.blobs)

    [row] = rows(server)
    assert (row.state, row.reason) == ("none", "the worker ended 3 times while it read these weights")


def _opened(root: Path) -> tuple[Any, Any]:
    opened = open_registry(load_settings(root))
    return opened.db, opened.blobs


def test_whatever_fails_with_one_build_the_next_gets_its_record(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.push("acme/a", weights())
    server.push("acme/b", weights(7))
    whole, calls = worker.open_build, []

    def first_fails(*given: Any) -> worker.Opened:
        calls.append(given)
        if len(calls) == 1:
            raise MemoryError
        return whole(*given)

    monkeypatch.setattr(worker, "open_build", first_fails)
    worker.work(server.registry.db, server.registry.blobs)

    assert {row.state: row.reason for row in rows(server)} == {
        "none": "the figures could not be computed: MemoryError",
        "made": None,
    }


def test_a_claim_that_a_dead_worker_left_is_taken_when_it_is_over(server: Running) -> None:
    server.push("acme/a", weights())
    with server.registry.db.begin() as connection:
        connection.execute(update(derived).values(attempts=1, due_at=now_ms() + worker.CLAIM_MS))
    made_while_claimed = worker.work(server.registry.db, server.registry.blobs)
    with server.registry.db.begin() as connection:
        connection.execute(update(derived).values(due_at=now_ms()))

    assert (made_while_claimed, worker.work(server.registry.db, server.registry.blobs)) == (0, 1)


def test_gc_removes_the_records_of_builds_that_are_gone(server: Running) -> None:
    server.push("acme/a", weights())
    server.push("acme/b", weights(7))
    worker.work(server.registry.db, server.registry.blobs)
    with server.registry.db.begin() as connection:
        connection.execute(
            parents.insert(),
            [{"digest": row.digest, "position": 0, "parent": None, "spec": "x", "weight": 1.0} for row in rows(server)],
        )
    server.remove("acme/a")

    free_space(server.registry)

    with server.registry.db.read() as connection:
        kept = set(connection.scalars(select(adapters.c.digest)))
        assert {row.digest for row in rows(server)} == set(connection.scalars(select(parents.c.digest))) == kept
        assert len(kept) == 1
