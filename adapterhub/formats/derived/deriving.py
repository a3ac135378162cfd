"""Makes the derived record of a build, with the memory of one module and within bounds of size and time."""

from __future__ import annotations

import math
import time
from typing import Any, Final

import numpy as np

from adapterhub.core.digests import Digest
from adapterhub.core.errors import AdapterHubError, MalformedConfig, UnsupportedAdapter, first_lines
from adapterhub.formats import engines
from adapterhub.formats.derived.algebra import Energies, kronecker, spectrum
from adapterhub.formats.derived.comparison import unmeasurable
from adapterhub.formats.derived.likeness import Sketch
from adapterhub.formats.derived.reading import AdapterUpdates, Read
from adapterhub.formats.derived.record import DerivedRecord, EngineRecord, ModuleRecord
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.safetensors.file import TensorFile

MOST_VALUES: Final = 16
"""Singular values kept of each module."""
MOST_MODULES: Final = 4096
TIME_S: Final = 120.0


def derive(
    config: AdapterConfig,
    file: TensorFile,
    read: Read,
    *,
    weights_digest: Digest,
    config_digest: Digest,
    time_s: float = TIME_S,
    sketch: Sketch | None = None,
) -> DerivedRecord:
    """Return the record of the adapter with this config and weights file, whose bytes `read` gives.

    A module that starts after `time_s` seconds has no figures. `sketch` gets the modules that have. Never raises for
    the adapter's own faults: they are the `reason` of the record.
    """
    try:
        updates = AdapterUpdates(config, file, read)
        if len(updates.modules) > MOST_MODULES:
            raise UnsupportedAdapter(f"{len(updates.modules)} modules, computed up to {MOST_MODULES}")
    except AdapterHubError as error:
        reason = "\n".join(first_lines(error.message.splitlines(), 5))
        code = getattr(error, "code", "")
        findings = (*config.notes, *([(code, reason)] if code else []))
        return DerivedRecord(
            weights=weights_digest,
            config=config_digest,
            findings=findings,
            engines=engine_records(config, file),
            reason=reason,
        )
    end = time.monotonic() + time_s
    with np.errstate(all="ignore"):  # the record reports hostile numbers
        modules = tuple(_figures(updates, module, sketch, is_late=time.monotonic() > end) for module in updates.modules)
    norms = [module.norm for module in modules if module.norm is not None]
    return DerivedRecord(
        weights=weights_digest,
        config=config_digest,
        modules=modules,
        norm=_rounded(math.hypot(*norms)) if norms else None,
        others=len(updates.others),
        findings=(*config.notes, *(("E_NONFINITE", f"`{m.name}` {m.reason}") for m in modules if "NaN" in m.reason)),
        engines=engine_records(config, file),
        reason="" if modules else "it holds no low-rank updates",
    )


def engine_records(
    config: AdapterConfig, file: TensorFile, base: engines.BaseFacts | None = None
) -> tuple[EngineRecord, ...]:
    """Return the verdict of each engine on the adapter; rules about the base apply as far as `base` is known."""
    return tuple(_engine_record(name, config, file, base) for name in engines.names())


def _engine_record(name: str, config: AdapterConfig, file: TensorFile, base: engines.BaseFacts | None) -> EngineRecord:
    try:
        verdict = engines.judge(name, config, file, base=base)
    except MalformedConfig as error:
        return EngineRecord(engine=name, reads=False, reasons=(error.message,), notes=())
    needs = (" ".join(verdict.flags),) if verdict.flags else ()
    reasons = tuple(reason.text for reason in verdict.reasons)
    return EngineRecord(engine=name, reads=verdict.ok, reasons=reasons, notes=(*needs, *verdict.notes))


def _figures(updates: AdapterUpdates, module: str, sketch: Sketch | None, *, is_late: bool) -> ModuleRecord:
    factors = updates.modules[module]
    known: dict[str, Any] = {
        "name": module,
        "kind": factors.layout.kind,
        "out": factors.layout.out,
        "width": factors.layout.width,
        "parts": factors.layout.parts,
        "rank": factors.rank,
        "scale": factors.scale if math.isfinite(factors.scale) else 0.0,
    }
    reason = "the time for this adapter was over" if is_late else updates.too_large(module, in_sides=True)
    sides = None if reason else updates.sides(module)
    too_large = reason or updates.too_large(module)
    parts = () if too_large else updates.parts(module)
    reason = next(filter(None, map(unmeasurable, sides or parts)), "") or ("" if sides else too_large)
    if reason:
        return ModuleRecord(**known, reason=reason)
    try:
        found = [spectrum(one).energies for one in sides or parts]
        energies = kronecker(*found) if sides else Energies.together(found)
    except AdapterHubError as error:
        return ModuleRecord(**known, reason=error.message)
    if sketch is not None and parts:
        sketch.add(module, parts)
    return ModuleRecord(
        **known,
        norm=_rounded(energies.norm),
        effective_rank=_rounded(energies.effective_rank),
        values=tuple(map(_rounded, energies.values[:MOST_VALUES])),
    )


def _rounded(number: float) -> float:
    """Six significant digits: what a page shows, and a small file."""
    return float(f"{number:.6g}")
