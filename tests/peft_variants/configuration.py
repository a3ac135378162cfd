"""One configuration of an adapter, and the base that it is for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn

from tests.support.peft_bases import import_build_tools


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A tiny model, the same one at every call of `make`, and what it is called with."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Mapping[str, Tensor]

    def answer(self, model: nn.Module) -> Tensor:
        """The numbers that the model answers with, seeded for models that draw some."""
        torch.manual_seed(3)
        with torch.no_grad():
            out = model(**self.inputs)
        if isinstance(out, Tensor):
            return out.double()
        found = next(t for key in ("logits", "start_logits", "last_hidden_state") if (t := out.get(key)) is not None)
        return found.double()


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """PEFT's config class and its settings. `second`: settings of another adapter for the same base."""

    title: str
    base: Base
    kind: Callable[..., Any]
    settings: Mapping[str, Any]
    second: Mapping[str, Any] | None = field(default=None)

    def save(self, folder: Path, *, seed: int = 1) -> nn.Module:
        """An adapter as PEFT saves it, a little off its start everywhere; returns the model that has it.

        What is not a factor (modules and biases trained in full, rows) does not depend on `seed`, so that two adapters
        of a configuration agree on it.
        """
        torch.manual_seed(seed)
        settings = self.settings if self.second is None or seed == 1 else self.second
        if self.kind.__name__ == "BOFTConfig":
            import_build_tools()
        model = get_peft_model(self.base.make(), self.kind(**settings))
        with torch.no_grad():
            for number, (name, parameter) in enumerate(model.named_parameters()):
                if parameter.requires_grad and parameter.is_floating_point():
                    own = 0 if _is_shared(name) else seed * 10_000
                    generator = torch.Generator().manual_seed(own + number)
                    parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator).to(parameter))
        model.save_pretrained(folder)
        return model.eval()


def _is_shared(name: str) -> bool:
    whole = "modules_to_save" in name or "trainable_tokens_delta" in name
    return whole or (name.endswith(".bias") and "lora_" not in name)
