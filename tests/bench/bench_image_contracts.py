"""Contracts of pipelines: how much of an adapter's effect is left after changes that keep it, and after others.

    python -m tests.bench.bench_image_contracts [sd15 sdxl flux sd3] [--trained 2] [--steps 48]

The pipelines are tiny, of random weights and the real structure. Per pipeline, `--trained` adapters learn in as many
optimizer steps what a fine-tune of the denoiser draws, and two more are random. Each gets a contract of six goldens by
the code of `adapt contract record`, and that of `adapt test` judges each change of it. The bound of the effect was chosen
on other random adapters, of the sizes 0.05 to 0.4 and with 1 to 8 steps.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from adapterhub.core.digests import digest_of
from adapterhub.core.errors import Incompatible
from adapterhub.formats.contract.contract import Contract, Recorded
from adapterhub.formats.contract.reader import Plan, Wanted, WantedImages
from adapterhub.formats.contract.results import Tested
from adapterhub.formats.contract.standards import DEFAULT_BOUNDS
from adapterhub.inference.contracts.checking import check
from adapterhub.inference.contracts.images import AdaptedPipeline, record_images
from adapterhub.inference.loader import attach
from tests.support import pipelines

PROMPTS = ("a red cat", "photo of a dog", "a dog", "red photo of a cat", "cat", "photo of a red dog")
SIZE, STEPS = 16, 4
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_mlp"]
SOME = digest_of(b"")
RECORDED = Recorded(
    base=SOME, base_dtype="float32", adapter=SOME, tokenizer_sha256=SOME, vocabulary=8, engine="", torch="", peft=""
)
Factors = dict[str, Tensor]
Change = Callable[[Factors], Factors]


@dataclass(frozen=True)
class Bench:
    """One pipeline, and where its adapters are written."""

    kind: str
    pipeline: Any
    folder: Path

    def written(self, name: str, factors: Factors) -> Path:
        place = self.folder / f"{self.kind}-{name}"
        place.mkdir()
        save_file(
            {f"base_model.model.{n}": t.contiguous() for n, t in factors.items()}, place / "adapter_model.safetensors"
        )
        modules = sorted({n.partition(".lora_")[0] for n in factors})
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": modules}
        (place / "adapter_config.json").write_text(json.dumps(config))
        return place

    def judged(
        self, contract: Contract, adapter: Path, dtype: torch.dtype = torch.float32, *, base_alone: bool = False
    ) -> Tested:
        pipeline = self.pipeline if dtype is torch.float32 else ready(copy.deepcopy(self.pipeline)).to(dtype)
        with attach(pipeline, adapter, library=self.folder / "library") as attached:
            model: Any = AdaptedPipeline(pipeline=pipeline, attached=attached)
            return check(model, None, contract, base_alone=base_alone)  # type: ignore[arg-type] # a pipeline has its own

    def recorded(self, adapter: Path) -> Contract:
        plan = Plan(
            goldens=tuple(Wanted(id=f"g-{n}", asked=text) for n, text in enumerate(PROMPTS)),
            image=WantedImages(width=SIZE, height=SIZE, steps=STEPS),
        )
        with attach(self.pipeline, adapter, library=self.folder / "library") as attached:
            model = AdaptedPipeline(pipeline=self.pipeline, attached=attached)
            return record_images(model, plan, RECORDED).contract


def ready(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    for one in pipeline.components.values():
        if isinstance(one, nn.Module):
            one.eval().requires_grad_(requires_grad=False)
    return pipeline


def denoiser_of(pipeline: Any) -> tuple[str, nn.Module]:
    name = "unet" if hasattr(pipeline, "unet") else "transformer"
    return name, getattr(pipeline, name)


def latent(pipeline: Any, number: int) -> Tensor:
    """What the pipeline draws, with gradients: its own method has a decorator that forbids them."""
    settings = {"num_inference_steps": 2, "output_type": "latent", "height": SIZE, "width": SIZE}
    call = type(pipeline).__call__.__wrapped__
    found: Tensor = call(pipeline, PROMPTS[number], generator=torch.Generator().manual_seed(number), **settings).images
    return found


def random_adapter(pipeline: Any, seed: int, size: float) -> Factors:
    name, denoiser = denoiser_of(pipeline)
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for path, module in denoiser.named_modules():
        if isinstance(module, nn.Linear) and path.endswith(tuple(TARGETS)):
            rows, columns = module.weight.shape
            found[f"{name}.{path}.lora_A.weight"] = size * torch.randn((4, columns), generator=generator)
            found[f"{name}.{path}.lora_B.weight"] = size * torch.randn((rows, 4), generator=generator)
    return found


def trained_adapter(kind: str, seed: int, steps: int) -> Factors:
    """Learns what the pipeline draws with other numbers in its attention: an update of full rank."""
    teacher, pipeline = ready(pipelines.PIPELINES[kind]()), ready(pipelines.PIPELINES[kind]())
    generator = torch.Generator().manual_seed(seed)
    for path, module in denoiser_of(teacher)[1].named_modules():
        if isinstance(module, nn.Linear) and path.endswith(tuple(TARGETS)):
            module.weight += 1.5 * module.weight.std() * torch.randn(module.weight.shape, generator=generator)
    with torch.no_grad():
        wanted = [latent(teacher, number) for number in range(len(PROMPTS))]
    name, denoiser = denoiser_of(pipeline)
    torch.manual_seed(seed)
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=4, target_modules=TARGETS), denoiser)
    learned = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=0.02)
    for step in range(steps):
        number = step % len(PROMPTS)
        loss = (latent(pipeline, number) - wanted[number]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = {}
    for path, module in denoiser.named_modules():
        if isinstance(module, BaseTunerLayer):
            for factor in ("lora_A", "lora_B"):
                weight = getattr(module, factor)["default"].weight
                found[f"{name}.{path}.{factor}.weight"] = weight.detach().clone()
    return found


def scaled(factor: float) -> Change:
    return lambda adapter: {n: t * factor if ".lora_B." in n else t for n, t in adapter.items()}


def without(part: int) -> Change:
    """Every `part`-th module's update lost."""

    def change(adapter: Factors) -> Factors:
        lost = set(sorted({n.partition(".lora_")[0] for n in adapter})[::part])
        return {n: t * 0 if ".lora_B." in n and n.partition(".lora_")[0] in lost else t for n, t in adapter.items()}

    return change


