"""What a first request costs beside vLLM's own resolver, which checks nothing; see tests/inference/engines/bench_vllm.py."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.inference.engines.bench_vllm import CONFIG, first_answers, side_by_side
from tests.inference.engines.served_library import make_served_library
from tests.inference.engines.variants import PROMPTS

pytestmark = pytest.mark.engine


def test_a_name_is_looked_up_at_its_first_request_only_and_answers_as_by_vllms_own_resolver(
    tmp_path: Path, tell: Callable[[str, str], None]
) -> None:
    served = make_served_library(tmp_path)
    names = [f"adapter-{number}" for number in range(4)]
    for seed, name in enumerate(names):
        served.add(name, CONFIG, seed=seed)

    with side_by_side(served) as (plugin, other):
        ours, theirs = first_answers([plugin, other], names)
        answers = [[server.complete(name, PROMPTS[0]).tokens for name in names] for server in (plugin, other)]

    assert answers[0] == answers[1]
    assert [len(plugin.lines(f"] {name} is {name}==1.0.0")) for name in names] == [1] * len(names)
    tell("first answer beyond the second, adapterhub", f"{statistics.median(ours):.0f} ms")
    tell("first answer beyond the second, vLLM's own resolver", f"{statistics.median(theirs):.0f} ms")
