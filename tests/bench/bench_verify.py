"""Throughput of `adapt verify` on one large adapter against `sha256sum` of its weights file, whole processes.

    python -m tests.bench.bench_verify [--gigabytes 3.5] [--runs 5]

Verify reads every byte once for the digest and once, in another thread, for NaN and infinity; the peer only hashes.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from adapterhub.formats.safetensors.file import header_bytes
from adapterhub.formats.safetensors.header import TensorSpec
from tests.bench.harness import Run, given, measured

WIDTH, RANK = 8192, 64


def make_adapter(folder: Path, gigabytes: float) -> Path:
    """A LoRA adapter of about that size: bf16 random factors, written module by module."""
    folder.mkdir()
    modules = max(1, round(gigabytes * 1e9 / (2 * RANK * WIDTH * 2)))
    prefix = "base_model.model.model.layers.{}.mlp.up_proj.lora_{}.weight"
    specs = []
    for layer in range(modules):
        specs += [
            TensorSpec.planned(prefix.format(layer, "A"), "BF16", (RANK, WIDTH)),
            TensorSpec.planned(prefix.format(layer, "B"), "BF16", (WIDTH, RANK)),
        ]
    random = np.random.default_rng(0)
    with (folder / "adapter_model.safetensors").open("wb") as sink:
        sink.write(header_bytes(specs, {"format": "pt"}))
        for spec in specs:
            sink.write((random.standard_normal(spec.elements, "f4").view("u4") >> 16).astype("u2").tobytes())
    config = {"peft_type": "LORA", "base_model_name_or_path": "test/large", "r": RANK, "lora_alpha": RANK}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["up_proj"]}))
    return folder / "adapter_model.safetensors"


CODES = (0, 17)
"""17: `verify` compares with no base."""


def medians(runs: list[Run]) -> tuple[float, float]:
    """The medians of seconds on the wall and of CPU."""
    return statistics.median(one.wall_s for one in runs), statistics.median(one.cpu_s for one in runs)


def main() -> None:
    """Measure and print."""
    options = given(__doc__, gigabytes=3.5, runs=5)
    adapt = Path(sys.executable).parent / "adapt"
    with tempfile.TemporaryDirectory() as folder:
        weights = make_adapter(Path(folder, "adapter"), options.gigabytes)
        ours_command = [str(adapt), "verify", str(weights.parent), "--root", f"{folder}/home"]
        ours, peer = [], []
        for turn in range(options.runs + 1):
            pair = measured(ours_command, codes=CODES), measured(["sha256sum", weights])
            if turn:  # the first turn fills the page cache
                ours.append(pair[0])
                peer.append(pair[1])
        size = weights.stat().st_size
        wall, cpu = medians(ours)
        peer_wall, peer_cpu = medians(peer)
        print(f"{size / 1e9:.2f} GB: adapt verify {wall:.2f} s wall, {cpu:.2f} s CPU, {size / wall / 1e9:.2f} GB/s")
        print(f"         sha256sum    {peer_wall:.2f} s wall, {peer_cpu:.2f} s CPU, {size / peer_wall / 1e9:.2f} GB/s")
        print(f"throughput against sha256sum: {peer_wall / wall:.2f} (at least 0.9)")


if __name__ == "__main__":
    main()
