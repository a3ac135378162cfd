"""The export for programs with names of their own: their reader in `formats/foreign` also writes, and reads it back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from adapterhub.core.disk.files import new_file, new_folder, sync_file
from adapterhub.core.errors import UnsupportedAdapter, UsageProblem, shown
from adapterhub.formats.dialects.form import Form
from adapterhub.formats.diffusion.components import DENOISERS
from adapterhub.formats.foreign.conversion import MLX_WEIGHTS
from adapterhub.formats.foreign.reading import Method
from adapterhub.formats.foreign.writing import Program, modules_of, write_file
from adapterhub.formats.manifest import CONFIG_FILE
from adapterhub.inference.export._job import Adapter, Exported, Job
from adapterhub.inference.export.dialects import form_of, single_of

_SCHEMES: Final = {
    "diffusers": ("diffusers", "diffusers-old"),
    "kohya": ("kohya",),
    "comfyui": ("comfyui",),
    "mlx": ("mlx",),
}
"""The schemes of originals whose spelling a program's writer keeps."""

_FORMS: Final[dict[str, tuple[str, tuple[Method, ...]]]] = {
    "diffusers": ("diffusers", ("LORA",)),
    "kohya": ("kohya's files", ("LORA", "LOHA", "LOKR")),
    "comfyui": ("ComfyUI", ("LORA", "LOHA", "LOKR")),
    "mlx": ("MLX", ("LORA",)),
}
"""The name of each program, and the methods that its files hold."""


def export_for(program: str, job: Job, out: Path) -> Exported:
    """Write the adapter for `program`: a folder for MLX, a file for the others.

    Raises:
        UsageProblem: a dtype was given; the numbers are the author's.
        UnsupportedAdapter: the program has no form for a part of the adapter.
    """
    if job.dtype is not None:
        raise UsageProblem(
            f"the format `{program}` keeps the author's numbers and takes no `--dtype`", hint="drop `--dtype`"
        )
    with job.opened("peft", needs_base=False, guesses_base=False) as adapter:
        form = single_of(adapter) if program == "mlx" else form_of(adapter)
        made = _made(program, adapter, form)
        if made.config is None:
            with new_file(out) as partial:
                write_file(partial, made, form.data, job.step)
                sync_file(partial)
            return adapter.exported(out, notes=made.notes)
        with new_folder(out, durable=True) as folder:
            write_file(folder / MLX_WEIGHTS, made, form.data, job.step)
            (folder / CONFIG_FILE).write_text(json.dumps(dict(made.config), indent=2) + "\n", encoding="utf-8")
        return adapter.exported(out / CONFIG_FILE, out / MLX_WEIGHTS, notes=made.notes)


def _made(program: str, adapter: Adapter, form: Form) -> Program:
    found: Any = adapter.manifest.annotations.get("origin") if adapter.manifest else None
    origin = found if isinstance(found, dict) else {}
    stated = origin.get("spelling") if origin.get("scheme") in _SCHEMES[program] else {}
    spelling = stated if isinstance(stated, dict) else {}
    title, methods = _FORMS[program]
    reading = modules_of(form.weights, form.config, adapter.label, origin, program=title, methods=methods)
    reading = replace(reading, class_name=_class_of(adapter, reading.parts), architecture=_architecture(adapter))
    is_image = all(module.part for module in reading.modules)
    if program != "mlx" and not is_image:
        module = next(module.name for module in reading.modules if not module.part)
        reason = f"`{shown(module)}` is a module of no component of an image pipeline"
        message = f"`{shown(adapter.label, 200)}` cannot be exported for {program}; nothing was written"
        raise UnsupportedAdapter(message, [reason], hint="`--format mlx` and `--format gguf` are for language models")
    writer = import_module(f"adapterhub.formats.foreign.programs.{program}")
    made: Program = writer.write(reading, spelling, form.data)
    return made


def _class_of(adapter: Adapter, parts: Sequence[str]) -> str:
    """Tell the class in diffusers of the denoiser that the adapter is for; "" if its base is unknown."""
    record = adapter.record
    if record is None:
        return ""
    hints = [record.components[part] for part in parts if part in DENOISERS and part in record.components]
    return next((one.model_type or "" for one in hints or ([] if record.components else [record.hints])), "")


def _architecture(adapter: Adapter) -> str:
    """Return the original header's name of the model; "" without one."""
    said = adapter.manifest.annotations.get("architecture") if adapter.manifest else None
    return said if isinstance(said, str) else ""
