"""How often the measured loss finds the adapter among decoys on SmolLM2-135M, and what a candidate costs.

The decoys are made of the two shipped adapters: noise, negated, three times as strong, half the layers, and sums.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from adapterhub.cli.start.demo_run import tasks
from tests.support.command_line import Adapt
from tests.support.contracts import write_examples
from tests.support.real_base import smollm2_base

SHIPPED = Path(tasks.__file__).parent / "adapters"
OF = ("json", "pirate")
EXAMPLES = 4
DRAWS = 4

Tensors = dict[str, np.ndarray]


def _noisy(share: float) -> Callable[[Tensors], Tensors]:
    random = np.random.default_rng(int(100 * share))

    def change(tensors: Tensors) -> Tensors:
        noise = {name: random.normal(size=t.shape).astype(t.dtype) * t.std() for name, t in tensors.items()}
        return {n: (1 - share) * t + share * noise[n] if "lora_B" in n else t for n, t in tensors.items()}

    return change


def _scaled(factor: float) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {n: factor * t if "lora_B" in n else t for n, t in tensors.items()}


def _half(tensors: Tensors) -> Tensors:
    odd = tuple(f"layers.{at}." for at in range(1, 100, 2))
    return {n: 0 * t if "lora_B" in n and any(part in n for part in odd) else t for n, t in tensors.items()}


DECOYS: Mapping[str, Callable[[Tensors], Tensors]] = {
    "noise": _noisy(0.7),
    "negated": _scaled(-1),
    "strong": _scaled(3),
    "half": _half,
}


def rows() -> Iterator[str]:
    """The lines of the report."""
    with tempfile.TemporaryDirectory() as temporary:
        adapt = Adapt(Path(temporary))
        made = _library(adapt)
        yield f"try: {made} builds for SmolLM2-135M, {EXAMPLES} examples, one process, cold cache"
        yield f"{'task':<8} {'draw':>4} {'first':<14} {'in the lead':<28} {'named':>5} {'CPU-s each':>10}"
        given = {task.name: task for task in tasks.make_tasks()}
        for name in OF:
            held_out = given[name].held_out
            for draw in range(DRAWS):
                chosen = held_out[draw * EXAMPLES : (draw + 1) * EXAMPLES]
                write_examples(adapt.folder / "e.jsonl", [e.prompt for e in chosen], [e.answer for e in chosen])
                shutil.rmtree(adapt.library.root / "cache" / "tried", ignore_errors=True)
                yield _row(adapt, name, draw)


def _library(adapt: Adapt) -> int:
    adapt.ok("base", "add", smollm2_base(), "--as", "smol")
    count = 0
    for name in OF:
        adapt.ok("add", SHIPPED / name, "--name", name, "--base", "smol")
        for decoy, change in DECOYS.items():
            folder = adapt.folder / f"{name}-{decoy}"
            shutil.copytree(SHIPPED / name, folder)
            weights = folder / "adapter_model.safetensors"
            save_file(change(load_file(SHIPPED / name / weights.name)), weights, metadata={"format": "pt"})
            adapt.ok("add", folder, "--name", folder.name, "--base", "smol")
            count += 1
        count += 1
    for weights in ("0.7,0.3", "0.3,0.7"):
        adapt.ok("merge", *OF, "--weights", weights, "-o", f"sum-{weights[:3]}")
        count += 1
    return count


def _row(adapt: Adapt, name: str, draw: int) -> str:
    found = adapt.json("search", "--base", "smol", "--try", "e.jsonl", "--top", "32")
    results = found["results"]
    leaders = [one["name"] for one in results if one["tried"]["leads"]]
    spent = sum(one["tried"]["cpu_s"] for one in results) / len(results)
    return f"{name:<8} {draw:>4} {results[0]['name']:<14} {', '.join(leaders):<28} {name in leaders!s:>5} {spent:10.2f}"


if __name__ == "__main__":
    for line in rows():
        print(line, flush=True)
