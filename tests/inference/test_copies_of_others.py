"""Adapters on models that other programs quantised in memory. Each test needs a package beside the extra `dev`:

`pip install torchao optimum-quanto compressed-tensors`
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from adapterhub.core.errors import BaseMismatch
from adapterhub.core.specs import parse_name
from adapterhub.formats.base.fingerprint import BaseVerdict
from adapterhub.inference.loader import attach
from adapterhub.inference.loader.base import BaseModel
from adapterhub.inference.loader.identity import compare_base, sample_base
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from tests.support.tiny_models import llama, logits, plain_peft, save_adapter

pytestmark = pytest.mark.filterwarnings("ignore")

TARGETS = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])


def small(seed: int = 0) -> Any:
    return llama(seed, hidden_size=64, intermediate_size=128).bfloat16()


def torchao(kind: str) -> Any:
    quantization = pytest.importorskip("torchao.quantization")
    return transformers.TorchAoConfig(getattr(quantization, kind)())


def quanto(kind: str) -> Any:
    pytest.importorskip("optimum.quanto")
    return transformers.QuantoConfig(weights=kind)


CONFIGS: dict[str, Callable[[], Any]] = {
    "torchao int8": lambda: torchao("Int8WeightOnlyConfig"),
    "torchao float8": lambda: torchao("Float8WeightOnlyConfig"),
    "quanto int8": lambda: quanto("int8"),
    "quanto int2": lambda: quanto("int2"),
    "quanto float8": lambda: quanto("float8"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_adapter_of_the_source_runs_on_what_was_quantised_on_loading(kind: str, tmp_path: Path) -> None:
    config = CONFIGS[kind]()
    for name, seed in (("source", 0), ("other", 1)):
        small(seed).save_pretrained(tmp_path / name)
    library = Library(tmp_path / "home")
    base = library.bases.add(tmp_path / "source", "source")
    library.add(
        save_adapter(tmp_path / "a", small, TARGETS), Description(name=parse_name("a"), version="1.0.0"), base=base
    )

    def load(name: str) -> Any:
        folder = tmp_path / name
        return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, device_map="cpu").eval()

    wanted = logits(plain_peft(lambda: load("source"), tmp_path / "a"))
    with attach(load("source"), "a", library=library) as attached:
        before, found = attached.base_digest(), logits(attached.model)

        assert torch.equal(found, wanted)
        assert attached.adapters[0].verdict is BaseVerdict.SAME_WEIGHTS_QUANTISED
        assert attached.base_digest() == before
    with pytest.raises(BaseMismatch):
        attach(load("other"), "a", library=library)


def compressed(source: Path, out: Path) -> Path:
    """The linear layers in float8, one scale a row, as llm-compressor writes them."""
    out.mkdir()
    tensors = load_file(source / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        weight = tensors[name].float()
        scale = (weight.abs().amax(1, keepdim=True) / 448).bfloat16()
        tensors[name] = (weight / scale.float()).clamp(-448, 448).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale"] = scale
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
    scheme = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    stated = {"quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed"}
    stated |= {"config_groups": {"group_0": scheme | {"format": "float-quantized"}}, "ignore": ["lm_head"]}
    config = json.loads((source / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"quantization_config": stated}))
    return out


def test_codes_of_compressed_tensors_are_known_again_after_they_were_written_out(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    small().save_pretrained(tmp_path / "source")
    library = Library(tmp_path / "home")
    base = library.bases.add(tmp_path / "source", "source")
    library.add(
        save_adapter(tmp_path / "a", small, TARGETS), Description(name=parse_name("a"), version="1.0.0"), base=base
    )
    model = AutoModelForCausalLM.from_pretrained(compressed(tmp_path / "source", tmp_path / "copy")).eval()

    for _ in range(2):  # the codes are there for the first attach only
        with attach(model, "a", library=library) as attached:
            before = attached.base_digest()
            logits(attached.model)

            assert attached.adapters[0].verdict is BaseVerdict.SAME_WEIGHTS_QUANTISED
            assert attached.base_digest() == before
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.2)
    assert compare_base(base.fingerprint, sample_base(BaseModel(model))).verdict is BaseVerdict.SAME_SHAPES
