"""`ollama`: a folder with the adapter as GGUF and a Modelfile for `ollama create`. Best effort, not run here.

Ollama has no adapter beside a model, only models that hold one: each adapter is a model of its own there, which shares
the base's blob. Its name for the base goes into the Modelfile; whether it is the base that the adapter was made for is
not known to Ollama, and some releases since 0.34.1 are said to refuse `ADAPTER` lines.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from adapterhub.core.disk.new_folder import new_folder
from adapterhub.core.errors import UsageProblem, shown
from adapterhub.inference.export._job import Exported, Job
from adapterhub.inference.export.gguf import write_gguf

ADAPTER_FILE: Final = "adapter.gguf"
MODELFILE: Final = "Modelfile"
_BEST_EFFORT: Final = "best effort: this was not tried with Ollama, some releases of which refuse `ADAPTER` lines"


def export(job: Job, out: Path) -> Exported:
    """Write `adapter.gguf` and `Modelfile` into the folder `out`; `dtype` float32 where none is asked for.

    Raises:
        UsageProblem: it is not said how Ollama calls the base.
        UnsupportedAdapter: what GGUF cannot carry, all of it named.
    """
    base = job.ollama_base
    if not base or not base.isprintable() or base != base.strip():
        said = f"`{shown(base)}` is no name of a model" if base else "it is not said how Ollama calls the base"
        raise UsageProblem(said, hint="`--ollama-base llama3.2:1b` names a model or a GGUF file of the base")
    with job.opened("ollama", needs_base=True) as adapter:
        with new_folder(out, durable=True) as folder:
            write_gguf(adapter, folder / ADAPTER_FILE, dtype=job.dtype or "float32", job=job)
            (folder / MODELFILE).write_text(_modelfile(adapter.label, base), encoding="utf-8")
        paths = (out / MODELFILE, out / ADAPTER_FILE)
        return Exported(
            paths=paths,
            label=adapter.label,
            size_bytes=sum(path.stat().st_size for path in paths),
            notes=(*adapter.warnings, _BEST_EFFORT),
        )


def _modelfile(label: str, base: str) -> str:
    """A Modelfile; the path in it is relative to it."""
    return f"# {shown(label, 200)}, exported by adapterhub\nFROM {base}\nADAPTER ./{ADAPTER_FILE}\n"
