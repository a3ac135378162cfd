"""`adapt compare` of two r=16 adapters of Llama-2-7B shapes, the whole process, beside the dense way on one module.

    OMP_NUM_THREADS=1 python -m tests.bench.bench_compare [--dtype bfloat16|float32] [--repeat 3] [--dense SIZE]

Measured is the command from argv to the last table (seconds of wall clock and of CPU, peak resident memory), best of
`--repeat` runs; `import torch` alone is measured in the same way, as is what lies between. The adapters are random and
in the page cache when they are read.

`--dense` times what one finds in notebooks, on one linear layer of that size (1024, or 4096 for the
model's own, which takes minutes): both updates are formed as float32 matrices, flattened for their cosine, and taken
apart by `torch.linalg.svd` for spectra and spaces. The same figures are then taken our way, and the difference is
shown. The dense time times the number of modules of that size or larger is a projection, and printed as one.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from tests.bench.bench_merge import IMPORT_TORCH, LAYERS, RANK, SHAPES, write_adapter
from tests.bench.harness import best, given, python

COMPARE = "import sys; from adapterhub.cli import main; sys.argv = ['adapt', 'compare', *sys.argv[1:]]; main()"


def bench_command(dtype: str, repeat: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / name for name in "ab"]
        for seed, folder in enumerate(folders):
            write_adapter(folder, seed, dtype)
        size = (folders[0] / "adapter_model.safetensors").stat().st_size
        bare = best([python(IMPORT_TORCH) for _ in range(repeat)])
        runs = [python(COMPARE, *folders, "--quiet") for _ in range(repeat)]
    compared = best(runs)
    print(f"two adapters r={RANK}, {LAYERS} x {len(SHAPES)} modules, {dtype}, {size / 1e6:.0f} MB each")
    print(f"{'':24}{'wall s':>8}{'CPU s':>8}{'peak MB':>9}")
    for label, one in (("import torch", bare), ("adapt compare", compared)):
        print(f"{label:24}{one.wall_s:8.2f}{one.cpu_s:8.2f}{one.peak_bytes / 1e6:9.0f}")
    peak = (compared.peak_bytes - bare.peak_bytes) / 1e6
    print(
        f"{'besides importing torch':24}{compared.wall_s - bare.wall_s:8.2f}{compared.cpu_s - bare.cpu_s:8.2f}{peak:9.0f}"
    )


def bench_dense(size: int) -> None:
    import torch

    from adapterhub.formats.derived.algebra import ArrayUpdate
    from adapterhub.formats.derived.comparison import compare_module
    from adapterhub.formats.peft.pairs import FactorLayout
    from adapterhub.weights.lowrank.algebra import LowRank

    generator = torch.Generator().manual_seed(0)
    deltas = [
        LowRank(
            a=0.02 * torch.randn(RANK, size, generator=generator),
            b=0.02 * torch.randn(size, RANK, generator=generator),
            scale=2.0,
        )
        for _ in range(2)
    ]
    begun = time.process_time()
    first, second = (d.scale * (d.b @ d.a) for d in deltas)
    cosine = float(torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0))
    left, values, _ = torch.linalg.svd(first)
    others, _, _ = torch.linalg.svd(second)
    overlap = float((left[:, :RANK].T @ others[:, :RANK]).square().sum() / RANK)
    dense_s = time.process_time() - begun

    layout = FactorLayout(kind="linear", out=size, a_shape=(size,))
    updates = [[ArrayUpdate(a=d.a.double().numpy(), b=d.b.double().numpy(), scale=d.scale)] for d in deltas]
    compare_module("q", layout, updates, [0.5, 0.5], 256)  # LAPACK is set up on first use
    begun = time.process_time()
    ours = compare_module("q", layout, updates, [0.5, 0.5], 256)
    ours_s = time.process_time() - begun
    [pair] = ours.pairs
    assert ours.updates[0] is not None
    assert pair.cosine is not None
    assert pair.overlap_left is not None
    apart = max(
        abs(cosine - pair.cosine),
        abs(overlap - pair.overlap_left),
        abs(float(values[0]) / ours.updates[0].values[0] - 1),
    )
    count = LAYERS * sum(min(shape) >= size for shape in SHAPES.values())
    print(f"one {size} x {size} module: dense {dense_s:.2f} s CPU, ours {ours_s * 1e3:.1f} ms CPU", end="")
    print(f" (forecast and signs included), {dense_s / ours_s:,.0f} times; figures differ by at most {apart:.1g}")
    print(
        f"projected, dense: {count} modules of at least this size x {dense_s:.2f} s = {count * dense_s / 60:,.1f} min"
    )


def main() -> None:
    arguments = given(__doc__, dtype=("bfloat16", "float32"), repeat=3, dense=0)
    bench_command(arguments.dtype, arguments.repeat)
    if arguments.dense:
        bench_dense(arguments.dense)


if __name__ == "__main__":
    main()
