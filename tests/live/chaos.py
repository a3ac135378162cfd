"""Kills the publisher, the registry, a follower and a bank at random while requests run, and checks what each of them saw.

    OMP_NUM_THREADS=1 python -m tests.live.chaos [--rounds 200] [--seed 0]

One process publishes to its library and to a registry; a bank follows the library, and a follower on another library follows the
registry. Each round kills some of them with SIGKILL, checks, and starts them again. It fails where

- a version that was acknowledged is lost: after each kill the alias means it or a later one, in the library and, where it was
  sent, in the registry, and that version is whole;
- a request to the bank is answered by none of the versions, by two, or by another one than it says;
- a follower gets a version twice in a row, out of order, or with other numbers than were published.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn

from adapterhub import AdapterBank, Library
from adapterhub.formats.manifest import WEIGHTS_FILE
from adapterhub.library.following import Published
from adapterhub.live.stream import LiveStream
from tests.bench.harness import given
from tests.registry.running import running
from tests.support.tiny import LAYERS, WIDTH, make_adapter, make_base, tensors_of_base

TEAM = "team"
REQUESTS_AT_ONCE = 2
RUNNING = 0.7
"""The share of the rounds whose kills come while requests run; the others may kill what has just begun to start."""
WITHIN_S = 120.0
"""How long a process may take until it has started, or has heard of a version."""

CLOSE = 1e-3
"""No two of 97 versions in a row answer as alike as this: the nearest differ by 8e-3."""

State = dict[str, "np.ndarray[Any, Any]"]


def number_of(version: str) -> int:
    return int(version.rpartition(".")[2])


class Projections(nn.Module):
    """The modules of the tiny base that the adapter is for, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        tensors = {name: torch.from_numpy(value) for name, value in tensors_of_base().items()}
        self.model: Any = nn.Module()
        self.model.layers = nn.ModuleList()
        for layer in range(LAYERS):
            attention = nn.Module()
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                linear = nn.Linear(WIDTH, WIDTH, bias=False)
                linear.weight.data = tensors[f"model.layers.{layer}.self_attn.{name}.weight"].clone()
                attention.add_module(name, linear)
            block: Any = nn.Module()
            block.self_attn = attention
            self.model.layers.append(block)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.model.layers:
            for name in ("q_proj", "v_proj"):
                x = torch.tanh(getattr(block.self_attn, name)(x))
        return x


X = torch.linspace(-1, 1, 4 * WIDTH).reshape(1, 4, WIDTH)


