"""Adapters of stacked experts that were really trained, written in each layout without marks: `python -m tests.dialects.layouts`.

Each adapter is written by PEFT, laid out anew as PEFT 0.18 and Unsloth did, stripped of every mark, and read with the
shapes of its base. A reading that differs from what was trained is wrong and must not be silent.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapterhub.core.disk.held_file import HeldFile
from adapterhub.formats.dialects.experts import LAYOUTS, Layout, Verdict, expert_pairs, judge, stacks_among
from adapterhub.formats.dialects.form import Form
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.safetensors.file import read_header

BASES: dict[str, dict[str, int]] = {
    "square": {"hidden_size": 32, "moe_intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 2},
    "wide": {"hidden_size": 24, "moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2},
    "many": {"hidden_size": 32, "moe_intermediate_size": 16, "num_experts": 32, "num_experts_per_tok": 4},
    "few": {"hidden_size": 32, "moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 1},
    "deep": {"hidden_size": 16, "moe_intermediate_size": 16, "num_experts": 16, "num_experts_per_tok": 2},
}
"""Tiny mixtures; `square` has a gate_up_proj whose two sides are one."""


class Trained(NamedTuple):
    """An adapter as PEFT wrote it, its base in `folder/base`, and the logits of both on `IDS`."""

    folder: Path
    tensors: dict[str, Tensor]
    shapes: list[tuple[str, tuple[int, ...]]]
    experts: int
    truth: Tensor
    plain: Tensor


IDS = torch.arange(3, 19)[None]


def trained(
    folder: Path,
    base: str,
    rank: int,
    seed: int,
    *,
    steps: int = 60,
    is_turned: bool = False,
    targets: tuple[str, ...] = ("gate_up_proj", "down_proj"),
) -> Trained:
    """Train an adapter on the experts of a tiny mixture, on pairs of tokens that it can learn.

    `is_turned` trains as PEFT 0.18 did, with A on the first side of each parameter.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(seed)
    sizes = {"vocab_size": 64, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Qwen3MoeConfig(
        **sizes, **BASES[base], num_key_value_heads=2, head_dim=8, max_position_embeddings=32, tie_word_embeddings=False
    )
    model = Qwen3MoeForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    shapes = [(name, tuple(p.shape)) for name, p in model.named_parameters()]
    model.save_pretrained(folder / "base")
    with torch.no_grad():
        plain = model.eval()(input_ids=IDS).logits.double()
    parameters = [f"mlp.experts.{name}" for name in targets]
    stacks = [module for module in model.modules() if hasattr(module, "gate_up_proj")]
    for stack in stacks if is_turned else ():
        stack.is_transposed = True  # PEFT then puts A on the first side
    adapted = get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=[], target_parameters=parameters)
    )
    for stack in stacks:
        stack.is_transposed = False
    optimiser = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=2e-3, weight_decay=0.0)
    numbers = torch.Generator().manual_seed(seed)
    after = torch.randperm(64, generator=numbers)
    adapted.train()
    for _ in range(steps):
        tokens = torch.randint(0, 64, (8, 16), generator=numbers)
        tokens[:, 1::2] = after[tokens[:, 0::2]]
        loss = adapted(input_ids=tokens, labels=tokens).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    adapted.save_pretrained(folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    with torch.no_grad():
        truth = adapted.eval()(input_ids=IDS).logits.double()
    return Trained(folder, tensors, shapes, BASES[base]["num_experts"], truth, plain)


def laid_out(tensors: dict[str, Tensor], layout: Layout, experts: int) -> dict[str, Tensor]:
    """The tensors of PEFT's own file with B packed as in `layout`."""
    made: dict[str, Tensor] = {}
    for name, a in tensors.items():
        if ".lora_A." not in name:
            continue
        other = name.replace(".lora_A.", ".lora_B.")
        b = tensors[other]
        if layout.is_grouped:
            b = b.reshape(len(b), -1, experts).transpose(1, 2).reshape(len(b), -1).contiguous()
        made |= {name: a, other: b}
    return made


def write(folder: Path, source: Trained, layout: Layout, **marks: Any) -> None:
    """Write the adapter in a layout, without any mark but those given."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(laid_out(source.tensors, layout, source.experts), folder / "adapter_model.safetensors")
    config = json.loads((source.folder / "adapter_config.json").read_text())
    for mark in ("peft_version", "lora_B_layout", "auto_mapping"):
        config.pop(mark, None)
    (folder / "adapter_config.json").write_text(json.dumps(config | marks))


def read(folder: Path, shapes: list[tuple[str, tuple[int, ...]]]) -> Verdict:
    """The verdict on a folder, beside a base with these parameters."""
    text, weights = (folder / "adapter_config.json").read_bytes(), folder / "adapter_model.safetensors"
    config = AdapterConfig.parse(text, "adapter_config.json")
    form = Form(config=config, config_bytes=text, weights=read_header(weights), held=HeldFile(weights))
    files = [(name, shape) for name, shape in split(shapes)]
    return judge(form, expert_pairs(form), stacks_among(config, files))


def split(shapes: list[tuple[str, tuple[int, ...]]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of the base's file, which has a layer for each expert."""
    for name, shape in shapes:
        if name.endswith("experts.gate_up_proj"):
            yield name.replace("gate_up_proj", "0.gate_proj.weight"), (shape[1] // 2, shape[2])
        elif name.endswith("experts.down_proj"):
            yield name.replace("down_proj", "0.down_proj.weight"), shape[1:]
        else:
            yield name, shape


def outcome(verdict: Verdict, layout: Layout, *, rank: int) -> str:
    """`right`, `refused` or `wrong`; with a rank of 1 both packings are one."""
    found = verdict.layout
    if found is None:
        return "refused"
    is_same = found.is_turned == layout.is_turned and (rank == 1 or found.is_grouped == layout.is_grouped)
    return "right" if is_same else "wrong"


def main(count: int) -> None:
    """Train `count` adapters and print how each layout of them was read."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for number in range(count):
        base, rank = list(BASES)[number % len(BASES)], (1, 2, 4, 8)[number // len(BASES) % 4]
        with TemporaryDirectory() as place:
            steps, is_turned = (20, 60, 150)[number % 3], number % 2 == 1
            source = trained(Path(place) / "peft", base, rank, seed=number, steps=steps, is_turned=is_turned)
            for layout in LAYOUTS:
                if layout.is_turned != is_turned:
                    continue
                write(Path(place) / layout.name, source, layout)
                result = outcome(read(Path(place) / layout.name, source.shapes), layout, rank=rank)
                counts[base, layout.name, result] += 1
                if "-v" in sys.argv:
                    print(base, rank, steps, layout.name, result)
    print(f"{'base':8} {'layout':14} right refused wrong")
    for base in BASES:
        for layout in LAYOUTS:
            row = [counts[base, layout.name, result] for result in ("right", "refused", "wrong")]
            print(f"{base:8} {layout.name:14} {row[0]:5} {row[1]:7} {row[2]:5}")
    total = {
        result: sum(n for key, n in counts.items() if key[2] == result) for result in ("right", "refused", "wrong")
    }
    print(total)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
