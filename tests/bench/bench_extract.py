"""`extract` of a fine-tuned model of about 1 GB from its base, whole processes, beside mergekit and a dense SVD.

    OMP_NUM_THREADS=1 python -m tests.bench.bench_extract [--layers 8] [--rank 32] [--dense] [--mergekit COMMAND]

The pair has Llama shapes (2048 wide, 5632 inside, a vocabulary of 32,000, untied) in bfloat16; every linear layer and
the output head differ by an update of rank 64 with a falling spectrum and by white noise, as a full fine-tune does.
Measured is the whole process (seconds of wall clock and of CPU, peak resident memory); fingerprints are made before, as
for registered models, and are measured by themselves. What makes the pair and measures errors runs in processes of its
own: a child's peak memory counts that of the parent it came from. `--dense` times `torch.linalg.svd` of one 5632 x 2048 difference,
which is what an extraction without randomized factorisation does for each weight. `--mergekit` names its
`mergekit-extract-lora`, which needs an environment of its own (it pins its dependencies); the error of what it writes
is measured here in the same way.
"""

from __future__ import annotations

import json
import math
import shlex
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.harness import Run, best, given, measured, model_shapes, python

if TYPE_CHECKING:
    import torch

HIDDEN, INNER, KEYS, VOCABULARY = 2048, 5632, 256, 32000
HERE = """
import sys
from pathlib import Path
from tests.bench import bench_extract
print(getattr(bench_extract, sys.argv[1])(*map(Path, sys.argv[2:-1]), int(sys.argv[-1])))
"""
FINGERPRINT = """
import sys
from pathlib import Path
from adapterhub.library.library import Library
bases = Library(Path(sys.argv[1])).bases
bases.look(Path(sys.argv[2])), bases.look(Path(sys.argv[3]))
"""
EXTRACT = """
import sys
from pathlib import Path
from adapterhub.weights.extract import ExtractOptions, extract
from adapterhub.library.library import Library
home, base, tuned, out, rank = sys.argv[1:]
bases = Library(Path(home)).bases
records = bases.look(Path(base)), bases.look(Path(tuned))
result = extract(*records, Path(out), ExtractOptions(rank=int(rank), dtype="bfloat16"))
print(result.relative_error)
"""


def line(label: str, of: Run) -> str:
    return f"{label:34}{of.wall_s:8.1f}{of.cpu_s:8.1f}{of.peak_bytes / 1e6:9.0f}"


