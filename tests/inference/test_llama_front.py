"""The front of llama.cpp's server keeps adapters and clients apart: slots, routes, headers, quotas, connections."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapterhub.core.digests import digest_of, parse_digest
from adapterhub.core.errors import UsageProblem
from adapterhub.inference.serving.access.gate import Gate
from adapterhub.inference.serving.access.tenants import Quotas, Tenant, TenantDemand
from adapterhub.inference.serving.chain.bodies import demand_of
from adapterhub.inference.serving.chain.slots import Owner, Slots
from adapterhub.inference.serving.llama_cpp.engine import Address, Engine, command_of, environ_of
from adapterhub.inference.serving.llama_cpp.names import Names, Served
from adapterhub.inference.serving.llama_cpp.server import Front
from adapterhub.inference.serving.process import free_port
from adapterhub.inference.serving.refusal import RequestRefused
from tests.support.standin_llama import HELD, started

A, B = (parse_digest("sha256:" + 64 * letter) for letter in "ab")
SERVED = [Served(name="one", label="one==1.0.0", digest=A), Served(name="two", label="two==1.0.0", digest=B)]
TENANTS = (
    f'[tenants.acme]\nkeys = ["{digest_of(b"key-acme")}"]\nadapters = ["*"]\n'
    f'[tenants.globex]\nkeys = ["{digest_of(b"key-globex")}"]\nadapters = ["*"]\ngrammars = true\n'
    f'[tenants.small]\nkeys = ["{digest_of(b"key-small")}"]\nadapters = ["*"]\n'
    "requests-per-minute = 10\ntokens-per-minute = 2000\n"
)


@pytest.fixture(scope="module")
def engine() -> Iterator[Address]:
    with started() as where:
        yield where


@pytest.fixture(scope="module")
def url(engine: Address) -> Iterator[str]:
    port = free_port("127.0.0.1")
    with Front("127.0.0.1", port, [engine], Names("base-7b", SERVED)):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def shared(engine: Address, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A front for three tenants."""
    folder, port = tmp_path_factory.mktemp("shared"), free_port("127.0.0.1")
    (folder / "tenants.toml").write_text(TENANTS)
    with Front("127.0.0.1", port, [engine], Names("base-7b", SERVED), Gate(folder / "tenants.toml")):
        yield f"http://127.0.0.1:{port}"


def ask(url: str, body: dict[str, Any], path: str = "/v1/completions", **headers: str) -> httpx.Response:
    sent = {name.replace("_", "-"): text for name, text in headers.items()}
    return httpx.post(f"{url}{path}", json=body, headers=sent, timeout=60, trust_env=False)


# ---------------------------------------------------------------- names are digests
def test_one_build_under_two_names_is_applied_once() -> None:
    names = Names("base-7b", [*SERVED, Served(name="legal@prod", label="one==1.0.0", digest=A)])

    applied = {name: [one["scale"] for one in names.scales(names.find(name))] for name in ("one", "legal@prod", "two")}

    assert applied == {"one": [1.0, 0.0], "legal@prod": [1.0, 0.0], "two": [0.0, 1.0]}


@pytest.mark.parametrize("base", ["one", "one==1.0.0"])
def test_an_adapter_named_like_the_base_is_refused_at_the_start(base: str) -> None:
    with pytest.raises(UsageProblem, match="has the name of the base"):
        Names(base, SERVED)


class SlowAliases:
    """Aliases whose first look-up takes a while."""

    def __init__(self) -> None:
        self.known, self.count = False, 0

    def is_due(self, _name: str) -> bool:
        return not self.known

    def may_be(self, _name: str) -> bool:
        return True

    def here(self, _name: str) -> tuple[None, bool]:
        self.count += 1
        time.sleep(0.3)
        return None, True

    def adopt(self, *_: object) -> None:
        self.known = True

    def chosen(self, _name: str, _key: str | None = None) -> str | None:
        return "one==1.0.0" if self.known else None


def test_all_first_requests_for_an_alias_are_answered() -> None:
    aliases = SlowAliases()
    names = Names("base-7b", SERVED, aliases=aliases)  # type: ignore[arg-type]

    async def ask() -> list[str]:
        return await asyncio.gather(*(names.exact("one@prod") for _ in range(8)))

    assert (asyncio.run(ask()), aliases.count) == (["one==1.0.0"] * 8, 1)


