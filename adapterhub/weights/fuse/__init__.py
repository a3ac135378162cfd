"""Fusing: a base with adapters added to its weights, as a model of its own, file by file.

    with prepare("legal-qa@base-7b", Path("fused")) as fusion:    # every check, nothing is written
        print(fusion.write().relative_error)

The result has the base's own files: same sharding, same order, same header, and the bytes of what no adapter changes.
No model is built or loaded. Each tensor that changes is read in pieces, the update is added in float64, and the sum is
rounded once, to the dtype of the base unless asked otherwise.

That rounding loses something, most where an update is small beside its weight: an update of 0.2 % of a bfloat16 weight
is 60 % lost. It is measured in float64 on every number: ‖round(W + ΔW) - W - ΔW‖ / ‖ΔW‖, and the share of entries with
an update that are stored as if there had been none.

What an adapter does to the base is PEFT's meaning of it. DoRA is m (W + ΔW) / ‖W + ΔW‖, the norm over each output (Liu
et al. 2024, arXiv:2402.09353). Several adapters are the sum of weight * ΔW, exactly, which is defined for plain updates
only. What has no exact place in the base's files is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, final

from adapterhub.core.digests import Progress
from adapterhub.core.disk.new_folder import ensure_new, new_folder
from adapterhub.core.errors import RefusedAdapter, UsageProblem, shown
from adapterhub.core.specs import BaseSpec
from adapterhub.distribution.finding import AdapterLike, Found
from adapterhub.formats.base.fingerprint import is_buffer
from adapterhub.formats.modules.base_names import find_names
from adapterhub.formats.peft.config import owner
from adapterhub.formats.safetensors.dtypes import CHOICES
from adapterhub.library.default import LibraryLike, open_library
from adapterhub.trust.verify import Subject
from adapterhub.weights.fuse._change import Landed
from adapterhub.weights.fuse._copies import is_copy
from adapterhub.weights.fuse._folder import code_remarks, copy_index, copy_side_files, side_files
from adapterhub.weights.fuse._model import Model
from adapterhub.weights.fuse._places import Change, Taken, plan
from adapterhub.weights.fuse._request import Request, find
from adapterhub.weights.fuse._result import Fused, FusedAdapter, FusedTensor, torch_name
from adapterhub.weights.fuse._shards import Layout, ShardWriter, lay_out
from adapterhub.weights.fuse._source import FuseAdapter
from adapterhub.weights.lowrank.factors import AdapterFactors

__all__ = ["DTYPES", "LARGE_LOSS", "Fused", "FusedAdapter", "FusedTensor", "Fusion", "fuse", "prepare"]

DTYPES: Final = CHOICES
"""What a fused model can be stored as: torch's names and the format's."""

LARGE_LOSS: Final = 0.1
"""From this relative error on, keeping the adapter beside its base is advised."""


@final
class Fusion:
    """A fused model that was checked and can be written; a context manager that holds the adapters' files open."""

    def __init__(
        self,
        request: Request,
        changes: Mapping[str, Change],
        out_folder: Path,
        *,
        dtype: str | None,
        files: ExitStack,
        warnings: Sequence[str],
    ) -> None:
        self._request = request
        self._changes = changes
        self._out_folder = out_folder
        self._files = files
        self.warnings = (*warnings, *code_remarks(request.model))
        model = request.model
        self._dtype = None if dtype is None or DTYPES[dtype] == model.main_dtype else dtype
        wanted = DTYPES[self._dtype] if self._dtype else ""
        self._layouts: list[Layout] = []
        for file in model.files:
            kept = [s for s in file.tensors if s.dtype == model.main_dtype and not is_buffer(s.name, s.shape)]
            self._layouts.append(lay_out(file, {spec.name: wanted for spec in kept} if wanted else {}))

    def __enter__(self) -> Fusion:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    @property
    def size_bytes(self) -> int:
        """Bytes of weight files that `write` writes, which its `progress` adds up to."""
        return sum(layout.size_bytes for layout in self._layouts)

    def write(self, *, threads: int | None = None, progress: Progress | None = None) -> Fused:
        """Write the model; the folder appears complete or not at all.

        Raises:
            MergeRefused: a result that is not finite in its dtype.
            Conflict: the folder exists and is not empty.
            DiskFull, NotAllowed: it cannot be written.
            CouldNotTell, MalformedTensorFile: a file that cannot be read, or changed meanwhile.
        """
        model = self._request.model
        landed: dict[str, Landed] = {}
        room = self.size_bytes + sum((model.folder / name).stat().st_size for name in side_files(model))
        with new_folder(self._out_folder, size_bytes=room, durable=True) as folder:
            copy_side_files(model, folder, self._dtype)
            copy_index(model, folder, self._data_bytes if self._dtype else None)
            with ShardWriter(progress or (lambda _done: None), threads=threads) as writer:
                for file, layout in zip(model.files, self._layouts, strict=True):
                    landed |= writer.write(file, layout, folder / file.path.name, self._changes)
                    model.ensure_unchanged(file)
        return self._result(landed)

    @property
    def _data_bytes(self) -> int:
        return sum(new.size_bytes for layout in self._layouts for _, new in layout.tensors)

    def _result(self, landed: Mapping[str, Landed]) -> Fused:
        request = self._request
        pairs = {new.name: (old, new) for layout in self._layouts for old, new in layout.tensors}
        return Fused(
            out_folder=self._out_folder,
            base=request.model.record.label,
            base_weights=request.model.record.fingerprint.weights,
            adapters=tuple(
                FusedAdapter(label=f.label, weight=f.weight, digest=f.build.manifest.digest if f.build else None)
                for f in request.found
            ),
            files=len(self._layouts),
            size_bytes=self.size_bytes,
            tensors=tuple(
                FusedTensor(
                    name=name, error=math.sqrt(one.error), update=math.sqrt(one.update), moved=one.moved, lost=one.lost
                )
                for name, one in sorted(landed.items())
            ),
            copied=sum(old.dtype == new.dtype and name not in self._changes for name, (old, new) in pairs.items()),
            dtypes=tuple(sorted({torch_name(pairs[name][1].dtype) for name in landed})),
            warnings=self.warnings,
        )


