"""PEFT and transformers against the registry, by nothing but repository names."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.registry.conftest import ROOT, XET_ALONE, Served

SCRIPT = """
import json, sys
import torch
from huggingface_hub import HfApi
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

space, base_id, adapter_id = sys.argv[1], f"{sys.argv[1]}/base", f"{sys.argv[1]}/adapter"
torch.manual_seed(0)
config = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=64)
LlamaForCausalLM(config).push_to_hub(base_id)

base = AutoModelForCausalLM.from_pretrained(base_id)
made = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
for name, weight in made.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(weight)
made.eval()
ids = torch.arange(12).reshape(1, 12)
with torch.no_grad():
    wanted = made(ids).logits
made.push_to_hub(adapter_id)
HfApi().create_tag(adapter_id, tag="v1.0")

def distance(model):
    with torch.no_grad():
        return float((model.eval()(ids).logits - wanted).abs().max())

found = {
    "peft": distance(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_id), adapter_id)),
    "peft at a tag": distance(
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_id), adapter_id, revision="v1.0")
    ),
    "transformers": distance(AutoModelForCausalLM.from_pretrained(adapter_id)),
    "base alone": distance(AutoModelForCausalLM.from_pretrained(base_id)),
}
tags = HfApi().model_info(adapter_id).tags
print(json.dumps({"distances": found, "tags": tags}))
"""


@pytest.mark.slow
@XET_ALONE
def test_peft_and_transformers_push_and_load_by_name(served: Served, tmp_path: Path, mode: Mapping[str, str]) -> None:
    space = f"peft-{'lfs' if mode else 'xet'}"
    environment = served.environment(tmp_path, HF_TOKEN=served.token, OMP_NUM_THREADS="1", **mode)

    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, space], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    # the same float32 weights: only the order of additions may differ
    near = {name: value for name, value in answer["distances"].items() if name != "base alone"}
    assert max(near.values()) < 1e-5, answer
    assert answer["distances"]["base alone"] > 1e-2
    assert {"peft", "lora", "lora-rank:4", f"base_model:adapter:{space}/base"} <= set(answer["tags"])
