"""Reads and writes the LoRA factors of a PEFT folder, one module at a time.

Neither reading nor writing holds more than one module in memory, so a merge of adapters of any size needs the memory of
their largest module.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import final

import torch
from torch import Tensor

from adapterhub.core.digests import Digest
from adapterhub.core.disk.files import replaced
from adapterhub.core.errors import UnsupportedAdapter, shown
from adapterhub.formats.base.folders import pipeline_name
from adapterhub.formats.peft.config import owner
from adapterhub.formats.peft.pairs import (
    PEFT_PREFIX,
    PRODUCTS,
    FactorLayout,
    Factors,
    Kind,
    PairNames,
    multiplied,
    pair_up,
    pair_up_products,
)
from adapterhub.formats.safetensors.file import header_bytes
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.trust.verify import Subject, open_files
from adapterhub.weights.dtypes import FORMAT_DTYPES, READABLE, TENSOR_DTYPES
from adapterhub.weights.lowrank.algebra import LowRank


def constants(layout: FactorLayout, module: str, rank: int, *, device: str = "cpu") -> dict[str, Tensor]:
    """Return the float32 tensors that the method needs beside a pair of that rank and scale 1, by their names."""
    if layout.kind == "adalora":
        return {f"{PEFT_PREFIX}{module}.lora_E": torch.ones(rank, 1, device=device)}
    if layout.kind != "loha":
        return {}
    left, right = torch.zeros(layout.out, rank, device=device), torch.zeros(rank, layout.width, device=device)
    left[:, 0], right[0] = 1, 1  # a second product of ones, which changes nothing
    return {f"{PEFT_PREFIX}{module}.hada_w2_a": left, f"{PEFT_PREFIX}{module}.hada_w2_b": right}


def join(layout: FactorLayout, parts: Sequence[LowRank], rank: int) -> tuple[Tensor, Tensor]:
    """Return a and B as in the file, from parts of scale 1 and one dtype.

    Zeros fill parts of a lower rank than `rank`.
    """
    shape_a, shape_b = layout.shapes(rank)
    if layout.parts == 1 and parts[0].rank == rank:
        return parts[0].a.reshape(shape_a), parts[0].b.reshape(shape_b)
    a = parts[0].a.new_zeros(layout.parts, rank, layout.width)
    b = parts[0].b.new_zeros(layout.parts, layout.part_out, rank)
    for part, of_a, of_b in zip(parts, a, b, strict=True):
        of_a[: part.rank] = part.a
        of_b[:, : part.rank] = part.b
    if layout.kind == "experts":
        b = b.permute(1, 2, 0)
    return a.reshape(shape_a), b.reshape(shape_b)


def is_finite(tensor: Tensor) -> bool:
    """Return whether no number is NaN or infinite; 8-bit floats are widened first."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    wide = tensor.float() if tensor.element_size() == 1 else tensor
    low, high = wide.aminmax()
    return bool(torch.isfinite(low) & torch.isfinite(high))


__all__ = [
    "PEFT_PREFIX",
    "AdapterFactors",
    "FactorLayout",
    "Factors",
    "Kind",
    "PairNames",
    "TensorFileWriter",
    "WeightedAdapter",
]

_CHUNK_BYTES = 1 << 24  # even, so that no number is split


