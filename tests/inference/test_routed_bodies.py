"""Bodies as vllm-router 0.1.17 writes them: it adds fields of another engine to what a client sent.

`tests/inference/engines/test_router.py` asks the router itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from adapterhub.inference.serving.chain.bodies import parsed
from adapterhub.inference.serving.refusal import RequestRefused
from adapterhub.vllm_plugin.routes import ROUTES

SENT: Mapping[str, dict[str, Any]] = {
    "/v1/completions": {"model": "m", "prompt": "a", "stream": False, "echo": False, "ignore_eos": False},
    "/v1/chat/completions": {"model": "m", "messages": [{"role": "user", "content": "a"}], "logprobs": False},
    "/v1/rerank": {"model": "m", "query": "a", "documents": ["b"]},
}
ADDED: Mapping[str, dict[str, Any]] = {
    "/v1/completions": {"no_stop_trim": False, "return_hidden_states": False},
    "/v1/chat/completions": {
        "no_stop_trim": False, "return_hidden_states": False, "separate_reasoning": True, "stream_reasoning": True,
    },
    "/v1/rerank": {"rid": None, "top_k": None, "return_documents": True},
}  # fmt: skip


def read(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    return parsed(ROUTES[path], json.dumps(body).encode())


@pytest.mark.parametrize("path", SENT)
def test_what_a_router_adds_is_taken_and_does_not_reach_the_engine(path: str) -> None:
    assert read(path, SENT[path] | ADDED[path]) == SENT[path]


@pytest.mark.parametrize(("path", "field"), [(path, field) for path, added in ADDED.items() for field in added])
def test_another_value_of_such_a_field_is_refused_by_its_name(path: str, field: str) -> None:
    other = not ADDED[path][field] if ADDED[path][field] is not None else 5

    with pytest.raises(RequestRefused, match=f"`{field}`"):
        read(path, SENT[path] | {field: other})
