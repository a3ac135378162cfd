"""The LoRA factors of a PEFT folder, read and written one module at a time.

Reading never loads a file as a whole, and writing never holds more than the module at hand: a merge of adapters of any
size needs the memory of their largest module.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Final, Literal, NamedTuple, final

import torch
from torch import Tensor

from adapterhub.errors import MalformedConfig, MalformedTensorFile, RefusedAdapter, shown
from adapterhub.lowrank import LowRank
from adapterhub.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.peft_config import AdapterConfig
from adapterhub.tensorfile import TensorSpec, header_bytes, read_header

TORCH_DTYPES: Final[Mapping[str, torch.dtype]] = MappingProxyType(
    {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
)
"""What a factor may be stored as: the format's names and torch's."""
FORMAT_DTYPES: Final = MappingProxyType({torch_dtype: name for name, torch_dtype in TORCH_DTYPES.items()})

PEFT_PREFIX = "base_model.model."
"""What PEFT puts before the name that a module has in the base model."""

MAX_CONFIG_BYTES = 1 << 20

_FACTOR = re.compile(
    r"base_model\.model\.(?:(?P<module>.+)\.lora_(?P<side>[AB])\.weight"
    r"|(?P<embedding>.+)\.lora_embedding_(?P<embedding_side>[AB]))"
)
_MATRIX = 2

Kind = Literal["linear", "conv", "embedding"]


class Names(NamedTuple):
    """The tensor names of one module's two factors."""

    a: str
    b: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a module's update lies in a file; equal layouts can be added up.

    `linear`: A [r, in], B [out, r]; `embedding`: A [r, entries], B [width, r]; `conv`: A [r, in, *kernel], B [out, r,
    1, …], which are matrices once the trailing dimensions are flattened. `a_shape` is A's shape without r.
    """

    kind: Kind
    out: int
    a_shape: tuple[int, ...]

    @property
    def width(self) -> int:
        """Columns of the flattened A."""
        return math.prod(self.a_shape)

    def names(self, module: str) -> Names:
        """The tensor names PEFT gives to the module's factors."""
        if self.kind == "embedding":
            return Names(f"{PEFT_PREFIX}{module}.lora_embedding_A", f"{PEFT_PREFIX}{module}.lora_embedding_B")
        return Names(f"{PEFT_PREFIX}{module}.lora_A.weight", f"{PEFT_PREFIX}{module}.lora_B.weight")

    def shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of A and B in the file."""
        return (rank, *self.a_shape), (self.out, rank, *(1 for _ in self.a_shape[1:]))

    def __str__(self) -> str:
        return f"{self.kind} {self.out} x {' x '.join(map(str, self.a_shape))}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """Where one module's pair lies: `a` and `b` are its tensors."""

    layout: Layout
    rank: int
    a: TensorSpec
    b: TensorSpec


@final
class AdapterFactors:
    """An adapter folder, open for reading module by module; a context manager.

    `modules` maps names as the base model has them to their factors, sorted by name; `others` are the tensors that
    are no LoRA factor, in file order. Nothing but the config and the header is read until it is asked for.

    Raises:
        MalformedConfig: `adapter_config.json` is missing or cannot be used.
        MalformedTensorFile: the same of `adapter_model.safetensors`.
        RefusedAdapter: factors without a partner, or that fit neither each other nor the config; every one is listed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config_bytes = _read_config(folder / CONFIG_FILE)
        self.config = AdapterConfig.parse(self.config_bytes, str(folder / CONFIG_FILE))
        self.header = read_header(folder / WEIGHTS_FILE)
        self.modules, self.others = _pair(self.header.tensors, self.config, folder)
        self._stream: IO[bytes] = self.header.path.open("rb")

    def __enter__(self) -> AdapterFactors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the weights file."""
        self._stream.close()

    def read(self, module: str) -> LowRank:
        """The module's update in the dtypes of the file, convolutions flattened, with PEFT's scale.

        Raises:
            KeyError: the adapter has no such module.
        """
        factors = self.modules[module]
        a, b = self.tensor(factors.a), self.tensor(factors.b)
        return LowRank(a=a.flatten(1), b=b.flatten(1), scale=self.config.scaling_of(module))

    def tensor(self, spec: TensorSpec) -> Tensor:
        """One tensor of a floating dtype in `TORCH_DTYPES`."""
        return torch.frombuffer(self.data(spec), dtype=TORCH_DTYPES[spec.dtype]).reshape(spec.shape)

    def data(self, spec: TensorSpec) -> bytearray:
        """The bytes of one tensor of any dtype."""
        buffer = bytearray(spec.size_bytes)  # writable, as torch wants the memory of a tensor to be
        self._stream.seek(spec.start)
        if self._stream.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]  # a buffered file has it
            raise MalformedTensorFile(str(self.header.path), f"ends inside tensor `{shown(spec.name)}`")
        return buffer


