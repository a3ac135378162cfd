"""Ollama: llama.cpp with a library of models, in which an adapter is part of a model. Best effort."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from adapterhub.formats.engines import Rule, Settings, Traits, llama_cpp

NAME: Final = "Ollama"
VERSIONS: Final[tuple[str, ...]] = ()
SOURCE: Final = (
    "`docs/modelfile.mdx`, `server/create.go` and `convert/` of Ollama (August 2026), read, not run. The rules judge "
    "the GGUF file that `adapt export --format ollama` puts beside its Modelfile; Ollama's own reader of safetensors "
    "supports Llama and Gemma 2 only, and neither rsLoRA nor patterns"
)

STEPS: Final = ("one adapter per model; `adapt export --format ollama` writes the Modelfile, `ollama create` reads it",)

RULES: Final[Sequence[Rule]] = llama_cpp.RULES


def settings(_traits: Traits) -> Settings:
    """None: the Modelfile has everything."""
    return {}


def notes(traits: Traits) -> list[str]:
    """What was not judged, and what is worth knowing."""
    said = "best effort: not run here; some releases since 0.34.1 reportedly refuse `ADAPTER` lines"
    return [said, *llama_cpp.notes(traits)]
