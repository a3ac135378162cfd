"""Adapters on stacked experts that PEFT itself wrote, of 0.18 and of the installed release, in five families.

PEFT 0.18 runs from its wheel, which `pip download` fetches once; its own logits are the truth.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from adapterhub import Library
from tests.dialects.mixtures import errors

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]

FAMILIES = {
    "GptOss": "intermediate_size=16, head_dim=8, num_local_experts=4, num_experts_per_tok=2",
    "Mixtral": "intermediate_size=8, num_local_experts=4, num_experts_per_tok=2",
    "Olmoe": "intermediate_size=8, num_experts=4, num_experts_per_tok=2",
    "Qwen3_5Moe": "intermediate_size=16, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8,"
    " shared_expert_intermediate_size=8, layer_types=['full_attention'] * 2",
    "Llama4": "intermediate_size=8, intermediate_size_mlp=16, head_dim=8, num_local_experts=4, num_experts_per_tok=1,"
    " interleave_moe_layer_step=1, layer_types=['full_attention'] * 2",
}
"""The sides of each `gate_up_proj` are equal, so that no shape tells which one A is on."""
WRITER = """
import sys, torch, peft, transformers
name, place = sys.argv[1:3]
kind = f"{name}TextConfig" if name in ("Qwen3_5Moe", "Llama4") else f"{name}Config"
sizes = dict(vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2)
config = getattr(transformers, kind)(**sizes, **eval(f"dict({sys.argv[3]})"))
torch.manual_seed(0)
model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
with torch.no_grad():
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, 0.3)
model.save_pretrained(f"{place}/base")
ids = torch.arange(3, 19)[None]
with torch.no_grad():
    plain = model(input_ids=ids).logits.double()
targets = sorted({".".join(n.split(".")[-3:]) for n, p in model.named_parameters() if p.ndim == 3})
adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=4, target_modules=[], target_parameters=targets)).eval()
with torch.no_grad():
    for parameter in (p for n, p in adapted.named_parameters() if "lora_" in n):
        parameter.normal_(0, 0.3)
    truth = adapted(input_ids=ids).logits.double()
adapted.save_pretrained(f"{place}/adapter")
torch.save([plain, truth], f"{place}/logits.pt")
print(peft.__version__)
"""


@pytest.fixture(scope="session")
def old_peft(tmp_path_factory) -> Path:
    """A folder with PEFT 0.18.1."""
    place = tmp_path_factory.mktemp("peft")
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(place), "peft==0.18.1"]
    subprocess.run(pip, check=True)
    with zipfile.ZipFile(next(place.glob("*.whl"))) as wheel:
        wheel.extractall(place / "package")
    return place / "package"


@pytest.mark.parametrize("release", ["0.18", "installed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_means_what_the_peft_that_wrote_it_computes(family, release, old_peft, tmp_path) -> None:
    path = {"PYTHONPATH": str(old_peft)} if release == "0.18" else {}
    command = [sys.executable, "-c", WRITER, family, str(tmp_path), FAMILIES[family]]
    done = subprocess.run(command, check=True, env=os.environ | path, capture_output=True, text=True)
    assert done.stdout.strip().startswith("0.18") == (release == "0.18")
    plain, truth = torch.load(tmp_path / "logits.pt")
    library = Library(tmp_path / "home")
    library.bases.add(tmp_path / "base", alias="b")
    build = library.add(tmp_path / "adapter", name="x", base="b").build
    is_turned = release == "0.18" and family != "GptOss"  # its experts are transposed, which both put A on alike
    assert build.manifest.annotations["dialect"] == ("peft@0.18" if is_turned else "peft")

    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    assert max(errors(model, library, truth, plain).values()) < 1e-6