def in_precision(dtype: torch.dtype) -> Change:
    return lambda adapter: {n: t.to(dtype) for n, t in adapter.items()}


KEEP: dict[str, Change] = {
    "the same": dict,
    "adapter in bfloat16": in_precision(torch.bfloat16),
    "adapter in float16": in_precision(torch.float16),
    "strength 0.95": scaled(0.95),
}
PRECISIONS = {"pipeline in bfloat16": torch.bfloat16, "pipeline in float16": torch.float16}
BREAK: dict[str, Change] = {
    "no update": scaled(0),
    "negated": scaled(-1),
    "half the strength": scaled(0.5),
    "twice the strength": scaled(2),
}
BETWEEN: dict[str, Change] = {"a fourth of the modules lost": without(4), "half of the modules lost": without(2)}
"""How much is left hangs on the modules; `adapt verify` sees each that is lost."""


def rows_of(bench: Bench, adapters: dict[str, Factors]) -> Iterator[tuple[str, str, float | None, str]]:
    """The change, the adapter, how much of its effect is left, and the verdict."""
    names = list(adapters)
    for at, (name, factors) in enumerate(adapters.items()):
        folder = bench.written(name, factors)
        try:
            contract = bench.recorded(folder)
        except Incompatible as error:
            yield "recording refused", name, None, error.message.splitlines()[0]
            continue
        gaps = [golden.gap or 0.0 for golden in contract.goldens]
        yield "gap", name, sum(gaps) / len(gaps), f"{len(gaps)} goldens"
        other = adapters[names[(at + 1) % len(names)]]
        changes = KEEP | BREAK | BETWEEN | {"another adapter": lambda _own, other=other: other}
        for what, change in changes.items():
            place = bench.written(f"{name}-{what.replace(' ', '-')}", change(factors))
            found = bench.judged(contract, place, base_alone=change is dict)
            yield what, name, found.effect, found.verdict
        for what, dtype in PRECISIONS.items():
            found = bench.judged(contract, folder, dtype)
            yield what, name, found.effect, found.verdict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=list(pipelines.PIPELINES))
    parser.add_argument("--trained", type=int, default=2)
    parser.add_argument("--steps", type=int, default=48)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    start, table = time.process_time(), dict[str, list[tuple[float | None, str]]]()
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds:
            pipeline = ready(pipelines.PIPELINES[kind]())
            bench = Bench(kind, pipeline, Path(folder))
            adapters = {f"trained-{n}": trained_adapter(kind, n, options.steps) for n in range(options.trained)}
            adapters |= {f"random-{size}": random_adapter(pipeline, 9, size) for size in (0.25, 0.35)}
            for what, name, number, verdict in rows_of(bench, adapters):
                print(
                    f"{kind:5} {name:12} {what:28} {'' if number is None else f'{number:7.3f}'} {verdict}", flush=True
                )
                table.setdefault(what, []).append((number, verdict))
    print(f"\n| change | adapters | effect left, least to most | PASS (effect at least {DEFAULT_BOUNDS.effect:g}) |")
    print("| --- | --- | --- | --- |")
    for what in (*KEEP, *PRECISIONS, *BREAK, "another adapter", *BETWEEN):
        found = table.get(what, [])
        numbers = [number for number, _ in found if number is not None]
        passed = sum(verdict == "PASS" for _, verdict in found)
        print(f"| {what} | {len(found)} | {min(numbers):.3f} to {max(numbers):.3f} | {passed} |")
    print(f"\n{time.process_time() - start:.0f} CPU seconds")


if __name__ == "__main__":
    main()
