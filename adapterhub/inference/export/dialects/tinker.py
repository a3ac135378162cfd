"""`tinker`: the layout of Tinker's raw files, one pair for all experts of a layer: `experts.w1`, `w2`, `w3`."""

from __future__ import annotations

from pathlib import Path

from adapterhub.formats.dialects.programs import tinker
from adapterhub.inference.export import Exported, Job
from adapterhub.inference.export.dialects import export_as, single_of
from adapterhub.library.intake.foreign import shapes_of


def export(job: Job, out: Path) -> Exported:
    """Write the folder `out`; errors as for `export_as`."""
    return export_as("tinker", lambda adapter: tinker.write(single_of(adapter), shapes_of(adapter.record)), job, out)
