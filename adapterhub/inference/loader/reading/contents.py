"""What is in the folder of an adapter: its config, and for every tensor of its file the place in the base."""

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
    """An adapter's config, and the place of every tensor of its file.

    `factors`: by module of the base and factor (`lora_A.weight`). `saved`: by module that is replaced whole and name
    inside it. `shared`: by name of a factor that all modules share. `copies`: tensors that repeat an embedding of the
    base, by its name; they are compared with it and never loaded. `parameters`: by module in `factors` the one
    parameter of the base that its pair is for, where it is not for the module's weight. All names are those of the
    base; `names` tells what the adapter calls its modules, which is what the patterns of its config are about.
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
    parameters: Mapping[str, str]
    names: ModuleNames
    warnings: tuple[str, ...] = ()

    @property
    def modules(self) -> list[str]:
        """The modules of the base that have factors; not those of which single parameters have."""
        return sorted(self.factors.keys() - self.parameters.keys())

    def adapters_name(self, factor: str) -> str:
        """What the adapter calls the module or parameter that the pair `factor` is for."""
        parameter = self.parameters.get(factor)
        if parameter is None:
            return self.names.adapters_name(factor)
        module, _, key = parameter.rpartition(".")
        return f"{self.names.adapters_name(module)}.{key}"

    def read(self, spec: TensorSpec) -> Tensor:
        """One tensor, in memory of its own, from the bytes that were checked.

        Raises:
            RefusedAdapter: a dtype that torch does not have.
            DigestMismatch: the file has changed since.
        """
        dtype = TENSOR_DTYPES.get(spec.dtype)
        if dtype is None:
            found = ("E_DTYPE", f"`{shown(spec.name)}` is stored as {shown(spec.dtype)}")
            raise RefusedAdapter(f"`{shown(self.label)}` cannot be read", [found])
        room = torch.empty(spec.size_bytes, dtype=torch.uint8)
        self.weights.read_into(room.numpy().data, spec.start)
        return room.view(dtype).reshape(spec.shape)


def limited(findings: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The first findings; a hostile file could give sixty thousand."""
    rest = len(findings) - LISTED
    return findings if rest <= 0 else [*findings[:LISTED], (findings[-1][0], f"and {rest} more")]
