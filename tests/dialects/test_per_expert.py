"""Pairs on single experts, as transformers 4 had them, are one pair on the stacked experts of transformers 5."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapterhub.core.disk.held_file import HeldFile
from adapterhub.core.errors import UnsupportedAdapter
from adapterhub.formats.dialects.experts import LAYOUTS, expert_pairs, unpacked
from adapterhub.formats.dialects.form import Form
from adapterhub.formats.dialects.per_expert import StackedParameter, stacked
from adapterhub.formats.naming.experts import ExpertPart
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.safetensors.file import read_header
from tests.dialects.mixtures import IDS, errors

HOLDER, EXPERTS, INSIDE, OUTSIDE = "model.layers.0.mlp.experts", 3, 6, 4


def write(folder: Path, ranks: dict[tuple[int, str], int], **settings: object) -> dict[tuple[int, str], torch.Tensor]:
    """Write pairs of those ranks; returns the update of each layer of each expert."""
    torch.manual_seed(0)
    tensors, updates = {}, {}
    for (expert, layer), rank in ranks.items():
        width, out = (OUTSIDE, INSIDE) if layer == "down_proj" else (INSIDE, OUTSIDE)
        a, b = torch.randn(rank, width), torch.randn(out, rank)
        name = f"base_model.model.{HOLDER}.{expert}.{layer}"
        tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        updates[expert, layer] = b.double() @ a.double()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["gate_proj", "up_proj", "down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))
    return updates


def form_in(folder: Path) -> Form:
    text, weights = (folder / "adapter_config.json").read_bytes(), folder / "adapter_model.safetensors"
    config = AdapterConfig.parse(text, "adapter_config.json")
    return Form(config=config, config_bytes=text, weights=read_header(weights), held=HeldFile(weights))


def places(ranks: dict[tuple[int, str], int], *, is_transposed: bool, is_interleaved: bool) -> dict[str, ExpertPart]:
    number = {"gate_proj": 0, "up_proj": 1, "down_proj": 0}
    return {
        f"{HOLDER}.{expert}.{layer}": ExpertPart(
            parameter=f"{HOLDER}.{'down_proj' if layer == 'down_proj' else 'gate_up_proj'}",
            expert=expert,
            part=number[layer],
            parts=1 if layer == "down_proj" else 2,
            is_transposed=is_transposed,
            is_interleaved=is_interleaved and layer != "down_proj",
        )
        for expert, layer in ranks
    }


def deltas(form: Form) -> dict[str, torch.Tensor]:
    """The update of each stacked parameter, [experts, side of B, side of A], with PEFT's scale."""
    found = {}
    for one in expert_pairs(form):
        a, b = (torch.from_numpy(form.array(spec).view("f4").copy()).double() for spec in (one.a, one.b))
        a, b = a.reshape(EXPERTS, one.rank, -1), torch.as_tensor(unpacked(b.numpy(), one, LAYOUTS[0]))
        (parameter,) = [name for name in form.config.target_parameters if form.config.rank_of(name) == one.rank][:1]
        found[one.module] = form.config.scaling_of(parameter) * b @ a
    return found


ALL = {(expert, layer): 2 for expert in range(EXPERTS) for layer in ("gate_proj", "up_proj", "down_proj")}


@pytest.mark.parametrize("is_interleaved", [False, True], ids=["side by side", "in turns"])
@pytest.mark.parametrize(
    ("is_transposed", "is_attribute"),
    [(False, False), (True, True), (True, False)],
    ids=["out in", "in out", "unmarked"],
)
@pytest.mark.parametrize(
    "ranks",
    [ALL, {k: r for k, r in ALL.items() if k[0] != 1}, {k: r for k, r in ALL.items() if k[1] != "gate_proj"}],
    ids=["all", "an expert without", "up and down"],
)
def test_the_update_is_that_of_the_single_experts(ranks, is_transposed, is_attribute, is_interleaved, tmp_path) -> None:
    updates = write(tmp_path, ranks)

    def parameter(name: str) -> StackedParameter:
        is_down = name.endswith("down_proj")
        return StackedParameter(name=name, experts=EXPERTS, depth=0 if is_down else 1, is_transposed=is_attribute)

    parts = places(ranks, is_transposed=is_transposed, is_interleaved=is_interleaved)
    form = stacked(form_in(tmp_path), parts, parameter)
    found = deltas(form)

    for (expert, layer), update in updates.items():
        delta = found[HOLDER if layer == "down_proj" else f"{HOLDER}.base_layer"][expert]
        delta = delta.T if is_transposed != is_attribute else delta
        number = {"gate_proj": 0, "up_proj": 1, "down_proj": 0}[layer]
        rows = slice(None)
        if layer != "down_proj":
            rows = slice(number, None, 2) if is_interleaved else slice(number * OUTSIDE, (number + 1) * OUTSIDE)
        torch.testing.assert_close(delta[rows], 2 * update, rtol=1e-6, atol=1e-6)
    given = {(expert, layer == "down_proj") for expert, layer in ranks}
    for module, delta in found.items():
        for expert in range(EXPERTS):
            assert bool(delta[expert].any()) == ((expert, module == HOLDER) in given)


