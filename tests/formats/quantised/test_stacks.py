"""The experts of a source are found in copies with other names, in stacks, and apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapterhub.formats.base.fingerprint import BaseVerdict
from adapterhub.formats.base.quantised.deep import compare_models
from adapterhub.formats.base.quantised.opening import opened
from tests.support.copies import Tensors, saved

EXPERTS, WIDTH, SIZE, FRONT = 3, 32, 24, "model.layers.0."


def experts(size: int = SIZE, seed: int = 0) -> dict[str, torch.Tensor]:
    """The matrices [experts, out, in] of a layer, and its biases."""
    numbers = torch.Generator().manual_seed(seed)
    shapes = {"gate": (EXPERTS, size, WIDTH), "up": (EXPERTS, size, WIDTH), "down": (EXPERTS, WIDTH, size)}
    shapes |= {"gate_bias": (EXPERTS, size), "up_bias": (EXPERTS, size), "down_bias": (EXPERTS, WIDTH)}
    return {name: torch.randn(shape, generator=numbers).bfloat16() for name, shape in shapes.items()}


def rest() -> Tensors:
    return {"model.embed_tokens.weight": torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(9)).bfloat16()}


def apart(made: dict[str, torch.Tensor], front: str, gate: str, up: str, down: str, *, biases: bool = False) -> Tensors:
    found = rest()
    for expert in range(EXPERTS):
        for name, leaf in (("gate", gate), ("up", up), ("down", down)):
            found[f"{FRONT}{front}.experts.{expert}.{leaf}.weight"] = made[name][expert]
            if biases:
                found[f"{FRONT}{front}.experts.{expert}.{leaf}.bias"] = made[f"{name}_bias"][expert]
    return found


def stacked(made: dict[str, torch.Tensor]) -> Tensors:
    """As transformers 5 keeps most mixtures: [experts, out, in], gate before up."""
    both = torch.cat([made["gate"], made["up"]], 1)
    return rest() | {f"{FRONT}mlp.experts.gate_up_proj": both, f"{FRONT}mlp.experts.down_proj": made["down"]}


def turned(made: dict[str, torch.Tensor]) -> Tensors:
    """As gpt-oss keeps them: [experts, in, out], the outputs of gate and up in turns."""
    both = torch.stack([made["gate"], made["up"]], 2).reshape(EXPERTS, -1, WIDTH).transpose(1, 2)
    biases = torch.stack([made["gate_bias"], made["up_bias"]], 2).reshape(EXPERTS, -1)
    front = f"{FRONT}mlp.experts."
    return rest() | {
        f"{front}gate_up_proj": both,
        f"{front}gate_up_proj_bias": biases,
        f"{front}down_proj": made["down"].transpose(1, 2),
        f"{front}down_proj_bias": made["down_bias"],
    }


def in_float8(tensors: Tensors) -> Tensors:
    """One scale for each row of all matrices but the embedding."""
    found = rest()
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or "embed" in name or name.endswith("_bias"):
            found[name] = tensor
            continue
        scale = tensor.float().abs().amax(-1, keepdim=True) / 448
        found[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
        found[f"{name}_scale"] = scale
    return found


CASES = {
    "names of llm-compressor": (
        "mixtral",
        lambda made: apart(made, "block_sparse_moe", "w1", "w3", "w2"),
        lambda made: apart(made, "block_sparse_moe", "gate_proj", "up_proj", "down_proj"),
    ),
    "a stack taken apart": (
        "qwen3_moe",
        stacked,
        lambda made: apart(made, "mlp", "gate_proj", "up_proj", "down_proj"),
    ),
    "single experts stacked": (
        "qwen3_moe",
        lambda made: apart(made, "mlp", "gate_proj", "up_proj", "down_proj"),
        stacked,
    ),
    "a woven stack taken apart": (
        "gpt_oss",
        turned,
        lambda made: apart(made, "mlp", "gate_proj", "up_proj", "down_proj", biases=True),
    ),
    "single experts woven": (
        "gpt_oss",
        lambda made: apart(made, "mlp", "gate_proj", "up_proj", "down_proj", biases=True),
        turned,
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [SIZE, WIDTH], ids=["oblong", "square"])
def test_experts_are_compared_where_they_lie(case: str, size: int, tmp_path: Path) -> None:
    kind, of_source, of_copy = CASES[case]
    source = opened(saved(tmp_path / "source", of_source(experts(size)), model_type=kind))
    copy = opened(saved(tmp_path / "copy", in_float8(of_copy(experts(size))), model_type=kind))
    other = opened(saved(tmp_path / "other", in_float8(of_copy(experts(size, seed=1))), model_type=kind))

    for full in (False, True):
        found = compare_models(source, copy, full=full)
        assert found.verdict is BaseVerdict.SAME_WEIGHTS_QUANTISED, found
        assert compare_models(source, other, full=full).verdict is BaseVerdict.SAME_SHAPES


def test_a_copy_without_one_expert_cannot_be_judged(tmp_path: Path) -> None:
    made = apart(experts(), "mlp", "gate_proj", "up_proj", "down_proj")
    del made[f"{FRONT}mlp.experts.2.up_proj.weight"]
    source = opened(saved(tmp_path / "source", stacked(experts()), model_type="qwen3_moe"))

    found = compare_models(source, opened(saved(tmp_path / "copy", in_float8(made), model_type="qwen3_moe")))

    assert found.verdict is BaseVerdict.CANNOT_TELL
    assert (
        "1 tensors of the first could not be compared, such as `model.layers.0.mlp.experts.gate_up_proj`"
        in found.differences
    )