# ---------------------------------------------------------------- routes
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": "a"}),
        ("/v1/rerank", {"query": "a", "documents": ["b"]}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}),
    ],
)
def test_a_route_that_ignores_adapters_serves_the_base_and_refuses_each_adapter(
    url: str, path: str, body: dict[str, Any]
) -> None:
    base, named = ask(url, body, path), ask(url, body | {"model": "one"}, path, X_Request_Id="mine")

    assert (base.status_code, named.status_code, named.headers["x-request-id"]) == (200, 404, "mine")
    assert named.json()["error"]["message"].startswith(f"this llama.cpp ignores adapters at {path}")


def test_the_engine_gets_the_headers_of_the_front_and_none_of_the_client(url: str) -> None:
    answer = ask(
        url, {"prompt": "a"}, Authorization="Bearer mine", X_Conversation_Id="theirs", Cookie="a=b", X_Request_Id="7"
    )

    got = {name.lower(): text for name, text in answer.json()["headers"].items()}
    assert got["authorization"] == "Bearer the engine's key"
    assert not got.keys() & {"x-conversation-id", "cookie", "x-request-id"}
    assert answer.headers["x-request-id"] == "7"
    assert len(answer.headers.get_list("date")) == 1
    assert "server" not in answer.headers


def test_the_engine_is_closed_to_requests_without_its_key(engine: Address) -> None:
    answer = httpx.post(f"{engine.url}/v1/completions", json={"prompt": "a"}, trust_env=False)

    assert answer.status_code == 401


async def _read(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    return await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split()[0]))


def test_a_request_after_a_stream_is_answered_where_the_engine_ends_the_connection_without_a_word(
    tmp_path: Path,
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"stream" in await _read(reader):
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            writer.write(head + b"b\r\ndata: one\n\n\r\n0\r\n\r\n")
            await asyncio.sleep(0.1)
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    async def run() -> tuple[list[bytes], tuple[int, Any]]:
        where = Address(socket=tmp_path / "s")
        async with await asyncio.start_unix_server(answer, where.socket):
            engine = Engine(where)
            async with engine.stream("/v1/completions", {"stream": True}) as (_, events):
                told = [event async for event in events]
            return told, await engine.ask("/v1/completions", {})

    assert asyncio.run(run()) == ([b"data: one"], (200, {}))


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\n", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}"]
)
def test_an_answer_that_ends_early_or_cannot_be_read_is_a_refusal(answer: bytes, tmp_path: Path) -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _read(reader)
        writer.write(answer)
        writer.close()

    async def run() -> None:
        async with await asyncio.start_unix_server(cut, tmp_path / "s"):
            await Engine(Address(socket=tmp_path / "s")).ask("/v1/completions", {})

    with pytest.raises(RequestRefused) as refused:
        asyncio.run(run())
    assert refused.value.status == 502


def test_a_stopped_engine_whose_line_of_connections_is_full_is_asked_again(tmp_path: Path) -> None:
    async def run() -> list[tuple[int, Any]]:
        with socket.socket(socket.AF_UNIX) as place:
            place.bind(str(tmp_path / "s"))
            place.listen(0)
            engine = Engine(Address(socket=tmp_path / "s"))
            asked = [asyncio.create_task(engine.ask("/v1/completions", {})) for _ in range(6)]
            await asyncio.sleep(0.3)

            async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await _read(reader)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                writer.close()

            async with await asyncio.start_unix_server(answer, sock=place):
                return await asyncio.gather(*asked)

    assert asyncio.run(run()) == [(200, {})] * 6


# ---------------------------------------------------------------- the engine's command
@pytest.mark.parametrize(
    "words",
    [
        ["--cache-ram", "8192"], ["-cram=1"], ["--slot-save-path", "x"], ["--kv-unified"],
        ["--model", "other.gguf"], ["-hf", "acme/other"], ["--gpt-oss-20b-default"],
    ],
)  # fmt: skip
def test_options_that_mix_clients_or_adapters_are_refused(words: list[str]) -> None:
    with pytest.raises(UsageProblem, match="does not pass on"):
        command_of("llama-server", Path("base.gguf"), [], [], 4, words)


def test_the_command_switches_the_shared_cache_off_and_applies_no_adapter_by_itself() -> None:
    where = Address(socket=Path("/tmp/adapt/engine.sock"))

    command = command_of("llama-server", Path("base.gguf"), [Path("a.gguf")], where.words, 3)
    environ = environ_of({"LLAMA_ARG_CACHE_RAM": "1", "LLAMA_API_KEY": "x", "HOME": "/h"}, where)

    assert command[command.index("--cache-ram") + 1] == "0"
    assert "--lora-init-without-apply" in command
    assert command[command.index("--host") + 1] == "/tmp/adapt/engine.sock"
    assert environ == {"HOME": "/h"}


