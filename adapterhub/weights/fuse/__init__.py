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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Final, final

from adapterhub.core.digests import Digest, Progress
from adapterhub.core.disk.files import ensure_new, new_folder
from adapterhub.core.errors import (
    BaseMismatch,
    BaseNotFound,
    MergeRefused,
    RefusedAdapter,
    UsageProblem,
    reworded,
    shown,
)
from adapterhub.core.specs import BaseSpec
from adapterhub.distribution.finding import Finder, FoundAdapter, with_weights
from adapterhub.formats.base.fingerprint import BaseVerdict, is_buffer
from adapterhub.formats.contract.results import Tested
from adapterhub.formats.documented import Documented
from adapterhub.formats.manifest import Parent
from adapterhub.formats.naming.files import find_in_files
from adapterhub.formats.naming.finding import AMBIGUOUS_HINT, ambiguous_names
from adapterhub.formats.peft.config import owner
from adapterhub.formats.safetensors.header import CHOICES
from adapterhub.formats.safetensors.header import DTYPES as FORMATS
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.default import LibraryLike, open_library
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import AdapterLike
from adapterhub.trust.verify import Subject
from adapterhub.weights.fuse.model import StoredBase, code_remarks, copy_index, copy_side_files, side_files
from adapterhub.weights.fuse.places import AdapterTensor, FuseAdapter, TensorChange, own_reasons, plan_changes
from adapterhub.weights.fuse.writing import RoundingLoss, ShardLayout, ShardWriter, is_copy, lay_out
from adapterhub.weights.lowrank.factors import AdapterFactors

_HINT_NO_BASE = "`adapt base add PATH --as NAME` registers a local copy; name it with `--base NAME`"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FuseRequest:
    """The base, the adapters and their verified files."""

    model: StoredBase
    adapters: tuple[FoundAdapter, ...]
    subjects: tuple[Subject, ...]
    warnings: tuple[str, ...]


def find_request(
    adapter: AdapterLike | Sequence[AdapterLike] | Mapping[AdapterLike, float],
    library: Library,
    *,
    base: BaseSpec | str | None,
    weights: Sequence[float] | None,
    allow_base_mismatch: bool,
    reading: Progress | None,
) -> FuseRequest:
    """Return the adapters and the base, compared; see `prepare` for the arguments and the errors."""
    spec = BaseSpec.parse(base) if isinstance(base, str) else base
    if spec is not None and spec.kind == "path":
        library.bases.find(spec, progress=reading)  # read here, where its progress is reported
    pairs = with_weights(adapter, weights)
    warnings = [f"`{shown(str(what))}` has weight 0 and was left out" for what, weight in pairs if weight == 0]
    pairs = [pair for pair in pairs if pair[1] != 0]
    if not pairs:
        raise UsageProblem(
            "nothing to fuse: every adapter has weight 0", hint="give at least one adapter a weight other than 0"
        )
    finder = Finder(library, spec, lambda: _only_base(library), allow_base_mismatch=allow_base_mismatch)
    adapters = tuple(_find(finder, what, weight) for what, weight in pairs)
    record = _component(_base_of(library, adapters), adapters)
    model = StoredBase.of(library.bases.current(record, progress=reading))
    check = _BaseCheck(library, model.record, allow_base_mismatch=allow_base_mismatch)
    warnings += [f"`{shown(one.label, 200)}` {warning}" for one in adapters for warning in one.warnings]
    warnings += [warning for one in adapters for warning in check.run(one)]
    subjects = tuple(_subject(one, model) for one in adapters)
    _check_each(adapters, subjects)
    return FuseRequest(model=model, adapters=adapters, subjects=subjects, warnings=tuple(warnings))


def _find(finder: Finder, what: AdapterLike, weight: float) -> FoundAdapter:
    try:
        return finder.find(what, weight)
    except RefusedAdapter as error:
        raise RefusedAdapter(f"`{shown(str(what), 200)}` was not fused", error.findings, hint=error.hint) from None


def _check_each(adapters: Sequence[FoundAdapter], subjects: Sequence[Subject]) -> None:
    is_alone = len(adapters) == 1 and adapters[0].weight == 1
    reasons = [
        f"`{shown(one.label)}` {reason}"
        for one, subject in zip(adapters, subjects, strict=True)
        for reason in own_reasons(subject, is_alone=is_alone)
    ]
    if reasons:
        raise MergeRefused("these adapters cannot be fused", reasons)


def _subject(adapter: FoundAdapter, model: StoredBase) -> Subject:
    """Return the adapter's verified files, together with the facts of the base."""
    assert adapter.subject is not None  # the finder checks every folder
    record = model.record
    return adapter.subject.beside(model.facts, record.fingerprint, record.hints.model_type)


