"""Time and memory of registering a quantised copy, and of comparing it with its source: `python -m tests.bench.bench_same_base`.

Writes a model in bfloat16 and copies of it in FP8 (blocks of 128 by 128), Q8_0 and Q4_0 of `--mib` each. `adapt base add`
runs as a whole process beside `sha256sum` of the same file, in turns, on files in the page cache; the ratio is of their
times (less is better). `adapt base compare` runs on the files, by windows of numbers and with `--full`. `bare` is what
`import numpy` takes of memory. The last rows are a copy of a mixture with `--experts` tensors of a few numbers each.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from adapterhub.formats.safetensors.file import header_bytes
from adapterhub.formats.safetensors.header import TensorSpec
from tests.bench.harness import Run, given, measured, model_shapes, python

MIB = 1 << 20
ADAPT = [sys.executable, "-m", "adapterhub.cli"]
BLOCK = 128
Shapes = dict[str, tuple[int, ...]]


def numbers_of(name: str, shape: tuple[int, ...], begin: int, end: int) -> np.ndarray:
    """Rows of a weight in bfloat16, as float32."""
    seed = [sum(name.encode()), len(name), begin]
    drawn = np.random.default_rng(seed).standard_normal((end - begin, *shape[1:]), dtype=np.float32) * np.float32(0.02)
    return (drawn.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def write_source(path: Path, shapes: Shapes) -> None:
    path.parent.mkdir()
    specs = [TensorSpec.planned(name, "BF16", shape) for name, shape in shapes.items()]
    with path.open("wb") as sink:
        sink.write(header_bytes(specs))
        for name, shape in shapes.items():
            for begin in range(0, shape[0], BLOCK):
                rows = numbers_of(name, shape, begin, min(begin + BLOCK, shape[0]))
                sink.write((rows.view(np.uint32) >> 16).astype("<u2").tobytes())


def float8_codes(quotients: np.ndarray) -> np.ndarray:
    """The nearest float8 (e4m3) of each, halves to the even code."""
    import torch

    return torch.from_numpy(quotients).to(torch.float8_e4m3fn).view(torch.uint8).numpy()


def write_float8(path: Path, shapes: Shapes) -> None:
    path.parent.mkdir()
    (path.parent / "config.json").write_text(
        '{"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}'
    )
    specs, scales = [], {}
    for name, shape in shapes.items():
        is_code = len(shape) > 1 and "embed" not in name and "head" not in name
        specs.append(TensorSpec.planned(name, "F8_E4M3" if is_code else "BF16", shape))
        if is_code:
            scales[name] = np.empty((-(-shape[0] // BLOCK), -(-shape[1] // BLOCK)), np.float32)
    scale_specs = [TensorSpec.planned(f"{name}_scale_inv", "F32", scale.shape) for name, scale in scales.items()]
    with path.open("wb") as sink:
        sink.write(header_bytes([*specs, *scale_specs]))
        for name, shape in shapes.items():
            for begin in range(0, shape[0], BLOCK):
                rows = numbers_of(name, shape, begin, min(begin + BLOCK, shape[0]))
                if name not in scales:
                    sink.write((rows.view(np.uint32) >> 16).astype("<u2").tobytes())
                    continue
                found = np.maximum.reduceat(np.abs(rows).max(0), np.arange(0, shape[1], BLOCK)) / np.float32(448)
                scales[name][begin // BLOCK] = found
                sink.write(float8_codes(rows / np.repeat(found, BLOCK)[: shape[1]]).tobytes())
        for scale in scales.values():
            sink.write(scale.tobytes())


def write_gguf(path: Path, shapes: Shapes, kind: str, heads: int) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1 + max(int(name.split(".")[2]) for name in shapes if ".layers." in name))
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1000)
    for name, shape in shapes.items():
        rows = np.concatenate(
            [numbers_of(name, shape, begin, min(begin + BLOCK, shape[0])) for begin in range(0, shape[0], BLOCK)]
        )
        if "q_proj" in name or "k_proj" in name:
            rows = rows.reshape(heads, 2, -1, shape[1]).swapaxes(1, 2).reshape(shape)
        place = f"{names.get_name(name.removesuffix('.weight'))}.weight"
        if len(shape) > 1:
            dtype = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(place, gguf.quants.quantize(np.ascontiguousarray(rows), dtype), raw_dtype=dtype)
        else:
            writer.add_tensor(place, rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def shapes_of(mib: int, bytes_of_eight: int) -> Shapes:
    """A decoder whose copy has about so many bytes, at so many for eight numbers."""
    hidden, inner, vocabulary = 2048, 5632, 8192
    layer = 4 * hidden * hidden + 3 * hidden * inner
    layers = max(1, (mib * MIB * 8 // bytes_of_eight - 2 * vocabulary * hidden) // layer)
    return dict(model_shapes(hidden, inner, hidden, vocabulary, layers))


def mixture(count: int) -> Shapes:
    """So many weights of experts."""
    return {
        f"model.layers.{n // 600}.mlp.experts.{n // 3 % 200}.{('gate', 'up', 'down')[n % 3]}_proj.weight": (128, 128)
        for n in range(count)
    }


def write(label: str, size: str, folder: str) -> None:
    """A source and its copy below `folder`: of so many MiB, or of so many weights for a mixture."""
    place = Path(folder)
    shapes = mixture(int(size)) if label == "mixture" else shapes_of(int(size), 4 if label.endswith("Q4_0") else 8)
    write_source(place / "source" / "model.safetensors", shapes)
    if label.startswith("gguf"):
        write_gguf(place / "copy.gguf", shapes, label.split()[1], 16)
    else:
        write_float8(place / "copy" / "model.safetensors", shapes)


def medians(commands: dict[str, list[str]], runs: int) -> dict[str, Run]:
    """Each in turns; the run of the median wall time."""
    found: dict[str, list[Run]] = {name: [] for name in commands}
    for number in range(runs + 1):  # the first warms the page cache
        for name, command in commands.items():
            done = measured(command, codes=(0, 11))
            if number:
                found[name].append(done)
    return {name: sorted(each, key=lambda one: one.wall_s)[len(each) // 2] for name, each in found.items()}


def bench(label: str, source: Path, copy: Path, place: Path, runs: int) -> None:
    file = copy if copy.is_file() else copy / "model.safetensors"
    env = str(place / "home")
    again = [*ADAPT, "base", "add", str(copy), "--as", "copy", "--root", env]
    fresh = ["sh", "-c", 'rm -rf "$0"; exec "$@"', env, *again]
    compare = [*ADAPT, "base", "compare", str(source), str(copy), "--root", str(place / "other")]
    found = medians(
        {
            "sha256sum": ["sha256sum", str(file)],
            "base add": fresh,
            "compare": compare,
            "compare --full": [*compare, "--full"],
        },
        runs,
    )
    size, hashed = file.stat().st_size, found["sha256sum"].wall_s
    for name, one in found.items():
        ratio = one.wall_s / hashed
        print(
            f"{label:18} {size / MIB:6,.0f} MiB  {name:15} {one.wall_s:7.2f} s wall {one.cpu_s:7.2f} s CPU"
            f" {one.peak_bytes / MIB:6,.0f} MiB peak  ratio {ratio:.2f}"
        )
    sys.stdout.flush()
    if "SAME_WEIGHTS_QUANTISED" not in found["compare --full"].said:
        raise SystemExit(f"{label}: {found['compare --full'].said[:400]}")


def main() -> None:
    options = given(__doc__, mib=1024, runs=3, experts=40_000, only="")
    os.environ["OMP_NUM_THREADS"] = "1"
    bare = statistics.median(measured([sys.executable, "-c", "import numpy"]).peak_bytes for _ in range(3))
    print(f"{os.cpu_count()} processors, medians of {options.runs} runs in turns; bare: {bare / MIB:.0f} MiB")
    kinds = [(label, options.mib) for label in ("fp8 blocks", "gguf Q8_0", "gguf Q4_0")]
    for label, size in (*kinds, ("mixture", options.experts)):
        if options.only not in label or not size:
            continue
        with tempfile.TemporaryDirectory() as folder:
            # in a process of its own: a child counts the memory of its parent until it has begun
            python(
                "import sys; from tests.bench.bench_same_base import write; write(*sys.argv[1:])", label, size, folder
            )
            place = Path(folder)
            copy = place / "copy.gguf" if label.startswith("gguf") else place / "copy"
            bench(label, place / "source", copy, place, options.runs)


if __name__ == "__main__":
    main()
