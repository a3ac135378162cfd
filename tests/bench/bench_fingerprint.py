"""Throughput of `fingerprint_folder` against `sha256sum` on the same file: `python -m tests.bench.bench_fingerprint`.

Both run as whole processes, in turn, on a file that is in the page cache; the interpreter's start counts for ours.
Prints medians of wall and CPU seconds and the ratio of throughputs (more than 1: ours is faster); target 0.9.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from pathlib import Path

from adapterhub.formats.safetensors.file import header_bytes
from adapterhub.formats.safetensors.header import TensorSpec
from tests.bench.harness import Run, given, measured

TARGET = 0.9
MIB = 1 << 20
_OURS = """
import sys
from pathlib import Path
from adapterhub.formats.base.folders import fingerprint_folder
folder, threads, cache = Path(sys.argv[1]), int(sys.argv[2]) or None, sys.argv[3]
fingerprint_folder(folder, cache_folder=Path(cache) if cache else None, threads=threads)
"""


def write_model(path: Path, size_mib: int) -> None:
    """A file of random bytes cut as a decoder is: one large embedding, matrices, and small norms."""
    specs = [TensorSpec.planned("model.embed_tokens.weight", "BF16", (size_mib * MIB // 8 // 2 // 1024, 1024))]
    left, layer = size_mib * MIB - specs[0].size_bytes, 0
    while left > 8 * MIB:
        specs.append(TensorSpec.planned(f"model.layers.{layer}.mlp.weight", "BF16", (4096, 1024)))
        specs.append(TensorSpec.planned(f"model.layers.{layer}.norm.weight", "BF16", (1024,)))
        left -= specs[-1].size_bytes + specs[-2].size_bytes
        layer += 1
    with path.open("wb") as sink:
        sink.write(header_bytes(specs))
        for spec in specs:
            for begin in range(0, spec.size_bytes, 64 * MIB):
                sink.write(os.urandom(min(64 * MIB, spec.size_bytes - begin)))


def main() -> int:
    options = given(__doc__, mib=1024, runs=7)
    with tempfile.TemporaryDirectory() as place:
        folder, cache = Path(place) / "model", Path(place) / "cache"
        folder.mkdir()
        file = folder / "model.safetensors"
        write_model(file, options.mib)
        os.utime(file, (0, 0))  # old enough for the cache
        ours = [sys.executable, "-c", _OURS, str(folder)]
        commands = {
            "sha256sum": ["sha256sum", str(file)],
            "fingerprint, default threads": [*ours, "0", ""],
            "fingerprint, 1 thread": [*ours, "1", ""],
            "fingerprint, cached": [*ours, "0", str(cache)],
        }
        for command in commands.values():  # warms the page cache, and fills ours
            measured(command)
        times: dict[str, list[Run]] = {name: [] for name in commands}
        for _ in range(options.runs):
            for name, command in commands.items():
                times[name].append(measured(command))
    walls = {name: statistics.median(one.wall_s for one in runs) for name, runs in times.items()}
    cpus = {name: statistics.median(one.cpu_s for one in runs) for name, runs in times.items()}
    sys.stdout.write(f"{options.mib} MiB, {os.cpu_count()} processors, medians of {options.runs} alternating runs\n")
    for name in commands:
        rate = options.mib / walls[name]
        ratios = f"ratio {walls['sha256sum'] / walls[name]:.2f} wall, {cpus['sha256sum'] / cpus[name]:.2f} CPU"
        sys.stdout.write(
            f"{name:30} {walls[name]:6.3f} s wall  {cpus[name]:6.3f} s CPU  {rate:8,.0f} MiB/s  {ratios}\n"
        )
    reached = walls["sha256sum"] / walls["fingerprint, default threads"]
    sys.stdout.write(f"target {TARGET}: {'met' if reached >= TARGET else 'missed'} ({reached:.2f})\n")
    return 0 if reached >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
