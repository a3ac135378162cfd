"""`unsloth@0.18`: a PEFT folder for Unsloth with PEFT 0.18: A on the first side, B expert by expert."""

from __future__ import annotations

from pathlib import Path

from adapterhub.inference.export import Exported, Job
from adapterhub.inference.export.dialects import export_layout


def export(job: Job, out: Path) -> Exported:
    """Write the folder `out`; errors as for `export_layout`."""
    return export_layout("unsloth@0.18", job, out)
