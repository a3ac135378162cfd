"""Ollama: llama.cpp with a library of models, in which an adapter is part of a model. Best effort."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from adapterhub.formats.engines import REFUSES, Rule, Traits, llama_cpp, rules

NAME: Final = "Ollama"
VERSIONS: Final[tuple[str, ...]] = ()
SOURCE: Final = (
    "`docs/modelfile.mdx`, `server/create.go` and `convert/` of Ollama (August 2026), read, not run. The rules judge "
    "the GGUF file that `adapt export --format ollama` puts beside its Modelfile; Ollama's own reader of safetensors "
    "supports Llama and Gemma 2 only, and neither rsLoRA nor patterns"
)

STEPS: Final = ("one adapter per model; `adapt export --format ollama` writes the Modelfile, `ollama create` reads it",)

RULES: Final[Sequence[Rule]] = (
    *(rule for rule in llama_cpp.RULES if rule.feature != "alora"),
    *rules(REFUSES, "Ollama looks for no invocation tokens and uses the adapter on the whole prompt", "alora"),
)


def notes(traits: Traits) -> list[str]:
    """Return the facts that were not judged, and those worth knowing."""
    said = "best effort: not run here; some releases since 0.34.1 reportedly refuse `ADAPTER` lines"
    return [said, *llama_cpp.notes(traits)]
