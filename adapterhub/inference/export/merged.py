"""`merged`: base and adapter as one model, for whatever reads models; what `adapt fuse` writes.

It costs the base's size and loses what rounding to the base's dtype loses, which is measured and said. Everything that
can be added to a base's weights can be merged, DoRA included.
"""

from __future__ import annotations

from pathlib import Path

from adapterhub.inference.export._job import Exported, Job
from adapterhub.weights.fuse import LARGE_LOSS, prepare


def export(job: Job, out: Path) -> Exported:
    """Write the folder `out`, a model; `dtype` is the base's, tensor by tensor, where none is asked for.

    Raises:
        MergeRefused: parts that have no exact place in the base's files, all of them named.
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

        fused = fusion.write(progress=progress)
    lost = f"rounding to {', '.join(fused.dtypes)} lost {fused.relative_error:.2g} of the update"
    if fused.relative_error > LARGE_LOSS:
        lost += "; `--dtype float32` keeps it, or keep the adapter beside its base"
    return Exported(
        paths=tuple(sorted(path for path in out.rglob("*") if path.is_file())),
        label=fused.adapters[0].label,
        size_bytes=fused.size_bytes,
        notes=(*fused.warnings, lost),
    )
