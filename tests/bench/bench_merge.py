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

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.growth import told

HIDDEN, INNER, LAYERS, RANK = 4096, 11008, 32, 16
SHAPES = {
    **{f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"},
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
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


@dataclass(frozen=True)
class Run:
    """One process: seconds on the wall, seconds of CPU, peak resident bytes, what it printed."""

    wall_s: float
    cpu_s: float
    peak_bytes: int
    said: str


def measured(command: Sequence[str], **options: Any) -> Run:
    """One process to its end; an error ends the benchmark."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, **options)
    assert process.stdout is not None
    said = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    if process.returncode:
        raise SystemExit(f"the measured process failed with {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(
        wall_s=time.perf_counter() - begun,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_bytes=usage.ru_maxrss * unit,
        said=said.strip(),
    )


def run(folder: Path, code: str, *arguments: str) -> Run:
    """Python with this code; keeps byte code in `folder`, and what is warned of for an error."""
    environ = os.environ | {"PYTHONPYCACHEPREFIX": str(folder / "byte-code"), "PYTHONDONTWRITEBYTECODE": ""}
    with (folder / "warnings").open("w+") as warnings:
        try:
            return measured([sys.executable, "-c", code, *arguments], stderr=warnings, env=environ)
        except SystemExit as failed:
            warnings.seek(0)
            raise SystemExit(f"{failed}: {warnings.read()}") from None


def write_adapter(folder: Path, seed: int, dtype_name: str, layers: int = LAYERS, part: int = 1) -> None:
    """An adapter of `layers` layers whose matrices have a `part`-th of the rows and columns."""
    import torch

    from adapterhub.formats.safetensors.header import TensorSpec
    from adapterhub.weights.dtypes import FORMAT_DTYPES
    from adapterhub.weights.lowrank.factors import TensorFileWriter

    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 32, "task_type": "CAUSAL_LM", "bias": "none"}
    config |= {"base_model_name_or_path": "bench/llama-2-7b", "target_modules": [n.split(".")[1] for n in SHAPES]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    dtype = getattr(torch, dtype_name)
    shapes = {}
    for layer in range(layers):
        for name, (out, width) in ((name, (rows // part, columns // part)) for name, (rows, columns) in SHAPES.items()):
            module = f"base_model.model.model.layers.{layer}.{name}"
            shapes |= {f"{module}.lora_A.weight": (RANK, width), f"{module}.lora_B.weight": (out, RANK)}
    planned = [TensorSpec.planned(name, FORMAT_DTYPES[dtype], shape) for name, shape in shapes.items()]
    generator = torch.Generator().manual_seed(seed)
    with TensorFileWriter(folder / "adapter_model.safetensors", planned) as writer:
        for name, shape in shapes.items():
            writer.add(name, (0.02 * torch.randn(shape, generator=generator)).to(dtype))


def grow(folder: Path, method: str, dtype_name: str) -> str:
    """The CPU time of merging 14 to 14,000 small modules in one process, and how it grows."""
    from adapterhub.weights.merge import MergeInput, merge

    curve = {}
    for layers in GROWTH_LAYERS:
        both = [folder / f"{name}{layers}" for name in "ab"]
        for seed, one in enumerate(both):
            write_adapter(one, seed, dtype_name, layers, SMALL_PART)
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


def best(runs: list[Run]) -> Run:
    return min(runs, key=lambda r: r.cpu_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the inputs")
    parser.add_argument("--out-dtype", choices=("bfloat16", "float32"), default="float32", help="of the result")
    parser.add_argument("--methods", nargs="*", default=["cat", "svd", "ties", "knots", "core", "ties_svd"])
    parser.add_argument("--rank", type=int, default=RANK, help="for `svd` and `ties_svd`; 0: not cut")
    parser.add_argument("--growth", action="store_true", help="only how the time grows with the number of modules")
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
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
        run(folder, "import adapterhub.api.adapters, adapterhub.weights.merge")  # leaves the byte code
        for method in arguments.methods:
            rank = [f"--rank={arguments.rank}"] if arguments.rank and method in ("svd", "ties_svd") else []
            command = ["merge", *(str(file.parent) for file in files), "--weights=0.7,0.3", f"--method={method}", *rank]
            command += [f"--dtype={arguments.out_dtype}", f"--root={folder / 'home'}", "--json"]
            bares, runs, raws = [], [], []
            for i in range(1 if method.endswith("_svd") else arguments.repeat):
                bares.append(run(folder, IMPORT_TORCH))
                out = folder / f"{method}{i}"
                runs.append(run(folder, MERGE, *command, "-o", str(out)))
                written = (out / "adapter_model.safetensors").stat().st_size
                (out / "adapter_model.safetensors").unlink()
                raws.append(run(folder, FLOOR, *map(str, files), str(folder / "raw"), str(written)))
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
