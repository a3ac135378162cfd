"""Tiny mixtures of transformers with LoRA on each layer of each expert, whose logits are known from a dense sum in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

IDS = torch.arange(3, 19)[None]
EXPERTS, RANK, SCALE = 4, 2, 2.0

SIZES = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
FAMILIES: dict[str, tuple[str, dict[str, int], str, tuple[str, str, str]]] = {
    "qwen3_moe": (
        "Qwen3Moe",
        {"num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "head_dim": 8},
        "mlp.experts",
        ("gate_proj", "up_proj", "down_proj"),
    ),
    "mixtral": (
        "Mixtral",
        {"num_local_experts": EXPERTS, "num_experts_per_tok": 2},
        "block_sparse_moe.experts",
        ("w1", "w3", "w2"),
    ),
}
"""The class, its settings, and what the base's files call the experts and their gate, up and down."""

Pair = tuple[Tensor, Tensor]


class Mixture(NamedTuple):
    """A base in `folder`; `pairs` are A [r, in] and B [out, r] by layer, expert and `gate`, `up` or `down`, all at `SCALE`.

    A is one for gate and up of an expert. `plain` are pairs of other modules by their names; `error` compares logits
    with the dense sum.
    """

    folder: Path
    family: str
    pairs: dict[tuple[int, int, str], Pair]
    plain: dict[str, Pair]
    truth: Tensor
    before: Tensor

    def load(self) -> nn.Module:
        """The base, loaded anew."""
        import transformers

        name = FAMILIES[self.family][0]
        model: nn.Module = getattr(transformers, f"{name}ForCausalLM").from_pretrained(self.folder)
        return model.eval()

    def error(self, logits: Tensor) -> float:
        """How far the logits are from the truth, in parts of the adapter's effect."""
        return float((logits.double() - self.truth).norm() / (self.truth - self.before).norm())

    def holder(self, layer: int) -> str:
        """The base's name for the experts of a layer."""
        return f"model.layers.{layer}.{FAMILIES[self.family][2]}"

    def memory(self, layer: int) -> str:
        """Their name in transformers 5, where they are stacked."""
        return f"model.layers.{layer}.mlp.experts"

    def stacked(self, layer: int, name: str) -> tuple[Tensor, Tensor]:
        """A [experts, r, in] and B [experts, out, r]."""
        pairs = [self.pairs[layer, expert, name] for expert in range(EXPERTS)]
        return torch.stack([a for a, _ in pairs]), torch.stack([b for _, b in pairs])


def mixture(folder: Path, family: str, *, has_head: bool = True, is_shared: bool = False) -> Mixture:
    """Save a base and make an adapter for it; `is_shared`: one A of gate and up, and one B of down, for all experts."""
    import transformers

    name, settings, _, _ = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        **SIZES, num_key_value_heads=2, tie_word_embeddings=False, **settings
    )
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    model = model.double()
    model.set_experts_implementation("eager")  # grouped kernels have no float64
    pairs: dict[tuple[int, int, str], Pair] = {}
    plain: dict[str, Pair] = {}
    with torch.no_grad():
        before = model(input_ids=IDS).logits
        for layer in range(2):
            stack = model.model.layers[layer].mlp.experts
            inside, hidden = stack.down_proj.shape[2], stack.down_proj.shape[1]
            shared_a, shared_b = _factor(RANK, hidden), _factor(hidden, RANK)
            for expert in range(EXPERTS):
                a = shared_a if is_shared else _factor(RANK, hidden)
                pairs[layer, expert, "gate"] = a, _factor(inside, RANK)
                pairs[layer, expert, "up"] = a, _factor(inside, RANK)
                down_b = shared_b if is_shared else _factor(hidden, RANK)
                pairs[layer, expert, "down"] = _factor(RANK, inside), down_b
                stack.gate_up_proj[expert][:inside] += _delta(pairs[layer, expert, "gate"])
                stack.gate_up_proj[expert][inside:] += _delta(pairs[layer, expert, "up"])
                stack.down_proj[expert] += _delta(pairs[layer, expert, "down"])
            plain[f"model.layers.{layer}.self_attn.q_proj"] = _added(model.model.layers[layer].self_attn.q_proj)
        if has_head:
            plain["lm_head"] = _added(model.lm_head)
        truth = model(input_ids=IDS).logits
    return Mixture(folder, family, pairs, plain, truth, before)


def _factor(*shape: int) -> Tensor:
    return torch.randn(*shape) * 0.3


def _delta(pair: Pair) -> Tensor:
    return SCALE * pair[1].double() @ pair[0].double()


def _added(module: nn.Linear) -> Pair:
    pair = _factor(RANK, module.in_features), _factor(module.out_features, RANK)
    module.weight += _delta(pair)
    return pair


def named(plain: dict[str, Pair]) -> dict[str, Tensor]:
    """PEFT's tensors for pairs of plain modules."""
    return {
        f"base_model.model.{name}.lora_{side}.weight": factor
        for name, pair in plain.items()
        for side, factor in zip("AB", pair, strict=True)
    }


def write(folder: Path, tensors: dict[str, Tensor], **settings: Any) -> Path:
    """Write a folder with a config of rank and alpha beside the tensors."""
    folder.mkdir(parents=True)
    kept = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_file(kept, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": int(RANK * SCALE), **settings}
    (folder / "adapter_config.json").write_text(json.dumps({"target_modules": "all-linear"} | config))
    return folder


def errors(model: nn.Module, library: Any, truth: Tensor, plain: Tensor) -> dict[str, float]:
    """How far the logits of `x@b` on `IDS` are from the truth, of the adapter's effect, in attach and in the bank."""
    import adapterhub

    found: dict[str, Tensor] = {}
    with adapterhub.attach(model, "x@b", library=library) as attached, torch.no_grad():
        found["attach"] = attached.model(input_ids=IDS).logits.double()
    with adapterhub.AdapterBank(model, library=library) as bank:
        bank.load("x@b")
        with bank.use("x@b"), torch.no_grad():
            found["bank"] = bank.model(input_ids=IDS).logits.double()
    return {way: float((logits - truth).norm() / (truth - plain).norm()) for way, logits in found.items()}