def write_pair(base_folder: Path, tuned_folder: Path, layers: int) -> None:
    """Base and tuned model, written tensor by tensor."""
    import torch

    from adapterhub.formats.safetensors.header import TensorSpec
    from adapterhub.weights.lowrank.factors import TensorFileWriter

    shapes = model_shapes(HIDDEN, INNER, KEYS, VOCABULARY, layers)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "torch_dtype": "bfloat16",
        "intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 4,
        "vocab_size": VOCABULARY, "tie_word_embeddings": False, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    planned = [TensorSpec.planned(name, "BF16", shape) for name, shape in shapes.items()]
    places = base_folder, tuned_folder
    for place in places:
        place.mkdir()
        (place / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    with (
        TensorFileWriter(places[0] / "model.safetensors", planned) as base,
        TensorFileWriter(places[1] / "model.safetensors", planned) as tuned,
    ):
        for name, shape in shapes.items():
            weight = 0.02 * torch.randn(shape, generator=generator)
            base.add(name, weight.bfloat16())
            differs = len(shape) > 1 and "embed" not in name
            tuned.add(name, (weight.bfloat16().float() + update(shape, generator) if differs else weight).bfloat16())


def update(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """An update a tenth as large as the weights: 64 directions of falling size, and a tenth of that white noise."""
    import torch

    out, width = shape
    sizes = torch.arange(1, 65, dtype=torch.float32).rsqrt()
    b, a = torch.randn(out, 64, generator=generator) * sizes, torch.randn(64, width, generator=generator)
    low = b @ a
    low *= 0.002 / float(low.std())
    return low + 0.0002 * torch.randn(out, width, generator=generator)


def error_of(adapter: Path, base: Path, tuned: Path, _layers: int) -> float:
    """‖difference - adapter‖ / ‖difference‖ over all weights; what is carried whole counts, what is left out as well."""
    from safetensors import safe_open

    from tests.support.adapter_folders import PREFIX, updates_in

    updates = updates_in(adapter)
    apart = whole = 0.0
    with (
        safe_open(base / "model.safetensors", "pt") as before,
        safe_open(tuned / "model.safetensors", "pt") as after,
        safe_open(adapter / "adapter_model.safetensors", "pt") as stored,
    ):
        for name in before.keys():  # noqa: SIM118 - not a dict
            difference = after.get_tensor(name).float() - before.get_tensor(name).float()
            whole += float(difference.norm()) ** 2
            if name.removesuffix(".weight") in updates:
                found = updates[name.removesuffix(".weight")].float()
                difference -= found if found.shape == difference.shape else found.T  # an embedding's lies turned
            elif f"{PREFIX}{name}" in stored.keys():  # noqa: SIM118 - as above
                difference = stored.get_tensor(f"{PREFIX}{name}").float() - after.get_tensor(name).float()
            apart += float(difference.norm()) ** 2
    return math.sqrt(apart / whole)


def dense_s(_layers: int) -> float:
    """Seconds of CPU for one decomposition in full."""
    import torch

    matrix = update((INNER, HIDDEN), torch.Generator().manual_seed(1))
    begun = time.process_time()
    torch.linalg.svd(matrix, full_matrices=False)
    return time.process_time() - begun


def main() -> None:
    arguments = given(__doc__, layers=8, rank=32, repeat=2, dense=False, mergekit=str)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base, tuned, home = folder / "base", folder / "tuned", str(folder / "home")
        here("write_pair", base, tuned, layers=arguments.layers)
        size = (base / "model.safetensors").stat().st_size
        time.sleep(2.5)  # what is younger is not trusted to be settled, and not cached
        print(f"two models of {size / 1e6:.0f} MB, bfloat16, rank {arguments.rank}")
        print(f"{'':34}{'wall s':>8}{'CPU s':>8}{'peak MB':>9}")
        print(line("import torch", python("import torch")))
        print(line("fingerprints of both", python(FINGERPRINT, home, base, tuned)))
        places = [folder / f"out{i}" for i in range(arguments.repeat)]
        runs = [python(EXTRACT, home, base, tuned, place, arguments.rank) for place in places]
        print(line("extract", best(runs)))
        say_adapter(folder / "out0", base, tuned)
        if arguments.mergekit:
            options = f"--model {tuned} --base-model {base} --out-path {folder / 'theirs'} --max-rank {arguments.rank}"
            theirs = measured(shlex.split(f"{arguments.mergekit} {options} --embed-lora --no-copy-tokenizer"))
            print(line("mergekit-extract-lora", theirs))
            say_adapter(folder / "theirs", base, tuned)
    if arguments.dense:
        seconds = float(here("dense_s", layers=0))
        print(f"torch.linalg.svd of one {INNER} x {HIDDEN} difference: {seconds:.1f} s CPU")


def say_adapter(adapter: Path, base: Path, tuned: Path) -> None:
    size = sum(path.stat().st_size for path in adapter.glob("adapter_model*"))
    error = float(here("error_of", adapter, base, tuned, layers=0))
    print(f"  {size / 1e6:.0f} MB, error over all that differs {error:.4f}", flush=True)


def here(function: str, *places: Path, layers: int) -> str:
    """What a function of this file gives, run in a process of its own."""
    return python(HERE, function, *places, layers).said


if __name__ == "__main__":
    main()
