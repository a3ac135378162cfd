"""Fusing: adds adapters to the weights of a base and writes the sum as a model of its own, file by file.

    with prepare("legal-qa@base-7b", Path("fused")) as fusion:    # checks everything, writes nothing
        print(fusion.write().relative_error)

The result keeps the base's files: the same shards, order and header, and the same bytes where no adapter changes them.
No model is built or loaded. Each changed tensor is read in pieces, the update is added in float64, and the sum is
rounded once, to the dtype of the base by default.

The rounding loses a part of the update, and most where the update is small beside its weight: bfloat16 loses 60 % of an
update that is 0.2 % of the weight. Two figures measure the loss, in float64 over every number: ‖round(W + ΔW) - W -
ΔW‖ / ‖ΔW‖, and the share of updated entries that are stored as if they had no update.

An adapter changes the base as in PEFT. DoRA is m (W + ΔW) / ‖W + ΔW‖, with the norm over each output (Liu et al. 2024,
arXiv:2402.09353). Several adapters give the exact sum of weight * ΔW, which is defined for plain updates only. A part
of an adapter without an exact place in the base's files is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, final

from adapterhub.core.digests import Progress
from adapterhub.core.disk.new_folder import ensure_new, new_folder
from adapterhub.core.errors import RefusedAdapter, UsageProblem, shown
from adapterhub.core.specs import BaseSpec
from adapterhub.distribution.finding import FoundAdapter
from adapterhub.formats.base.fingerprint import is_buffer
from adapterhub.formats.manifest import Parent
from adapterhub.formats.modules.base_names import find_names
from adapterhub.formats.peft.config import owner
from adapterhub.formats.safetensors.dtypes import CHOICES
from adapterhub.library.default import LibraryLike, open_library
from adapterhub.library.store.catalog import AdapterLike
from adapterhub.trust.verify import Subject
from adapterhub.weights.fuse._change import RoundingLoss
from adapterhub.weights.fuse._copies import is_copy
from adapterhub.weights.fuse._folder import code_remarks, copy_index, copy_side_files, side_files
from adapterhub.weights.fuse._model import Model
from adapterhub.weights.fuse._places import AdapterTensor, Change, plan_changes
from adapterhub.weights.fuse._request import FuseRequest, find_request
from adapterhub.weights.fuse._result import Fused, FusedTensor, torch_name
from adapterhub.weights.fuse._shards import ShardLayout, ShardWriter, lay_out
from adapterhub.weights.fuse._source import FuseAdapter
from adapterhub.weights.lowrank.factors import AdapterFactors

__all__ = ["DTYPES", "Fused", "FusedTensor", "Fusion", "WrittenCheck", "fuse", "prepare"]

DTYPES: Final = CHOICES
"""The dtypes of a fused model: torch's names and those of safetensors."""

WrittenCheck = Callable[[Path, Sequence[FoundAdapter]], None]
"""Looks at a folder that was written of adapters, and raises if it may not get its name."""


