"""`vllm@2d`: a PEFT folder with one pair for each layer of each expert, for vLLM's 2-D models and transformers 4."""

from __future__ import annotations

from pathlib import Path

from adapterhub.inference.export import Exported, Job
from adapterhub.inference.export.dialects import export_as, single_of


def export(job: Job, out: Path) -> Exported:
    """Write the folder `out`; errors as for `export_as`."""
    return export_as("vllm@2d", single_of, job, out)
