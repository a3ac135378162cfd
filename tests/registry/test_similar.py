"""Like updates in a registry: keyed signs, what the caller may read alone, and no sign of anything else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapterhub_registry import worker
from adapterhub_registry.database.db import Database, derived, sketches
from adapterhub_registry.database.steps import drop
from adapterhub_registry.settings import ServerLimits
from adapterhub_registry.worker import KnownSketches
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from sqlalchemy import delete, insert, select

from adapterhub.formats.derived import likeness
from adapterhub.formats.derived.algebra import ArrayUpdate
from adapterhub.formats.derived.likeness import NUMBERS, Signs, Sketch, cosines
from tests.registry.running import Running, running
from tests.registry.test_derived import weights
from tests.support.command_line import Adapt

NEAR = ("acme/copy", "acme/doubled", "acme/negated")


def changed(content: bytes, factor: float, noise: float = 0.0) -> bytes:
    chance = torch.Generator().manual_seed(3)
    tensors = load(content)
    for name in [name for name in tensors if "lora_B" in name]:
        b = tensors[name]
        tensors[name] = factor * (b + noise * b.std() * torch.randn(b.shape, generator=chance))
    return save(tensors)


def push_private(server: Running, repo: str, content: bytes) -> None:
    server.create(repo, private=True)
    server.push(repo, content)


def work(server: Running) -> None:
    worker.work(server.registry.db, server.registry.blobs)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Database:
    return Database(f"sqlite:///{tmp_path_factory.mktemp('held')}/registry.db")


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.booleans()), max_size=12))
@pytest.mark.parametrize("exact", [0, 100])
def test_what_is_near_follows_each_change_of_the_table(
    database: Database, exact: int, steps: list[tuple[int, int, bool]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "EXACT", exact)
        patch.setattr(worker, "_READ_AT_ONCE", 1)
        held, now = KnownSketches(), 0
        with database.begin() as connection:
            connection.execute(delete(sketches))
        for which, what, forgets in steps:
            digest, now = f"{which:064x}", now + 1
            # the digest decides it: some are alike, and those of one key are compared
            sketch = np.random.default_rng(which // 2).integers(-120, 120, NUMBERS, np.int8) + np.int8(which)
            row = {"key_id": f"k{which // 4}", "made_at": now, "sketch": sketch.tobytes()}
            with database.begin() as connection:
                if what:
                    connection.execute(delete(sketches).where(sketches.c.digest == digest))
                if what < 2 and not connection.scalar(select(sketches.c.digest).where(sketches.c.digest == digest)):
                    connection.execute(insert(sketches).values(digest=digest, **row))
            if forgets:
                held._counted_at = -1e9
            with database.read() as connection:
                rows = {row.digest: row for row in connection.execute(select(sketches))}
                for digest, mine in rows.items():
                    others = [one for one in rows.values() if one.key_id == mine.key_id and one.digest != digest]
                    near = {one.digest: cosines([mine.sketch, one.sketch])[0, 1].round(2) for one in others}
                    expected = {digest: cosine for digest, cosine in near.items() if abs(cosine) >= 0.9}
                    assert held.near(connection, digest, 0.9) == expected
                assert held.near(connection, "f" * 64, 0.9) is None


def test_signs_pass_each_that_is_near_and_few_that_are_not() -> None:
    chance = np.random.default_rng(0)

    def rank_one(count: int) -> np.ndarray:
        made = chance.standard_normal((count, 16, 1)) @ chance.standard_normal((count, 1, 16))
        return made.reshape(count, NUMBERS)

    known, other = rank_one(5000), rank_one(1000)
    own = known[:1000] / np.linalg.norm(known[:1000], axis=1, keepdims=True)
    other -= (other * own).sum(1, keepdims=True) * own
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    near = 0.9 * own + np.sqrt(1 - 0.9**2) * other
    near[::2] *= -1
    packed = [np.rint(row / abs(row).max() * 127).astype(np.int8).tobytes() for row in (*known, *near)]
    signs = Signs().with_more(packed[:5000]).with_more(packed[5000:])

    found = [signs.near(one) for one in packed[:1000]]
    table = likeness._COUNTS[np.arange(1 << 8)]

    assert [at in one for at, one in enumerate(found, 5000)].count(False) == 0
    assert sum(map(len, found)) < 5000
    assert table.tolist() == [number.bit_count() for number in range(1 << 8)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """`acme/a`, copies of it in disguise and a stranger; each has its sketch."""
    limits = ServerLimits(similar_requests_per_minute=0)
    with running(tmp_path_factory.mktemp("alike"), derives=False, limits=limits) as server:
        server.push("acme/a", weights())
        server.push("acme/copy", changed(weights(), 1, noise=0.3))  # 0.96: each registry draws its own directions
        server.push("acme/doubled", changed(weights(), 2))
        server.push("acme/negated", changed(weights(), -1))
        server.push("acme/stranger", weights(50))
        work(server)
        yield server


def asked(server: Running, repo: str = "acme/a", more: str = "", **how: Any) -> dict[str, Any]:
    answer = server.get(f"/api/adapt/v1/adapters/{repo}/1.0.0/similar{more}", **how)
    assert answer.status_code == 200, answer.text
    return answer.json()


def cosines_by_repo(answer: dict[str, Any]) -> dict[str, float]:
    return {one["repo"]: one["cosine"] for one in answer["similar"]}


def test_copies_are_found_with_rounded_cosines_and_strangers_are_not(server: Running) -> None:
    answer = asked(server)

    found = cosines_by_repo(answer)
    assert (answer["state"], found.keys()) == ("made", set(NEAR))
    assert 0.9 <= found["acme/copy"] < 0.98
    assert (found["acme/doubled"], found["acme/negated"]) == (1.0, -1.0)
    assert all(round(cosine, 2) == cosine for cosine in found.values())
    assert cosines_by_repo(asked(server, more="?above=1")).keys() == {"acme/doubled", "acme/negated"}
    assert server.get("/api/adapt/v1/adapters/acme/a/1.0.0/similar?above=0.5").status_code == 422
    assert server.get("/api/adapt/v1/adapters/acme/a/9.9.9/similar").status_code == 404


def test_what_one_may_not_read_changes_no_answer(server: Running) -> None:
    stranger = server.registry.tokens.create("eve", "read", namespaces=("other",))
    before = [server.get("/api/adapt/v1/adapters/acme/a/1.0.0/similar", token=token) for token in (stranger, None)]
    missing = server.get("/api/adapt/v1/adapters/secret/nothing/1.0.0/similar", token=stranger)

    push_private(server, "secret/twin", changed(weights(), 3))
    waiting = [server.get("/api/adapt/v1/adapters/acme/a/1.0.0/similar", token=token) for token in (stranger, None)]
    work(server)
    after = [server.get("/api/adapt/v1/adapters/acme/a/1.0.0/similar", token=token) for token in (stranger, None)]
    hidden = server.get("/api/adapt/v1/adapters/secret/twin/1.0.0/similar", token=stranger)

    assert [one.content for one in before] == [one.content for one in waiting] == [one.content for one in after]
    assert hidden.status_code == missing.status_code == 404
    assert hidden.text.replace("twin", "nothing") == missing.text
    assert "secret/twin" in cosines_by_repo(asked(server))
    assert "secret" not in server.get("/lineage/acme/a?version=1.0.0&format=json", token=stranger).text


def test_the_same_build_in_another_repository_is_listed_where_it_may_be_read(server: Running) -> None:
    server.push("acme/again", weights())
    push_private(server, "secret/again", weights())
    work(server)

    assert cosines_by_repo(asked(server))["acme/again"] == 1.0
    assert "secret/again" not in cosines_by_repo(asked(server, token=None))


def test_sketches_have_secret_signs_and_are_never_sent(server: Running) -> None:
    with server.registry.db.read() as connection:
        rows = connection.execute(select(sketches.c.digest, sketches.c.sketch)).all()
    mine = json.loads(server.get("/api/adapt/v1/adapters/acme/a/versions").text)["versions"][0]["digest"]
    kept = next(row.sketch for row in rows if f"sha256:{row.digest}" == mine)
    public = Sketch()
    for layer in range(2):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_"
        tensors = {key: value.numpy() for key, value in load(weights()).items()}
        a, b = tensors[f"{name}A.weight"], tensors[f"{name}B.weight"]
        public.add(f"model.layers.{layer}.self_attn.q_proj", [ArrayUpdate(a=a, b=b)])

    assert abs(cosines([kept, public.packed()])[0, 1]) < 0.5
    for path in ("/acme/a/1.0.0", "/lineage/acme/a", "/base/nothing"):
        assert "sketch" not in server.get(f"{path}?format=json").text
    assert server.post("/api/adapt/v1/similar", {"sketch": "AAAA"}).status_code == 404


def test_a_rebuild_has_new_signs_and_finds_the_same(server: Running) -> None:
    before = asked(server)
    with server.registry.db.read() as connection:
        old = dict(connection.execute(select(sketches.c.digest, sketches.c.sketch)).all())

    worker.rebuild(server.registry.db)
    assert asked(server) == before  # the old ones hold until then
    work(server)

    with server.registry.db.read() as connection:
        new = dict(connection.execute(select(sketches.c.digest, sketches.c.sketch)).all())
    assert old.keys() == new.keys()
    assert all(abs(cosines([old[digest], new[digest]])[0, 1]) < 0.5 for digest in old)
    assert {"acme/doubled", "acme/negated"} <= cosines_by_repo(asked(server)).keys()


def test_a_build_without_a_sketch_says_where_it_stands(server: Running) -> None:
    server.push("acme/late", weights(90))
    server.push("acme/zero", changed(weights(), 0))
    assert asked(server, "acme/late")["state"] == "waiting"
    work(server)
    assert asked(server, "acme/late") | {"digest": ""} == {"digest": "", "state": "made", "similar": []}
    assert asked(server, "acme/zero")["state"] == "none"


@pytest.mark.usefixtures("online")
def test_the_command_asks_a_server(server: Running, tmp_path: Path) -> None:
    adapt = Adapt(tmp_path).having(ADAPTERHUB_TOKEN=server.token)
    there = ("--remote", server.url)

    found = adapt.json("compare", "acme/a", *there)

    assert {"acme/doubled", "acme/negated"} <= {one["repo"] for one in found["similar"]}
    assert "acme/doubled\t1.0.0\tabout 1.00" in adapt.ok("compare", "acme/a==1.0", "--above", "0.95", *there)
    assert "no adapter `acme/a==2.0` in" in adapt.fails(10, "compare", "acme/a==2.0", *there)
    assert "not found" in adapt.fails(10, "compare", "acme/nothing", *there)
    assert "expected 0.9 to 1" in adapt.fails(2, "compare", "acme/a", "--above", "0.5", *there)
    assert "leave out `--remote`" in adapt.fails(2, "compare", *there)


def test_questions_are_limited_by_token_and_by_address(tmp_path: Path) -> None:
    with running(tmp_path / "registry", derives=False, limits=ServerLimits(similar_requests_per_minute=2)) as server:
        server.push("acme/a", weights())
        other = server.registry.tokens.create("eve", "read")
        path = "/api/adapt/v1/adapters/acme/a/1.0.0/similar"
        absent = "/api/adapt/v1/adapters/secret/a/1.0.0/similar"

        codes = [server.get(path, token=other).status_code for _ in range(3)]
        refused = server.get(absent, token=other)

        assert codes == [200, 200, 429]
        assert (refused.status_code, int(refused.headers["Retry-After"]) > 0) == (429, True)
        assert server.get(path).status_code == 200
        assert [server.get(path, token=None).status_code for _ in range(3)] == [200, 200, 429]


def test_the_sketches_of_gone_builds_go(server: Running) -> None:
    server.remove("acme/copy")
    for leftover in worker.unneeded():
        drop(server.registry.db, leftover)

    with server.registry.db.read() as connection:
        kept = set(connection.scalars(select(sketches.c.digest)))
        assert kept <= set(connection.scalars(select(derived.c.digest)))  # the rest has no sketch
    assert "acme/copy" not in cosines_by_repo(asked(server))
