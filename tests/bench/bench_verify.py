"""Throughput of `adapt verify` on one large adapter against `sha256sum` of its weights file, whole processes.

    python -m tests.bench.bench_verify [--gigabytes 3.5] [--runs 5]

Verify reads every byte once for the digest and once, in another thread, for NaN and infinity; the peer only hashes.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from adapterhub.formats.safetensors.file import header_bytes
from adapterhub.formats.safetensors.header import TensorSpec

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


def seconds(command: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of one finished process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, cpu


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=3.5)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    adapt = Path(sys.executable).parent / "adapt"
    with tempfile.TemporaryDirectory() as folder:
        weights = make_adapter(Path(folder, "adapter"), options.gigabytes)
        ours_command = [str(adapt), "verify", str(weights.parent), "--root", f"{folder}/home"]
        ours, peer = [], []
        for turn in range(options.runs + 1):
            pair = seconds(ours_command), seconds(["sha256sum", str(weights)])
            if turn:  # the first turn fills the page cache
                ours.append(pair[0])
                peer.append(pair[1])
        size = weights.stat().st_size
        wall, cpu = (statistics.median(column) for column in zip(*ours, strict=True))
        peer_wall, peer_cpu = (statistics.median(column) for column in zip(*peer, strict=True))
        print(f"{size / 1e9:.2f} GB: adapt verify {wall:.2f} s wall, {cpu:.2f} s CPU, {size / wall / 1e9:.2f} GB/s")
        print(f"         sha256sum    {peer_wall:.2f} s wall, {peer_cpu:.2f} s CPU, {size / peer_wall / 1e9:.2f} GB/s")
        print(f"throughput against sha256sum: {peer_wall / wall:.2f} (at least 0.9)")


if __name__ == "__main__":
    main()
