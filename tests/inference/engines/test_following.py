"""A real vLLM that follows a registry: a yank stops a loaded adapter at once, and `/metrics` has our counters beside vLLM's."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.inference.engines.fleet import NAMESPACE, Registry, Replica, publish
from tests.inference.engines.served_library import make_served_library
from tests.inference.engines.servers import Server, adapt_serve
from tests.inference.engines.variants import PROMPTS, TOKENS, prompt_ids
from tests.inference.test_metrics import samples

pytestmark = pytest.mark.engine
YANKED, OTHER = (f"{NAMESPACE}/writer-{number}" for number in (0, 1))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("followed")
    registry = Registry(folder / "registry")
    registry.start()
    publish(make_served_library(folder), registry, 2)
    yield registry
    registry.stop()


@pytest.fixture(scope="module")
def server(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    replica = Replica(tmp_path_factory.mktemp("following") / "replica", registry.url)
    replica.set_up()
    options = ["--base", "smol", "--max-rank", "16", "--follow"]
    with adapt_serve(replica.home, replica.folder / "log", *options, offline=False) as running:
        yield running


def yank(registry: Registry, action: str, **body: str) -> None:
    url = f"{registry.url}/api/adapt/v1/adapters/{YANKED}-smol/{action}"
    headers = {"Authorization": f"Bearer {registry.token}"}
    httpx.post(url, json={"version": "1.0.0"} | body, headers=headers, timeout=60).raise_for_status()


def seconds_until(is_so: Callable[[], bool]) -> float:
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() - began < 120
        time.sleep(0.02)
    return time.monotonic() - began


def test_a_yank_stops_a_loaded_adapter_at_once_and_the_others_go_on(
    server: Server, registry: Registry, tell: Callable[[str, str], None]
) -> None:
    before = {name: server.complete(name, PROMPTS[0]).tokens for name in ("smol", YANKED, OTHER)}
    seconds_until(lambda: bool(server.lines("following the events of")))

    yank(registry, "yank", reason="leaks names")
    seconds = seconds_until(lambda: server.complete(YANKED, PROMPTS[0], 1).status == 410)
    refused = server.complete(YANKED, PROMPTS[0])
    others = {name: server.complete(name, PROMPTS[0]).tokens for name in ("smol", OTHER)}
    yank(registry, "unyank")
    seconds_until(lambda: server.complete(YANKED, PROMPTS[0], 1).status == 200)

    assert "leaks names" in refused.message
    assert others == {name: before[name] for name in others}
    assert server.complete(YANKED, PROMPTS[0]).tokens == before[YANKED]
    tell("seconds from the yank to the refusal", f"{seconds:.2f}")


def test_our_counters_stand_beside_those_of_vllm(server: Server) -> None:
    before = scraped(server)
    for stream in (False, True):
        body = {"model": OTHER, "prompt": prompt_ids(PROMPTS[0]), "max_tokens": TOKENS, "ignore_eos": True}
        told = server.post("/v1/completions", body | {"stream": stream})
        assert told.status == 200
    assert server.complete(f"{NAMESPACE}/nothing", PROMPTS[0]).status == 404

    after = scraped(server)
    label = f"{OTHER}==1.0.0"
    assert "usage" not in told.value
    assert after["adapter_requests_total", label] - before["adapter_requests_total", label] == 2
    grown = {
        kind: after["adapter_tokens_total", f"{label},{kind}"] - before["adapter_tokens_total", f"{label},{kind}"]
        for kind in ("prompt", "generated")
    }
    assert grown == {"prompt": 2 * len(prompt_ids(PROMPTS[0])), "generated": 2 * TOKENS}
    found = [sum(one.get(("lookups_total", kind), 0) for kind in ("hit", "installed")) for one in (before, after)]
    assert found[1] - found[0] == 2  # an event of before may have made the server look again
    assert after["lookups_total", "refused"] - before.get(("lookups_total", "refused"), 0) == 1
    assert after["fetched_bytes_total", ""] > 1_000_000
    assert server.metric("vllm:request_success_total") > 0


def scraped(server: Server) -> dict[tuple[str, str], float]:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=60) as answer:
        return samples(answer.read().decode())


def test_the_log_of_a_follower_has_no_fault(server: Server, tmp_path: Path) -> None:
    assert server.lines("Traceback") == []
