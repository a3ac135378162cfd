"""The derived record of a build: what its weights are like, module by module, small enough to keep beside it.

It follows from `adapter_config.json` and `adapter_model.safetensors` alone, so it may be deleted and made again at any
time. Memory is that of one module, and time is bounded; what exceeds a bound is left out, and the record says why.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from adapterhub.core.digests import Digest
from adapterhub.core.errors import AdapterHubError, UnsupportedAdapter, first_lines
from adapterhub.formats.derived.algebra import spectrum
from adapterhub.formats.derived.comparison import unmeasurable
from adapterhub.formats.derived.energies import Energies
from adapterhub.formats.derived.reading import AdapterUpdates, Read
from adapterhub.formats.derived.sketch import Sketch
from adapterhub.formats.documented import Documented
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.safetensors.file import TensorFile

SCHEMA: Final = "adapterhub/derived/1"
MOST_VALUES: Final = 16
"""Singular values kept of each module."""
MOST_MODULES: Final = 4096
TIME_S: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleRecord(
    Documented, keys="name kind out in=width parts rank scale norm effective_rank singular_values=values reason"
):
    """One module. The figures are None where `reason` says why they were not computed."""

    name: str
    kind: Annotated[str, "linear, conv, embedding or experts"]
    out: int
    width: Annotated[int, "input width"]
    parts: int
    rank: int
    scale: float
    norm: Annotated[float | None, "Frobenius norm of the update"] = None
    effective_rank: Annotated[float | None, "exponential of the entropy of the singular values"] = None
    values: Annotated[tuple[float, ...], "the largest singular values, descending"] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedRecord(Documented, keys="schema weights config norm others sketch modules reason"):
    """The derived record of one build. Without modules, `reason` says why there are none.

    `weights` and `config` are the digests of the two files. `norm` is the Frobenius norm of the whole update; `sketch`
    holds 128 signed bytes in base64, see `sketch`. `others` counts the tensors that are not factors.
    """

    weights: Digest
    config: Digest
    modules: tuple[ModuleRecord, ...] = ()
    norm: Annotated[float | None, "Frobenius norm of the whole update"] = None
    others: int = 0
    sketch: str = ""
    reason: str = ""
    schema: str = SCHEMA

    @classmethod
    def from_json(cls, value: Any) -> DerivedRecord:  # noqa: ANN401 - a JSON value
        """Read the value that `to_json` makes.

        Raises:
            ValueError: it has another schema, or another form; make the record again.
        """
        try:
            if value["schema"] != SCHEMA:
                raise ValueError(f"schema {value['schema']}, expected {SCHEMA}")
            modules = tuple(_module(one) for one in value["modules"])
            return cls(**{key: value[key] for key in cls.document_attributes()} | {"modules": modules})
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a derived record: {error}") from None


def _module(value: Mapping[str, Any]) -> ModuleRecord:
    fields = {attribute: value[key] for key, attribute in ModuleRecord.document_attributes().items()}
    return ModuleRecord(**fields | {"values": tuple(fields["values"])})


def derive(
    config: AdapterConfig,
    file: TensorFile,
    read: Read,
    *,
    weights_digest: Digest,
    config_digest: Digest,
    time_s: float = TIME_S,
) -> DerivedRecord:
    """The record of the adapter with this config and weights file, whose bytes `read` gives.

    A module that starts after `time_s` seconds has no figures. Never raises for the adapter's own faults: they are the
    `reason` of the record.
    """
    try:
        updates = AdapterUpdates(config, file, read)
        if len(updates.modules) > MOST_MODULES:
            raise UnsupportedAdapter(f"{len(updates.modules)} modules, computed up to {MOST_MODULES}")
    except AdapterHubError as error:
        reason = first_lines(error.message.splitlines(), 5)
        return DerivedRecord(weights=weights_digest, config=config_digest, reason="\n".join(reason))
    end, sketch = time.monotonic() + time_s, Sketch()
    modules = tuple(_figures(updates, module, sketch, is_late=time.monotonic() > end) for module in updates.modules)
    norms = [module.norm for module in modules if module.norm is not None]
    return DerivedRecord(
        weights=weights_digest,
        config=config_digest,
        modules=modules,
        norm=_rounded(math.hypot(*norms)) if norms else None,
        others=len(updates.others),
        sketch=sketch.packed() if norms else "",
        reason="" if modules else "it holds no low-rank updates",
    )


def _figures(updates: AdapterUpdates, module: str, sketch: Sketch, *, is_late: bool) -> ModuleRecord:
    factors = updates.modules[module]
    known: dict[str, Any] = {
        "name": module,
        "kind": factors.layout.kind,
        "out": factors.layout.out,
        "width": factors.layout.width,
        "parts": factors.layout.parts,
        "rank": factors.rank,
        "scale": factors.scale,
    }
    reason = "the time for this adapter was over" if is_late else updates.too_large(module)
    parts = () if reason else updates.parts(module)
    reason = reason or next(filter(None, map(unmeasurable, parts)), "")
    if reason:
        return ModuleRecord(**known, reason=reason)
    try:
        energies = Energies.together([spectrum(part).energies for part in parts])
    except AdapterHubError as error:
        return ModuleRecord(**known, reason=error.message)
    for at, part in enumerate(parts):
        sketch.add(f"{module}#{at}" if len(parts) > 1 else module, part)
    return ModuleRecord(
        **known,
        norm=_rounded(energies.norm),
        effective_rank=_rounded(energies.effective_rank),
        values=tuple(map(_rounded, energies.values[:MOST_VALUES])),
    )


def _rounded(number: float) -> float:
    """Six significant digits: what a page shows, and a small file."""
    return float(f"{number:.6g}")
