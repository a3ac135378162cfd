"""LoRA files of other programs: a folder listed, and large files added, against `sha256sum` of them.

    python -m tests.bench.bench_foreign [--files 500] [--megabytes 200] [--runs 3]

Bars: 500 files listed in at most 20 s with a cold page cache; a file of 200 MB added to a library at half of
sha256sum's speed or more, with the memory of one module beyond what `adapt --help` takes. Each add needs three digests:
of the file, of its data, of the weights made of it. `three digests` is what they alone cost, in three threads.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from adapterhub.formats.foreign.tables import SD1, SDXL
from adapterhub.formats.safetensors.file import header_bytes
from adapterhub.formats.safetensors.header import TensorSpec
from tests.bench.harness import given, measured
from tests.support.foreign_files import flux_modules

WIDTH = 3072


def write(path: Path, specs: list[TensorSpec], seed: int, said: dict[str, str]) -> None:
    """A file of random bf16 numbers near 1, written tensor by tensor."""
    random = np.random.default_rng(seed)
    with path.open("wb") as sink:
        sink.write(header_bytes(specs, said))
        for spec in specs:
            sink.write((random.standard_normal(spec.elements, "f4").view("u4") >> 16).astype("u2").tobytes())


def pair(key: str, out: int, width: int, rank: int) -> list[TensorSpec]:
    """A pair of kohya."""
    shapes = {"lora_down": (rank, width), "lora_up": (out, rank)}
    return [TensorSpec.planned(f"{key}.{half}.weight", "BF16", shape) for half, shape in shapes.items()]


def flux_file(path: Path, megabytes: int, *, fused: bool = True) -> None:
    """A LoRA on the attention of FLUX.1 at real widths, of about that size.

    kohya's names: q, k and v are fused, and each gets its own copy of A. diffusers': every tensor stays one.
    """
    outs = {"qkv": 3 * WIDTH, "linear1": 7 * WIDTH}
    names = [n for n in flux_modules() if n.rpartition(".")[2] in ("qkv", "proj", "linear1")]
    if not fused:
        names = [target.name for n in names for target in flux_modules()[n] if ".attn." in target.name]
    sizes = [(n, outs.get(n.rpartition(".")[2], WIDTH)) for n in names]
    rank = max(1, round(megabytes * 1e6 / 2 / sum(out + WIDTH for _, out in sizes)))
    if fused:
        specs = [spec for n, out in sizes for spec in pair(f"lora_unet_{n.replace('.', '_')}", out, WIDTH, rank)]
        write(path, specs, 0, {"ss_network_module": "networks.lora_flux"})
        return
    halves = {"lora_A": (rank, WIDTH), "lora_B": (WIDTH, rank)}
    write(
        path,
        [
            TensorSpec.planned(f"transformer.{n}.{half}.weight", "BF16", shape)
            for n, _ in sizes
            for half, shape in halves.items()
        ],
        0,
        {},
    )


def small_files(folder: Path, count: int) -> None:
    """kohya's files for SD 1 and SDXL, every tenth a copy of the one before it under another header."""
    folder.mkdir()
    tags = json.dumps({"10_x": {f"tag {n}": n for n in range(200)}})
    for number in range(count):
        unet = SDXL if number % 2 else SD1
        names = [n for n in (unet.ldm.values() if number % 2 else unet.ldm) if "attn" in n]
        specs = [s for n in names for s in pair(f"lora_unet_{n.replace('.', '_')}", 64, 64, 4 + number % 3)]
        seed = number - 1 if number % 10 == 9 else number
        write(folder / f"style-{number:03}.safetensors", specs, seed, {"ss_tag_frequency": tags, "n": str(number)})


def cold(folder: Path) -> None:
    """Drop the files of a folder from the page cache."""
    for path in folder.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(command: list[str]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak memory in MB of one finished process."""
    done = measured(command)
    return done.wall_s, done.cpu_s, done.peak_bytes / 1e6


def digests(large: Path, weights: Path) -> tuple[float, float]:
    """Wall and CPU seconds of the digests that an add needs, from the page cache."""

    def digest(path: Path) -> str:
        hasher = hashlib.sha256()
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                hasher.update(block)
        return hasher.hexdigest()

    start, spent = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(3) as threads:
        for _ in threads.map(digest, (large, large, weights)):
            pass
    return time.perf_counter() - start, time.process_time() - spent


def compare(what: str, adapt: str, large: Path, small: Path, runs: int) -> None:
    """Add the large file, in turns with `sha256sum` of it and with its three digests, and print the least of each."""
    adds, sums, floors, idles = [], [], [], []
    for _ in range(runs + 1):
        with tempfile.TemporaryDirectory() as home:
            root = ["--root", home, "--no-base"]
            run([adapt, "add", str(small), *root])  # the first command of a library makes its index, too
            adds.append(run([adapt, "add", str(large), *root]))
            weights = max(Path(home, "adapters").rglob("*.safetensors"), key=lambda path: path.stat().st_size)
            floors.append(digests(large, weights))
            made = weights.stat().st_size
        idles.append(run([adapt, "--version"]))
        sums.append(run(["sha256sum", str(large)]))
    print(f"{what}: {large.stat().st_size / 1e6:.0f} MB, which make {made / 1e6:.0f} MB")
    for unit, n in (("wall", 0), ("CPU", 1)):
        mine, idle, peer, floor = (min(one[n] for one in column[1:]) for column in (adds, idles, sums, floors))
        print(
            f"  {unit}: adapt add {mine:.2f} s, of which starting {idle:.2f} s; sha256sum {peer:.2f} s: "
            f"speed {peer / (mine - idle):.2f} of it (at least 0.5); three digests {floor:.2f} s: {peer / floor:.2f}"
        )
    print(f"  memory {max(one[2] for one in adds):.0f} MB, idle {idles[-1][2]:.0f} MB")


def main() -> None:
    """Measure and print."""
    options = given(__doc__, files=500, megabytes=200, runs=3)
    adapt = str(Path(sys.executable).parent / "adapt")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "loras")
        small_files(folder, options.files)
        size = sum(path.stat().st_size for path in folder.iterdir())
        listed = []
        for _ in range(options.runs):
            cold(folder)
            listed.append(run([adapt, "identify", str(folder), "--root", f"{place}/home"]))
        wall, spent, memory = (statistics.median(column) for column in zip(*listed, strict=True))
        print(
            f"{options.files} files, {size / 1e6:.0f} MB listed cold in {wall:.1f} s (at most 20), CPU {spent:.1f} s, "
            f"{memory:.0f} MB"
        )
        small = min(folder.iterdir())
        for what, fused in (("kohya's names, q, k and v fused", True), ("diffusers' names", False)):
            large = Path(place, "flux.safetensors")
            flux_file(large, options.megabytes, fused=fused)
            compare(what, adapt, large, small, options.runs)
        print(f"this machine: {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