@final
class TensorFileWriter:
    """A safetensors file written tensor by tensor, its header last; a context manager.

    `planned` names every tensor with the largest shape it may get: that much room is reserved for the header, and what
    is not needed stays spaces, which the format allows. The file appears under its name, complete, when the block
    ends without an error; otherwise nothing is left. `durable` adds an fsync before the rename.
    """

    def __init__(self, path: Path, planned: Iterable[TensorSpec], *, durable: bool = False) -> None:
        self.path = path
        self.durable = durable
        self._partial = path.with_name(f".{path.name}.partial")
        self._metadata = {"format": "pt"}  # transformers refuses a file without it
        self._room = len(header_bytes(planned, self._metadata))
        self._written: list[TensorSpec] = []
        self._stream: IO[bytes] = self._partial.open("wb")
        self._stream.seek(self._room)

    def __enter__(self) -> TensorFileWriter:
        return self

    def add(self, name: str, tensor: Tensor) -> None:
        """Append a tensor in its own dtype."""
        spec = TensorSpec.planned(name, FORMAT_DTYPES[tensor.dtype], tuple(tensor.shape))
        self.add_bytes(spec, tensor.contiguous().flatten().view(torch.uint8).numpy().data)

    def add_bytes(self, spec: TensorSpec, data: bytes | bytearray | memoryview) -> None:
        """Append a tensor given as bytes; of `spec`, the name, dtype and shape count."""
        self._stream.write(data)
        self._written.append(spec)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._stream:
                if error is not None:
                    return
                self._stream.seek(0)
                self._stream.write(header_bytes(self._written, self._metadata, pad_to=self._room))
                self._stream.flush()
                if self.durable:
                    os.fsync(self._stream.fileno())
            self._partial.replace(self.path)
        finally:
            self._partial.unlink(missing_ok=True)


def _read_config(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_CONFIG_BYTES + 1)  # one more than the parser takes, so that it sees the excess
    except OSError as error:
        raise MalformedConfig(str(path), f"cannot be opened: {error.strerror}") from None


def _pair(
    specs: Iterable[TensorSpec], config: AdapterConfig, folder: Path
) -> tuple[Mapping[str, Factors], tuple[TensorSpec, ...]]:
    """Modules with both factors, and the tensors that are no factor; refuses what does not pair up."""
    found: dict[tuple[str, bool], dict[str, TensorSpec]] = {}
    others = []
    for spec in specs:
        match = _FACTOR.fullmatch(spec.name)
        if match is None:
            others.append(spec)
        else:
            is_embedding = match["embedding"] is not None
            place = (match["embedding"] if is_embedding else match["module"], is_embedding)
            found.setdefault(place, {})[match["embedding_side"] if is_embedding else match["side"]] = spec

    modules: dict[str, Factors] = {}
    findings: list[tuple[str, str]] = []
    for (module, is_embedding), sides in sorted(found.items()):
        problem = _problem(module, sides, config)
        if problem is None and module in modules:
            problem = ("E_PAIR", "has factors of a linear layer and of an embedding")
        if problem is not None:
            findings.append((problem[0], f"`{shown(module)}`: {problem[1]}"))
            continue
        a, b = sides["A"], sides["B"]
        kind: Kind = "embedding" if is_embedding else "linear" if len(a.shape) == _MATRIX else "conv"
        layout = Layout(kind=kind, out=b.shape[0], a_shape=a.shape[1:])
        modules[module] = Factors(layout=layout, rank=a.shape[0], a=a, b=b)
    if findings:
        raise RefusedAdapter(f"`{shown(str(folder), 200)}` has factors that do not fit together", findings)
    return MappingProxyType(modules), tuple(others)


def _problem(module: str, sides: Mapping[str, TensorSpec], config: AdapterConfig) -> tuple[str, str] | None:
    """What is wrong with one module's pair: a finding code and a reason."""
    if len(sides) < len("AB"):
        present, absent = ("A", "B") if "A" in sides else ("B", "A")
        return "E_PAIR", f"has factor {present} but no factor {absent}"
    a, b = sides["A"], sides["B"]
    shapes = f"A is {list(a.shape)} and B is {list(b.shape)}"
    odd = next((spec.dtype for spec in (a, b) if spec.dtype not in TORCH_DTYPES), None)
    if odd is not None:
        return "E_DTYPE", f"is stored as {shown(odd)}, expected one of {', '.join(TORCH_DTYPES)}"
    if len(a.shape) < _MATRIX or len(a.shape) != len(b.shape) or any(size != 1 for size in b.shape[2:]):
        return "E_SHAPE", f"{shapes}, expected [r, in] and [out, r]"
    if 0 in a.shape or 0 in b.shape:
        return "E_SHAPE", f"{shapes}, expected no empty dimension"
    if not a.shape[0] == b.shape[1] == config.rank_of(module):
        return "E_RANK", f"{shapes}, expected rank {config.rank_of(module)} as {CONFIG_FILE} says"
    return None
