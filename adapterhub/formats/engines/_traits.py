"""The facts about an adapter that rules need: its config, its sorted tensors, and what is known about its base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from adapterhub.formats.peft.config import AdapterConfig, owner
from adapterhub.formats.peft.keys import AdapterKeys, sort_keys
from adapterhub.formats.safetensors.file import TensorFile

HEADS = ("lm_head", "embed_out", "output")
_MATRIX = 2
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseFacts:
    """The few facts about a base that rules need; None if unknown.

    `vocabulary` is the number of rows of the token embedding. `is_tied`: the output head is that embedding.
    """

    model_type: str | None = None
    vocabulary: int | None = None
    is_tied: bool | None = None

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> BaseFacts:
        """From a base's `config.json`; for a multimodal model, from its language model."""
        inner = values.get("text_config")
        holders = [inner, values] if isinstance(inner, Mapping) else [values]

        def first(key: str, kind: type[_T]) -> _T | None:
            value: _T | None = next((holder[key] for holder in holders if type(holder.get(key)) is kind), None)
            return value

        return cls(
            model_type=first("model_type", str),
            vocabulary=first("vocab_size", int),
            is_tied=first("tie_word_embeddings", bool),
        )


@dataclass(frozen=True, kw_only=True)
class Traits:
    """One adapter, as rules see it."""

    config: AdapterConfig
    weights: TensorFile
    base: BaseFacts
    keys: AdapterKeys

    @classmethod
    def of(cls, config: AdapterConfig, weights: TensorFile, base: BaseFacts, keys: AdapterKeys | None = None) -> Traits:
        """The traits of an adapter; sorts its tensors unless `keys` has them."""
        return cls(config=config, weights=weights, base=base, keys=keys or sort_keys(weights, config))

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """The modules that have a pair, by their names in the base."""
        return tuple(pair.module for pair in self.keys.pairs)

    @cached_property
    def leaves(self) -> tuple[str, ...]:
        """The last parts of the names of `modules`, sorted."""
        return tuple(sorted({module.rpartition(".")[2] for module in self.modules}))

    @cached_property
    def rank(self) -> int:
        """The largest rank in the config or a tensor; 0 for a method without rank."""
        if not self.config.is_lora:
            return self.config.r or 0
        in_config = (self.config.r or 0, *self.config.rank_pattern.values())
        return max([*in_config, *(pair.rank for pair in self.keys.pairs if not self.is_expert(pair.module))])

    @cached_property
    def scales(self) -> Mapping[str, float]:
        """The factor on B @ A, by module."""
        if not self.config.is_lora:
            return {}
        return {module: self.config.scaling_of(owner(module)) for module in self.modules}

    def is_expert(self, module: str) -> bool:
        """Whether the pair is for a bare parameter (`target_parameters`)."""
        return self.config.holds_parameters(module)

    def of_kind(self, kind: str) -> tuple[str, ...]:
        """The modules whose pair is for an `embedding`, a `conv` or an output `head`."""
        if kind == "embedding":
            return tuple(pair.module for pair in self.keys.pairs if pair.kind == "embedding")
        if kind == "head":
            return tuple(m for m in self.modules if m.rpartition(".")[2] in HEADS)
        return tuple(p.module for p in self.keys.pairs if p.a is not None and len(p.a.shape) > _MATRIX)
