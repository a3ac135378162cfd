"""Large files go from the disk to the client without a copy in the server: whole, in ranges, and one after the other."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.attacks.raw_http import head_of, line_to
from tests.registry.running import Running, running

WEIGHTS = random.Random(1).randbytes(4_000_001)
PATH = "/ann/x/resolve/main/adapter_model.safetensors"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path) as server:
        server.push("ann/x", WEIGHTS)
        yield server


def running_requests(server: Running) -> str:
    return next(line for line in server.get("/metrics").text.splitlines() if line.startswith("adapterhub_requests_run"))


def sent_bytes(server: Running) -> float:
    lines = server.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith("adapterhub_sent_bytes_total")).split()[1])


def open_descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def test_file_and_ranges_arrive_one_after_the_other_on_one_connection(server: Running) -> None:
    before = sent_bytes(server)
    with server.client() as client:
        for start, end in ((0, len(WEIGHTS)), (4095, 2_200_000), (3_000_000, 3_070_000), (3, 5), (0, len(WEIGHTS))):
            answer = client.get(PATH, headers={"Range": f"bytes={start}-{end - 1}"})
            assert answer.content == WEIGHTS[start:end]
    assert sent_bytes(server) - before > 2 * len(WEIGHTS) + 2_200_000


def test_requests_that_come_at_once_are_answered_in_order(server: Running) -> None:
    with line_to(server.url) as line:
        line.send(head_of("GET", PATH) + head_of("GET", PATH, "Connection: close"))
        answers = line.rest()

    assert answers.count(b"HTTP/1.1 200") == 2
    assert answers.count(WEIGHTS) == 2
    assert answers.endswith(WEIGHTS)


def test_client_that_leaves_takes_nothing_with_it(server: Running) -> None:
    server.get(PATH)
    before = open_descriptors()
    for _ in range(5):
        with line_to(server.url) as line:
            line.send(head_of("GET", PATH))
            line.until(b"\r\n\r\n")
    while running_requests(server) != "adapterhub_requests_running 1.0":  # the request that looks
        pass

    assert server.get(PATH).content == WEIGHTS
    assert open_descriptors() < before + 5  # a connection of this test may close a moment later


def test_blob_that_lost_its_end_ends_the_connection(server: Running) -> None:
    (blob,) = (path for path in server.root.glob("blobs/sha256/*/*/*") if path.stat().st_size == len(WEIGHTS))
    blob.chmod(0o644)
    os.truncate(blob, 3_000_000)

    with pytest.raises(httpx.RemoteProtocolError):
        server.get(PATH)
    assert server.get("/metrics").status_code == 200
