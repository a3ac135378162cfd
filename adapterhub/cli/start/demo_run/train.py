"""Train the two adapters that ship beside this file: `python -m adapterhub.cli.start.demo_run.train --out DIR`.

Everything is repeatable: the same machine with the same versions of torch, transformers and PEFT writes the same
bytes; another machine writes slightly different weights with, within noise, the same held-out figures. One core needs
about ten minutes.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.cli.start.demo_run import BASE_HUB_ID
from adapterhub.cli.start.demo_run.base import float32_argument, prepare_base, quiet_transformers
from adapterhub.cli.start.demo_run.tasks import DemoExample, Task, make_tasks
from adapterhub.core.errors import AdapterHubError
from adapterhub.distribution.wheels import Say

if TYPE_CHECKING:
    from torch import Tensor

RANK = 4
ALPHA = 8
TARGETS = ("q_proj", "v_proj")
BATCH = 6
LEFT_ALONE_BATCH = 3
LEARNING_RATE = 4e-3
WARM_UP = 0.15
"""Share of the steps in which the rate rises."""
MERGE_WEIGHTS = (0.7, 0.3)
"""The weights of `json` and `pirate` in the merge that the script measures at the end."""
IGNORED = -100
"""The label that torch's cross entropy skips."""

COMMAND = "python -m adapterhub.cli.start.demo_run.train --out DIR"
_CARD = """\
---
base_model: {base}
library_name: peft
license: apache-2.0
language: en
tags:
- lora
---

# {name}: {description}

A LoRA adapter of rank {rank} on `q_proj` and `v_proj` of SmolLM2-135M-Instruct, made to show and to test
adapterhub with. The prompt is one sentence and nothing else, without the chat template.

| {count} held-out sentences | base | with this adapter |
| --- | ---: | ---: |
| loss of the wanted answer | {loss_before:.3f} | {loss_after:.3f} |
| exact answers, greedy decoding | {exact_before:.0%} | {exact_after:.0%} |

The training sentences are synthetic and few in kind; expect nothing sensible for others. Made by

    {command}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Mean loss of the wanted answers in nats a token, and the share that greedy decoding gives exactly."""

    loss: float
    exact: float


@dataclass(frozen=True, slots=True)
class Pupil:
    """A causal language model and its tokenizer; the model may carry adapters."""

    model: Any
    tokenizer: Any

    @classmethod
    def load(cls, base: Path) -> Pupil:
        """Return the base model in `base` as float32, on the CPU."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(base, local_files_only=True, **float32_argument())
        return cls(model.eval(), tokenizer)

    def answer_loss(self, examples: Sequence[DemoExample]) -> Tensor:
        """Mean cross entropy of the answers' tokens, end mark included; a scalar."""
        import torch

        ids, mask = self._encode([(e.prompt, e.answer) for e in examples])
        answers = [len(self.tokenizer(e.answer)["input_ids"]) + 1 for e in examples]
        keep = max(answers)
        labels = ids[:, -keep:].clone()
        for row, length in enumerate(answers):
            labels[row, : keep - length] = IGNORED
        # Logits of the answers only: the vocabulary is most of the work.
        logits = self.model(input_ids=ids, attention_mask=mask, logits_to_keep=keep + 1, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=IGNORED)

    def drift(self, texts: Sequence[str]) -> Tensor:
        """Mean KL divergence, over the texts' tokens, from the base's next-token distribution; a scalar in nats."""
        import torch

        ids, mask = self._encode([(text, "") for text in texts])
        arguments = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
        with torch.no_grad(), self.model.disable_adapter():
            wanted = self.model(**arguments).logits.log_softmax(-1)
        given = self.model(**arguments).logits.log_softmax(-1)
        each = torch.nn.functional.kl_div(given, wanted, log_target=True, reduction="none").sum(-1)
        mean: Tensor = (each * mask).sum() / mask.sum()
        return mean

    def answers(self, prompts: Sequence[str], *, most_tokens: int) -> list[str]:
        """Return the greedy answer to each prompt."""
        ids, mask = self._encode([(prompt, None) for prompt in prompts])
        end = self.tokenizer.eos_token_id
        made = self.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=most_tokens, do_sample=False, pad_token_id=end
        )
        return [self.tokenizer.decode(row, skip_special_tokens=True) for row in made[:, ids.shape[1] :]]

    def measure(self, examples: Sequence[DemoExample]) -> Figures:
        """Return the figures for `examples`."""
        import torch

        most = max(len(self.tokenizer(e.answer)["input_ids"]) for e in examples) + 1
        with torch.no_grad():
            loss = self.answer_loss(examples).item()
        given = self.answers([e.prompt for e in examples], most_tokens=most)
        right = sum(text == e.answer for text, e in zip(given, examples, strict=True))
        return Figures(loss=round(loss, 4), exact=round(right / len(examples), 4))

    def _encode(self, pairs: Sequence[tuple[str, str | None]]) -> tuple[Tensor, Tensor]:
        """Token ids and mask [pairs, longest], padded on the left so that all answers stand at the right edge.

        A second text of None leaves the row open to be continued; any other is followed by the end mark.
        """
        import torch

        end = self.tokenizer.eos_token_id
        rows = []
        for first, second in pairs:
            row = list(self.tokenizer(first)["input_ids"])
            if second is not None:
                row += [*(self.tokenizer(second)["input_ids"] if second else ()), end]
            rows.append(row)
        longest = max(map(len, rows))
        ids = torch.tensor([[end] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return ids, mask


def train_adapter(task: Task, base: Path, folder: Path, *, say: Say) -> dict[str, object]:
    """Train one adapter for `task` on the model in `base` and write it to `folder`; its figures as JSON values."""
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    pupil = Pupil.load(base)
    before = pupil.measure(task.held_out)
    say(f"{task.name}: base      loss {before.loss:.3f}, exact {before.exact:.0%}")
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS))
    with quiet_transformers():
        model = get_peft_model(pupil.model, config)
    model.peft_config["default"].base_model_name_or_path = BASE_HUB_ID
    pupil = Pupil(model, pupil.tokenizer)
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=task.steps, pct_start=WARM_UP)
    rng, started = random.Random(1), time.perf_counter()  # noqa: S311 - repeatable batches, no secrets
    for step in range(task.steps):
        lesson = task.lessons[step % len(task.lessons)]
        _set_strength(layers, rng.choice((lesson.weakest, 1.0)))
        pupil.answer_loss(rng.sample(lesson.train, BATCH)).backward()  # type: ignore[no-untyped-call]  # torch
        if step % 2:
            _set_strength(layers, task.left_alone_at)
            pupil.drift(rng.sample(task.left_alone, LEFT_ALONE_BATCH)).backward()  # type: ignore[no-untyped-call]  # torch
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    _set_strength(layers, 1.0)
    seconds = time.perf_counter() - started
    model.eval()
    after = pupil.measure(task.held_out)
    say(f"{task.name}: adapter   loss {after.loss:.3f}, exact {after.exact:.0%}  ({task.steps} steps, {seconds:.0f} s)")
    _write_adapter(model, folder, _card(task, before, after))
    return {
        "before": asdict(before),
        "after": asdict(after),
        "held_out": len(task.held_out),
        "steps": task.steps,
        "train_seconds": round(seconds, 1),
        "parameters": sum(weight.numel() for weight in weights),
    }


