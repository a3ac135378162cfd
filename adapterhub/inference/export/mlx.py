"""`mlx`: the folder that mlx-lm takes as `adapter_path`, both factors transposed."""

from __future__ import annotations

from pathlib import Path

from adapterhub.inference.export._job import Exported, Job
from adapterhub.inference.export._programs import export_for


def export(job: Job, out: Path) -> Exported:
    """Write the folder `out`; errors as for `export_for`."""
    return export_for("mlx", job, out)
