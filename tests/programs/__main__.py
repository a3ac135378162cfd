"""`python -m tests.programs [--mlx]`: see the package."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np

MLX = ("mlx==0.32.4", "mlx-cpu", "mlx-lm==0.32.2")
"""The versions that run on CPUs of Linux."""

_LOGITS_BOUND = 1e-3
_SCRIPT = Path(__file__).with_name("in_mlx.py")


def diffusers_cases() -> bool:
    """Each tiny pipeline: with the exported file at most `BOUND` from the formula."""
    from tests.programs.in_diffusers import BOUND, difference

    is_good = True
    for is_xl in (False, True):
        for only_attention in (True, False):
            with tempfile.TemporaryDirectory() as folder:
                ours, theirs, moved = difference(Path(folder), is_xl=is_xl, only_attention=only_attention)
            what = f"{'SDXL' if is_xl else 'SD 1.5'} {'attention' if only_attention else 'every Linear and Conv2d'}"
            print(
                f"diffusers, {what}: {ours:.1e} from the formula; kohya's file itself {theirs:.1e}; moves {moved:.1e}"
            )
            is_good &= ours < BOUND < moved
    return is_good


def mlx_python(folder: Path) -> Path:
    """A Python that has mlx-lm, made in `folder` where it is not there yet."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *MLX], check=True)
    return python


def mlx_cases(python: Path) -> bool:
    """mlx-lm's own adapters through PEFT, and back into mlx-lm."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from adapterhub.api.library import Library
    from adapterhub.inference.export import export

    is_good = True
    for kind in ("lora", "dora"):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            subprocess.run([python, _SCRIPT, "make", folder, kind], check=True)
            library = Library(folder / "home")
            build = library.add(folder / "mlx", name="one", guess_base=False).build
            export("one", folder / "back", form="mlx", library=library)
            subprocess.run([python, _SCRIPT, "run", folder, folder / "back"], check=True)
            model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
            tokens = torch.tensor([[1, 5, 9, 2, 33, 60, 7, 7]])
            with torch.no_grad():
                bare = model(tokens).logits.numpy()
                adapted = PeftModel.from_pretrained(model, build.folder)(tokens).logits.numpy()
            there = {name: np.load(folder / f"{name}.npy") for name in ("bare", "logits", "again")}
            through, apart = np.abs(adapted - there["logits"]).max(), np.abs(bare - there["bare"]).max()
            back, moved = np.abs(there["again"] - there["logits"]).max(), np.abs(there["logits"] - there["bare"]).max()
            print(
                f"mlx-lm, {kind}: PEFT {through:.1e} apart (bare models {apart:.1e}), written back {back}; moves {moved:.1f}"
            )
            is_good &= bool(through < _LOGITS_BOUND < moved and back == 0)
    return is_good


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mlx", action="store_true", help="MLX as well")
    default = Path(tempfile.gettempdir()) / "adapterhub-mlx"
    parser.add_argument("--mlx-env", type=Path, default=default, help="the environment for MLX [default: made]")
    options = parser.parse_args()
    results = [diffusers_cases()]
    if options.mlx:
        results.append(mlx_cases(mlx_python(options.mlx_env)))
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
