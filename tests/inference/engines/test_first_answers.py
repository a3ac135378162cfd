"""What a first request costs beside vLLM's own resolver, which checks nothing; see tests/inference/engines/bench_vllm.py."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest

from tests.inference.engines.bench_vllm import CONFIG, first_answers
from tests.inference.engines.served_library import ServedLibrary
from tests.inference.engines.servers import Server
from tests.inference.engines.variants import PROMPTS

pytestmark = pytest.mark.engine


def test_a_name_is_looked_up_at_its_first_request_only_and_answers_as_by_vllms_own_resolver(
    served: ServedLibrary, server: Server, bare: Server, tell: Callable[[str, str], None]
) -> None:
    names = [f"adapter-{number}" for number in range(4)]
    for seed, name in enumerate(names):
        served.add(name, CONFIG, seed=seed)

    ours, theirs = first_answers([server, bare], names)
    answers = [[one.complete(name, PROMPTS[0]).tokens for name in names] for one in (server, bare)]

    assert answers[0] == answers[1]
    assert [len(server.lines(f"] {name} is {name}==1.0.0")) for name in names] == [1] * len(names)
    tell("first answer beyond the next, adapterhub", f"{statistics.median(ours):.0f} ms")
    tell("first answer beyond the next, vLLM's own resolver", f"{statistics.median(theirs):.0f} ms")
