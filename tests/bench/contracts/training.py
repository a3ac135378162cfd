"""Trains an adapter from its recipe: a seed, a task, a rank and targets. The bytes are never kept in the repository."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from adapterhub.core.digests import digest_of
from tests.bench.contracts.families import Family
from tests.bench.contracts.tasks import LABELS, Row, Task

RANKS: Final = (8, 4, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All that decides an adapter's weights, besides the machine and its packages."""

    family: str
    name: str
    seed: int
    rank: int
    targets: tuple[str, ...]
    steps: int
    batch: int
    rate: float

    @property
    def key(self) -> str:
        """A short digest: another recipe is another adapter."""
        return digest_of(json.dumps(asdict(self), sort_keys=True).encode()).removeprefix("sha256:")[:12]


def recipes(name: str, family: Family, *, alike: bool = False) -> list[Recipe]:
    """The ten recipes of a family; rank and targets take turns, unless all are `alike`, as some merges need."""
    ranks, targets = ((RANKS[0],), family.targets[:1]) if alike else (RANKS, family.targets)
    return [
        Recipe(family=name, name=task, seed=at, rank=ranks[at % len(ranks)], steps=family.steps, batch=family.batch,
               targets=targets[at % len(targets)], rate=family.rate)
        for at, task in enumerate(family.tasks)
    ]  # fmt: skip


def load(family: Family, folder: Path) -> tuple[Any, Any]:
    """The base and its tokenizer; an untrained head has the same weights each time."""
    import torch

    from adapterhub.inference.loader.text import load_base

    torch.manual_seed(0)
    return load_base(folder, dtype="float32", labels=LABELS if family.kind == "classify" else None)


def trained(recipe: Recipe, family: Family, base: Path, work: Path) -> tuple[Path, float]:
    """The folder of the adapter, trained unless it is there, and the CPU seconds that this took."""
    import torch
    from peft import LoraConfig, get_peft_model

    folder = work / "adapters" / recipe.family / f"{recipe.name}-{recipe.key}"
    if folder.is_dir():
        return folder, 0.0
    begun, task = time.process_time(), family.tasks[recipe.name]
    model, tokenizer = load(family, base)
    torch.manual_seed(recipe.seed)
    kinds = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "classify": "SEQ_CLS"}
    config = LoraConfig(task_type=kinds[family.kind], r=recipe.rank, lora_alpha=2 * recipe.rank,
                        target_modules=list(recipe.targets), fan_in_fan_out=model.config.model_type == "gpt2",
                        modules_to_save=["classifier"] if family.kind == "classify" else None)  # fmt: skip
    peft = get_peft_model(model, config)
    rows = framed(task, task.rows(recipe.seed)[0], tokenizer, family.kind)
    fit(peft, tokenizer, rows, steps=recipe.steps, batch=recipe.batch, rate=recipe.rate, seed=recipe.seed)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    peft.save_pretrained(partial)
    partial.rename(folder)
    return folder, time.process_time() - begun


def framed(task: Task, rows: Sequence[Row], tokenizer: Any, kind: str) -> list[Row]:
    """The rows as the model sees them in training: the input in its frame."""
    if kind == "classify":
        return list(rows)
    if not task.chat:
        return [(task.template.replace("{input}", asked), answer) for asked, answer in rows]
    turns = [[{"role": "user", "content": asked}] for asked, _ in rows]
    texts = [tokenizer.apply_chat_template(one, tokenize=False, add_generation_prompt=True) for one in turns]
    return [(text, answer) for text, (_, answer) in zip(texts, rows, strict=True)]


def fit(model: Any, tokenizer: Any, rows: Sequence[Row], *, steps: int, batch: int, rate: float, seed: int = 0) -> None:
    """Train what is trainable, with one cycle of the learning rate."""
    import torch

    chosen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(chosen, lr=rate, weight_decay=0.0)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.15)
    rng = random.Random(seed + 1)
    model.train()
    for _ in range(steps):
        loss = _loss(model, tokenizer, rng.sample(list(rows), batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(chosen, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        plan.step()
    model.eval()


def _loss(model: Any, tokenizer: Any, rows: Sequence[Row]) -> Any:
    """The mean loss of the answers, or of the labels."""
    import torch
    from torch.nn.functional import cross_entropy

    if model.config.is_encoder_decoder:
        asked = _padded([tokenizer(one)["input_ids"] for one, _ in rows], 0)
        labels = _padded([tokenizer(answer)["input_ids"] for _, answer in rows], -100)
        return model(input_ids=asked, attention_mask=(asked != 0).long(), labels=labels).loss
    prompts = [tokenizer(one)["input_ids"] for one, _ in rows]
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    if type(plain).__name__.endswith("ForSequenceClassification"):
        found = []
        for length in sorted({len(prompt) for prompt in prompts}):
            places = [at for at, prompt in enumerate(prompts) if len(prompt) == length]
            logits = model(input_ids=torch.tensor([prompts[at] for at in places])).logits
            wanted = torch.tensor([int(rows[at][1]) for at in places])
            found.append(cross_entropy(logits, wanted, reduction="sum"))
        return sum(found) / len(rows)
    answers = [
        [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for _, answer in rows
    ]
    pairs = list(zip(prompts, answers, strict=True))
    tokens = _padded([prompt + answer for prompt, answer in pairs], 0)
    wanted = _padded([[-100] * len(prompt) + answer for prompt, answer in pairs], -100)
    first = min(map(len, prompts)) - 1
    logits = model(input_ids=tokens, use_cache=False).logits[:, first:-1]
    return cross_entropy(logits.flatten(0, 1), wanted[:, first + 1 :].flatten(), ignore_index=-100)


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Any:
    """[rows, tokens], padded on the right, where a causal model does not look."""
    import torch

    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])
