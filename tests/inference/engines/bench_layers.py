"""What LoRA costs the layers of one step whose rows are all for the base: vLLM's operations, and those of the plugin.

    PYTHONPATH=. OMP_NUM_THREADS=1 VLLM_PYTHON -m tests.inference.engines.bench_layers

Runs in an interpreter that has vLLM before 0.33 for CPUs, with the shapes of SmolLM2-135M, eight rows and eight slots of
rank 16. Prints milliseconds of CPU a step, the least of 20.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from adapterhub.vllm_plugin.cpu_rows import replace_operations, skip_base_batches

LAYERS, HIDDEN, KEYS, INNER, VOCABULARY = 30, 576, 192, 1536, 49152
ROWS, SLOTS, RANK, STEPS = 8, 8, 16, 20
LINEAR = [(HIDDEN, (HIDDEN, KEYS, KEYS)), (HIDDEN, (HIDDEN,)), (HIDDEN, (INNER, INNER)), (INNER, (HIDDEN,))]
"""Width of the input and widths of the outputs: queries, keys and values; attention's output; gate and up; down."""


def step_of(punica: Any) -> Callable[[], None]:
    """All updates of one step, by the operations that `punica` has now."""
    from vllm.lora.layers.utils import LoRAMapping

    wrapper = punica.PunicaWrapperCPU(2048, ROWS, device="cpu")
    rows = (0,) * ROWS
    wrapper.update_metadata(LoRAMapping(rows, rows, is_prefill=True), [None] * SLOTS, SLOTS, VOCABULARY)

    def weights(outputs: tuple[int, ...], inputs: int) -> tuple[torch.Tensor, ...]:
        return tuple(torch.zeros(SLOTS, 1, width, inputs) for width in outputs)

    linear = [
        (torch.zeros(ROWS, sum(outputs)), torch.ones(ROWS, inputs),
         weights((RANK,) * len(outputs), inputs), weights(outputs, RANK), 1.0, outputs)
        for inputs, outputs in LINEAR
    ]  # fmt: skip
    (down,), (up,) = weights((RANK,), HIDDEN), weights((VOCABULARY,), RANK)
    logits, states = torch.zeros(ROWS, VOCABULARY), torch.ones(ROWS, HIDDEN)

    def step() -> None:
        for _ in range(LAYERS):
            for layer in linear:
                wrapper.add_lora_linear(*layer)
        wrapper.add_lora_logits(logits, states, down, up, 1.0)

    return step


def least_ms(step: Callable[[], None]) -> float:
    step()
    times = []
    for _ in range(STEPS):
        start = time.thread_time()
        step()
        times.append(1000 * (time.thread_time() - start))
    return round(min(times), 2)


def main() -> int:
    torch.set_num_threads(1)
    punica = importlib.import_module("vllm.lora.punica_wrapper.punica_cpu")
    found = {"vLLM": least_ms(step_of(punica))}
    replace_operations(punica)
    found["the plugin's operations"] = least_ms(step_of(punica))
    skip_base_batches(punica.PunicaWrapperCPU)
    found["the plugin"] = least_ms(step_of(punica))
    print(json.dumps({"CPU ms a step": found}, indent=1))  # noqa: T201 - its report
    return 0


if __name__ == "__main__":
    sys.exit(main())
