"""`ollama`: a folder with the adapter as GGUF and a Modelfile for `ollama create`. Best effort, not run here.

In Ollama an adapter is part of a model, which shares the blob of the base. The Modelfile contains Ollama's name for the
base; Ollama does not check that it is the base of the adapter. Some releases since 0.34.1 reportedly refuse `ADAPTER`
lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from adapterhub.core.disk.files import new_folder
from adapterhub.core.errors import UsageProblem, shown
from adapterhub.formats.prompts.modelfile import modelfile_lines
from adapterhub.inference.export._job import Exported, Job
from adapterhub.inference.export.gguf import write_gguf

ADAPTER_FILE: Final = "adapter.gguf"
MODELFILE: Final = "Modelfile"
_BEST_EFFORT: Final = "best effort: this was not tested with Ollama, and some of its releases refuse `ADAPTER` lines"


def export(job: Job, out: Path) -> Exported:
    """Write `adapter.gguf` and `Modelfile` into the folder `out`; the default dtype is float32.

    Raises:
        UsageProblem: Ollama's name for the base is missing or invalid.
        UnsupportedAdapter: GGUF cannot express parts of the adapter; names each of them.
    """
    base = job.ollama_base
    if not base or not base.isprintable() or base != base.strip():
        problem = f"`{shown(base)}` is not a model name" if base else "Ollama's name for the base is missing"
        raise UsageProblem(problem, hint="pass a model, or a GGUF file of the base, such as `--gguf llama3.2:1b`")
    with job.opened("ollama", needs_base=True) as adapter:
        with new_folder(out, durable=True) as folder:
            write_gguf(adapter, folder / ADAPTER_FILE, dtype=job.dtype or "float32", job=job)
            lines, untold = ([], []) if adapter.prompt is None else modelfile_lines(adapter.prompt)
            (folder / MODELFILE).write_text(_modelfile(adapter.label, base, lines), encoding="utf-8")
        return adapter.exported(out / MODELFILE, out / ADAPTER_FILE, notes=(*untold, _BEST_EFFORT))


def _modelfile(label: str, base: str, prompt: Sequence[str]) -> str:
    """Return the text of a Modelfile, with the lines of the prompt form; the path in it is relative to the file."""
    lines = [f"# {shown(label, 200)}, exported by adapterhub", f"FROM {base}", f"ADAPTER ./{ADAPTER_FILE}", *prompt]
    return "".join(f"{line}\n" for line in lines)
