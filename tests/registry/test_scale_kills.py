"""Servers of a shared registry that are killed: what was answered stays, and no row names what is not there."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.registry.pushing import Push
from tests.registry.running import typed
from tests.registry.shared_servers import ROOT, S3, Balancer, Postgres, Shared

LETTERS = "abcdefghjkmnpqrstuvw"


@pytest.fixture
def shared(pg: Postgres, s3_server: S3, tmp_path: Path) -> Shared:
    return Shared(tmp_path, pg.new_registry(), s3_server.endpoint, s3_server.new_bucket())


def name(number: int) -> str:
    # letters only, none like another: names that look alike are refused
    return "acme/" + "".join(LETTERS[number // 20**place % 20] for place in range(3))


def adapter(number: int, size: int) -> Push:
    return Push(repo=name(number), weights=random.Random(number).randbytes(size))


def held(shared: Shared, *options: str) -> dict[str, object]:
    """What `adapt registry check` says of all that the registry holds."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in shared.variables.items():
            patch.setenv(name, value)
        done = typed("check", "--json", "--root", shared.folder / "elsewhere", *shared.options[:-2], *options)
    assert done.stdout, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    assert found["problems"] == [], done.stderr
    return found


def test_one_of_two_servers_is_killed_while_many_push(shared: Shared, amount: Callable[[int, int], int]) -> None:
    count, done, halfway = amount(12, 24), [], threading.Event()

    def push(url: str, number: int) -> Push:
        wanted = adapter(number, 200_000)
        for _ in range(20):  # as the hub client: again on 5xx and on broken connections
            try:
                with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
                    wanted.run(client)
            except httpx.TransportError:
                time.sleep(0.1)
                continue
            except httpx.HTTPStatusError as error:
                if error.response.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
                    raise
                time.sleep(0.1)
                continue
            done.append(number)
            if len(done) == count // 3:
                halfway.set()
            return wanted
        raise AssertionError(f"push {number} never went through")

    with shared.replica() as one, shared.replica() as other:
        headers = {"Authorization": f"Bearer {shared.token}"}
        balancer = Balancer(one.url, other.url)
        with ThreadPoolExecutor(6) as pool:
            waiting = [pool.submit(push, balancer.url, number) for number in range(count)]
            assert halfway.wait(120)
            other.process.kill()
            pushed = [future.result() for future in waiting]
        balancer.close()
        with httpx.Client(base_url=one.url, headers=headers) as client:
            assert all(wanted.is_whole(client, wanted.version) for wanted in pushed)
    assert held(shared, "--bytes")["blobs"] == count + 2  # they share one configuration and one .gitattributes


@pytest.fixture
def forks(shared: Shared) -> Iterator[subprocess.Popen[str]]:
    with shared.replica():  # makes the tables and the first token
        pass
    command = [
        sys.executable,
        "-m",
        "tests.registry.forking_server",
        "--root",
        str(shared.folder / "fork"),
        *shared.options,
    ]
    environment = os.environ | shared.variables | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "registry")])}
    with (shared.folder / "forks.log").open("w") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, cwd=ROOT
        )
    yield process
    process.stdin.close()  # type: ignore[union-attr]
    process.wait(60)


def start(forks: subprocess.Popen[str]) -> tuple[int, str]:
    assert forks.stdin is not None
    assert forks.stdout is not None
    forks.stdin.write("again\n")
    forks.stdin.flush()
    told = dict(forks.stdout.readline().strip().split(": ", 1) for _ in range(2))
    return int(told["pid"]), told["url"]


def test_kills_at_any_moment_of_a_push_leave_no_row_without_its_bytes(
    shared: Shared, forks: subprocess.Popen[str], amount: Callable[[int, int], int]
) -> None:
    kills = amount(5, 100)
    draw, answered = random.Random(), []
    headers = {"Authorization": f"Bearer {shared.token}"}
    latest_s = 0.0

    def push(url: str, wanted: Push) -> None:
        try:
            with httpx.Client(base_url=url, headers=headers) as client:
                wanted.run(client)
        except (httpx.TransportError, httpx.HTTPStatusError):
            return
        answered.append(wanted)

    for number in range(kills + 3):
        pid, url = start(forks)
        wanted = adapter(number, 100_000)
        began = time.perf_counter()
        pushing = threading.Thread(target=push, args=(url, wanted))
        pushing.start()
        if number < 3:  # these show how long one takes
            pushing.join()
            latest_s = time.perf_counter() - began
        else:
            pushing.join(draw.uniform(0, latest_s))
            # on a busy machine the next push may take several times as long: about one kill in three comes after the answer
            latest_s *= 0.9 if not pushing.is_alive() else 1.05
        os.kill(pid, signal.SIGKILL)
        pushing.join()

    held(shared, "--bytes")
    assert 3 <= len(answered) < kills + 3, "the kills came too late to tell anything"
    pid, url = start(forks)
    with httpx.Client(base_url=url, headers=headers) as client:
        assert all(wanted.is_whole(client, wanted.version) for wanted in answered)
        half_done = [adapter(number, 100_000) for number in range(kills + 3)]
        for wanted in half_done:  # what was cut off goes through when it is run again
            wanted.run(client)
            assert wanted.is_whole(client, wanted.version)
    os.kill(pid, signal.SIGKILL)
    assert held(shared)["blobs"] == kills + 5
