"""`vllm`: a PEFT folder that vLLM reads correctly, and the options that its server needs for it.

The folder has the author's own bytes, without the copies of base weights that PEFT may have saved and vLLM refuses. A
comparison with the base tells copies from trained weights. For other engines, use `--format peft`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from adapterhub.core.disk.files import new_folder
from adapterhub.core.errors import RefusedAdapter, UsageProblem, shown
from adapterhub.formats.engines import judge
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.inference.export._job import Adapter, Exported, Job, ensure_readable
from adapterhub.trust.verify import sort_keys
from adapterhub.weights.lowrank.factors import TensorFileWriter

_TARGET: Final = "vllm"


def export(job: Job, out: Path) -> Exported:
    """Write the folder `out`. There is no `dtype`: the numbers are the author's.

    Raises:
        UsageProblem: a dtype was given.
        UnsupportedAdapter: vLLM refuses or misreads parts of the adapter; names each of them.
    """
    if job.dtype is not None:
        hint = "vLLM's own `--lora-dtype` converts them on loading"
        raise UsageProblem("the format `vllm` keeps the author's numbers and takes no `--dtype`", hint=hint)
    with job.opened("peft", needs_base=False) as adapter:
        kept = _kept(adapter)
        verdict = judge(
            _TARGET,
            adapter.factors.config,
            replace(adapter.factors.header, tensors=kept),
            base=adapter.facts,
        )
        ensure_readable(adapter.label, verdict, adapter.facts, adapter.factors.unclear)
        with new_folder(out, durable=True) as folder:
            (folder / CONFIG_FILE).write_bytes(adapter.factors.config_bytes)
            _write(adapter, kept, folder / WEIGHTS_FILE, job)
            job.check(folder, adapter)
        paths = (out / CONFIG_FILE, out / WEIGHTS_FILE)
        left_out = len(adapter.factors.header.tensors) - len(kept)
        return Exported(
            paths=paths,
            label=adapter.label,
            size_bytes=sum(path.stat().st_size for path in paths),
            notes=(
                *adapter.warnings,
                *verdict.notes,
                *([f"left out {left_out} copies of base weights"] if left_out else []),
            ),
            flags=verdict.flags,
        )


def _kept(adapter: Adapter) -> tuple[TensorSpec, ...]:
    """The tensors without copies of base weights, which only a comparison with the base can identify.

    Raises:
        RefusedAdapter: the base is unknown, so the tensors may be copies or trained weights.
    """
    header = adapter.factors.header
    copies = {spec.name for _, spec in sort_keys(header, adapter.factors.config).copies}
    if copies and adapter.record is None:
        found = [
            ("U_BASE_WEIGHT", f"`{shown(name)}` may be a copy of a base weight, or trained") for name in sorted(copies)
        ]
        hint = "name the base with `--base`, or save the adapter again with `save_embedding_layers=False`"
        raise RefusedAdapter(f"`{shown(adapter.label, 200)}` was not exported", found, hint=hint)
    return tuple(spec for spec in header.tensors if spec.name not in copies)


def _write(adapter: Adapter, kept: tuple[TensorSpec, ...], path: Path, job: Job) -> None:
    header = adapter.factors.header
    if len(kept) == len(header.tensors):
        adapter.factors.weights.copy_to(path)
        job.step(1, 1)
        return
    with TensorFileWriter(path, kept) as writer:
        for done, spec in enumerate(kept):
            job.step(done, len(kept))
            writer.add_chunks(spec, adapter.factors.chunks(spec))
        job.step(len(kept), len(kept))
