"""Merging two r=16 adapters of Llama-2-7B shapes, files to file, method by method, beside the floor.

    OMP_NUM_THREADS=1 python -m tests.bench.bench_merge [--methods cat svd ties …] [--dtype bfloat16|float32] [--repeat 5]
    OMP_NUM_THREADS=1 python -m tests.bench.bench_merge --growth --methods cat svd

Measured is `adapt merge`, the whole process (seconds of wall clock and of CPU, peak resident memory), best of `--repeat`
runs by CPU, in turns with the floor: a process that imports torch, and one that reads both files and writes as many
bytes as the merge.
The last two columns are the method's time over these two together, by the clock and by the processor: the median of the
turns, whose range the line below gives. Beside other work only the second means something. The adapters are random and
written to a temporary folder first; they are in the page cache when they are read. Python keeps its byte code in that
folder, as an installed package has it. What PEFT takes, module by module, is measured by `tests.bench.bench_merge_methods`.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from statistics import median

from tests.bench.harness import best, given, llama_shapes, python, told, write_random_adapter

HIDDEN, INNER, LAYERS, RANK = 4096, 11008, 32, 16
SHAPES = llama_shapes(HIDDEN, INNER, HIDDEN)
DTYPES = ("bfloat16", "float32")
GROWTH_LAYERS, SMALL_PART = (2, 20, 200, 2000), 64

IMPORT_TORCH = "import torch"
FLOOR = """
import sys
first, second, out, size = sys.argv[1:]
data = b"".join(open(path, "rb").read() for path in (first, second))
size = int(size)
with open(out, "wb") as stream:
    while size:
        size -= stream.write(memoryview(data)[:size])
"""
MERGE = "from adapterhub.cli import main; main()"


def write_adapter(folder: Path, seed: int, dtype: str) -> None:
    """An adapter of a Llama-2-7B."""
    write_random_adapter(folder, SHAPES, LAYERS, rank=RANK, seed=seed, dtype=dtype)


def grow(folder: Path, method: str, dtype_name: str) -> str:
    """The CPU time of merging 14 to 14,000 small modules in one process, and how it grows."""
    from adapterhub.weights.merge import MergeInput, merge

    curve = {}
    for layers in GROWTH_LAYERS:
        both = [folder / f"{name}{layers}" for name in "ab"]
        for seed, one in enumerate(both):
            small = {name: (out // SMALL_PART, width // SMALL_PART) for name, (out, width) in SHAPES.items()}
            write_random_adapter(one, small, layers, rank=RANK, seed=seed, dtype=dtype_name)
        inputs = [MergeInput(folder=one, label=one.name, weight=0.5) for one in both]
        times = []
        for turn in range(1 if layers == max(GROWTH_LAYERS) else 3):  # the largest takes a minute
            begun = time.process_time()
            merge(inputs, folder / f"merged{layers}-{turn}", method=method, rank=RANK if method == "svd" else None)
            times.append(time.process_time() - begun)
        curve[layers * len(SHAPES)] = min(times)
    return told(f"{method}, modules of {HIDDEN // SMALL_PART} columns", curve)


def of_turns(ratios: list[float]) -> str:
    """The range of a ratio over the turns."""
    return f"{min(ratios):.2f} to {max(ratios):.2f}"


def main() -> None:
    arguments = given(
        __doc__,
        dtype=DTYPES,
        out_dtype=DTYPES[::-1],
        rank=RANK,
        growth=False,
        repeat=5,
        methods=["cat", "svd", "ties", "knots", "core", "ties_svd"],
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if arguments.growth:
            for method in arguments.methods:
                print(grow(folder / method, method, arguments.dtype), flush=True)
            return
        for seed, name in enumerate("ab"):
            write_adapter(folder / name, seed, arguments.dtype)
        files = [folder / name / "adapter_model.safetensors" for name in "ab"]
        size = files[0].stat().st_size
        print(f"two adapters r={RANK}, {LAYERS} x {len(SHAPES)} modules, {arguments.dtype}, {size / 1e6:.0f} MB each")
        print(
            f"{'':20}{'wall s':>8}{'CPU s':>8}{'peak MB':>9}{'written':>9}{'error':>9}{'times floor':>13}{'by CPU':>8}"
        )
        python("import adapterhub.api.weights, adapterhub.weights.merge", folder=folder)  # leaves the byte code
        for method in arguments.methods:
            rank = [f"--rank={arguments.rank}"] if arguments.rank and method in ("svd", "ties_svd") else []
            command = ["merge", *(str(file.parent) for file in files), "--weights=0.7,0.3", f"--method={method}", *rank]
            command += [f"--dtype={arguments.out_dtype}", f"--root={folder / 'home'}", "--json"]
            bares, runs, raws = [], [], []
            for i in range(1 if method.endswith("_svd") else arguments.repeat):
                bares.append(python(IMPORT_TORCH, folder=folder))
                out = folder / f"{method}{i}"
                runs.append(python(MERGE, *command, "-o", out, folder=folder))
                written = (out / "adapter_model.safetensors").stat().st_size
                (out / "adapter_model.safetensors").unlink()
                raws.append(python(FLOOR, *files, folder / "raw", written, folder=folder))
            merged, raw, bare = best(runs), best(raws), best(bares)
            turns = list(zip(runs, raws, bares, strict=True))
            by_clock = [ours.wall_s / (read.wall_s + torch.wall_s) for ours, read, torch in turns]
            by_cpu = [ours.cpu_s / (read.cpu_s + torch.cpu_s) for ours, read, torch in turns]
            print(f"{'import torch':20}{bare.wall_s:8.2f}{bare.cpu_s:8.2f}{bare.peak_bytes / 1e6:9.0f}")
            error = json.loads(merged.said)["relative_error"]
            print(f"{f'read, write ({method})':20}{raw.wall_s:8.2f}{raw.cpu_s:8.2f}{raw.peak_bytes / 1e6:9.0f}")
            print(
                f"{method:20}{merged.wall_s:8.2f}{merged.cpu_s:8.2f}{merged.peak_bytes / 1e6:9.0f}"
                f"{written / 1e6:9.0f}{error:9.2g}{median(by_clock):13.2f}{median(by_cpu):8.2f}",
                flush=True,
            )
            if len(turns) > 1:
                print(f"  {len(turns)} turns: times floor {of_turns(by_clock)}, by CPU {of_turns(by_cpu)}", flush=True)


if __name__ == "__main__":
    main()
