"""An adapter with which an engine answers like the base is refused before its first answer, once, for each tenant alike."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from adapterhub.core.digests import digest_of, parse_digest
from adapterhub.inference.serving.access.gate import Gate
from adapterhub.inference.serving.effects import AWAKE, Asleep, Effects, Told
from adapterhub.inference.serving.llama_cpp.names import Names, Served
from adapterhub.inference.serving.llama_cpp.server import Front
from adapterhub.inference.serving.metrics import own_metrics
from adapterhub.inference.serving.process import free_port
from adapterhub.inference.serving.refusal import RequestRefused
from tests.support.standin_llama import started

A, B = (parse_digest("sha256:" + 64 * letter) for letter in "ab")


class Engine:
    """Answers with these numbers, one of each list after the other."""

    def __init__(self, base: list[float], adapted: list[float]) -> None:
        self.left = {False: base, True: adapted}
        self.asked = 0

    async def __call__(self, is_adapted: bool) -> Told | None:  # noqa: FBT001 - see `Ask`
        self.asked += 1
        await asyncio.sleep(0)
        numbers = self.left[is_adapted]
        return Told(["a"], [numbers.pop(0) if len(numbers) > 1 else numbers[0]])


def found(engine: Engine, asleep: Asleep = AWAKE, times: int = 1) -> list[str]:
    async def run() -> list[str]:
        effects = Effects(own_metrics()[1])

        async def one(tenant: str) -> str:
            try:
                await effects.ensure("one==1.0.0", A, tenant, asleep, engine)
            except RequestRefused as refusal:
                return f"{refusal.status} {refusal.kind}: {refusal.message}"
            return ""

        return await asyncio.gather(*(one("acme") for _ in range(times)))

    return asyncio.run(run())


def test_equal_numbers_are_refused_and_the_reason_tells_a_zero_update_from_one_that_was_not_read() -> None:
    [unread] = found(Engine([-1.0], [-1.0]))
    [zero] = found(Engine([-1.0], [-1.0]), Asleep(zero="every lora_B is zero: the adapter does nothing"))

    assert unread.startswith("424 AdapterWithoutEffect: `one==1.0.0` has no effect on the base: its update is not zero")
    assert zero.endswith("every lora_B is zero: the adapter does nothing")


def test_a_small_difference_counts_only_if_it_is_still_there_when_both_are_asked_at_once() -> None:
    busy, weak = Engine([-1.0, -1.01], [-1.01]), Engine([-1.0], [-1.01])

    assert (bool(found(busy)[0]), found(weak)[0], busy.asked, weak.asked) == (True, "", 4, 8)


def test_requests_that_come_together_ask_once_and_get_the_same_answer() -> None:
    engine = Engine([-1.0], [-1.0])

    told = found(engine, times=8)

    assert (len(set(told)), engine.asked) == (1, 2)


def test_an_adapter_that_waits_for_its_tokens_is_not_asked_about() -> None:
    engine = Engine([-1.0], [-1.0])

    assert (found(engine, Asleep(wakes=True)), engine.asked) == ([""], 0)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_the_front_refuses_logs_and_counts_an_adapter_that_the_engine_drops(tmp_path: Path, path: str) -> None:
    tenants, log = tmp_path / "tenants.toml", tmp_path / "audit.jsonl"
    tenants.write_text(f'[tenants.acme]\nkeys = ["{digest_of(b"key")}"]\nadapters = ["*"]\n')
    served = [Served(name=name, label=f"{name}==1.0.0", digest=one) for name, one in (("one", A), ("two", B))]
    body = {"prompt": "a"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "a"}]}
    port = free_port("127.0.0.1")
    with (
        started(["--drops", "1"]) as engine,
        Front("127.0.0.1", port, [engine], Names("base-7b", served), Gate(tenants, str(log))),
        httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"authorization": "Bearer key"}, timeout=60
        ) as client,
    ):
        told = [client.post(path, json=body | {"model": name}) for name in ("one", "two", "two")]
        metrics = client.get("/metrics").text

    assert [one.status_code for one in told] == [200, 424, 424]
    assert told[1].json()["error"]["type"] == "AdapterWithoutEffect"
    assert '"refusal": "AdapterWithoutEffect"' in log.read_text()
    assert 'adapterhub_probes_total{result="changes"} 1.0' in metrics
    assert 'adapterhub_probes_total{result="nothing"} 1.0' in metrics
    assert 'adapterhub_refusals_total{code="424"} 2.0' in metrics
