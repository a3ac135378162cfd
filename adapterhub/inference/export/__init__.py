"""Adapters in the forms that other programs read; one format a file.

    exported = export("legal-qa@base-7b", Path("legal.gguf"), form="gguf")
    exported.paths, exported.notes

Every format means what PEFT means by the adapter, or refuses it by the names of what it cannot carry. An adapter is
checked against its base beforehand, written one module at a time, and appears complete under its name or not at all.

A new format is a new file here with `export(job, out) -> Exported`, which is what users type; files that begin with an
underscore are no formats.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

from adapterhub.core.disk.new_folder import ensure_new
from adapterhub.core.errors import UsageProblem, shown
from adapterhub.core.specs import BaseSpec
from adapterhub.distribution.finding import AdapterLike
from adapterhub.formats.safetensors.dtypes import CHOICES
from adapterhub.inference.export._job import Adapter, Exported, Job, Steps
from adapterhub.library.default import LibraryLike, open_library

__all__ = ["DTYPES", "Adapter", "Exported", "Job", "export", "forms", "load"]

DTYPES = tuple(CHOICES)
"""What factors can be written as."""


def forms() -> tuple[str, ...]:
    """The formats there are; none is imported."""
    return tuple(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def load(form: str) -> ModuleType:
    """The module of one of `forms()`.

    Raises:
        UsageProblem: there is no such format.
    """
    if form not in forms():
        near = difflib.get_close_matches(form, forms(), n=1)
        hint = f"did you mean `{near[0]}`?" if near else ""
        raise UsageProblem(f"no format `{shown(form, 40)}`; there are: {', '.join(forms())}", hint=hint)
    return importlib.import_module(f"adapterhub.inference.export.{form}")


def export(  # noqa: PLR0913 - one argument for each option of the command
    what: AdapterLike,
    out: Path,
    *,
    form: str,
    library: LibraryLike = None,
    base: BaseSpec | str | None = None,
    dtype: str | None = None,
    ollama_base: str | None = None,
    allow_base_mismatch: bool = False,
    progress: Steps | None = None,
) -> Exported:
    """Write the adapter `what` to `out`, a file or a folder that does not exist yet.

    Args:
        what: a spec, a folder or an installed build, as for `attach`.
        out: a file for `gguf`, a folder for all others.
        form: one of `forms()`.
        library: where adapters and bases are; that of the command line if None.
        base: the base, where the adapter does not say which of those registered here it is for.
        dtype: of the numbers that are written; each format says what it takes when it is None.
        ollama_base: how Ollama calls the base (`FROM` of a Modelfile).
        allow_base_mismatch: take a base of the same shapes with other weights.
        progress: called with how many modules of how many are written.

    Raises:
        UnsupportedAdapter: what the format cannot carry, all of it named.
        UsageProblem, AdapterNotFound, NoCompatibleRelease, AmbiguousSpec, BaseNotFound: what was asked for.
        BaseMismatch, RefusedAdapter, Malformed, DigestMismatch: files that do not fit or are not sound.
        Conflict: `out` exists.
        DiskFull, NotAllowed: it cannot be written.
    """
    module = load(form)
    if dtype is not None and dtype not in DTYPES:
        raise UsageProblem(f"dtype `{shown(dtype)}`, expected one of {', '.join(DTYPES)}")
    if ollama_base is not None and form != "ollama":
        raise UsageProblem(f"the name of an Ollama base is for the format `ollama`, not for `{form}`")
    ensure_new(out)
    job = Job(
        what=what,
        library=open_library(library),
        base=BaseSpec.parse(base) if isinstance(base, str) else base,
        dtype=dtype,
        ollama_base=ollama_base,
        allow_base_mismatch=allow_base_mismatch,
        progress=progress,
    )
    exported: Exported = module.export(job, out)
    return exported
