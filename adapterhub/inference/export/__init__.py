"""Writes adapters in the formats of other programs; one file per format.

    exported = export("legal-qa@base-7b", Path("legal.gguf"), form="gguf")
    exported.paths, exported.notes

An exported adapter gives the answers that it gives in PEFT; a format that cannot express a part of it refuses it and
names that part. The adapter is checked against its base first and written one module at a time. The output appears
complete under its name, or not at all.

A new format is a new file here, or in `dialects` if its files are PEFT's with experts laid out in another way, with
`export(job, out) -> Exported`; users type its name, `peft@0.18` for `peft_at_0_18`. Files that begin with an underscore
are not formats.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import ModuleType

from adapterhub.core.disk.files import ensure_new
from adapterhub.core.errors import UsageProblem, shown
from adapterhub.core.specs import BaseSpec
from adapterhub.formats.safetensors.header import CHOICES
from adapterhub.inference.export._job import Adapter, Exported, Job, Steps
from adapterhub.library.default import LibraryLike, open_library
from adapterhub.library.store.catalog import AdapterLike
from adapterhub.weights.fuse import WrittenCheck

__all__ = ["DTYPES", "TESTABLE", "Adapter", "Exported", "Job", "export", "forms", "load"]

DTYPES = tuple(CHOICES)
"""The dtypes in which factors can be written."""


TESTABLE = ("gguf", "merged", "peft", "vllm")
"""The formats that can be asked once they are written: by llama.cpp's server, transformers, or PEFT."""


def forms() -> tuple[str, ...]:
    """Return the names of all formats; imports none."""
    return tuple(sorted(_modules()))


@cache
def _modules() -> dict[str, str]:
    """Return the modules of all formats by their names: `peft@0.18` is `peft_at_0_18`."""
    here = dict.fromkeys(_files(__path__), __name__)
    there = dict.fromkeys(_files([f"{path}/dialects" for path in __path__]), f"{__name__}.dialects")
    found = {}
    for module, place in (here | there).items():
        name, at, version = module.partition("_at_")
        found[name + ("@" + version.replace("_", ".") if at else "")] = f"{place}.{module}"
    return found


def _files(path: Iterable[str]) -> list[str]:
    return [found.name for found in pkgutil.iter_modules(path) if not (found.name.startswith("_") or found.ispkg)]


def load(form: str) -> ModuleType:
    """Return the module of a format.

    Raises:
        UsageProblem: there is no such format.
    """
    if form not in forms():
        near = difflib.get_close_matches(form, forms(), n=1)
        hint = f"did you mean `{near[0]}`?" if near else ""
        raise UsageProblem(f"unknown format `{shown(form, 40)}`, expected one of {', '.join(forms())}", hint=hint)
    return importlib.import_module(_modules()[form])


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
    test: WrittenCheck | None = None,
    progress: Steps | None = None,
) -> Exported:
    """Write the adapter `what` to `out`, a file or a folder that must not exist yet.

    Args:
        what: a spec, a folder or an installed build, as for `attach`.
        out: a file for `gguf`, `comfyui`, `diffusers` and `kohya`, a folder for all other formats.
        form: one of `forms()`.
        library: the library with the adapters and bases; by default that of the command line.
        base: the base, if the adapter does not declare a registered one.
        dtype: the dtype of the written numbers; by default each format chooses its own.
        ollama_base: Ollama's name for the base (`FROM` of a Modelfile).
        allow_base_mismatch: accept a base with the same shapes and other weights.
        test: looks at the new folder before it gets its name; for the formats of `TESTABLE`.
        progress: called with the number of written modules and the number of all modules.

    Raises:
        UnsupportedAdapter: the format cannot express parts of the adapter; names each of them.
        UsageProblem, AdapterNotFound, NoCompatibleRelease, AmbiguousSpec, BaseNotFound: the request has no match, or
            more than one.
        BaseMismatch, RefusedAdapter, Malformed, DigestMismatch: the files do not fit, or are damaged or unsafe.
        Conflict: `out` exists.
        DiskFull, NotAllowed: `out` cannot be written.
    """
    module = load(form)
    if dtype is not None and dtype not in DTYPES:
        raise UsageProblem(f"dtype `{shown(dtype)}`, expected one of {', '.join(DTYPES)}")
    if ollama_base is not None and form != "ollama":
        raise UsageProblem(
            f"a name of an Ollama base goes with the format `ollama`, not with `{form}`",
            hint="use `--format ollama`, or drop the name",
        )
    if test is not None and form not in TESTABLE:
        raise UsageProblem(
            f"a test loads what was written again, and `{form}` is for a program that is not here",
            hint=f"the formats {', '.join(TESTABLE)} can be tested",
        )
    ensure_new(out)
    job = Job(
        what=what,
        library=open_library(library),
        base=BaseSpec.parse(base) if isinstance(base, str) else base,
        dtype=dtype,
        ollama_base=ollama_base,
        allow_base_mismatch=allow_base_mismatch,
        test=test,
        progress=progress,
    )
    exported: Exported = module.export(job, out)
    return exported
