"""Which tenant's engine of llama.cpp runs, and which requests it takes: no tenant waits for the answers of another."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapterhub.inference.serving.chain.slots import Owner, Slot
from adapterhub.inference.serving.llama_cpp import turns
from adapterhub.inference.serving.llama_cpp.engine import figures_of
from adapterhub.inference.serving.llama_cpp.turns import CAN_STOP, EngineSlots, Turns
from adapterhub.inference.serving.process import EngineProcess

pytestmark = pytest.mark.skipif(not CAN_STOP, reason="this system cannot stop a process for a while")
A: Owner = ("acme", "a")
B: Owner = ("acme", "b")
G: Owner = ("globex", "a")


class Load:
    """Requests that hold their slots until they are told to end; `took` lists who got one, in order."""

    def __init__(self, slots: EngineSlots) -> None:
        self.slots, self.took = slots, list[tuple[str, int]]()
        self._ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, *asked: tuple[str, Owner]) -> None:
        for name, owner in asked:
            self._ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._one(name, owner))
        await asyncio.sleep(0)

    async def _one(self, name: str, owner: Owner) -> None:
        async with self.slots.taken(owner) as slot:
            self.took.append((name, slot.engine))
            await self._ends[name].wait()

    async def end(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()
            await self.tasks[name]
        await asyncio.sleep(0)

    async def leave(self, *names: str) -> None:
        for name in names:
            self.tasks[name].cancel()
        await asyncio.wait([self.tasks[name] for name in names])


def names_of(took: list[tuple[str, int]]) -> list[str]:
    return [name for name, _ in took]


def test_an_engine_computes_for_one_adapter_at_a_time_and_takes_all_that_wait_for_the_same() -> None:
    async def run() -> Load:
        load = Load(EngineSlots(2))
        await load.ask(("a1", A), ("b1", B), ("a2", A), ("b2", B), ("b3", B))
        assert names_of(load.took) == ["a1"]  # b1 came before a2
        await load.end("a1")
        assert names_of(load.took) == ["a1", "b1", "b2"]
        await load.end("b1")
        assert names_of(load.took) == ["a1", "b1", "b2"]  # a2 came before b3
        await load.end("b2")
        return load

    assert names_of(asyncio.run(run()).took) == ["a1", "b1", "b2", "a2"]


def test_an_engine_takes_more_of_the_same_while_nothing_else_waits() -> None:
    async def run() -> Load:
        load = Load(EngineSlots(2))
        await load.ask(("a1", A))
        await load.ask(("a2", A), ("a3", A))
        await load.end("a1")
        return load

    assert names_of(asyncio.run(run()).took) == ["a1", "a2", "a3"]


def test_a_tenant_has_one_engine_and_leaves_the_other_to_others() -> None:
    async def run() -> list[tuple[str, int]]:
        load = Load(EngineSlots(2, engines=2))
        await load.ask(*((f"a{at}", A) for at in range(5)), ("b", B), ("g", G))
        return load.took

    took = dict(asyncio.run(run()))

    assert took.keys() == {"a0", "a1", "g"}
    assert took["a0"] == took["a1"] != took["g"]


def test_a_tenant_without_an_engine_gets_the_next_that_ends_its_answers() -> None:
    async def run() -> list[str]:
        load = Load(EngineSlots(2, engines=2))
        await load.ask(("a1", A), ("a2", A), ("g1", G), ("g2", G), ("c", ("initech", "a")), ("a3", A), ("g3", G))
        await load.end("a1", "g1", "a2")
        return names_of(load.took)

    assert asyncio.run(run()) == ["a1", "a2", "g1", "g2", "c"]


def test_a_slot_is_reused_by_the_same_owner_only() -> None:
    async def run() -> list[bool]:
        slots, fresh = EngineSlots(1, engines=2), list[bool]()

        async def one(owner: Owner) -> Slot:
            async with slots.taken(owner) as slot:
                fresh.append(slot.is_fresh)
                slot.is_fresh = False
                return slot

        first = await one(A)
        await one(G)
        assert (await one(A)).engine == first.engine  # what it computed is there
        await one(B)
        return fresh

    assert asyncio.run(run()) == [True, True, False, True]


def test_the_engine_of_a_client_that_left_counts_as_at_work_until_it_has_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "NOTICED_S", 0.1)

    async def run() -> list[list[tuple[str, int]]]:
        load = Load(EngineSlots(1, engines=1))
        await load.ask(("a", A), ("g", G), ("h", G))
        await load.leave("a", "h")
        before = [*load.took]
        await asyncio.sleep(0.3)
        return [before, load.took]

    assert [names_of(one) for one in asyncio.run(run())] == [["a"], ["a", "g"]]


# ---------------------------------------------------------------- turns
COUNTS = "import time\nwhile True:\n    print('x', flush=True)\n    time.sleep(0.001)"


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[list[tuple[int, Path]]]:
    """Processes that write all the time."""
    running = []
    for at in range(2):
        with (tmp_path / str(at)).open("wb") as out:
            running.append((subprocess.Popen([sys.executable, "-c", COUNTS], stdout=out), tmp_path / str(at)))
    while not all(file.stat().st_size for _, file in running):
        time.sleep(0.01)
    yield [(one.pid, file) for one, file in running]
    for one, _ in running:
        one.kill()
        one.wait()


async def work_within(engines: list[tuple[int, Path]], seconds: float) -> list[float]:
    """The share of the work of each."""
    before = [file.stat().st_size for _, file in engines]
    await asyncio.sleep(seconds)
    done = [file.stat().st_size - was for (_, file), was in zip(engines, before, strict=True)]
    return [one / sum(done) for one in done]


def test_the_tenant_that_used_less_runs_first_then_both_share_and_alone_each_runs(
    engines: list[tuple[int, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "FORGOTTEN_S", 1.0)

    async def run() -> dict[str, list[float]]:
        asking: dict[str | None, int] = {"greedy": 5, "modest": 1}
        told, taking = {}, Turns([pid for pid, _ in engines], asking)
        taking.begins(0, "greedy")
        await asyncio.sleep(2)
        taking.begins(1, "modest")
        told["new"] = await work_within(engines, 0.4)
        await asyncio.sleep(2)
        told["few"] = await work_within(engines, 2)
        asking["modest"] = 5
        await asyncio.sleep(2)
        told["both"] = await work_within(engines, 2)
        taking.ends(1)
        await asyncio.sleep(0.1)
        told["idle"] = await work_within(engines, 0.3)
        taking.begins(1, "modest")
        taking.close()
        await asyncio.sleep(0.1)
        told["closed"] = await work_within(engines, 0.3)
        return told

    told = asyncio.run(run())

    assert told["new"][0] < 0.1
    assert 0.1 < told["few"][0] < 0.4
    assert min(told["both"]) > 0.3
    assert min(told["idle"]) > 0.2
    assert min(told["closed"]) > 0.2


def test_a_stopped_engine_ends_with_its_server() -> None:
    with EngineProcess([sys.executable, "-c", COUNTS], {}, output=subprocess.DEVNULL) as engine:

        async def run() -> None:
            taking = Turns([engine.pid, engine.pid], {})
            taking._signal(0, signal.SIGSTOP)

        asyncio.run(run())
        began = time.monotonic()
        engine.stop(20)

    assert time.monotonic() - began < 10


def test_a_killed_server_leaves_no_stopped_engine(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, time\nfrom adapterhub.inference.serving.process import EngineProcess\n"
        f"one = EngineProcess([sys.executable, '-c', {COUNTS!r}], {{}}, output=-3, ends_by=signal.SIGKILL)\n"
        "os.kill(one.pid, signal.SIGSTOP)\nprint(one.pid, flush=True)\ntime.sleep(60)"
    )
    server = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    pid = int(server.stdout.readline())
    server.kill()
    server.wait()

    end = time.monotonic() + 10
    while (
        Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() and time.monotonic() < end
    ):
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes()


# ---------------------------------------------------------------- figures
class Told:
    """An engine that tells its figures."""

    def __init__(self, text: bytes) -> None:
        self.text = text

    async def figures(self) -> bytes:
        return self.text


def test_the_figures_of_several_engines_have_the_number_of_each() -> None:
    texts = [
        b"# HELP tokens so many\n# TYPE tokens counter\ntokens %d\n# TYPE busy gauge\nbusy 0\n" % at for at in (7, 8)
    ]

    one = asyncio.run(figures_of([Told(texts[0])]))  # type: ignore[list-item]
    both = asyncio.run(figures_of([Told(text) for text in texts]))  # type: ignore[misc]

    assert one == texts[0]
    assert both.decode().splitlines() == [
        "# HELP tokens so many", "# TYPE tokens counter", 'tokens{engine="0"} 7', 'tokens{engine="1"} 8',
        "# TYPE busy gauge", 'busy{engine="0"} 0', 'busy{engine="1"} 0',
    ]  # fmt: skip
    assert Counter(line.split()[0] for line in both.decode().splitlines())["#"] == 3
