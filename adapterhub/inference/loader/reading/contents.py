"""The contents of an adapter's folder: its config, and the place in the base of every tensor in its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from adapterhub.core.disk.held_file import HeldFile
from adapterhub.core.errors import RefusedAdapter, shown
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.safetensors.file import TensorFile
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.inference.loader.reading.naming import ModuleNames
from adapterhub.weights.dtypes import TENSOR_DTYPES

LISTED: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AdapterContents:
    """An adapter's config, and the place of every tensor in its file.

    `factors`: by module of the base and factor (`lora_A.weight`). `saved`: by module that the adapter replaces whole
    and name inside it. `shared`: by name of a factor that all modules share. `copies`: tensors that repeat an embedding
    of the base, by its name; they are compared with it and never loaded. `biases`: trained biases of the base, by name.
    `rows`: trained rows of an embedding, by module. `parameters`: for a module in `factors` whose pair is not for the
    module's weight, the parameter of the base that it is for. All names are those of the base; `names` maps them to the
    adapter's own, to which the patterns of its config apply.
    """

    label: str
    folder: Path
    config: AdapterConfig
    header: TensorFile
    weights: HeldFile
    factors: Mapping[str, Mapping[str, TensorSpec]]
    saved: Mapping[str, Mapping[str, TensorSpec]]
    shared: Mapping[str, TensorSpec]
    copies: Mapping[str, TensorSpec]
    biases: Mapping[str, TensorSpec]
    rows: Mapping[str, TensorSpec]
    parameters: Mapping[str, str]
    names: ModuleNames
    warnings: tuple[str, ...] = ()

    @property
    def modules(self) -> list[str]:
        """The modules of the base that have factors, without those whose single parameters have them."""
        return sorted(self.factors.keys() - self.parameters.keys())

    def trained_rows(self, module: str) -> tuple[int, ...]:
        """The numbers of the rows of the embedding `module` that `rows` replaces."""
        return self.config.trained_rows(self.names.adapters_name(module))

    def adapters_name(self, factor: str) -> str:
        """The adapter's name for the module or parameter that the pair `factor` is for."""
        parameter = self.parameters.get(factor)
        if parameter is None:
            return self.names.adapters_name(factor)
        module, _, key = parameter.rpartition(".")
        return f"{self.names.adapters_name(module)}.{key}"

    def read(self, spec: TensorSpec) -> Tensor:
        """One tensor, in memory of its own, from the bytes that were checked.

        Raises:
            RefusedAdapter: torch does not have the dtype.
            DigestMismatch: the file has changed since it was checked.
        """
        dtype = TENSOR_DTYPES.get(spec.dtype)
        if dtype is None:
            found = ("E_DTYPE", f"`{shown(spec.name)}` is stored as {shown(spec.dtype)}")
            raise RefusedAdapter(f"`{shown(self.label)}` cannot be read", [found])
        room = torch.empty(spec.size_bytes, dtype=torch.uint8)
        self.weights.read_into(room.numpy().data, spec.start)
        return room.view(dtype).reshape(spec.shape)


def limited(findings: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The first findings; a hostile file can have sixty thousand."""
    rest = len(findings) - LISTED
    return findings if rest <= 0 else [*findings[:LISTED], (findings[-1][0], f"and {rest} more")]