# ---------------------------------------------------------------- slots
def test_a_slot_reuses_nothing_of_another_tenant_or_adapter(shared: str) -> None:
    def told(model: str, key: str) -> tuple[int, bool]:
        answer = ask(shared, {"prompt": "a", "model": model}, Authorization=f"Bearer key-{key}").json()
        return answer["id_slot"], answer["cache_prompt"]

    first, again = told("one", "acme"), told("one", "acme")
    other, third = told("one", "globex"), told("two", "acme")

    assert (first[1], again) == (False, (first[0], True))
    assert (other[1], third[1]) == (False, False)


def test_a_slot_stays_unused_until_its_owner_was_answered() -> None:
    async def owners() -> list[bool]:
        slots = Slots(1)
        fresh = []
        for owner, is_answered in ((("a", None), True), (("b", None), False), (("b", None), True), (("b", None), True)):
            async with slots.taken(owner) as slot:
                fresh.append(slot.is_fresh)
                slot.is_fresh = slot.is_fresh and not is_answered
        return fresh

    assert asyncio.run(owners()) == [True, True, True, False]


def test_a_tenant_with_many_requests_waits_behind_its_own() -> None:
    async def order() -> list[str]:
        slots, done = Slots(2, lambda: 1), []

        async def one(tenant: str) -> None:
            async with slots.taken((tenant, None)):
                await asyncio.sleep(0.01)
                done.append(tenant)

        loads = [asyncio.create_task(one("greedy")) for _ in range(10)]
        await asyncio.sleep(0.005)
        await asyncio.gather(*loads, *(one("modest") for _ in range(2)))
        return done

    done = asyncio.run(order())

    assert {at for at, tenant in enumerate(done) if tenant == "modest"} <= {1, 2, 3, 4}


def test_the_share_of_a_tenant_follows_the_file_of_the_tenants() -> None:
    async def held() -> list[int]:
        shares, told = [1, 3], list[int]()
        slots, ends = Slots(4, lambda: shares[0]), asyncio.Event()

        async def one() -> None:
            async with slots.taken(("a", None)):
                told[-1] += 1
                await ends.wait()

        for _ in range(2):
            told.append(0)
            tasks = [asyncio.create_task(one()) for _ in range(4)]
            await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            shares.pop(0)
            shares.append(4)
        return told

    assert asyncio.run(held()) == [1, 3]


def test_a_client_that_leaves_its_place_gives_the_slot_to_the_next() -> None:
    async def run() -> int:
        slots = Slots(1)
        owner: Owner = (None, None)

        async def hold(seconds: float) -> int:
            async with slots.taken(owner) as slot:
                await asyncio.sleep(seconds)
                return slot.number

        first = asyncio.create_task(hold(10))
        await asyncio.sleep(0.01)
        waiting = [asyncio.create_task(hold(10)) for _ in range(3)]
        await asyncio.sleep(0.01)
        for task in (waiting[0], first, waiting[1], waiting[2]):
            task.cancel()
        return await asyncio.wait_for(hold(0), 5)

    assert asyncio.run(run()) == 0


# ---------------------------------------------------------------- several answers
def test_prompts_and_choices_are_asked_one_by_one_and_their_tokens_summed(url: str) -> None:
    answer = ask(url, {"prompt": ["a", "b", "c"], "n": 2, "seed": 7, "model": "one"}).json()

    assert [choice["index"] for choice in answer["choices"]] == [*range(6)]
    assert answer["usage"] == {"completion_tokens": 18, "prompt_tokens": 30, "total_tokens": 48}


@pytest.mark.parametrize(
    ("value", "size", "expected"),
    [
        ({"prompt": "a", "max_tokens": 10}, 40, (1, 20)),
        ({"prompt": ["a"] * 5, "max_tokens": 10}, 40, (5, 60)),
        ({"prompt": "a", "max_tokens": 10, "n": 4}, 40, (4, 80)),
        ({"prompt": [1, 2, 3], "max_tokens": 10}, 40, (1, 20)),
        ({"input": ["a", "b"]}, 40, (2, 10)),
        ({"query": "a", "documents": ["a", "b", "c"]}, 40, (3, 10)),
    ],
)
def test_the_demand_of_a_request_counts_each_answer(
    value: dict[str, Any], size: int, expected: tuple[int, int]
) -> None:
    assert demand_of(value, size) == TenantDemand(*expected)


