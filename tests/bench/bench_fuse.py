"""`fuse` of an r=16 all-linear adapter into a bfloat16 base of TinyLlama-1.1B shapes (2.2 GB), beside copying that base.

    python -m tests.bench.bench_fuse [--layers 22] [--repeat 3] [--threads N] [--folder DIR]

Both are measured as whole processes, in turn, on the same files in the page cache: seconds of wall clock and of CPU, and
peak resident memory; best of `--repeat`. The copy is `shutil.copyfile` and an fsync of every file, and of the folder, as
`fuse` does it. Of fuse, the base is registered and its fingerprint cached, so what is compared is writing with copying;
`write` is its inner part, without importing torch and finding the adapter. The result's numbers are checked against a
dense float64 recomputation of one module.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import time
from pathlib import Path

from tests.bench.harness import Run, given, llama_shapes, model_shapes, python, write_random_adapter

HIDDEN, INNER, KEYS, VOCABULARY, RANK, LAYERS = 2048, 5632, 256, 32000, 16, 22
SHAPES = llama_shapes(HIDDEN, INNER, KEYS)

COPY = """
import os, shutil, sys, time
from pathlib import Path
source, target = Path(sys.argv[1]), Path(sys.argv[2])
def sync(path):
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
begun = time.perf_counter()
target.mkdir()
for path in sorted(source.iterdir()):
    shutil.copyfile(path, target / path.name)
    sync(target / path.name)
sync(target)
print(time.perf_counter() - begun)
"""
FUSE = """
import sys, time
from pathlib import Path
from adapterhub.weights.fuse import prepare
home, adapter, out, threads = sys.argv[1:]
with prepare(Path(adapter), Path(out), library=home, base="base") as fusion:
    begun = time.perf_counter()
    fused = fusion.write(threads=int(threads) or None)
    print(time.perf_counter() - begun, fused.relative_error, fused.unchanged)
"""


def write_base(folder: Path, layers: int) -> None:
    """A sharded base with random weights of standard deviation 0.02, as transformers names and indexes them."""
    import torch

    from adapterhub.formats.safetensors.header import TensorSpec
    from adapterhub.weights.lowrank.factors import TensorFileWriter

    shapes = model_shapes(HIDDEN, INNER, KEYS, VOCABULARY, layers)
    folder.mkdir()
    names = sorted(shapes)
    half = len(names) // 2
    generator = torch.Generator().manual_seed(0)
    places = {}
    for number, part in enumerate((names[:half], names[half:]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        planned = [TensorSpec.planned(name, "BF16", shapes[name]) for name in part]
        with TensorFileWriter(folder / file, planned) as writer:
            for name in part:
                numbers = torch.empty(shapes[name], dtype=torch.bfloat16).normal_(std=0.02, generator=generator)
                writer.add(name, numbers)
                places[name] = file
    size = sum(2 * math.prod(shape) for shape in shapes.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False}
    config |= {"hidden_size": HIDDEN, "num_hidden_layers": layers, "vocab_size": VOCABULARY, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    for path in folder.iterdir():  # a file of this very second is not cached
        os.utime(path, (time.time() - 60,) * 2)


def check(base: Path, adapter: Path, out: Path) -> float:
    """Largest difference of one module's numbers from a dense recomputation; 0 where all are rounded alike."""
    import torch
    from safetensors import safe_open

    name = "model.layers.0.self_attn.k_proj"
    file = json.loads((base / "model.safetensors.index.json").read_text())["weight_map"][f"{name}.weight"]
    with safe_open(base / file, "pt") as old, safe_open(out / file, "pt") as new:
        weight, fused = old.get_tensor(f"{name}.weight").double(), new.get_tensor(f"{name}.weight")
    with safe_open(adapter / "adapter_model.safetensors", "pt") as factors:
        a, b = (factors.get_tensor(f"base_model.model.{name}.lora_{side}.weight").double() for side in "AB")
    return float((torch.add(weight, b @ a, alpha=2.0).to(fused.dtype) - fused).abs().max())


def prepare(root: Path, layers: int) -> None:
    """Base, adapter, and a library that knows the base."""
    from adapterhub.library.library import Library

    write_base(root / "base", layers)
    # its update is about 2 % of the weights
    write_random_adapter(root / "adapter", SHAPES, layers, rank=RANK, seed=1, size=0.007)
    Library(root / "home").bases.add(root / "base", "base")


def here(call: str) -> str:
    """Code for a process of its own: what is measured counts the memory of the process that began it as well."""
    return f"import sys; from pathlib import Path; from tests.bench import bench_fuse; print(bench_fuse.{call})"


def bench(root: Path, layers: int, repeat: int, threads: int) -> None:
    base, adapter = root / "base", root / "adapter"
    python(here("prepare(Path(sys.argv[1]), int(sys.argv[2]))"), root, layers)
    size = sum(path.stat().st_size for path in base.iterdir())
    copies: list[Run] = []
    fusions: list[Run] = []
    for i in range(repeat):
        copy, out = root / f"copy{i}", root / f"fused{i}"
        copies.append(python(COPY, base, copy))
        shutil.rmtree(copy)
        fusions.append(python(FUSE, root / "home", adapter, out, threads))
        apart = float(python(here("check(*map(Path, sys.argv[1:]))"), base, adapter, out).said)
        shutil.rmtree(out)
    torch = min((python("import torch") for _ in range(repeat)), key=lambda one: one.wall_s)
    copied = min(copies, key=lambda one: one.wall_s)
    fused = min(fusions, key=lambda one: one.wall_s)
    write_s, error, unchanged = (float(text) for text in fused.said.split())
    print(f"base of {size / 1e9:.2f} GB in bfloat16, r={RANK} on {layers * len(SHAPES)} modules")
    print(f"rounding lost {error:.3g} of the update, {unchanged:.1%} of its entries; one module checked: {apart:g} off")
    print(f"{'':24}{'wall s':>8}{'CPU s':>8}{'peak MB':>9}{'MB/s':>8}")
    for label, one in (("copy", copied), ("import torch", torch), ("fuse, whole process", fused)):
        rate = "" if one is torch else f"{size / one.wall_s / 1e6:8.0f}"
        print(f"{label:24}{one.wall_s:8.2f}{one.cpu_s:8.2f}{one.peak_bytes / 1e6:9.0f}{rate}")
    print(f"{'fuse, write alone':24}{write_s:8.2f}{'':17}{size / write_s / 1e6:8.0f}")
    more = (fused.peak_bytes - torch.peak_bytes) / 1e6
    print(f"write takes {write_s / float(copied.said):.2f} times the copy, and {more:.0f} MB besides torch")


def main() -> None:
    arguments = given(__doc__, layers=LAYERS, repeat=3, threads=0, folder=Path)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        bench(Path(temporary), arguments.layers, arguments.repeat, arguments.threads)


if __name__ == "__main__":
    main()
