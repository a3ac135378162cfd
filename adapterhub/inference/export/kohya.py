"""`kohya`: one file in the names of kohya's sd-scripts, for A1111, Forge, ComfyUI and trainers."""

from __future__ import annotations

from pathlib import Path

from adapterhub.inference.export._job import Exported, Job
from adapterhub.inference.export._programs import export_for


def export(job: Job, out: Path) -> Exported:
    """Write the file `out`; errors as for `export_for`."""
    return export_for("kohya", job, out)
