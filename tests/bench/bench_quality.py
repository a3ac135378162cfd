"""Held-out losses of every merge method on trained adapters, beside those of the parents.

    OMP_NUM_THREADS=1 python -m tests.bench.bench_quality [--work FOLDER] [--methods NAME ...]

Four real LoRA adapters of SmolLM2-135M-Instruct are trained (or taken from FOLDER), one a task, by the training script of
the shared test data; all with the same rank and targets, so that the methods that average factors can take part. Each
method merges them with one weight for all, chosen from `--weights` by the loss on examples of the training sets, with the
method's default options. The figures are mean losses a token on the held-out examples of each task: printed as Markdown.
"""

from __future__ import annotations

import importlib.util
import random
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from adapterhub.weights.catalogue import names
from tests.bench.harness import given
from tests.support.real_base import smollm2_base
from tests.support.shared_data import shared

LORA = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
CHOOSING = 32
"""Training examples of each task on which the weight is chosen."""


def training_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_adapters", shared("make_adapters.py"))
    if spec is None or spec.loader is None:
        raise SystemExit("the shared test data are not beside this project")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, (data, _, steps, batch, rate) in module.CAUSAL.items():
        module.CAUSAL[name] = (data, dict(LORA), steps, batch, rate)
    return module


def losses(script: ModuleType, model: Any, tokenizer: Any, sets: dict[str, Any]) -> list[float]:
    import torch

    model.eval()
    with torch.no_grad():
        return [float(script.answer_loss(model, tokenizer, rows)) for rows in sets.values()]


@contextmanager
def attached(model: Any, folder: Path) -> Iterator[Any]:
    from adapterhub import attach

    with attach(model, folder) as one:
        yield one.model


def row(label: str, weight: str, values: Sequence[float]) -> str:
    return f"| {label} | {weight} | " + " | ".join(f"{v:.3f}" for v in (*values, statistics.fmean(values))) + " |"


def main() -> None:
    arguments = given(__doc__, work=Path, methods=list(names()), weights=[0.25, 0.5, 1.0])

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from adapterhub.core.errors import MergeRefused
    from adapterhub.weights.merge import MergeInput, merge

    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        script, base = training_script(), smollm2_base()
        for name in script.CAUSAL:
            if not (work / name / "adapter_config.json").exists():
                script.train_causal(name, base, work / name)
        data = {name: script.causal_data(name) for name in script.CAUSAL}
        held_out = {name: rows for name, (_, rows) in data.items()}
        examples = {name: random.Random(0).sample(rows, CHOOSING) for name, (rows, _) in data.items()}
        tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)

        print("| adapter | weight of each | " + " | ".join(held_out) + " | mean |")
        print("| --- | ---: |" + " ---: |" * (len(held_out) + 1))
        print(row("none (the base)", "", losses(script, model, tokenizer, held_out)), flush=True)
        for name in held_out:
            with attached(model, work / name) as one:
                print(row(f"`{name}` alone", "1", losses(script, one, tokenizer, held_out)), flush=True)
        for method in arguments.methods:
            found: list[tuple[float, float, list[float]]] = []
            label, parents = f"`{method}`", list(held_out)
            for weight in arguments.weights:
                out = Path(temporary) / f"{method}-{weight}"
                try:
                    merge([MergeInput(folder=work / n, label=n, weight=weight) for n in parents], out, method=method)
                except MergeRefused:  # a method for two
                    label, parents = f"`{method}` of the first two", parents[:2]
                    merge([MergeInput(folder=work / n, label=n, weight=weight) for n in parents], out, method=method)
                with attached(model, out) as one:
                    choosing = {name: examples[name] for name in parents}
                    chosen_by = statistics.fmean(losses(script, one, tokenizer, choosing))
                    found.append((chosen_by, weight, losses(script, one, tokenizer, held_out)))
            _, weight, values = min(found)
            print(row(label, f"{weight:g}", values), flush=True)


if __name__ == "__main__":
    main()
