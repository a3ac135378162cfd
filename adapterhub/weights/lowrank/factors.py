"""The LoRA factors of a PEFT folder, read and written one module at a time.

Reading never loads a file as a whole, and writing never holds more than the module at hand: a merge of adapters of any
size needs the memory of their largest module.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import final

import torch
from torch import Tensor

from adapterhub.core.digests import Digest
from adapterhub.core.disk.files import replaced
from adapterhub.core.errors import UnsupportedAdapter, shown
from adapterhub.formats.manifest import CONFIG_FILE
from adapterhub.formats.safetensors.file import header_bytes
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.trust.verify import Subject, open_files
from adapterhub.weights.dtypes import FORMAT_DTYPES, TENSOR_DTYPES, TORCH_DTYPES
from adapterhub.weights.lowrank.algebra import LowRank
from adapterhub.weights.lowrank.layouts import PEFT_PREFIX, Kind, Layout, Names, is_finite
from adapterhub.weights.lowrank.pairs import Factors, pair_up

__all__ = [
    "PEFT_PREFIX",
    "AdapterFactors",
    "Factors",
    "Kind",
    "Layout",
    "Names",
    "TensorFileWriter",
]

_CHUNK_BYTES = 1 << 24  # even, so that no number is torn apart


@final
class AdapterFactors:
    """An adapter folder, open for reading module by module; a context manager.

    `modules` maps names as the base model has them to their factors, sorted by name; a parameter of the base that PEFT
    wraps keeps the name that the file gives it (see `layouts.owner`). `others` are the tensors that are no LoRA factor,
    in file order; `unclear` names pairs whose meaning the file does not tell, with the reason.

    Both files are opened once and hashed, and every number is read from the bytes that were hashed. `expected` are the
    digests that they must have, by name; None stands for those in the folder's own manifest, if it has one. `subject`
    is what `verify` opened and looked at; then these are its files.

    Raises:
        DigestMismatch: a file is not what is expected, or changes while it is in use.
        MalformedConfig: `adapter_config.json` is missing or cannot be used.
        MalformedTensorFile: the same of `adapter_model.safetensors`.
        RefusedAdapter: factors without a partner, or that fit neither each other nor the config; every one is listed.
    """

    def __init__(
        self, folder: Path, expected: Mapping[str, Digest] | None = None, *, subject: Subject | None = None
    ) -> None:
        self.folder = folder
        subject = subject or open_files(folder, expected)
        self.config, self.header = subject.config, subject.weights
        self.modules, self.others, self.unclear = pair_up(self.header.tensors, self.config, folder)
        self.weights = subject.held
        self.config_bytes = bytes(subject.listing.taken[CONFIG_FILE].held.load())

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
        """The module's update in the dtypes of the file, convolutions flattened, with PEFT's scale.

        Raises:
            KeyError: the adapter has no such module.
            UnsupportedAdapter: the module has an update for each of its experts or groups; `parts` reads those.
        """
        parts = self.parts(module)
        if len(parts) > 1:
            layout = self.modules[module].layout
            what = "experts (target_parameters)" if layout.kind == "experts" else "groups of a convolution"
            reason = f"`{shown(module)}` has an update of its own for each of {layout.parts} {what}"
            raise UnsupportedAdapter(f"`{shown(str(self.folder), 200)}` holds more than one update a module", [reason])
        return parts[0]

    def parts(self, module: str) -> tuple[LowRank, ...]:
        """The updates of the module's parts (see `Layout`), one for most modules; otherwise as `read`.

        Raises:
            KeyError: the adapter has no such module.
        """
        factors = self.modules[module]
        return factors.layout.split(self.tensor(factors.a), self.tensor(factors.b), factors.scale)

    def bias(self, module: str) -> Tensor | None:
        """What the adapter adds to the module's output whatever its input (`lora_bias`), in float64; None if nothing.

        Raises:
            KeyError: the adapter has no such module.
        """
        factors = self.modules[module]
        return None if factors.bias is None else self.tensor(factors.bias).double() * factors.scale

    def tensor(self, spec: TensorSpec) -> Tensor:
        """One tensor of a floating dtype in `TORCH_DTYPES`."""
        dtype = TORCH_DTYPES[spec.dtype]
        if not spec.size_bytes:  # of no bytes `frombuffer` makes nothing
            return torch.empty(spec.shape, dtype=dtype)
        return torch.frombuffer(self.data(spec), dtype=dtype).reshape(spec.shape)

    def data(self, spec: TensorSpec) -> bytearray | memoryview:
        """The bytes of one tensor of any dtype."""
        return self.weights.read(spec.start, spec.end)

    def chunks(self, spec: TensorSpec) -> Iterator[bytearray | memoryview]:
        """The bytes of one tensor of any dtype, a few megabytes at a time."""
        return self.weights.chunks(spec.start, spec.end, _CHUNK_BYTES)

    def is_finite(self, spec: TensorSpec) -> bool:
        """Whether no number of one tensor is NaN or infinite."""
        dtype = TENSOR_DTYPES.get(spec.dtype)
        return dtype is None or all(is_finite(torch.frombuffer(chunk, dtype=dtype)) for chunk in self.chunks(spec))


@final
class TensorFileWriter:
    """A safetensors file written tensor by tensor, its header last; a context manager.

    `planned` names every tensor with the largest shape it may get: that much room is reserved for the header, and what
    is not needed stays spaces, which the format allows. The file appears under its name, complete, when the block
    ends without an error; otherwise nothing is left.
    """

    def __init__(self, path: Path, planned: Iterable[TensorSpec]) -> None:
        self.path = path
        self._metadata = {"format": "pt"}  # transformers refuses a file without it
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
        """Append a tensor given as bytes; of `spec`, the name, dtype and shape count."""
        self.add_chunks(spec, [data])

    def add_chunks(self, spec: TensorSpec, chunks: Iterable[bytes | bytearray | memoryview]) -> None:
        """As `add_bytes`, the bytes given piece by piece."""
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
