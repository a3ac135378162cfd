"""`adapterhub.vllm.lora_request` for a real `vllm.LLM`, in a program of its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from adapterhub.inference.serving.vllm import slot_bytes
from tests.inference.engines.served_library import make_served_library, other_training, spoil
from tests.inference.engines.servers import engine_environ, vllm_python
from tests.inference.engines.variants import PROMPTS, SERVED, TOKENS, peft_tokens, prompt_ids
from tests.support.real_base import smollm2_base

pytestmark = pytest.mark.engine

PROGRAM = """
import json, sys
import adapterhub
from vllm import LLM, SamplingParams

told = json.loads(sys.argv[1])
llm = LLM(told["base"], enable_lora=True, max_lora_rank=16, max_loras=3, max_model_len=256, max_num_seqs=8,
          dtype="float32", enforce_eager=True)
refused = {}
for name in told["refused"]:
    try:
        adapterhub.vllm.lora_request(name, llm)
    except adapterhub.AdapterHubError as error:
        refused[name] = [type(error).__name__, error.message]
requests = [adapterhub.vllm.lora_request(name, llm) if name else None for name in told["names"]]
params = SamplingParams(temperature=0, max_tokens=told["count"], min_tokens=told["count"], ignore_eos=True)
prompts = [{"prompt_token_ids": ids} for ids in told["prompts"]]
rows = [(prompt, request) for request in requests for prompt in prompts]
answers = llm.generate([prompt for prompt, _ in rows], params, lora_request=[request for _, request in rows])
tokens = [list(answer.outputs[0].token_ids) for answer in answers]
again = [adapterhub.vllm.lora_request(name, llm) for name in told["names"] if name]

def slots(worker):
    manager = worker.model_runner.lora_manager._adapter_manager
    stacked = {}
    for module in manager.modules.values():
        for part in ("lora_a_stacked", "lora_b_stacked"):
            tensors = getattr(module, part)
            for tensor in [tensors] if hasattr(tensors, "numel") else tensors:
                stacked[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
    return sum(stacked.values())

print(json.dumps({
    "tokens": tokens, "refused": refused, "loaded": sorted(llm.llm_engine.list_loras()),
    "ids": [request.lora_int_id for request in again], "same": again == [r for r in requests if r],
    "slots": llm.collective_rpc(slots)[0],
}), file=sys.stderr)
"""


def run(home: Path, told: dict[str, Any], published: Path) -> dict[str, Any]:
    environ = engine_environ() | {
        "ADAPTERHUB_HOME": str(home),
        "ADAPTERHUB_SOURCES": str(published),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    command = [vllm_python(), "-c", PROGRAM, json.dumps(told)]
    done = subprocess.run(command, check=False, env=environ, capture_output=True, text=True, cwd=home.parent)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stderr.strip().splitlines()[-1])


def test_answers_are_those_of_peft_and_what_must_not_load_never_reaches_vllm(tmp_path: Path) -> None:
    served = make_served_library(tmp_path)
    for seed, (name, config) in enumerate(SERVED.items(), 1):
        served.add(name, config, seed=seed)
    served.add("elsewhere", SERVED["patterns"], seed=10, base=other_training(served.record))
    served.add("big", {"r": 32, "lora_alpha": 32, "target_modules": ["q_proj"]}, seed=9)
    spoil(served.publish("spoilt", SERVED["patterns"], seed=12))
    told = {
        "base": os.fspath(smollm2_base()), "names": [None, *SERVED], "count": TOKENS,
        "prompts": [prompt_ids(prompt) for prompt in PROMPTS], "refused": ["spoilt", "elsewhere", "big", "nothing"],
    }  # fmt: skip

    said = run(served.home, told, served.published)

    expected = [tokens for name in told["names"] for tokens in peft_tokens(name and served.folders[name])]
    assert said["tokens"] == expected
    assert {name: kind for name, (kind, _) in said["refused"].items()} == {
        "spoilt": "RefusedAdapter", "elsewhere": "NoCompatibleRelease", "big": "NoCompatibleRelease",
        "nothing": "AdapterNotFound",
    }  # fmt: skip
    assert "[E_NONFINITE]" in said["refused"]["spoilt"][1]
    assert (said["same"], sorted(said["ids"])) == (True, said["loaded"])
    assert said["slots"] == 3 * slot_bytes(served.record.tensors, 16, 4)
