"""Files that bitsandbytes wrote: the source lies inside, a change does not, and states that lie are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig, LlamaForCausalLM

from adapterhub.core.errors import Malformed
from adapterhub.formats.base.quantised.formats import explained
from tests.formats.quantised.test_weight import opened, outside
from tests.support.tiny_models import llama

pytestmark = pytest.mark.filterwarnings("ignore")
KINDS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4 twice": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "nf4 stored as bfloat16": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_quant_storage": torch.bfloat16,
    },
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}
Q = "model.layers.0.self_attn.q_proj.weight"
STATE = f"{Q}.quant_state.bitsandbytes__nf4"


def written(tmp_path: Path, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The tensors of a small model, and those of its file as bitsandbytes writes it."""
    llama(0, hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "source")
    config = BitsAndBytesConfig(**KINDS[kind])
    packed = LlamaForCausalLM.from_pretrained(
        tmp_path / "source", quantization_config=config, device_map="cpu", dtype=torch.bfloat16
    )
    packed.save_pretrained(tmp_path / "copy")
    return load_file(tmp_path / "source/model.safetensors"), load_file(tmp_path / "copy/model.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_lies_inside_and_a_change_does_not(kind: str, tmp_path: Path) -> None:
    source, copy = written(tmp_path, kind)
    reader, model = opened(tmp_path, copy)
    weights = explained(model)

    assert {name for name in source if "proj" in name} == weights.keys()
    assert {part for weight in weights.values() for part in weight.parts} == copy.keys() - (source.keys() - weights)
    assert sum(outside(source[name], reader, model, name) for name in weights) == 0
    assert outside(source[Q] + 0.02 * source[Q].std() * torch.randn(source[Q].shape), reader, model, Q) > 10
    ranges = weights[Q].ranges(reader, np.arange(source[Q].numel()))
    assert (
        abs(ranges.value - source[Q].double().reshape(-1).numpy()) <= weights[Q].steps(reader, np.arange(4096))
    ).all()


def state(**changed: object) -> torch.Tensor:
    said = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [64, 64]} | changed
    raw = json.dumps({key: value for key, value in said.items() if value is not ...}).encode()
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({STATE: state(shape=[64, 66])}, "has 2,048 bytes, expected 2,112"),
        ({STATE: state(shape=[1 << 52, 1 << 52])}, "has 2,048 bytes, expected"),
        ({STATE: state(shape=[])}, "says the shape"),
        ({STATE: state(shape=[-64, -64])}, "says the shape"),
        ({STATE: state(shape="64x64")}, "says the shape"),
        ({STATE: state(blocksize=0)}, "says blocksize 0"),
        ({STATE: state(blocksize=32)}, r"is F32 \[64\], expected 128 numbers"),
        ({STATE: state(nested_blocksize=256)}, "says nested_offset None"),
        ({STATE: state(nested_blocksize=256, nested_offset=0.1)}, r"absmax` is F32 \[64\], expected 64 numbers of U8"),
        ({STATE: torch.zeros(8, dtype=torch.uint8)}, "is no JSON of bitsandbytes"),
        ({STATE: torch.frombuffer(bytearray(b"[" * 9000), dtype=torch.uint8)}, "is no JSON of bitsandbytes"),
        ({STATE: torch.zeros(1 << 20, dtype=torch.uint8)}, "has 1,048,576 bytes, expected at most 16,384"),
        ({f"{Q}.quant_map": torch.zeros(4)}, r"is F32 \[4\], expected 16 numbers"),
        ({f"{Q}.absmax": None}, "is missing"),
        ({Q: None}, "has 0 bytes"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(
    changed: dict[str, torch.Tensor | None], said: str, tmp_path: Path
) -> None:
    whole = {
        Q: torch.zeros(2048, 1, dtype=torch.uint8),
        f"{Q}.absmax": torch.ones(64),
        f"{Q}.quant_map": torch.linspace(-1, 1, 16),
        STATE: state(),
    } | changed
    _, model = opened(tmp_path, {name: tensor for name, tensor in whole.items() if tensor is not None})

    with pytest.raises(Malformed, match=said):
        explained(model)


@pytest.mark.parametrize("levels", [torch.full((16,), torch.nan), torch.full((16,), torch.inf)])
def test_no_source_lies_inside_levels_that_are_no_numbers(levels: torch.Tensor, tmp_path: Path) -> None:
    tensors = {Q: torch.zeros(2048, 1, dtype=torch.uint8), f"{Q}.absmax": torch.ones(64), f"{Q}.quant_map": levels}
    reader, model = opened(tmp_path, tensors | {STATE: state()})

    assert outside(torch.zeros(64, 64), reader, model, Q) == 4096


def test_eight_bits_in_another_order_or_with_scales_of_another_size_are_refused(tmp_path: Path) -> None:
    codes, name = torch.zeros(4, 8, dtype=torch.int8), "x.weight"

    for tensors, said in (
        ({"x.SCB": torch.ones(4), "x.weight_format": torch.tensor(2, dtype=torch.uint8)}, "an order of codes"),
        ({"x.SCB": torch.ones(8)}, r"is F32 \[8\], expected 4 numbers"),
    ):
        _, model = opened(tmp_path, {name: codes, **tensors})
        with pytest.raises(Malformed, match=said):
            explained(model)
