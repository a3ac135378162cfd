"""What benchmarks share: their options, processes and calls with what they took, how times grow, and adapters of real shapes."""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

MOST: Final = 1.1
"""The greatest exponent without a reason in `tests/bench/README.md`."""

_T = TypeVar("_T")


def given(doc: str | None, **defaults: Any) -> argparse.Namespace:
    """The options of a benchmark, each as its default has it: False is a flag, a type has no value unless it is given, the
    first of a tuple is chosen unless another is, and a list takes any number. `--help` prints the benchmark's docstring.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        how: dict[str, Any] = {"type": type(default), "default": default}
        if default is False:
            how = {"action": "store_true"}
        elif isinstance(default, type):
            how = {"type": default}
        elif isinstance(default, tuple):
            how = {"choices": [one for one in default if one is not None], "default": default[0]}
        elif isinstance(default, list):
            how |= {"type": type(default[0]), "nargs": "*"}
        parser.add_argument(f"--{name.replace('_', '-')}", **how)
    return parser.parse_args()


@dataclass(frozen=True)
class Run:
    """One process: seconds on the wall, seconds of CPU, peak resident bytes, what it printed."""

    wall_s: float
    cpu_s: float
    peak_bytes: int
    said: str


def measured(command: Sequence[str | Path], *, codes: Sequence[int] = (0,), **how: Any) -> Run:
    """One process to its end; an exit code that is not one of `codes` ends the benchmark with the process's errors."""
    begun = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, **how)
        assert process.stdout is not None
        said = process.stdout.read().decode().strip()
        _, status, usage = os.wait4(process.pid, 0)
        spent = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        if process.returncode not in codes:
            errors.seek(0)
            words = " ".join(map(str, command[:4]))
            raise SystemExit(f"{words} … failed with {process.returncode}: {errors.read().decode()[-2000:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(wall_s=spent, cpu_s=usage.ru_utime + usage.ru_stime, peak_bytes=usage.ru_maxrss * unit, said=said)


def python(code: str, *arguments: object, folder: Path | None = None) -> Run:
    """A process of Python with this code; it keeps byte code in `folder`, as an installed package has it."""
    kept = {"PYTHONPYCACHEPREFIX": str(folder / "byte-code"), "PYTHONDONTWRITEBYTECODE": ""} if folder else {}
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    return measured(command, env=os.environ | kept)


def best(runs: Sequence[Run]) -> Run:
    """The run with the least CPU time."""
    return min(runs, key=lambda one: one.cpu_s)


def timed(work: Callable[[], _T], clock: Callable[[], float] = time.process_time) -> tuple[float, _T]:
    """Seconds that a call takes in this process, of CPU unless another clock is given, and what it returns."""
    begun = clock()
    result = work()
    return clock() - begun, result


def exponent(curve: Mapping[int, float], start: float = 0.0) -> float:
    """The exponent between the two largest sizes, without what a start costs whatever the size."""
    small, large = sorted(curve)[-2:]
    least = 1e-6
    return math.log(max(curve[large] - start, least) / max(curve[small] - start, least)) / math.log(large / small)


def told(what: str, curve: Mapping[int, float], start: float = 0.0) -> str:
    """The curve in one line, with its exponent."""
    points = ", ".join(f"{size:,}: {seconds:.3f} s" for size, seconds in sorted(curve.items()))
    return f"{what}: {points}; exponent {exponent(curve, start):.2f} (at most {MOST})"


def llama_shapes(hidden: int, inner: int, keys: int) -> dict[str, tuple[int, int]]:
    """The shapes of a layer's weights, by their names in it."""
    outs = {"q": hidden, "k": keys, "v": keys, "o": hidden}
    attention = {f"self_attn.{name}_proj": (out, hidden) for name, out in outs.items()}
    return (
        attention
        | {f"mlp.{name}_proj": (inner, hidden) for name in ("gate", "up")}
        | {"mlp.down_proj": (hidden, inner)}
    )


def model_shapes(hidden: int, inner: int, keys: int, vocabulary: int, layers: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a whole model with an output head of its own, by name."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        of_layer = llama_shapes(hidden, inner, keys)
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in of_layer.items()}
        shapes |= {f"model.layers.{layer}.{n}_layernorm.weight": (hidden,) for n in ("input", "post_attention")}
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


def write_random_adapter(
    folder: Path,
    shapes: Mapping[str, tuple[int, int]],
    layers: int,
    *,
    rank: int,
    seed: int = 0,
    dtype: str = "float32",
    size: float = 0.02,
) -> None:
    """An adapter of scale 2 on weights of these shapes in every layer, of random numbers of that size."""
    import torch

    from adapterhub.formats.safetensors.header import TensorSpec
    from adapterhub.weights.dtypes import FORMAT_DTYPES
    from adapterhub.weights.lowrank.factors import TensorFileWriter

    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "task_type": "CAUSAL_LM", "bias": "none"}
    config |= {"base_model_name_or_path": "bench/llama", "target_modules": [n.split(".")[1] for n in shapes]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors: dict[str, tuple[int, int]] = {}
    for layer in range(layers):
        for name, (out, width) in shapes.items():
            module = f"base_model.model.model.layers.{layer}.{name}"
            tensors |= {f"{module}.lora_A.weight": (rank, width), f"{module}.lora_B.weight": (out, rank)}
    stored = getattr(torch, dtype)
    planned = [TensorSpec.planned(name, FORMAT_DTYPES[stored], shape) for name, shape in tensors.items()]
    generator = torch.Generator().manual_seed(seed)
    with TensorFileWriter(folder / "adapter_model.safetensors", planned) as writer:
        for name, shape in tensors.items():
            writer.add(name, (size * torch.randn(shape, generator=generator)).to(stored))
