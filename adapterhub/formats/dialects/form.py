"""The one inner form: any adapter as PEFT 0.21 would have written it, made from the bytes of the file when it is read.

A dialect gives a config and the tensors of the inner form, each with its sources in the file. Numbers are moved, never
computed, so every dtype is exact. The inner file is written on first use, into a file without a name, one tensor at a
time; what needs the header only writes nothing.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adapterhub.core.disk.held_file import PIECE_BYTES, HeldFile
from adapterhub.core.errors import MissingExtra
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.safetensors.file import TensorFile, header_bytes, parse_header
from adapterhub.formats.safetensors.header import DTYPE_BITS, TensorSpec

Make = Callable[[Sequence[Any]], Any]
"""Moves the numbers of the sources, arrays of unsigned integers, into one array."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A tensor of the inner form; without `make`, it has the bytes of its one source."""

    name: str
    shape: tuple[int, ...]
    sources: tuple[TensorSpec, ...]
    make: Make | None = None

    @classmethod
    def of(cls, spec: TensorSpec, name: str = "") -> Made:
        """Return the tensor unchanged, or under another name."""
        return cls(name=name or spec.name, shape=spec.shape, sources=(spec,))

    @property
    def dtype(self) -> str:
        """The dtype of the sources, which is one."""
        return self.sources[0].dtype

    @property
    def planned(self) -> TensorSpec:
        """Its entry in the header that is yet to be written."""
        return TensorSpec.planned(self.name, self.dtype, self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """An adapter in PEFT's form: its settings, parsed and as JSON, its header and its bytes."""

    config: AdapterConfig
    config_bytes: bytes
    weights: TensorFile
    held: HeldFile

    def array(self, spec: TensorSpec) -> Any:
        """Return the tensor as numpy's unsigned integers of its width, [shape].

        Raises:
            MissingExtra: numpy is not installed.
            OSError, DigestMismatch: as `HeldFile.read`.
        """
        return (
            numpy_for("a LoRA in another layout")
            .frombuffer(self.held.read(spec.start, spec.end), f"<u{DTYPE_BITS[spec.dtype] // 8}")
            .reshape(spec.shape)
        )

    def data(self, spec: TensorSpec) -> bytearray | memoryview:
        """Return the bytes of a tensor.

        Raises:
            OSError, DigestMismatch: as `HeldFile.read`.
        """
        return self.held.read(spec.start, spec.end)

    def write(self, folder: Path) -> None:
        """Write config and weights into `folder`, as a PEFT folder.

        Raises:
            OSError: the folder cannot be written, or the source cannot be read.
        """
        (folder / CONFIG_FILE).write_bytes(self.config_bytes)
        self.held.copy_to(folder / WEIGHTS_FILE)

    def remade(self, tensors: Iterable[Made], **settings: Any) -> Form:
        """Return the form with other tensors, which are made from those of this one, and other settings.

        None removes one.
        """
        ordered = sorted(tensors, key=lambda made: (made.sources[0].start, made.name))
        header = header_bytes((made.planned for made in ordered), self.weights.metadata)
        size = len(header) + sum(made.planned.size_bytes for made in ordered)
        weights = parse_header(io.BytesIO(header), path=self.weights.path, size_bytes=size)
        merged = {**json.loads(self.config_bytes), **settings}
        kept = {key: value for key, value in merged.items() if value is not None or key not in settings}
        text = (json.dumps(kept, indent=2) + "\n").encode()
        config = AdapterConfig.parse(text, CONFIG_FILE)
        held = _MadeFile(self, header, tuple(ordered), size)
        return Form(config=config, config_bytes=text, weights=weights, held=held)


def numpy_for(what: str) -> Any:
    """Numpy, which the package does not require.

    Raises:
        MissingExtra: it is not installed; `what` needs it.
    """
    try:
        import numpy as np
    except ImportError:
        raise MissingExtra(what, ("numpy",), "weights") from None
    return np


class _MadeFile(HeldFile):
    """A file of the inner form, without a name; written when it is first read."""

    def __init__(self, source: Form, header: bytes, tensors: tuple[Made, ...], size_bytes: int) -> None:
        self._handle = -1
        self._source, self._header, self._tensors = source, header, tensors
        self._begin(source.held.path, size_bytes)

    def close(self) -> None:
        super().close()
        source = getattr(self, "_source", None)
        if source is not None:
            source.held.close()

    def _fill(self, view: memoryview, at: int) -> int:
        if self._handle < 0:
            self._write()
        return super()._fill(view, at)

    def _write(self) -> None:
        import tempfile

        with tempfile.TemporaryFile(buffering=0) as sink:
            sink.write(self._header)
            arrays: dict[TensorSpec, Any] = {}
            for made in self._tensors:
                needed = dict.fromkeys(made.sources if made.make is not None else ())
                arrays = {spec: array for spec, array in arrays.items() if spec in needed}  # one tensor at a time
                arrays |= {spec: self._source.array(spec) for spec in needed if spec not in arrays}
                for piece in self._pieces_of(made, arrays):
                    _write_all(sink.fileno(), piece)
            self._handle = os.dup(sink.fileno())

    def _pieces_of(self, made: Made, arrays: Mapping[TensorSpec, Any]) -> Iterable[Any]:
        if made.make is None:
            yield from self._source.held.chunks(made.sources[0].start, made.sources[0].end, PIECE_BYTES)
            return
        array = made.make([arrays[spec] for spec in made.sources])
        if array.size != math.prod(made.shape):
            raise ValueError(f"`{made.name}` was made with {array.shape}, expected {made.shape}")
        yield numpy_for("").ascontiguousarray(array).reshape(-1).view("u1").data


_MOST_AT_ONCE: Final = 1 << 30


def _write_all(handle: int, data: Any) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view[:_MOST_AT_ONCE]) :]
