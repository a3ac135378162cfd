"""A byte-for-byte copy of a single adapter with weight 1, whatever kind of LoRA it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from adapterhub.core.errors import shown
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.formats.safetensors.dtypes import DTYPES
from adapterhub.weights.lowrank.errors import ModuleErrors
from adapterhub.weights.lowrank.factors import WeightedAdapter
from adapterhub.weights.merge._refusals import foreign, raise_for


@dataclass(slots=True, kw_only=True)
class CopyRun:
    """One copy in progress; `ranks` are those in the config, and no error is above 0."""

    adapter: WeightedAdapter
    progress: Callable[[int, int], None]
    warnings: tuple[str, ...] = ()
    ranks: dict[str, int] = field(default_factory=dict)
    errors: ModuleErrors = field(default_factory=ModuleErrors)
    cuts: ModuleErrors = field(default_factory=ModuleErrors)

    def write_into(self, folder: Path) -> None:
        """Copy both files into `folder` after checking every number.

        Raises:
            MergeRefused: not a LoRA, or some numbers are not finite; every such tensor is listed.
        """
        label, factors = shown(self.adapter.label), self.adapter.factors
        raise_for([f"`{label}` {reason}" for reason in foreign(self.adapter)])
        tensors = factors.header.tensors
        bad = []
        for done, spec in enumerate(tensors, 1):
            if not factors.is_finite(spec):
                bad.append(f"`{shown(spec.name)}` in `{label}` holds NaN or infinite numbers")
            self.progress(done, len(tensors))
        raise_for(bad)
        (folder / CONFIG_FILE).write_bytes(factors.config_bytes)
        factors.weights.copy_to(folder / WEIGHTS_FILE)
        self.ranks = {module: pair.layout.config_rank(pair.rank) for module, pair in factors.modules.items()}
        self.errors.update(dict.fromkeys(self.ranks, (0.0, 0.0)))

    @property
    def dtypes(self) -> str:
        """The dtypes of the factors, in torch's names."""
        formats = {spec.dtype for pair in self.adapter.factors.modules.values() for spec in (pair.a, pair.b)}
        return ", ".join(sorted(DTYPES[name].torch for name in formats))
