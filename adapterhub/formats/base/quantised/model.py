"""The tensors that a quantised model had before it was quantised, and their facts for a fingerprint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from adapterhub.core.errors import shown
from adapterhub.formats.base.fingerprint import (
    MANY_TENSORS,
    RANGES_OF_MANY,
    CopyFacts,
    CopyRange,
    is_buffer,
    structure_of,
)
from adapterhub.formats.base.pairing import paired
from adapterhub.formats.base.quantised.formats import explained
from adapterhub.formats.base.quantised.stacks import experts_for
from adapterhub.formats.base.quantised.weight import Places, Plain, Ranges, Reader, Tensors, Weight
from adapterhub.formats.safetensors.header import DTYPES, TensorSpec, sample_offsets

_BESIDE: Final = ("input_scale", "input_global_scale", "output_scale", "k_scale", "v_scale", "q_scale", "kv_scale")
"""Ends of names: scales of activations, which say nothing of weights."""


@dataclass(frozen=True, kw_only=True)
class FileModel:
    """A model in its files: `weights` by the source's names, of which `quantised` are codes and scales.

    `naming` and `unknown`: see `CopyFacts`. `model_type`: transformers' name for the kind of model; "" if unknown.
    """

    reader: Reader
    weights: Mapping[str, Weight]
    quantised: Mapping[str, Weight]
    naming: str = ""
    unknown: str = ""
    model_type: str = ""

    @property
    def parts(self) -> frozenset[str]:
        """The tensors of the copy that are not weights of the source: codes, scales, and the tensors next to them."""
        used = {part for weight in self.quantised.values() for part in weight.parts}
        plain = {weight.parts[0] for name, weight in self.weights.items() if name not in self.quantised}
        return frozenset(
            name
            for name, stored in self.reader.tensors.items()
            if name not in plain and (name in used or len(stored.shape) <= 1 or name.endswith(_BESIDE))
        )

    @property
    def is_copy(self) -> bool:
        """Whether some of its weights are codes and scales, or in a format that is not known."""
        return bool(self.quantised or self.unknown)

    @property
    def form(self) -> str:
        """The format of most of its quantised numbers."""
        sizes: Counter[str] = Counter()
        for weight in self.quantised.values():
            sizes[weight.form] += prod(weight.shape)
        return sizes.most_common(1)[0][0] if sizes else ""

    def weights_for(self, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Weight]:
        """Its weights by the names of the same tensors in a source with `shapes`; those that it lacks are left out."""
        found = {name: self.weights[here] for name, here in paired(shapes, self.weights).items()}
        rest = {name: shape for name, shape in shapes.items() if name not in found}
        return found | experts_for(rest, self.weights, self.model_type) if rest else found

    def left_out(self, names: Collection[str]) -> Collection[str]:  # noqa: ARG002 - files of a format may
        """Those of a source's tensors that no copy in this format holds."""
        return ()

    def facts(self) -> CopyFacts | None:
        """Return the record of its source for the fingerprint; None for a model in floats.

        Raises:
            CouldNotTell: a file cannot be read.
        """
        if not self.is_copy:
            return None
        keep = RANGES_OF_MANY if len(self.weights) > MANY_TENSORS else None
        ranges = {
            name: CopyRange(weight.form, weight.shape, packed(weight.ranges(self.reader, places(weight.shape)[:keep])))
            for name, weight in sorted(self.quantised.items())
        }
        return CopyFacts(
            form=self.form,
            structure=structure_of((weight.name, weight.shape) for weight in self.weights.values()),
            ranges=MappingProxyType(ranges),
            naming=self.naming,
            unknown=self.unknown,
        )


def model_of(where: str, reader: Reader, config: Mapping[str, Any]) -> FileModel:
    """Return the model whose tensors `reader` reads, and whose `config.json` is `config`.

    Raises:
        Malformed: tensors are not as their format needs.
    """
    text = config.get("text_config")
    holders = (config, text if isinstance(text, dict) else {})
    stated = (holder.get(key) for holder in holders for key in ("quantization_config", "quantization"))
    quantisation = next((value for value in stated if isinstance(value, dict)), {})
    tensors = Tensors(where=where, tensors=reader.tensors, config=config, quantisation=quantisation, reader=reader)
    quantised = dict(explained(tensors))
    used = {part for weight in quantised.values() for part in weight.parts}
    weights, unknown = dict(quantised), ""
    for name, stored in reader.tensors.items():
        if name in used or name in quantised or name.endswith(_BESIDE):
            continue
        if DTYPES[stored.dtype].layout is not None:
            weights[name] = Plain(name=name, shape=stored.shape, form=stored.dtype, parts=(name,))
        elif len(stored.shape) > 1 and not is_buffer(name, stored.shape):
            unknown = unknown or f"`{shown(name)}` is {stored.dtype}"
    method = quantisation.get("quant_method")
    if method is not None and (unknown or not quantised):
        unknown = shown(method) + (f" ({unknown})" if unknown else "")
    elif not quantised:
        unknown = ""  # a model in floats with tables of integers
    if transform := quantisation.get("transform_config"):
        unknown = f"{shown(method)} of rotated weights ({shown(transform, 80)})"
    kind = next((kind for holder in holders if isinstance(kind := holder.get("model_type"), str)), "")
    return FileModel(reader=reader, weights=weights, quantised=quantised, unknown=unknown, model_type=kind)


def places(shape: tuple[int, ...]) -> Places:
    """Return the sampled places of a tensor of this shape, in the order of `sample_offsets`."""
    width = DTYPES["F32"].bits // 8
    offsets = sample_offsets(TensorSpec.planned("", "F32", shape))
    return np.array([offset // width for offset in offsets], dtype=np.int64)


def packed(ranges: Ranges) -> bytes:
    """Ranges as a fingerprint keeps them: float32, the ends rounded outwards."""
    ends = np.stack([ranges.low, ranges.high, ranges.value], 1).astype("<f4")
    ends[:, 0] = np.where(ends[:, 0] > ranges.low, np.nextafter(ends[:, 0], np.float32(-np.inf)), ends[:, 0])
    ends[:, 1] = np.where(ends[:, 1] < ranges.high, np.nextafter(ends[:, 1], np.float32(np.inf)), ends[:, 1])
    return ends.astype("<f4").tobytes()