@final
class AdapterFactors:
    """An adapter folder, open for reading module by module; a context manager.

    `modules` maps the names of modules in the base to their factors, sorted by name; a parameter of the base that PEFT
    wraps keeps its name in the file (see `layouts.owner`). `others` are the tensors that are not LoRA factors, in file
    order. `unclear` maps the pairs whose meaning the file leaves open to the reason.

    Both files are opened and hashed once, and every number is read from the hashed bytes. `expected` maps file names to
    the digests that the files must have; None takes those of the folder's manifest, if it has one. Pass the `subject`
    of `verify` to use the files that it opened. With `component`, the modules have the names of a pipeline that this
    component is in.

    Raises:
        DigestMismatch: a file differs from its digest, or changed while it was in use.
        MalformedConfig: `adapter_config.json` is missing or malformed.
        MalformedTensorFile: `adapter_model.safetensors` is missing or malformed.
        RefusedAdapter: factors have no partner, or do not fit each other or the config; lists all.
    """

    def __init__(
        self,
        folder: Path,
        expected: Mapping[str, Digest] | None = None,
        *,
        subject: Subject | None = None,
        component: str = "",
    ) -> None:
        self.folder = folder
        self.component = component
        subject = subject or open_files(folder, expected)
        self.config, self.header = subject.config, subject.weights
        pairing = pair_up_products if self.config.peft_type in PRODUCTS else pair_up
        self.modules, self.others, self.unclear = pairing(self.header.tensors, self.config, folder)
        if component:
            self.modules = {pipeline_name(component, name): factors for name, factors in self.modules.items()}
            self.unclear = {pipeline_name(component, name): why for name, why in self.unclear.items()}
            # A short name may match modules of other components, so PEFT gets whole names.
            self.config = replace(self.config, target_modules=tuple(map(owner, self.modules)))
        self.weights = subject.held
        self.config_bytes = subject.config_bytes

    def __enter__(self) -> AdapterFactors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the weights file."""
        self.weights.close()

    def read(self, module: str) -> LowRank:
        """Return the module's update in the dtypes of the file, convolutions flattened, with PEFT's scale.

        Raises:
            KeyError: the adapter has no such module.
            UnsupportedAdapter: the module has one update for each expert or group; use `parts`.
        """
        parts = self.parts(module)
        if len(parts) > 1:
            layout = self.modules[module].layout
            what = "experts (target_parameters)" if layout.kind == "experts" else "groups of a convolution"
            reason = f"`{shown(module)}` has one update for each of {layout.parts} {what}"
            raise UnsupportedAdapter(
                f"`{shown(str(self.folder), 200)}` has more than one update for a module", [reason]
            )
        return parts[0]

    def parts(self, module: str) -> tuple[LowRank, ...]:
        """Return the updates of the module's parts (see `FactorLayout`), one for most modules, read as by `read`.

        Raises:
            KeyError: the adapter has no such module.
        """
        factors = self.modules[module]
        if factors.tensors:
            a, b = multiplied(torch, {name: self.tensor(spec).double() for name, spec in factors.tensors.items()})
            return (LowRank(a=a, b=b, scale=factors.scale),)
        pairs = factors.layout.split(self.tensor(factors.a), self.tensor(factors.b))
        return tuple(LowRank(a=a, b=b, scale=factors.scale) for a, b in pairs)

    def bias(self, module: str) -> Tensor | None:
        """Return the bias that the adapter adds to the module's output (`lora_bias`), in float64; None without one.

        Raises:
            KeyError: the adapter has no such module.
        """
        factors = self.modules[module]
        return None if factors.bias is None else self.tensor(factors.bias).double() * factors.scale

    def tensor(self, spec: TensorSpec) -> Tensor:
        """One tensor of a floating dtype in `READABLE`, in float32 where its numbers have 8 bits."""
        dtype = READABLE[spec.dtype]
        read = (
            torch.frombuffer(self.data(spec), dtype=dtype)
            if spec.size_bytes
            else torch.empty(0, dtype=dtype)  # `frombuffer` rejects an empty buffer
        )
        return (read.float() if dtype.itemsize == 1 else read).reshape(spec.shape)

    def data(self, spec: TensorSpec) -> bytearray | memoryview:
        """Return the bytes of one tensor of any dtype."""
        return self.weights.read(spec.start, spec.end)

    def chunks(self, spec: TensorSpec) -> Iterator[bytearray | memoryview]:
        """Return the bytes of one tensor of any dtype, a few megabytes at a time."""
        return self.weights.chunks(spec.start, spec.end, _CHUNK_BYTES)

    def same_bytes(self, spec: TensorSpec, other: AdapterFactors, other_spec: TensorSpec) -> bool:
        """Return whether a tensor has the dtype, shape and bytes of one of another adapter."""
        if (spec.dtype, spec.shape) != (other_spec.dtype, other_spec.shape):
            return False
        return all(one == two for one, two in zip(self.chunks(spec), other.chunks(other_spec), strict=True))

    def is_finite(self, spec: TensorSpec) -> bool:
        """Return whether no number of one tensor is NaN or infinite."""
        dtype = TENSOR_DTYPES.get(spec.dtype)
        return dtype is None or all(is_finite(torch.frombuffer(chunk, dtype=dtype)) for chunk in self.chunks(spec))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightedAdapter:
    """An adapter in a sum or a comparison: its name in messages, its open files and its weight."""

    label: str
    factors: AdapterFactors
    weight: float = 1.0


@final
class TensorFileWriter:
    """Writes a safetensors file tensor by tensor, the header last; a context manager.

    `planned` lists every tensor with its largest possible shape, to reserve room for the header; the format allows
    spaces in the rest. The complete file appears under its name when the block ends without an error; otherwise nothing
    remains.
    """

    def __init__(self, path: Path, planned: Iterable[TensorSpec]) -> None:
        self.path = path
        self._metadata = {"format": "pt"}  # transformers rejects a file without it
        self._room = len(header_bytes(planned, self._metadata))
        self._written: list[TensorSpec] = []
        self._stack = ExitStack()
        self._stream = self._stack.enter_context(self._stack.enter_context(replaced(path, sync=False)).open("wb"))
        self._stream.seek(self._room)

    def __enter__(self) -> TensorFileWriter:
        return self

    def add(self, name: str, tensor: Tensor) -> None:
        """Append a tensor in its own dtype."""
        spec = TensorSpec.planned(name, FORMAT_DTYPES[tensor.dtype], tuple(tensor.shape))
        self.add_bytes(spec, tensor.contiguous().flatten().view(torch.uint8).numpy().data)

    def add_bytes(self, spec: TensorSpec, data: bytes | bytearray | memoryview) -> None:
        """Append a tensor as bytes; only the name, dtype and shape of `spec` matter."""
        self.add_chunks(spec, [data])

    def add_chunks(self, spec: TensorSpec, chunks: Iterable[bytes | bytearray | memoryview]) -> None:
        """Append a tensor as `add_bytes` does, piece by piece."""
        for chunk in chunks:
            self._stream.write(chunk)
        self._written.append(spec)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._stream.seek(0)
            self._stream.write(header_bytes(self._written, self._metadata, pad_to=self._room))
