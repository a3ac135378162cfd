"""`LiveStream.follow`: each version that becomes current, in another process, and on another machine by a registry."""

from __future__ import annotations

import os
import signal
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from adapterhub import Library
from adapterhub.core.errors import StoreLocked
from adapterhub.distribution import events as events_module
from adapterhub.library.following import Published
from adapterhub.live import following
from adapterhub.live.stream import LiveStream
from tests.live.conftest import State
from tests.registry.running import Running, running
from tests.support.faulty_proxy import RESET, Answer, Request, Steps, faulty, whole
from tests.support.tiny import make_base

Make = Callable[[int], State]


def said(published: Published) -> tuple[str, int]:
    return published.version, published.step


def test_each_version_comes_once_in_order_and_a_rollback_is_one_more(
    home: Library, stream: LiveStream, state: Make
) -> None:
    stream.publish(state(1), step=10)
    with stream.follow(timeout_s=30) as versions:
        got = [next(versions)]
        made = stream.publish(state(2), step=20)
        got.append(next(versions))
        stream.publish(state(3), step=30)
        got.append(next(versions))
        home.roll_back_alias("agent@live")
        got.append(next(versions))

    assert list(map(said, got)) == [("0.0.1", 10), ("0.0.2", 20), ("0.0.3", 30), ("0.0.2", 20)]
    assert (got[1].digest, got[1].build.folder, got[1].alias) == (made.digest, made.build.folder, "live")
    assert [said(one) for one in stream.follow(since="0.0.1", timeout_s=0)] == [("0.0.2", 20)]
    assert [*stream.follow(since=made, timeout_s=0)] == []


def test_a_version_that_the_gate_refuses_never_comes(home: Library, config: dict[str, Any], state: Make) -> None:
    stream = home.live("agent@base-7b", config=config, gate=lambda one: one.step != 2 or "worse")
    with stream.follow(timeout_s=0.05) as versions:
        stream.publish(state(1), step=1)
        assert said(next(versions)) == ("0.0.1", 1)
        assert stream.publish(state(2), step=2).refused == "worse"
        assert [*versions] == []


def test_the_version_that_came_is_kept_until_the_next_one_comes(home: Library, stream: LiveStream, state: Make) -> None:
    stream.keep = 1
    first = stream.publish(state(1), step=1)
    with stream.follow(timeout_s=30) as versions:
        held = next(versions)
        for step in (2, 3):
            stream.publish(state(step), step=step)
        numbers = load_file(held.build.folder / "adapter_model.safetensors")
        assert all(np.array_equal(numbers[name], value) for name, value in state(1).items())
        with pytest.raises(StoreLocked, match="is in use"):
            home.remove(first.build)
        assert said(next(versions)) == ("0.0.3", 3)
        if first.build.folder.exists():
            home.remove(first.build)


def test_versions_that_are_not_durable_yet_are_heard(stream: LiveStream, state: Make) -> None:
    stream.publish(state(1), step=1)
    with stream.follow(timeout_s=30) as versions:
        next(versions)
        stream.publish(state(2), step=2, sync=False)
        assert said(next(versions)) == ("0.0.2", 2)
        stream.close()
        assert said(stream.publish(state(3), step=3, sync=False)) == said(next(versions)) == ("0.0.3", 3)


def test_another_process_is_followed_and_its_end_changes_nothing(stream: LiveStream, state: Make) -> None:
    stream.publish(state(0), step=0)
    child = os.fork()
    if not child:
        for step in range(1, 100_000):
            stream.publish(state(step % 100), step=step, sync=False)
        os._exit(0)
    got, versions = list[Published](), stream.follow(timeout_s=30)
    for version in versions:
        numbers = load_file(version.build.folder / "adapter_model.safetensors")
        expected = state(version.step % 100)
        assert all(np.array_equal(numbers[name], expected[name]) for name in expected), version.version
        got.append(version)
        if len(got) == 10:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
    last = stream.target()
    versions.close()

    steps = [one.step for one in got]
    assert steps == sorted(set(steps))
    assert last is not None
    assert stream.build(last.version, last.digest) is not None


# ---------------------------------------------------------------- through a registry
@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("registry")) as server:
        yield server


class Far:
    """A trainer and a follower, each with a library of its own, and the registry between them."""

    def __init__(self, folder: Path, server: Running, team: str, config: dict[str, Any], url: str = "") -> None:
        base, self.token = make_base(folder / "far-base"), server.token
        self.trainer, self.worker = Library(folder / "trainer"), Library(folder / "worker")
        for library, place in ((self.trainer, server.url), (self.worker, url or server.url)):
            library.add_base(base, "base-7b")
            library.remotes.add("ours", place, namespaces=[team])
        self.stream = self.trainer.live("agent@base-7b", remote="ours", token=self.token, config=config)
        self.copy = self.worker.live("agent@base-7b", remote="ours")


@pytest.fixture
def far(tmp_path: Path, server: Running, online: None, config: dict[str, Any], request: pytest.FixtureRequest) -> Far:
    return Far(tmp_path, server, f"t{zlib.crc32(request.node.name.encode())}", config)


def test_a_follower_on_another_machine_gets_whole_versions_in_order(far: Far, state: Make) -> None:
    assert far.stream.publish(state(1), step=1).unsent is None
    with far.copy.follow(timeout_s=20) as versions:
        got = [next(versions)]
        for step in (2, 3):
            sent = far.stream.publish(state(step), step=step)
            got.append(next(versions))
        far.trainer.roll_back_alias(far.stream.followed, remote="ours", token=far.token)
        got.append(next(versions))

    assert [said(one)[1] for one in got] == [1, 2, 3, 2]
    assert got[2].digest == sent.digest
    assert got[2].build.folder.is_relative_to(far.worker.root)
    assert far.worker.verify(got[2].build.spec).exit_code == 0
    numbers = load_file(got[2].build.folder / "adapter_model.safetensors")
    assert all(np.array_equal(numbers[name], value) for name, value in state(3).items())


def test_a_follower_outlasts_the_absence_of_its_registry(
    tmp_path: Path, server: Running, online: None, config: dict[str, Any], state: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_down = threading.Event()

    def away(request: Request, answer: Answer) -> Steps:
        return [RESET] if is_down.is_set() else whole(request, answer)

    monkeypatch.setattr(events_module, "FIRST_RETRY_S", 0.05)
    with faulty(server.url) as proxy:
        proxy.faults["/"] = away
        far = Far(tmp_path, server, "absent", config, proxy.url)
        far.stream.publish(state(1), step=1)
        with far.copy.follow(timeout_s=20) as versions:
            assert next(versions).step == 1
            is_down.set()
            far.stream.publish(state(2), step=2)
            assert [one.step for one in far.copy.follow(timeout_s=0)] == [1]  # what is here
            is_down.clear()
            assert next(versions).step == 2


def test_a_registry_without_events_is_asked_again(far: Far, state: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "POLL_S", 0.05)
    monkeypatch.setattr(following, "follow_events", lambda *_, **__: False)
    far.stream.publish(state(1), step=1)
    with far.copy.follow(timeout_s=20) as versions:
        assert next(versions).step == 1
        far.stream.publish(state(2), step=2)
        assert next(versions).step == 2