@dataclass
class World:
    """The folder of a run: the libraries, the registry, and what each process wrote down."""

    folder: Path
    port: int
    pids: dict[str, int] = field(default_factory=dict)
    token: str = ""

    def __post_init__(self) -> None:
        self.adapter = make_adapter(self.folder / "adapter")
        self.config = json.loads((self.adapter / "adapter_config.json").read_text())
        self.first: State = load_file(self.adapter / WEIGHTS_FILE)
        base = make_base(self.folder / "base")
        for name in ("trainer", "worker"):
            library = Library(self.folder / name)
            library.add_base(base, "base-7b")
            library.remotes.add("ours", f"http://127.0.0.1:{self.port}", namespaces=[TEAM])

    def state(self, step: int) -> State:
        """The tensors of a step; no two of 97 steps in a row have equal ones."""
        return {name: value * np.float32(0.3 + 0.01 * (step % 97)) for name, value in self.first.items()}

    def stream(self, name: str) -> LiveStream:
        return Library(self.folder / name).live(
            "agent@base-7b", remote="ours", token=self.token or None, config=self.config
        )

    def answer(self, step: int) -> Tensor:
        """What the model says with the version of a step, computed without a bank."""
        model: Any = Projections()
        state = self.state(step)
        for layer in range(LAYERS):
            for name in ("q_proj", "v_proj"):
                key = f"base_model.model.model.layers.{layer}.self_attn.{name}.lora_"
                change = state[f"{key}B.weight"] @ state[f"{key}A.weight"]
                linear = getattr(model.model.layers[layer].self_attn, name)
                linear.weight.data += 2.0 * torch.from_numpy(change)
        with torch.no_grad():
            told: Tensor = model(X)
        return told

    # ------------------------------------------------------------ what was written down
    def note(self, who: str, *words: object) -> None:
        handle = os.open(self.folder / f"{who}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(handle, (" ".join(map(str, words)) + "\n").encode())
        os.close(handle)

    def notes(self, who: str, word: str = "") -> list[list[str]]:
        with contextlib.suppress(FileNotFoundError):
            lines = (self.folder / f"{who}.log").read_text().splitlines()
            return [line.split() for line in lines if line.startswith(word)]
        return []

    # ------------------------------------------------------------ processes
    def start(self, who: str) -> None:
        """Fork a process; the parent has imported all."""
        pid = os.fork()
        if pid:
            self.pids[who] = pid
            return
        try:
            os.dup2(os.open(self.folder / f"{who}.err", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            torch.set_num_threads(1)  # after a fork, torch makes its pool anew, and two threads at once break it
            self.note(who, "start")
            ROLES[who](self)
        except BaseException:  # noqa: BLE001 - a process that ends by itself is a failure
            self.note(who, "BAD", json.dumps(traceback.format_exc()))
        finally:
            os._exit(1)

    def kill(self, who: str) -> None:
        os.kill(self.pids[who], signal.SIGKILL)
        os.waitpid(self.pids.pop(who), 0)


# ---------------------------------------------------------------- the processes
def publish(world: World) -> None:
    stream = world.stream("trainer")
    step = max((int(words[1]) for words in world.notes("publisher", "begin")), default=0)
    while True:
        step += 1
        world.note("publisher", "begin", step)
        made = stream.publish(world.state(step), step=step)
        world.note("publisher", "ack", made.version, step, "sent" if made.unsent is None else "unsent")
        time.sleep(0.05)


def serve(world: World) -> None:
    with running(world.folder / "registry", port=world.port):
        world.note("registry", "ready")
        threading.Event().wait()


def follow(world: World) -> None:
    with world.stream("worker").follow() as found:
        for version in found:
            numbers, expected = load_file(version.build.folder / WEIGHTS_FILE), world.state(version.step)
            is_whole = numbers.keys() == expected.keys() and all(
                np.array_equal(numbers[name], value) for name, value in expected.items()
            )
            world.note("follower", "got" if is_whole else "BAD", version.version, version.step)


def answer(world: World) -> None:
    model, steps = Projections(), dict[str, int]()
    expected = dict[int, Tensor]()

    def learn(version: Published) -> None:
        steps[version.label], expected[version.step] = version.step, world.answer(version.step)

    with AdapterBank(model, library=world.folder / "trainer", base="base-7b") as bank:
        following = bank.follow("agent@live", gate=learn)
        while following.wait() is None:
            pass

        def client(number: int) -> None:
            try:
                last = ""
                world.note(f"client-{number}", "start")
                while True:
                    with bank.use("agent@live"), torch.no_grad():
                        [label] = bank.chosen
                        first, second = model(X), model(X)
                    near = [step for step, told in list(expected.items()) if (first - told).abs().max() < CLOSE]
                    if near != [steps[label]] or not torch.equal(first, second):
                        world.note("bank", "BAD", label, near)
                    if label != last:
                        world.note("bank", "got", label.rpartition("==")[2], steps[label])
                        world.note(f"client-{number}", "got", label.rpartition("==")[2])
                    last = label
                    world.note("requests", "one")
                    time.sleep(0.005)
            except BaseException:  # noqa: BLE001 - told to the checks
                world.note("bank", "BAD", json.dumps(traceback.format_exc()))

        threads = [threading.Thread(target=client, args=(number,)) for number in range(REQUESTS_AT_ONCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


ROLES: dict[str, Callable[[World], None]] = {
    "publisher": publish,
    "registry": serve,
    "follower": follow,
    "bank": answer,
}


# ---------------------------------------------------------------- the checks
def wait_until(is_so: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + WITHIN_S
    while not is_so():
        assert time.monotonic() < end, f"not within {WITHIN_S:.0f} s: {what}"
        time.sleep(0.02)


def check(world: World) -> None:
    """What holds at any moment.

    Raises:
        AssertionError: it does not.
    """
    bad = [words for who in ROLES for words in world.notes(who, "BAD")]
    assert not bad, bad
    for who in ("follower", *(f"client-{number}" for number in range(REQUESTS_AT_ONCE))):
        numbers = list[int]()
        for words in world.notes(who):
            assert words[0] == "start" or not numbers or number_of(words[1]) > numbers[-1], (who, words, numbers[-1])
            numbers = [] if words[0] == "start" else [*numbers, number_of(words[1])]
    acknowledged = world.notes("publisher", "ack")
    if acknowledged:
        stream = world.stream("trainer")
        target = stream.target()
        assert target is not None
        assert number_of(target.version) >= number_of(acknowledged[-1][1]), (target, acknowledged[-1])
        build = stream.current()
        assert build is None or not stream.library.verify_build(build).errors  # None: the next one is current by now


def check_registry(world: World) -> None:
    """The registry means the last version that it acknowledged, or a later one."""
    sent = [words for words in world.notes("publisher", "ack") if words[3] == "sent"]
    if sent:
        found = Library(world.folder / "worker").alias(f"{TEAM}/agent@live", remote="ours", token=world.token)
        assert number_of(found.main.version) >= number_of(sent[-1][1]), (found.main, sent[-1])


def run(rounds: int, seed: int, folder: Path) -> str:
    """Run so many rounds; what was seen.

    Raises:
        AssertionError: a check failed.
    """
    chance = random.Random(seed)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world, kills = World(folder, port), dict.fromkeys(ROLES, 0)
    child = os.fork()
    if not child:  # the registry's first start makes its token
        with running(folder / "registry", port=port) as server:
            (folder / "token").write_text(server.token)
            os._exit(0)
    os.waitpid(child, 0)
    world.token = (folder / "token").read_text()
    try:
        for who in ROLES:
            world.start(who)
        wait_until(lambda: bool(world.notes("follower", "got") and world.notes("bank", "got")), "a first version")
        for _ in range(rounds):
            if chance.random() < RUNNING:
                asked = len(world.notes("requests"))
                wait_until(lambda asked=asked: len(world.notes("requests")) > asked, "a request")  # type: ignore[misc]
            time.sleep(chance.uniform(0.05, 0.6))
            victims = chance.sample([*ROLES], chance.choice((1, 1, 1, 2, 4)))
            for who in victims:
                world.kill(who)
                kills[who] += 1
            check(world)
            for who in victims:
                ready = len(world.notes("registry", "ready"))
                world.start(who)
                if who == "registry":
                    wait_until(lambda ready=ready: len(world.notes("registry", "ready")) > ready, "the registry")  # type: ignore[misc]
                    check_registry(world)
        converge(world)
        check(world)
    finally:
        for who in [*world.pids]:
            world.kill(who)
    answers, got = len(world.notes("requests")), world.notes("follower", "got")
    acks, banked = world.notes("publisher", "ack"), {words[1] for words in world.notes("bank", "got")}
    return (
        f"{rounds} rounds, kills {kills}: {len(acks)} versions acknowledged, {sum(w[3] == 'sent' for w in acks)} by the registry"
        f" too, none lost; {answers} requests of {len(banked)} versions, none mixed; {len(got)} versions followed, in order"
    )


def converge(world: World) -> None:
    """All hear of one more version once the kills are over."""
    count = len([words for words in world.notes("publisher", "ack") if words[3] == "sent"])
    wait_until(
        lambda: len([words for words in world.notes("publisher", "ack") if words[3] == "sent"]) > count, "a publish"
    )
    last = number_of([words for words in world.notes("publisher", "ack") if words[3] == "sent"][-1][1])
    for who in ("follower", "bank"):
        wait_until(lambda who=who: any(number_of(w[1]) >= last for w in world.notes(who, "got")), f"{who} at {last}")  # type: ignore[misc]


def main() -> None:
    """Run it as a program."""
    warnings.simplefilter("ignore")
    options = given(__doc__, rounds=200, seed=0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        try:
            print(run(options.rounds, options.seed, Path(folder)))
        except AssertionError as error:
            for who in ROLES:
                with contextlib.suppress(FileNotFoundError):
                    print(who, (Path(folder) / f"{who}.err").read_text()[-1500:], file=sys.stderr)
            raise SystemExit(f"failed: {error}") from error


if __name__ == "__main__":
    main()