def test_a_quota_counts_what_a_request_may_use_before_it_runs_and_what_it_used_afterwards() -> None:
    now = 0.0
    quotas = Quotas(lambda: now)
    tenant = Tenant(name="a", keys=(), adapters=frozenset(), requests_per_minute=10, tokens_per_minute=1000)

    quotas.enter(tenant)
    quotas.reserve(tenant, TenantDemand(1, 900))
    with pytest.raises(RequestRefused, match="may need 900 tokens"):
        quotas.reserve(tenant, TenantDemand(1, 900))
    quotas.leave(tenant, 100, 900)
    quotas.reserve(tenant, TenantDemand(1, 800))


def test_many_prompts_count_as_many_requests(shared: str) -> None:
    key = {"Authorization": "Bearer key-small"}

    answers = [ask(shared, {"prompt": ["a"] * 5, "max_tokens": 1}, **key) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60


def test_a_grammar_needs_the_word_of_the_operator(shared: str) -> None:
    body = {"prompt": "a", "grammar": 'root ::= "a"'}

    assert ask(shared, body, Authorization="Bearer key-acme").status_code == 403
    assert ask(shared, body, Authorization="Bearer key-globex").status_code == 200


# ---------------------------------------------------------------- connections
def test_five_hundred_connections_at_once_are_all_answered(url: str) -> None:
    def one(_: int) -> int:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
        connection.request("GET", "/v1/models")
        return connection.getresponse().status

    with ThreadPoolExecutor(500) as threads:
        assert set(threads.map(one, range(500))) == {200}


def test_requests_without_a_key_are_refused_before_their_body_comes(shared: str) -> None:
    host, port = shared.removeprefix("http://").split(":")
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {8 << 20}\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.sendall(head.encode() + b"x" * 1000)
        assert client.recv(1000).startswith(b"HTTP/1.1 401 ")


def test_a_client_that_leaves_ends_the_work_of_the_engine(url: str, tmp_path: Path) -> None:
    held = tmp_path / "held"
    body = json.dumps({"prompt": f"{HELD}{held}", "model": "one"}).encode()
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    end = time.monotonic() + 30
    while not held.with_suffix(".begun").exists():
        assert time.monotonic() < end
        time.sleep(0.01)

    connection.close()
    answers = [ask(url, {"prompt": "a", "model": name}).status_code for name in ("one", "two") for _ in range(4)]
    held.touch()

    assert answers == [200] * 8


@pytest.mark.parametrize(
    ("raw", "statuses"),
    [
        (b"GET /v1/models HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", [b"200"]),
        (b"POST /v1/completions?\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n", [b"400"]),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", [b"400"]),
    ],
)
def test_an_odd_request_has_one_answer(url: str, raw: bytes, statuses: list[bytes]) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.sendall(raw)
        client.shutdown(socket.SHUT_WR)
        data = b"".join(iter(lambda: client.recv(65536), b""))

    found = [line.split()[1] for line in data.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    assert found == statuses


@pytest.mark.parametrize(
    ("origin", "has_keys", "status"),
    [("https://example.org", False, 403), ("http://localhost:3000", False, 204), ("https://example.org", True, 204)],
)
def test_a_page_of_another_origin_may_ask_a_server_with_keys(
    url: str, shared: str, origin: str, has_keys: object, status: int
) -> None:
    where = shared if has_keys else url
    answer = httpx.options(f"{where}/v1/completions", headers={"Origin": origin})

    assert answer.status_code == status
    assert answer.headers.get("access-control-allow-origin") == (origin if status == 204 else None)


def test_a_front_that_ends_has_no_thread_left(engine: Address) -> None:
    before = set(threading.enumerate())
    with Front("127.0.0.1", free_port("127.0.0.1"), [engine], Names("base-7b", SERVED)):
        pass

    assert not {one for one in set(threading.enumerate()) - before if not one.name.startswith("asyncio")}


def resident_bytes() -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) << 10


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells a process's memory there")
def test_half_requests_without_a_key_hold_little_memory(shared: str) -> None:
    host, port = shared.removeprefix("http://").split(":")
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {8 << 20}\r\n\r\n"
    ).encode()
    clients = [socket.create_connection((host, int(port)), timeout=30) for _ in range(200)]
    before = resident_bytes()
    try:
        for client in clients:
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError, ConnectionError):
                client.send(head + b"x" * (1 << 20))
        status = ask(shared, {"prompt": "a"}, Authorization="Bearer key-acme").status_code
        grown = resident_bytes() - before
    finally:
        for client in clients:
            client.close()

    assert status == 200
    assert grown < 30 << 20