def prepare(
    adapter: AdapterLike | Sequence[AdapterLike] | Mapping[AdapterLike, float],
    out_folder: Path,
    *,
    library: LibraryLike = None,
    base: BaseSpec | str | None = None,
    weights: Sequence[float] | None = None,
    dtype: str | None = None,
    allow_base_mismatch: bool = False,
    reading: Progress | None = None,
) -> Fusion:
    """Find adapters and base, compare them, and find the place of everything; nothing is written.

    Adapters, weights and base are named as for `attach`. The base must be registered, or `base` a folder; its files
    are compared with the fingerprint that the adapter was made for, which costs a reading of them if they are new here
    (`reading` gets the bytes). `dtype` is that of the tensors which have the base's main dtype; the others keep theirs.

    Raises:
        MergeRefused: parts of an adapter that cannot be fused into this base; every one is named.
        BaseMismatch: made for another base; with the same shapes, `allow_base_mismatch` overrides it.
        AdapterNotFound, NoCompatibleRelease, AmbiguousSpec, BaseNotFound, UsageProblem: what was asked for.
        Conflict: `out_folder` exists and is not empty.
        RefusedAdapter, Malformed, DigestMismatch: files that are not sound.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UsageProblem(f"dtype `{shown(dtype)}`, expected one of {', '.join(DTYPES)}")
    ensure_new(out_folder)
    place = open_library(library)
    request = find(adapter, place, base=base, weights=weights, allow_base_mismatch=allow_base_mismatch, reading=reading)
    if dtype is not None and request.model.is_quantised:
        raise UsageProblem(f"base `{request.model.record.label}` is quantised; its dtype cannot be changed")
    with ExitStack() as stack:
        sources = [
            _source(request.model, f, s, stack.enter_context(AdapterFactors(f.folder, subject=s)))
            for f, s in zip(request.found, request.subjects, strict=True)
        ]
        mapped = [(s.label, s.names.mapped(map(owner, s.factors.modules))) for s in sources]
        warnings = [*request.warnings, *(f"`{shown(label, 200)}`: its {note}" for label, note in mapped if note)]
        changes = plan(request.model, sources)
        _refuse_other_copies(request.model, sources)
        return Fusion(request, changes, out_folder, dtype=dtype, files=stack.pop_all(), warnings=warnings)


def fuse(
    adapter: AdapterLike | Sequence[AdapterLike] | Mapping[AdapterLike, float],
    out_folder: Path,
    *,
    library: LibraryLike = None,
    base: BaseSpec | str | None = None,
    weights: Sequence[float] | None = None,
    dtype: str | None = None,
    allow_base_mismatch: bool = False,
) -> Fused:
    """Write base + adapters into the new folder `out_folder`; see `prepare` and `Fusion.write`."""
    with prepare(
        adapter,
        out_folder,
        library=library,
        base=base,
        weights=weights,
        dtype=dtype,
        allow_base_mismatch=allow_base_mismatch,
    ) as fusion:
        return fusion.write()


def _source(model: Model, found: Found, subject: Subject, factors: AdapterFactors) -> FuseAdapter:
    """The adapter, with the names that its modules have in the base."""
    modules = {owner(module) for module in factors.modules} or {name for name, _ in subject.keys.tokens}
    names = find_names(sorted(modules), model.modules)
    return FuseAdapter(label=found.label, weight=found.weight, subject=subject, factors=factors, names=names)


def _refuse_other_copies(model: Model, sources: Sequence[FuseAdapter]) -> None:
    """Refuse tensors that take a base weight's place although they are named as copies of it."""
    findings = []
    for source in sources:
        for name, spec in source.subject.keys.copies:
            there = source.names.tensor(name)
            there = there if there in model.facts else model.twin_of_absent(there.rpartition(".")[0], spec.shape)
            if not there or not is_copy(Taken(source, spec), model, there):
                found = f"`{shown(spec.name)}` is not equal to the base's and would replace it"
                findings.append(("E_BASE_WEIGHT", found))
    if findings:
        hint = "save the adapter again with `save_embedding_layers=False`"
        raise RefusedAdapter("the adapter brings weights of its own for the base", findings, hint=hint)