@final
class Fusion:
    """A fusion that passed every check and is ready to write; a context manager that keeps the adapters' files open."""

    def __init__(
        self,
        request: FuseRequest,
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
        self._layouts: list[ShardLayout] = []
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
        """Bytes of weight files that `write` writes, the total of its `progress`."""
        return sum(layout.size_bytes for layout in self._layouts)

    def write(
        self, *, threads: int | None = None, progress: Progress | None = None, test: WrittenCheck | None = None
    ) -> Fused:
        """Write the model; the folder appears complete or not at all. `test` looks at it before it gets its name.

        Raises:
            MergeRefused: a result is not finite in its dtype.
            Conflict: the folder exists and is not empty.
            DiskFull, NotAllowed: the folder cannot be written.
            CouldNotTell, MalformedTensorFile: a file cannot be read, or changed during the fusion.
        """
        model = self._request.model
        losses: dict[str, RoundingLoss] = {}
        room = self.size_bytes + sum((model.folder / name).stat().st_size for name in side_files(model))
        with new_folder(self._out_folder, size_bytes=room, durable=True) as folder:
            copy_side_files(model, folder, self._dtype)
            copy_index(model, folder, self._data_bytes if self._dtype else None)
            with ShardWriter(progress or (lambda _done: None), threads=threads) as writer:
                for file, layout in zip(model.files, self._layouts, strict=True):
                    losses |= writer.write(file, layout, folder / file.path.name, self._changes)
                    model.ensure_unchanged(file)
            if test is not None:
                test(folder, self._request.adapters)
        return self._result(losses)

    @property
    def _data_bytes(self) -> int:
        return sum(new.size_bytes for layout in self._layouts for _, new in layout.tensors)

    def _result(self, losses: Mapping[str, RoundingLoss]) -> Fused:
        request = self._request
        pairs = {new.name: (old, new) for layout in self._layouts for old, new in layout.tensors}
        return Fused(
            out_folder=self._out_folder,
            base=request.model.record.label,
            base_weights=request.model.record.fingerprint.weights,
            adapters=tuple(
                Parent(spec=f.label, weight=f.weight, digest=f.build.manifest.digest if f.build else None)
                for f in request.adapters
            ),
            files=len(self._layouts),
            size_bytes=self.size_bytes,
            tensors=tuple(
                FusedTensor(
                    name=name, error=math.sqrt(one.error), update=math.sqrt(one.update), moved=one.moved, lost=one.lost
                )
                for name, one in sorted(losses.items())
            ),
            copied=sum(old.dtype == new.dtype and name not in self._changes for name, (old, new) in pairs.items()),
            dtypes=tuple(sorted({torch_name(pairs[name][1].dtype) for name in losses})),
            warnings=self.warnings,
        )


def prepare(
    adapter: AdapterLike | Sequence[AdapterLike] | Mapping[AdapterLike, float],
    out_folder: Path,
    *,
    reading: Progress | None = None,
    library: LibraryLike = None,
    base: BaseSpec | str | None = None,
    weights: Sequence[float] | None = None,
    dtype: str | None = None,
    allow_base_mismatch: bool = False,
) -> Fusion:
    """Find and compare the adapters and the base, and plan every change; nothing is written.

    Name adapters, weights and base as for `attach`. The base must be registered, or `base` a folder. Its files are
    compared with the fingerprint in the adapter; files that are new here are read once for that (`reading` gets the
    bytes). `dtype` applies to the tensors in the base's main dtype; other tensors keep theirs.

    Raises:
        MergeRefused: parts of an adapter cannot be fused into this base; lists every part.
        BaseMismatch: made for another base; with the same shapes, `allow_base_mismatch` overrides it.
        AdapterNotFound, NoCompatibleRelease, AmbiguousSpec, BaseNotFound, UsageProblem: no such adapter or base.
        Conflict: `out_folder` exists and is not empty.
        RefusedAdapter, Malformed, DigestMismatch: files of the adapter or the base are damaged.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UsageProblem(f"dtype `{shown(dtype)}`, expected one of {', '.join(DTYPES)}")
    ensure_new(out_folder)
    place = open_library(library)
    request = find_request(
        adapter, place, base=base, weights=weights, allow_base_mismatch=allow_base_mismatch, reading=reading
    )
    if dtype is not None and request.model.is_quantised:
        raise UsageProblem(
            f"base `{request.model.record.label}` is quantised, so its dtype cannot be changed; leave out `dtype`"
        )
    with ExitStack() as stack:
        sources = [
            _source(request.model, f, s, stack.enter_context(AdapterFactors(f.folder, subject=s)))
            for f, s in zip(request.adapters, request.subjects, strict=True)
        ]
        mapped = [(s.label, s.names.mapped(map(owner, s.factors.modules))) for s in sources]
        warnings = [*request.warnings, *(f"`{shown(label, 200)}`: its {note}" for label, note in mapped if note)]
        changes = plan_changes(request.model, sources)
        _check_copies(request.model, sources)
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
    """Add adapters to a base and write the sum into the new folder `out_folder`; see `prepare` and `Fusion.write`."""
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


def _source(model: Model, adapter: FoundAdapter, subject: Subject, factors: AdapterFactors) -> FuseAdapter:
    """The adapter with the names of its modules in the base."""
    modules = {owner(module) for module in factors.modules} or {name for name, _ in subject.keys.tokens}
    names = find_names(sorted(modules), model.modules)
    return FuseAdapter(label=adapter.label, weight=adapter.weight, subject=subject, factors=factors, names=names)


def _check_copies(model: Model, sources: Sequence[FuseAdapter]) -> None:
    """Raise unless every tensor that is named as a copy of a base weight equals it."""
    findings = []
    for source in sources:
        for name, spec in source.subject.keys.copies:
            there = source.names.tensor(name)
            there = there if there in model.facts else model.twin_of_absent(there.rpartition(".")[0], spec.shape)
            if not there or not is_copy(AdapterTensor(source, spec), model, there):
                reason = f"`{shown(spec.name)}` differs from the base's and would replace it"
                findings.append(("E_BASE_WEIGHT", reason))
    if findings:
        hint = "save the adapter again with `save_embedding_layers=False`"
        raise RefusedAdapter("the adapter would replace weights of the base", findings, hint=hint)