def test_experts_with_several_scales_are_refused(tmp_path) -> None:
    write(tmp_path, ALL, alpha_pattern={"0.gate_proj": 8})
    parts = places(ALL, is_transposed=False, is_interleaved=False)

    def parameter(name: str) -> StackedParameter:
        return StackedParameter(name=name, experts=EXPERTS, depth=0, is_transposed=False)

    with pytest.raises(UnsupportedAdapter, match="2 scales"):
        stacked(form_in(tmp_path), parts, parameter)


FAMILIES = {
    "qwen3_moe": (
        "Qwen3Moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "head_dim": 8},
        "mlp.experts",
        ("gate_proj", "up_proj", "down_proj"),
    ),
    "mixtral": (
        "Mixtral",
        {"num_local_experts": 4, "num_experts_per_tok": 2},
        "block_sparse_moe.experts",
        ("w1", "w3", "w2"),
    ),
    "olmoe": (
        "Olmoe",
        {"num_experts": 4, "num_experts_per_tok": 2},
        "mlp.experts",
        ("gate_proj", "up_proj", "down_proj"),
    ),
    "deepseek_v3": (
        "DeepseekV3",
        {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 8,
            "first_k_dense_replace": 0,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
            "n_shared_experts": 1,
        },
        "mlp.experts",
        ("gate_proj", "up_proj", "down_proj"),
    ),
}
"""Mixtures: the class, its settings, and what transformers 4 called the experts and their gate, up and down."""


def added(path: str, weight: torch.Tensor, rank: int) -> dict[str, torch.Tensor]:
    """A pair of that rank by its names in a file; its update with alpha 4 is added to the weight."""
    a, b = torch.randn(rank, weight.shape[1]) * 0.3, torch.randn(weight.shape[0], rank) * 0.3
    weight.add_(4 / rank * b @ a)
    return {f"{path}.lora_A.weight": a, f"{path}.lora_B.weight": b}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("is_partial", [False, True], ids=["all", "gate of two experts"])
def test_an_adapter_of_transformers_4_on_stacked_experts(family, is_partial, tmp_path) -> None:
    """The truth is the dense sum in the stacked weights; the router and attention are adapted beside the experts."""
    import transformers

    from adapterhub import Library

    name, settings, holder, (gate, up, down) = FAMILIES[family]
    has_router = family != "deepseek_v3"  # its router was no linear layer in transformers 4 either
    sizes = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = getattr(transformers, f"{name}Config")(**sizes, num_key_value_heads=2, **settings)
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        plain = model(input_ids=IDS).logits.double()
    tensors = {}
    with torch.no_grad():
        for layer in range(2):
            stack = model.model.layers[layer].mlp.experts
            inside = stack.down_proj.shape[2]
            for expert in range(4):
                for called, weight in (
                    (gate, stack.gate_up_proj[expert][:inside]),
                    (up, stack.gate_up_proj[expert][inside:]),
                    (down, stack.down_proj[expert]),
                ):
                    if is_partial and (called != gate or expert not in (0, 2)):
                        continue
                    path = f"base_model.model.model.layers.{layer}.{holder}.{expert}.{called}"
                    tensors |= added(path, weight, 2)
            beside = {"self_attn.o_proj": model.model.layers[layer].self_attn.o_proj}
            if has_router:
                beside[holder.replace("experts", "gate")] = model.model.layers[layer].mlp.gate
            for called, module in beside.items():
                rank = 3 if called.endswith("gate") else 2
                tensors |= added(f"base_model.model.model.layers.{layer}.{called}", module.weight, rank)
        truth = model(input_ids=IDS).logits.double()
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    written = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 2,
        "rank_pattern": {"gate": 3},
        "lora_alpha": 4,
        "peft_version": "0.17.1",
    }
    targets = sorted({path.rsplit(".", 3)[-3] for path in tensors})
    (folder / "adapter_config.json").write_text(json.dumps(written | {"target_modules": targets}))
    library = Library(tmp_path / "home")
    library.bases.add(tmp_path / "base", alias="b")
    library.add(folder, name="x", base="b")

    again = type(model).from_pretrained(tmp_path / "base").eval()
    assert max(errors(again, library, truth, plain).values()) < 1e-5


def test_the_transposed_classes_are_those_of_transformers() -> None:
    import re

    import transformers

    from adapterhub.formats.base.stacking import TRANSPOSED

    models = Path(transformers.__file__).parent / "models"
    found = {
        path.parent.name
        for path in models.glob("*/modeling_*.py")
        if re.search(r"is_transposed=True", path.read_text())
    }

    assert {kind.removesuffix("_text") for kind in TRANSPOSED} == found
