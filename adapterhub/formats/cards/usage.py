"""The part of a card that shows how to use the adapter: with adapt, PEFT and vLLM."""

from __future__ import annotations

from typing import Final

from adapterhub.formats.manifest import Manifest

_RANKS: Final = (8, 16, 32, 64, 128, 256, 512)
"""The values of `--max-lora-rank` that vLLM takes."""


def usage_of(manifest: Manifest, base: str, repo: str, endpoint: str) -> str:
    """The section for the repository `repo`; `endpoint` is the URL of a server other than the Hugging Face Hub."""
    remote = f" --remote {endpoint}" if endpoint else ""
    variable = f"HF_ENDPOINT={endpoint} " if endpoint else ""
    model = base or "path/to/base"
    parts = [
        "## How to use it",
        "With [adapt](https://pypi.org/project/adapterhub/), which checks every byte and the base:",
        _fenced("sh", f"adapt install {repo}{remote}", f'adapt run {manifest.name} --base {model} "…"'),
        "With PEFT" + (f", after `export HF_ENDPOINT={endpoint}`:" if endpoint else ":"),
        _fenced(
            "python",
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM  # or the class of another task",
            "",
            f'base = AutoModelForCausalLM.from_pretrained("{model}")',
            f'model = PeftModel.from_pretrained(base, "{repo}")',
        ),
    ]
    rank = next((rank for rank in _RANKS if rank >= (manifest.rank or _RANKS[-1] + 1)), None)
    if "LORA" in manifest.method and rank is not None:
        command = f"{variable}vllm serve {model} --enable-lora --max-lora-rank {rank}"
        parts += ["With vLLM:", _fenced("sh", f"{command} --lora-modules {manifest.name}={repo}")]
    return "\n" + "\n\n".join(parts) + "\n"


def _fenced(language: str, *lines: str) -> str:
    return "\n".join([f"```{language}", *lines, "```"])
