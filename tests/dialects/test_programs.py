"""Experts in the layouts of Tinker, vLLM, Megatron-Bridge and NeMo compute the dense sum, through the library."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import adapterhub
from adapterhub import AdapterBank, Library
from adapterhub.core.errors import RefusedAdapter
from tests.dialects.mixtures import EXPERTS, FAMILIES, IDS, SIZES, Mixture, mixture, named, write

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[f"{f}-{s}" for f in FAMILIES for s in ("each", "shared")])
def source(request, tmp_path_factory) -> Mixture:
    family, kind = request.param.split("-")
    return mixture(tmp_path_factory.mktemp(family), family, is_shared=kind == "shared")


def is_shared(source: Mixture) -> bool:
    return torch.equal(source.pairs[0, 0, "gate"][0], source.pairs[0, 1, "gate"][0])


def _thin(source: Mixture, side: str, name: str, factor: Tensor) -> Tensor:
    """One matrix in place of all where the program shares it."""
    shares = (side == "A") == (name != "down")
    return factor[:1] if is_shared(source) and shares else factor


def tinker(source: Mixture) -> dict[str, Tensor]:
    tensors = named(source.plain)
    for side in "AB":
        tensors[f"base_model.model.model.unembed_tokens.lora_{side}.weight"] = tensors.pop(
            f"base_model.model.lm_head.lora_{side}.weight"
        )
    for layer in range(2):
        for name, called in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
            for side, factor in zip("AB", source.stacked(layer, name), strict=True):
                path = f"base_model.model.{source.holder(layer)}.{called}.lora_{side}.weight"
                tensors[path] = _thin(source, side, name, factor)
    return tensors


def vllm(source: Mixture) -> dict[str, Tensor]:
    return {name.replace("model.unembed_tokens", "lm_head"): tensor for name, tensor in tinker(source).items()}


def megatron(source: Mixture) -> dict[str, Tensor]:
    """The shared side is one tensor, the other one for each expert, under the names of the base's files."""
    tensors, called = named(source.plain), dict(zip(("gate", "up", "down"), FAMILIES[source.family][3], strict=True))
    for layer in range(2):
        for name, leaf in called.items():
            for side, factor in zip("AB", source.stacked(layer, name), strict=True):
                path = f"base_model.model.{source.holder(layer)}"
                thin = _thin(source, side, name, factor)
                if len(thin) < EXPERTS:
                    tensors[f"{path}.{leaf}.lora_{side}.weight"] = thin
                    continue
                for expert, matrix in enumerate(factor):
                    tensors[f"{path}.{expert}.{leaf}.lora_{side}.weight"] = matrix
    return tensors


def megatron_fused(source: Mixture) -> dict[str, Tensor]:
    tensors = named(source.plain)
    for layer in range(2):
        (a, gate), (_, up) = source.stacked(layer, "gate"), source.stacked(layer, "up")
        both = {"gate_up_proj": (a, torch.cat([gate, up], 1)), "down_proj": source.stacked(layer, "down")}
        for called, pair in both.items():
            for side, factor in zip("AB", pair, strict=True):
                path = f"base_model.model.{source.memory(layer)}.{called}.lora_{side}.weight"
                tensors[path] = _thin(source, side, "down" if called == "down_proj" else "gate", factor)
    return tensors


def nemo(source: Mixture) -> dict[str, Tensor]:
    tensors = named(source.plain)
    for layer in range(2):
        (a, gate), (_, up) = source.stacked(layer, "gate"), source.stacked(layer, "up")
        down_a, down_b = source.stacked(layer, "down")
        path = f"base_model.model.{source.memory(layer)}"
        tensors |= {
            f"{path}.lora_gate_and_up_A": a.transpose(1, 2),
            f"{path}.lora_gate_and_up_B": torch.cat([gate, up], 1).transpose(1, 2),
            f"{path}.lora_down_A": down_a.transpose(1, 2),
            f"{path}.lora_down_B": down_b.transpose(1, 2),
        }
    return tensors


@pytest.mark.parametrize("program", [tinker, vllm, megatron, megatron_fused, nemo])
def test_a_program_s_experts_compute_the_dense_sum(program, source, tmp_path) -> None:
    folder = write(tmp_path / "adapter", program(source))
    library = Library(tmp_path / "home")
    library.bases.add(source.folder, alias="b")
    library.add(folder, name="x", base="b")
    with adapterhub.attach(source.load(), "x@b", library=library) as attached, torch.no_grad():
        assert source.error(attached.model(input_ids=IDS).logits) < 1e-6
    with AdapterBank(source.load(), library=library) as bank, torch.no_grad():
        bank.load("x@b")
        with bank.use("x@b"):
            assert source.error(bank.model(input_ids=IDS).logits) < 1e-6


def test_broken_stacks_are_refused_by_name(source, tmp_path) -> None:
    library = Library(tmp_path / "home")
    library.bases.add(source.folder, alias="b")
    tensors = tinker(source)
    place = f"base_model.model.{source.holder(0)}"
    broken = {
        "no factor `lora_B`": {k: v for k, v in tensors.items() if k != f"{place}.w1.lora_B.weight"},
        "for (3|4) and for (3|4) experts": tensors | {f"{place}.w2.lora_A.weight": torch.zeros(3, 2, 12)},
        "ranks 3 and 2": tensors | {f"{place}.w2.lora_A.weight": torch.zeros(EXPERTS, 3, 12)},
        "all experts share both": tensors
        | {f"{place}.w1.lora_A.weight": torch.zeros(1, 2, 16), f"{place}.w1.lora_B.weight": torch.zeros(1, 12, 2)},
        "Tinker's raw file for Nemotron": tensors
        | {"base_model.model.backbone.layers.1.mixer.in_proj.lora_A.weight": torch.zeros(2, 16)},
    }
    for number, (reason, content) in enumerate(broken.items()):
        folder = write(tmp_path / str(number), content)
        with pytest.raises(RefusedAdapter, match=reason):
            library.add(folder, name="x", base="b")
    assert not library.list()


def test_a_head_that_is_the_embedding_is_refused_for_tinker(tmp_path) -> None:
    """tinker-cookbook changes the embedding then, which PEFT's pair on the head does not."""
    import transformers

    name, settings, _, _ = FAMILIES["qwen3_moe"]
    config = getattr(transformers, f"{name}Config")(
        **SIZES, num_key_value_heads=2, tie_word_embeddings=True, **settings
    )
    getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(tmp_path / "base")
    library = Library(tmp_path / "home")
    library.bases.add(tmp_path / "base", alias="b")
    place = "base_model.model.model.unembed_tokens"
    pair = {f"{place}.lora_A.weight": torch.ones(2, 16), f"{place}.lora_B.weight": torch.ones(64, 2)}

    with pytest.raises(RefusedAdapter, match="head of the base is its embedding"):
        library.add(write(tmp_path / "raw", pair), name="x", base="b")