def measure_merge(tasks: Sequence[Task], base: Path, folder: Path, *, say: Say) -> dict[str, object]:
    """Figures of the exact weighted sum of the adapters in `folder`, lesson by lesson, as JSON values."""
    from peft import PeftModel

    names = [task.name for task in tasks]
    pupil = Pupil.load(base)
    with quiet_transformers():
        model = PeftModel.from_pretrained(pupil.model, folder / names[0], adapter_name=names[0])
        for name in names[1:]:
            model.load_adapter(folder / name, adapter_name=name)
    model.add_weighted_adapter(names, list(MERGE_WEIGHTS), "merged", combination_type="cat")
    model.set_adapter("merged")
    merged = Pupil(model.eval(), pupil.tokenizer)
    json_task, pirate_task = tasks
    orders = merged.measure(json_task.lessons[0].held_out)
    talk = merged.measure(pirate_task.lessons[0].held_out)
    say(f"merged: {orders.exact:.0%} of orders as JSON, {talk.exact:.0%} of small talk as a pirate")
    return {"weights": dict(zip(names, MERGE_WEIGHTS, strict=True)), "json": asdict(orders), "pirate": asdict(talk)}


def _set_strength(layers: Sequence[Any], strength: float) -> None:
    """Scale the adapter's update in every layer; 1 is the scale of its configuration."""
    for layer in layers:
        layer.set_scale("default", strength)


def _write_adapter(model: Any, folder: Path, card: str) -> None:
    """Write the three files of a PEFT adapter folder."""
    model.save_pretrained(folder, save_embedding_layers=False)  # "auto" asks the Hub whether the vocabulary grew
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])  # PEFT writes a set, in random order
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")


def _card(task: Task, before: Figures, after: Figures) -> str:
    return _CARD.format(
        base=BASE_HUB_ID,
        name=task.name,
        description=task.description,
        rank=RANK,
        count=len(task.held_out),
        loss_before=before.loss,
        loss_after=after.loss,
        exact_before=before.exact,
        exact_after=after.exact,
        command=COMMAND,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m adapterhub.cli.start.demo_run.train",
        description="Train the demo's two adapters and measure their merge.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for `json/`, `pirate/` and `metrics.json`")
    parser.add_argument("--base", type=Path, help="the demo's base model, created if missing (default: OUT/base)")
    options = parser.parse_args(arguments)
    import peft
    import torch
    import transformers

    torch.set_num_threads(1)  # two threads add in no fixed order
    torch.use_deterministic_algorithms(True)
    try:
        base = prepare_base(options.base or options.out / "base", say=print)
    except AdapterHubError as error:
        parser.exit(error.exit_code, f"error: {error}\nhint: {error.hint}\n" if error.hint else f"error: {error}\n")
    tasks = make_tasks()
    metrics: dict[str, object] = {
        task.name: train_adapter(task, base, options.out / task.name, say=print) for task in tasks
    }
    metrics["merged"] = measure_merge(tasks, base, options.out, say=print)
    metrics["made_with"] = {
        "command": COMMAND,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }
    (options.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
