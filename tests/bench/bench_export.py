"""GGUF export against llama.cpp's own converter, on SmolLM2-135M and an adapter on all its linear layers.

    python -m tests.bench.bench_export [--converter DIR] [--rank 16] [--repeat 5] [--folder DIR]

The converter is no package. It comes with the sources of one: `pip download --no-deps --no-binary :all:
llama-cpp-python==0.3.36`, unpacked, has `vendor/llama.cpp/convert_lora_to_gguf.py`; `--converter` names that folder.
Without it only our side is measured. Both are whole processes, in turn, on the same files in the page cache: seconds of
wall clock and of CPU, peak resident memory; `inside` is the work without the imports. Of `--repeat` runs the one with the
least CPU.

For an adapter with one scale both files must mean the same, which is checked; for rsLoRA theirs means another adapter,
and the bench says by how much.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np

from tests.bench.harness import Run, given, llama_shapes, python
from tests.support.adapter_folders import write_folder
from tests.support.real_base import smollm2_base

HIDDEN, INNER, KEYS, LAYERS = 576, 1536, 192, 30
SHAPES = {
    f"model.layers.{layer}.{module}": shape
    for layer in range(LAYERS)
    for module, shape in llama_shapes(HIDDEN, INNER, KEYS).items()
}
OURS = """
import sys, time
from pathlib import Path
from adapterhub.inference.export import export, load
import gguf, numpy
load("gguf")
home, adapter, out = sys.argv[1:]
begun, cpu = time.perf_counter(), time.process_time()
export(Path(adapter), Path(out), form="gguf", library=home, base="smollm2")
print(time.perf_counter() - begun, time.process_time() - cpu)
"""
THEIRS = """
import runpy, sys, time
folder, base, adapter, out = sys.argv[1:]
sys.path[:0] = [folder, folder + "/gguf-py"]
import torch, transformers, gguf, conversion, conversion.llama
sys.argv = ["convert", "--base", base, "--outfile", out, adapter]
begun, cpu = time.perf_counter(), time.process_time()
runpy.run_path(folder + "/convert_lora_to_gguf.py", run_name="__main__")
print(time.perf_counter() - begun, time.process_time() - cpu)
"""


def updates(path: Path) -> dict[str, np.ndarray]:
    """What llama.cpp adds to each tensor."""
    import gguf

    reader = gguf.GGUFReader(path)
    alpha = reader.fields["adapter.lora.alpha"].contents()
    found = {t.name: np.array(gguf.quants.dequantize(t.data, t.tensor_type), np.float64) for t in reader.tensors}
    return {
        name.removesuffix(".lora_a"): found[name.replace("lora_a", "lora_b")] @ a * (alpha / len(a) if alpha else 1)
        for name, a in found.items()
        if name.endswith(".lora_a")
    }


def apart(ours: Path, theirs: Path) -> float:
    """Largest relative distance of two files over their tensors."""
    a, b = updates(ours), updates(theirs)
    assert a.keys() == b.keys()
    return max(float(np.linalg.norm(a[n] - b[n]) / np.linalg.norm(a[n])) for n in a)


def shown(name: str, done: Run) -> None:
    wall, cpu = map(float, done.said.split()[-2:])
    process = f"{done.wall_s:6.2f} s  {done.cpu_s:6.2f} s CPU  {done.peak_bytes / 1e6:6.0f} MB"
    print(f"{name:10} {process}   inside {wall:.3f} s  {cpu:.3f} s CPU")


def main() -> None:
    asked = given(__doc__, converter=Path, rank=16, repeat=5, folder=Path)
    folder = Path(tempfile.mkdtemp(prefix="bench-export-", dir=asked.folder))
    try:
        measure(folder, asked.converter, asked.rank, asked.repeat)
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, converter: Path | None, rank: int, repeat: int) -> None:
    from adapterhub.library.library import Library

    Library(folder / "home").bases.add(smollm2_base(), "smollm2")
    written: dict[str, dict[str, Path]] = {}
    for kind, options in (("plain", {}), ("rslora", {"use_rslora": True})):
        adapter = write_folder(folder / kind, SHAPES, ranks=rank, **options)
        size = (adapter / "adapter_model.safetensors").stat().st_size / 1e6
        print(f"{kind}, rank {rank}, {len(SHAPES)} modules, {size:.1f} MB")
        best: dict[str, Run] = {}
        for turn in range(repeat):
            out = {side: folder / f"{kind}-{side}-{turn}.gguf" for side in ("ours", "theirs")}
            runs = {"ours": python(OURS, folder / "home", adapter, out["ours"])}
            if converter is not None:
                runs["theirs"] = python(THEIRS, converter, smollm2_base(), adapter, out["theirs"])
            for side, done in runs.items():
                if side not in best or done.cpu_s < best[side].cpu_s:
                    best[side] = done
        for side, done in best.items():
            shown(side, done)
        written[kind] = out
    if converter is not None:  # last: a process counts the memory of the one that starts it
        for kind, out in written.items():
            print(f"{kind}: the updates of both files are {apart(out['ours'], out['theirs']):.2g} apart")


if __name__ == "__main__":
    main()