# ---------------------------------------------------------------- the base
def _base_of(library: Library, adapters: Sequence[FoundAdapter]) -> BaseRecord:
    """Return the named base, or the base that the adapters declare, or the only registered one."""
    named = {f.wanted.text: f.wanted.record for f in adapters if f.wanted is not None}
    absent = [text for text, record in named.items() if record is None]
    if absent:
        raise BaseNotFound(f"the weights of base `{shown(absent[0])}` are not on this machine", hint=_HINT_NO_BASE)
    records = [record for record in named.values() if record is not None]
    if len({record.fingerprint.weights for record in records}) > 1:
        listed = ", ".join(f"`{shown(text)}`" for text in named)
        raise UsageProblem(f"the adapters name several bases: {listed}", hint="fuse into one base at a time")
    if records:
        return records[0]
    declared = [f for f in adapters if f.base.fingerprint is not None]
    for one in declared:
        record = library.bases.by_fingerprint(one.base.fingerprint) if one.base.fingerprint else None
        if record is not None:
            return record
    if declared:
        raise BaseNotFound(
            f"the base of `{shown(declared[0].label, 200)}` ({declared[0].base.label}) is not registered",
            hint=_HINT_NO_BASE,
        )
    only = _only_base(library)
    if only is None:
        label = shown(adapters[0].label, 200)
        raise BaseNotFound(f"`{label}` does not declare its base", hint="name one with `--base BASE|PATH`")
    return only


def _component(record: BaseRecord, adapters: Sequence[FoundAdapter]) -> BaseRecord:
    """Return the component of a pipeline that all adapters were made for; the record itself for another base."""
    parts = {part.fingerprint: part for part in (record.narrowed(declared=one.base.fingerprint) for one in adapters)}
    return next(iter(parts.values())) if len(parts) == 1 else record


def _only_base(library: Library) -> BaseRecord | None:
    records = library.bases.list()
    return records[0] if len(records) == 1 else None


class _BaseCheck:
    """Compares the base with the base that an adapter was made for."""

    def __init__(self, library: Library, record: BaseRecord, *, allow_base_mismatch: bool) -> None:
        self.library = library
        self.record = record
        self.allow_base_mismatch = allow_base_mismatch

    def run(self, adapter: FoundAdapter) -> Iterator[str]:
        """Yield the warnings for one adapter.

        Raises:
            BaseMismatch: the adapter was made for another base.
        """
        label, declared = shown(adapter.label, 200), adapter.base
        if declared.fingerprint is None:
            named = f"; its config names `{shown(declared.hints.hub_id)}`" if declared.hints.hub_id else ""
            yield f"`{label}` declares no base fingerprint{named}"
            return
        here = self.record.fingerprint
        hints = (declared.hints, self.record.hints)
        comparison = self.library.bases.judged(declared.fingerprint, here, hints=hints)
        made_for = self.library.base_label(declared)
        claim = f"was made for base `{shown(made_for)}` ({declared.fingerprint.weights[7:19]})"
        if comparison.verdict in (BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION, BaseVerdict.SAME_WEIGHTS_QUANTISED):
            yield f"`{label}` {claim} in another precision: {'; '.join(comparison.differences)}"
        if comparison.verdict is BaseVerdict.SAME_WEIGHTS_RESIZED_VOCABULARY:
            yield f"`{label}` {claim} with a vocabulary of another size: {'; '.join(comparison.differences)}"
        if comparison.verdict in (BaseVerdict.SAME_FAMILY, BaseVerdict.ACCEPTED_QUANTISED):
            yield f"`{label}` {claim}: {comparison.differences[0]}"
        if comparison.verdict.allows_attach:
            return
        this = f"this is `{shown(self.record.label)}` ({here.weights[7:19]})"
        if comparison.verdict is BaseVerdict.SAME_SHAPES and self._is_overridden(adapter):
            yield f"`{label}` {claim}, but {this}; fused because the mismatch is allowed"
            return
        hint = comparison.hint or "fuse the adapter with the base it was made for"
        if comparison.verdict is BaseVerdict.SAME_SHAPES:
            hint += ", or pass `--allow-base-mismatch`"
        lines = [f"`{label}` {claim}, but {this}", *(f"  {difference}" for difference in comparison.differences)]
        raise BaseMismatch("\n".join(lines), hint=hint)

    def _is_overridden(self, adapter: FoundAdapter) -> bool:
        """Return whether the caller allows the mismatch, or its install for this base did."""
        if self.allow_base_mismatch or adapter.build is None:
            return self.allow_base_mismatch
        return self.library.mismatch_allowed(adapter.build, self.record.fingerprint)


