"""The components of a pipeline that adapters are made for, and those that a `model_index.json` names.

Other components (VAE, scheduler, tokenizers, safety checker) do not belong to a base's identity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adapterhub.core.disk.files import inside, read_json
from adapterhub.core.errors import Malformed, shown
from adapterhub.formats.safetensors.header import DTYPE_BITS, TensorSpec

DENOISERS: Final = ("unet", "transformer", "transformer_2")
COMPONENTS: Final = (*DENOISERS, "text_encoder", "text_encoder_2", "text_encoder_3")
"""The closed list: no other name is ever a folder of an adapter, or a part of a base."""

PIPELINE_FILE: Final = "model_index.json"
_INDEX_LIMIT_BYTES: Final = 1 << 20
_LIBRARIES: Final = (None, "diffusers", "transformers", "stable_diffusion")
"""Where the classes of a pipeline may come from; the last is the part of diffusers with the safety checker."""


def stated_component(annotations: Mapping[str, Any]) -> str:
    """Return the one component that another program's file was written for, as `add` recorded it.

    "" for several or none.
    """
    origin = annotations.get("origin")
    parts = origin.get("parts") if isinstance(origin, Mapping) else None
    return parts[0] if isinstance(parts, list | tuple) and len(parts) == 1 and parts[0] in COMPONENTS else ""


def ensure_no_code(pipeline: Path) -> None:
    """Raise if loading the pipeline would import code that comes with it.

    Raises:
        Malformed: it holds Python files, or `model_index.json` names a class outside diffusers and transformers.
    """
    hint = "save the pipeline with classes of diffusers and transformers alone"
    found = next((path for path in sorted(pipeline.rglob("*.py"))), None)
    if found is not None:
        raise Malformed(f"`{pipeline}` holds code, which is never run: `{shown(found.name)}`", hint=hint)
    value = _index(pipeline)
    named = value.get("_class_name")
    foreign = [
        entry[0]
        for name, entry in value.items()
        if not name.startswith("_") and isinstance(entry, list) and entry and entry[0] not in _LIBRARIES
    ]
    if not isinstance(named, str) or not named.isidentifier() or foreign:
        what = f"names classes of {shown(foreign[0])}" if foreign else f"`_class_name` is {shown(named)}"
        raise Malformed(f"{pipeline / PIPELINE_FILE}: {what}, expected those of diffusers and transformers", hint=hint)


def component_folders(pipeline: Path) -> dict[str, Path]:
    """Return the folder of each component that adapters are made for, in the order of `COMPONENTS`.

    Reads `model_index.json`, which gives `[library, class]` for each component, or `[null, null]` for one left out.

    Raises:
        Malformed: the file is damaged, names none of these components, or one whose folder is missing.
    """
    path, value = pipeline / PIPELINE_FILE, _index(pipeline)
    found: dict[str, Path] = {}
    for name in COMPONENTS:
        entry = value.get(name)
        if entry is None or entry == [None, None]:
            continue
        if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(text, str) for text in entry):
            raise Malformed(f"{path}: `{name}` is {shown(entry)}, expected [library, class]")
        if not (pipeline / name).is_dir():
            raise Malformed(
                f"`{pipeline}` is incomplete: `{PIPELINE_FILE}` names `{name}`, and there is no such folder",
                hint="finish the download and try again",
            )
        try:
            inside(pipeline, name)
        except OSError as error:
            raise Malformed(f"`{pipeline / name}` {error.strerror}", hint="replace the link with the folder") from None
        found[name] = pipeline / name
    if not found:
        raise Malformed(f"{path}: names no component, expected one of {', '.join(f'`{name}`' for name in COMPONENTS)}")
    return found


def all_folders(pipeline: Path) -> list[Path]:
    """Every folder that `model_index.json` names and that is there: components, VAE, scheduler, tokenizers.

    Raises:
        Malformed: the file is damaged.
    """
    return [pipeline / name for name in sorted(_index(pipeline)) if name.isidentifier() and (pipeline / name).is_dir()]


def _index(pipeline: Path) -> dict[str, Any]:
    path = pipeline / PIPELINE_FILE
    try:
        value = read_json(path, _INDEX_LIMIT_BYTES)
    except (ValueError, OSError) as error:
        raise Malformed(f"{path}: {error}", hint="download the pipeline again") from None
    if not isinstance(value, dict):
        raise Malformed(f"{path}: expected an object with the components", hint="download the pipeline again")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorView:
    """A tensor that a weight file holds in other names or inside another: its bytes are `pieces`, end to end.

    `pieces` are `[start, end)` in the file. `is_transposed`: they are the rows of its transpose, a matrix.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[tuple[int, int], ...]
    is_transposed: bool = False

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor's data."""
        return sum(end - start for start, end in self.pieces)

    @classmethod
    def of(cls, spec: TensorSpec, name: str | None = None) -> TensorView:
        """Return the whole of `spec`."""
        name = spec.name if name is None else name
        return cls(name=name, dtype=spec.dtype, shape=spec.shape, pieces=((spec.start, spec.end),))


def rows(spec: TensorSpec, parts: Sequence[tuple[str, int]]) -> list[TensorView]:
    """Return the rows of `spec` by parts, each a name and a number of rows.

    Raises:
        ValueError: the parts are not all of its rows, or do not fill whole bytes.
    """
    total = spec.shape[0] if spec.shape else 0
    if sum(count for _, count in parts) != total or any(count < 1 for _, count in parts):
        listed = ", ".join(str(count) for _, count in parts)
        raise ValueError(f"`{shown(spec.name)}` has {total} rows, expected {listed}")
    bits = math.prod(spec.shape[1:]) * DTYPE_BITS[spec.dtype]
    found, start = [], spec.start
    for name, count in parts:
        size, rest = divmod(bits * count, 8)
        if rest:
            raise ValueError(f"`{shown(spec.name)}`: {count} rows of {spec.dtype} do not fill whole bytes")
        shape = (count, *spec.shape[1:])
        found.append(TensorView(name=name, dtype=spec.dtype, shape=shape, pieces=((start, start + size),)))
        start += size
    return found


def swapped_halves(spec: TensorSpec, name: str) -> TensorView:
    """`spec` with the second half of its rows first.

    Raises:
        ValueError: the rows have no halves of whole bytes.
    """
    half = (spec.shape[0] if spec.shape else 0) // 2
    first, second = rows(spec, [(name, half), (name, half)])
    return TensorView(name=name, dtype=spec.dtype, shape=spec.shape, pieces=(*second.pieces, *first.pieces))


def transposed(spec: TensorSpec, name: str) -> TensorView:
    """Return the transpose of the matrix `spec`.

    Raises:
        ValueError: it is not a matrix, or its numbers do not fill whole bytes.
    """
    if len(spec.shape) != 2 or DTYPE_BITS[spec.dtype] % 8:
        raise ValueError(f"`{shown(spec.name)}`: expected a matrix of whole bytes, got {spec.dtype} {list(spec.shape)}")
    shape = (spec.shape[1], spec.shape[0])
    return TensorView(name=name, dtype=spec.dtype, shape=shape, pieces=((spec.start, spec.end),), is_transposed=True)
