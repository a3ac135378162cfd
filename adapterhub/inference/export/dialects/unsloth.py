"""`unsloth`: a PEFT folder for Unsloth before 2026-09-17, which packs B of stacked experts expert by expert."""

from __future__ import annotations

from pathlib import Path

from adapterhub.inference.export import Exported, Job
from adapterhub.inference.export.dialects import export_layout


def export(job: Job, out: Path) -> Exported:
    """Write the folder `out`; errors as for `export_layout`."""
    return export_layout("unsloth", job, out)
