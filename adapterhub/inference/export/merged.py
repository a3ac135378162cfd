"""`merged`: base and adapter as one model, for any program that reads models; the same output as `adapt fuse`.

The output is as large as the base. Rounding to the base's dtype loses part of the update; a note gives the loss. Every
update that can be added to the base's weights can be merged, including DoRA.
"""

from __future__ import annotations

from pathlib import Path

from adapterhub.inference.export._job import Exported, Job
from adapterhub.weights.fuse import prepare


def export(job: Job, out: Path) -> Exported:
    """Write the folder `out`, a model; the default dtype is the base's, tensor by tensor.

    Raises:
        MergeRefused: parts of the adapter have no exact place in the base's files; names each of them.
    """
    with prepare(
        job.what,
        out,
        library=job.library,
        base=job.base,
        dtype=job.dtype,
        allow_base_mismatch=job.allow_base_mismatch,
    ) as fusion:
        total, done = fusion.size_bytes, 0

        def progress(count: int) -> None:
            nonlocal done
            done += count
            job.step(done, total)

        fused = fusion.write(progress=progress, test=job.test)
    lost = f"rounding to {', '.join(fused.dtypes)} lost {fused.relative_error:.2g} of the update"
    if fused.loses_much:
        lost += "; use `--dtype float32`, or keep the adapter separate from its base"
    return Exported(
        paths=tuple(sorted(path for path in out.rglob("*") if path.is_file())),
        label=fused.adapters[0].spec,
        size_bytes=fused.size_bytes,
        notes=(*fused.warnings, lost),
    )