LARGE_LOSS: Final = 0.1
"""From this relative error on, users are advised to keep the adapter beside its base."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedTensor(Documented, keys="name relative_error moved lost"):
    """The loss of one tensor's update to rounding.

    `error` is ‖stored - (W + ΔW)‖ and `update` is ‖ΔW‖, Frobenius. `moved` counts the entries with an update, `lost`
    those of them that are stored as if they had none.
    """

    name: str
    error: float
    update: float
    moved: Annotated[int, "numbers that have an update"]
    lost: Annotated[int, "those that are stored unchanged"]

    @property
    def relative_error(self) -> float:
        """‖stored - (W + ΔW)‖ / ‖ΔW‖; 0 for a zero update."""
        return self.error / self.update if self.update else 0.0


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Fused(
    Documented,
    keys="path=out_folder base base_weights adapters files size_bytes dtypes relative_error unchanged"
    " worst_tensor=worst.name worst_error=worst.relative_error copied tensors warnings tests?",
):
    """A model with adapters fused in. It has `files` weight files of `size_bytes` together.

    `tensors` are the changed tensors, sorted by name; `copied` counts the tensors with the base's bytes. `dtypes` are
    those of the changed tensors, in torch's names.
    """

    out_folder: Annotated[Path, "a path on this machine"]
    base: str
    base_weights: Digest
    adapters: tuple[Parent, ...]
    files: Annotated[int, "number of weight files"]
    size_bytes: Annotated[int, "bytes"]
    tensors: tuple[FusedTensor, ...]
    copied: Annotated[int, "number of tensors copied byte for byte"]
    dtypes: tuple[str, ...]
    warnings: tuple[str, ...]
    tests: Annotated[tuple[Tested, ...] | None, "with --test: one for each adapter that has a contract"] = None

    def __repr__(self) -> str:
        added = " + ".join(f"{one.weight:g} x {one.spec}" for one in self.adapters)
        return f"<Fused {self.out_folder} = {self.base} + {added}, rounding lost {self.relative_error:.2g}>"

    @property
    def relative_error(self) -> float:
        """The loss of the whole update to rounding: ‖stored - (W + ΔW)‖ / ‖ΔW‖ over all tensors."""
        update = math.hypot(*(tensor.update for tensor in self.tensors))
        return math.hypot(*(tensor.error for tensor in self.tensors)) / update if update else 0.0

    @property
    def loses_much(self) -> bool:
        """Whether rounding lost so much that the adapter is better used unfused."""
        return self.relative_error > LARGE_LOSS

    @property
    def worst(self) -> FusedTensor:
        """The tensor with the largest relative error."""
        return max(self.tensors, key=lambda tensor: tensor.relative_error)

    @property
    def unchanged(self) -> float:
        """The share of the updated entries that are stored as if they had no update."""
        moved = sum(tensor.moved for tensor in self.tensors)
        return sum(tensor.lost for tensor in self.tensors) / moved if moved else 0.0


__all__ = ["DTYPES", "Fused", "FusedTensor", "Fusion", "WrittenCheck", "prepare"]

DTYPES: Final = CHOICES
"""The dtypes of a fused model: torch's names and those of safetensors."""

WrittenCheck = Callable[[Path, Sequence[FoundAdapter]], object]
"""Looks at a folder that was written of adapters, and raises if it may not get its name."""


@final
class Fusion:
    """A fusion that passed every check and is ready to write; a context manager that keeps the adapters' files open."""

    def __init__(
        self,
        request: FuseRequest,
        changes: Mapping[str, TensorChange],
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
            dtypes=tuple(sorted({FORMATS[pairs[name][1].dtype].torch for name in losses})),
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
        try:
            changes = plan_changes(request.model, sources)
        except MergeRefused as error:
            raise reworded(error, hint=_hint_of_copy(place, request.model.record) or error.hint) from None
        _check_copies(request.model, sources)
        return Fusion(request, changes, out_folder, dtype=dtype, files=stack.pop_all(), warnings=warnings)


def _hint_of_copy(library: Library, record: BaseRecord) -> str:
    """Name the registered base that can be fused into instead of its quantised copy; "" if there is none."""
    names = [
        source.alias
        for link in record.links_that_count
        if (source := library.bases.by_weights(link.source)) is not None
    ]
    return f"fuse into its source with `--base {names[0]}`, and quantise the result" if names else ""


def _source(model: StoredBase, adapter: FoundAdapter, subject: Subject, factors: AdapterFactors) -> FuseAdapter:
    """Return the adapter with the names of its modules in the base."""
    updates = {owner(pair.module): pair.update for pair in subject.keys.pairs}
    modules = {owner(module) for module in factors.modules} or {name for name, _ in subject.keys.tokens}
    shapes = {name: facts.shape for name, facts in model.facts.items()}
    wanted = {module: updates.get(module) for module in sorted(modules)}
    names = find_in_files(wanted, shapes, model.record.hints.model_type)
    if names.readings:
        raise BaseMismatch(f"`{shown(adapter.label)}`: {ambiguous_names(names.readings)}", hint=AMBIGUOUS_HINT)
    return FuseAdapter(label=adapter.label, weight=adapter.weight, subject=subject, factors=factors, names=names)


def _check_copies(model: StoredBase, sources: Sequence[FuseAdapter]) -> None:
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
