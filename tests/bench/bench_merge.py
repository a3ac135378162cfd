"""`merge --method svd` of two r=16 adapters of Llama-2-7B shapes, files to file, beside PEFT on one module.

    OMP_NUM_THREADS=1 python -m tests.bench.bench_merge [--dtype bfloat16|float32] [--rank 16] [--peft [SIZE]]

Measured is the whole process (seconds of wall clock and of CPU, peak resident memory), best of `--repeat` runs; `import
torch` alone is measured in the same way and shown, as is what lies between. The adapters are random and written to a
temporary folder first; they are in the page cache when they are read. `--peft` times PEFT's
`add_weighted_adapter(combination_type="svd")` on one linear layer of that size (4096 takes about a minute and a half)
and our core method on the same numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HIDDEN, INNER, LAYERS, RANK = 4096, 11008, 32, 16
SHAPES = {
    **{f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"},
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}

IMPORT_TORCH = "import torch"
MERGE = """
import sys
from pathlib import Path
from adapterhub.merge import MergeInput, merge
first, second, out, method, rank = sys.argv[1:]
inputs = [MergeInput(folder=Path(first), label="a", weight=0.7), MergeInput(folder=Path(second), label="b", weight=0.3)]
result = merge(inputs, Path(out), method=method, rank=int(rank) if method == "svd" else None)
print(result.relative_error)
"""


@dataclass(frozen=True)
class Run:
    """One process: seconds on the wall, seconds of CPU, peak resident bytes, what it printed."""

    wall_s: float
    cpu_s: float
    peak_bytes: int
    said: str


def run(code: str, *arguments: str) -> Run:
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE)
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


def write_adapter(folder: Path, seed: int, dtype_name: str) -> None:
    import torch

    from adapterhub.factors import FORMAT_DTYPES, TensorFileWriter
    from adapterhub.tensorfile import TensorSpec

    folder.mkdir()
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 32, "task_type": "CAUSAL_LM", "bias": "none"}
    config |= {"base_model_name_or_path": "bench/llama-2-7b", "target_modules": [n.split(".")[1] for n in SHAPES]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    dtype = getattr(torch, dtype_name)
    shapes = {}
    for layer in range(LAYERS):
        for name, (out, width) in SHAPES.items():
            module = f"base_model.model.model.layers.{layer}.{name}"
            shapes |= {f"{module}.lora_A.weight": (RANK, width), f"{module}.lora_B.weight": (out, RANK)}
    planned = [TensorSpec.planned(name, FORMAT_DTYPES[dtype], shape) for name, shape in shapes.items()]
    generator = torch.Generator().manual_seed(seed)
    with TensorFileWriter(folder / "adapter_model.safetensors", planned) as writer:
        for name, shape in shapes.items():
            writer.add(name, (0.02 * torch.randn(shape, generator=generator)).to(dtype))


def bench_files(dtype: str, method: str, rank: int, repeat: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for seed, name in enumerate("ab"):
            write_adapter(folder / name, seed, dtype)
        size = (folder / "a" / "adapter_model.safetensors").stat().st_size
        bare = min((run(IMPORT_TORCH) for _ in range(repeat)), key=lambda r: r.cpu_s)
        merges = []
        for i in range(repeat):
            out = folder / f"out{i}"
            merges.append(run(MERGE, str(folder / "a"), str(folder / "b"), str(out), method, str(rank)))
            written = (out / "adapter_model.safetensors").stat().st_size
            (out / "adapter_model.safetensors").unlink()
        merged = min(merges, key=lambda r: r.cpu_s)
    print(f"two adapters r={RANK}, {LAYERS} x {len(SHAPES)} modules, {dtype}, {size / 1e6:.0f} MB each")
    print(f"written: {written / 1e6:.0f} MB float32, method {method}, relative error {float(merged.said):.3g}")
    print(f"{'':24}{'wall s':>8}{'CPU s':>8}{'peak MB':>9}")
    for label, one in (("import torch", bare), (f"merge {method}", merged)):
        print(f"{label:24}{one.wall_s:8.2f}{one.cpu_s:8.2f}{one.peak_bytes / 1e6:9.0f}")
    peak = (merged.peak_bytes - bare.peak_bytes) / 1e6
    print(
        f"{'besides importing torch':24}{merged.wall_s - bare.wall_s:8.2f}{merged.cpu_s - bare.cpu_s:8.2f}{peak:9.0f}"
    )


def bench_peft(size: int) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    from adapterhub.lowrank import LowRank, cut, difference_norms, stack

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(size, size, bias=False))
    config = LoraConfig(r=RANK, lora_alpha=32, target_modules=["0"], init_lora_weights=False)
    model = get_peft_model(model, config, adapter_name="first")
    model.add_adapter("second", config)
    layer = model.base_model.model[0]
    deltas = [
        LowRank(a=layer.lora_A[n].weight.data, b=layer.lora_B[n].weight.data, scale=2.0) for n in ("first", "second")
    ]
    begun = time.process_time()
    model.add_weighted_adapter(["first", "second"], [0.7, 0.3], "sum", combination_type="svd", svd_rank=RANK)
    theirs_s = time.process_time() - begun
    cut(stack(deltas, [0.7, 0.3]), rank=RANK)  # LAPACK is set up on first use
    begun = time.process_time()
    ours = cut(stack(deltas, [0.7, 0.3]), rank=RANK)
    ours_s = time.process_time() - begun
    theirs = LowRank(a=layer.lora_A["sum"].weight.data, b=layer.lora_B["sum"].weight.data)
    error, norm = difference_norms([theirs], [1.0], ours)
    print(f"one {size} x {size} module: PEFT svd {theirs_s:.2f} s CPU, ours {ours_s * 1e3:.1f} ms CPU", end="")
    print(f", {theirs_s / ours_s:,.0f} times; results differ by {error / norm:.1g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the inputs")
    parser.add_argument("--method", choices=("svd", "cat"), default="svd")
    parser.add_argument("--rank", type=int, default=RANK)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--peft", type=int, nargs="?", const=1024, metavar="SIZE")
    arguments = parser.parse_args()
    bench_files(arguments.dtype, arguments.method, arguments.rank, arguments.repeat)
    if arguments.peft:
        bench_peft(arguments.peft)


if __name__ == "__main__":
    main()
