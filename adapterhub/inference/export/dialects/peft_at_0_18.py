"""`peft@0.18`: a PEFT folder for PEFT 0.17 and 0.18, with A of stacked experts on the first side of their parameter."""

from __future__ import annotations

from pathlib import Path

from adapterhub.inference.export import Exported, Job
from adapterhub.inference.export.dialects import export_layout


def export(job: Job, out: Path) -> Exported:
    """Write the folder `out`; errors as for `export_layout`."""
    return export_layout("peft@0.18", job, out)
