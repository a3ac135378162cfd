"""The part of a card that shows how to use the adapter: with adapt, PEFT and vLLM."""

from __future__ import annotations

from typing import Final

from adapterhub.core.errors import shown
from adapterhub.formats.manifest import Manifest
from adapterhub.formats.prompts.form import PromptForm

_RANKS: Final = (8, 16, 32, 64, 128, 256, 512)
"""The values of `--max-lora-rank` that vLLM takes."""


def usage_of(manifest: Manifest, base: str, repo: str, endpoint: str) -> str:
    """The section for the repository `repo`; `endpoint` is the URL of a server other than the Hugging Face Hub.

    Its lines take this version: a card outlives it.
    """
    remote = f" --remote {endpoint}" if endpoint else ""
    variable = f"HF_ENDPOINT={endpoint} " if endpoint else ""
    model, tag = base or "path/to/base", f"v{manifest.version}"
    parts = [
        "## How to use it",
        "With [adapt](https://pypi.org/project/adapterhub/), which checks every byte and the base:",
        _fenced(
            "sh", f"adapt install {repo}=={manifest.version}{remote}", f'adapt run {manifest.name} --base {model} "…"'
        ),
        *_asking(manifest.prompt),
        "With PEFT" + (f", after `export HF_ENDPOINT={endpoint}`:" if endpoint else ":"),
        _fenced(
            "python",
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM  # or the class of another task",
            "",
            f'base = AutoModelForCausalLM.from_pretrained("{model}")',
            f'model = PeftModel.from_pretrained(base, "{repo}", revision="{tag}")',
        ),
    ]
    rank = vllm_rank(manifest.rank)
    if "LORA" in manifest.method and rank is not None:
        name = manifest.name
        download = f"{variable}hf download {repo} --revision {tag} --local-dir {name}"
        serve = f"vllm serve {model} --enable-lora --max-lora-rank {rank} --lora-modules {name}=./{name}"
        parts += ["With vLLM, which takes no revision:", _fenced("sh", download, serve)]
    return "\n" + "\n\n".join(parts) + "\n"


def vllm_rank(rank: int | None) -> int | None:
    """The least `--max-lora-rank` of vLLM for an adapter of this rank; None where it has none."""
    return next((known for known in _RANKS if known >= (rank or _RANKS[-1] + 1)), None)


def _asking(form: PromptForm | None) -> list[str]:
    """How to make a prompt of a question where `adapt run`, which does it by itself, does not run."""
    if form is None:
        return []
    said = ["`adapt run` asks it in the form that it was trained with."]
    if form.template is not None:
        before, after = form.parts
        said += [
            "Other programs take the whole prompt:",
            _fenced("python", f"prompt = {before!r} + question + {after!r}"),
        ]
    elif form.form == "chat":
        whose = (
            "its own chat template, which `adapterhub.json` holds" if form.chat_template else "the base's chat template"
        )
        system = f" and the system text `{shown(form.system, 400)}`" if form.system is not None else ""
        said.append(f"Elsewhere, ask it in a chat, with {whose}{system}.")
    elif form.form == "raw":
        said.append("Elsewhere, give it your text unchanged, without a chat template.")
    return said


def _fenced(language: str, *lines: str) -> str:
    return "\n".join([f"```{language}", *lines, "```"])
