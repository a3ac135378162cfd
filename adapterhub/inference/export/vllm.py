"""`vllm`: a PEFT folder that vLLM reads correctly, and the options that its server needs for it.

The folder has the author's own bytes, without the copies of base weights that PEFT may have saved and vLLM refuses. A
comparison with the base tells copies from trained weights. If vLLM's class of the base does not find the author's
names, such as those of a text model inside a wrapper, the modules get the names that the base's own files have, which
vLLM maps. For other engines, use `--format peft`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from adapterhub.core.disk.files import new_folder
from adapterhub.core.errors import RefusedAdapter, UsageProblem, shown
from adapterhub.formats.engines import Verdict, judge
from adapterhub.formats.engines.vllm import VERSIONS
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.formats.peft.keys import PREFIX
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.inference.export._job import Adapter, Exported, Job, ensure_readable
from adapterhub.trust.verify import sort_keys
from adapterhub.weights.lowrank.factors import TensorFileWriter

_TARGET: Final = "vllm"
_OF_PAIR: Final = re.compile(rf"{re.escape(PREFIX)}(?P<module>.+?)(?P<rest>\.lora_[A-Za-z_]+(?:\.weight)?)")
_RENAMED: Final = "modules have the names of the base's files, where vLLM finds them"


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
        verdict, written = _judged(adapter, kept)
        ensure_readable(adapter.label, verdict, adapter.facts, adapter.factors.unclear)
        with new_folder(out, durable=True) as folder:
            (folder / CONFIG_FILE).write_bytes(adapter.factors.config_bytes)
            _write(adapter, kept, written, folder / WEIGHTS_FILE, job)
            job.check(folder, adapter)
        left_out = len(adapter.factors.header.tensors) - len(kept)
        notes = [*verdict.notes, *([f"left out {left_out} copies of base weights"] if left_out else [])]
        notes += [_RENAMED] if written != kept else []
        return adapter.exported(out / CONFIG_FILE, out / WEIGHTS_FILE, notes=notes, flags=verdict.flags)


def _kept(adapter: Adapter) -> tuple[TensorSpec, ...]:
    """Return the tensors without copies of base weights, which only a comparison with the base can identify.

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


def _judged(adapter: Adapter, kept: tuple[TensorSpec, ...]) -> tuple[Verdict, tuple[TensorSpec, ...]]:
    """Judge the tensors, and return their names in the new file: the base's where a release would drop others."""
    header, config = adapter.factors.header, adapter.factors.config

    def judged(specs: tuple[TensorSpec, ...], version: str) -> Verdict:
        return judge(f"{_TARGET}@{version}", config, replace(header, tensors=specs), base=adapter.facts)

    def are_dropped(specs: tuple[TensorSpec, ...]) -> bool:
        verdicts = (judged(specs, version) for version in VERSIONS)
        return any(verdict.pairs is not None and verdict.pairs.dropped for verdict in verdicts)

    if adapter.names is not None and adapter.names.is_complete and are_dropped(kept):
        own = tuple(spec._replace(name=_own_name(spec.name, adapter.base_name)) for spec in kept)
        modules = {pair.module for pair in sort_keys(header, config).pairs}
        is_scaled_alike = all(config.scaling_of(adapter.base_name(m)) == config.scaling_of(m) for m in modules)
        if is_scaled_alike and not are_dropped(own):
            return replace(judged(own, VERSIONS[-1]), target=_TARGET, version=None), own
    return judge(_TARGET, config, replace(header, tensors=kept), base=adapter.facts), kept


def _own_name(tensor: str, here: Callable[[str], str]) -> str:
    """Return the name of a tensor with the base's name of its module; another tensor's unchanged."""
    match = _OF_PAIR.fullmatch(tensor)
    return f"{PREFIX}{here(match['module'])}{match['rest']}" if match else tensor


def _write(
    adapter: Adapter, kept: tuple[TensorSpec, ...], written: tuple[TensorSpec, ...], path: Path, job: Job
) -> None:
    header = adapter.factors.header
    if len(kept) == len(header.tensors) and written == kept:
        adapter.factors.weights.copy_to(path)
        job.step(1, 1)
        return
    with TensorFileWriter(path, written) as writer:
        for done, (spec, new) in enumerate(zip(kept, written, strict=True)):
            job.step(done, len(kept))
            writer.add_chunks(new, adapter.factors.chunks(spec))
        job.step(len(kept), len(kept))
