"""`attach` prepares adapters and injects them into a model; `Attached` is the result, until it is detached."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING

import torch
from torch import nn

from adapterhub.core.arguments import ModelLike, parsed
from adapterhub.core.digests import Digest
from adapterhub.core.errors import MergeRefused, RefusedAdapter, UsageProblem, shown
from adapterhub.core.specs import BaseSpec
from adapterhub.distribution.finding import Check, Finder, FoundAdapter, check_folder, with_weights
from adapterhub.formats.base.fingerprint import COPY_HINT, BaseVerdict
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.inference.loader.activation import check_activated
from adapterhub.inference.loader.base import BaseModel, PipelineModules, as_given, as_model, ensure_unpacked
from adapterhub.inference.loader.identity import BaseCheck, BaseCheckResult, identify, pin, sample_base
from adapterhub.inference.loader.injection import (
    ReadyAdapter,
    Scale,
    check_replacements,
    inject,
    peft_names,
    set_scales,
    set_up,
)
from adapterhub.inference.loader.reading import LISTED, AdapterContents, component_for, limited, read_contents
from adapterhub.library.default import LibraryLike, open_library
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import AdapterLike
from adapterhub.trust.verify import Subject

if TYPE_CHECKING:
    from peft import PeftModel
    from typing_extensions import Self


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """An adapter that passed every check against the model.

    `files` holds the bytes that were checked, `base` the comparison with the adapter's base.
    """

    found: FoundAdapter
    files: Subject
    base: BaseCheckResult
    ready: ReadyAdapter


class Preparation:
    """Prepares adapters for one model. Samples the model once, and reads the library's bases only when needed.

    `base` names the base for all adapters. `check` verifies the files of a folder; a check that returns no files for
    those that it verified before needs `reopen`, which opens them again. `to_test` permits every base that has the
    modules of an adapter in their shapes, and pins no build.
    """

    def __init__(
        self,
        model: BaseModel,
        library: Library,
        *,
        base: BaseSpec | str | None,
        allow_base_mismatch: bool,
        check: Check | None = None,
        reopen: Callable[[Path], Subject] | None = None,
        to_test: bool = False,
    ) -> None:
        self.loaded = sample_base(model)
        self._model = model
        self._library = library
        self._reopen = reopen
        self._known_base = cache(lambda: identify(self.loaded, library.bases))  # reads every record of the library
        check = check or partial(check_folder, to_attach=True)
        self._finder = Finder(library, base, self._known_base, allow_base_mismatch=allow_base_mismatch, check=check)
        self._allow_base_mismatch, self._to_test = allow_base_mismatch, to_test
        self._check_of = cache(self._make_check)

    def find(self, adapter: AdapterLike, weight: float = 1.0) -> FoundAdapter:
        """Return the adapter, its files checked; raises as `Finder.find`."""
        return self._finder.find(adapter, weight)

    def prepare(self, adapters: Sequence[FoundAdapter]) -> list[Prepared]:
        """Return the adapters, ready to be put on the model together.

        Raises:
            BaseMismatch: the model is not the base of one of them, or lacks modules that one is for.
            UnsupportedAdapter: a method or a feature cannot be attached.
            MergeRefused: the adapters cannot be added up.
            RefusedAdapter: tensors have no place in the base, or are missing.
        """
        files = [self._files_of(found) for found in adapters]
        rooms = [self._component_of(found, subject) for found, subject in zip(adapters, files, strict=True)]
        bases = [self._check_of(component).run(found) for found, component in zip(adapters, rooms, strict=True)]
        rows = zip(adapters, files, bases, self.ready(adapters, files), strict=True)
        return [Prepared(found=found, files=subject, base=base, ready=ready) for found, subject, base, ready in rows]

    def ready(self, adapters: Sequence[FoundAdapter], files: Sequence[Subject]) -> list[ReadyAdapter]:
        """Return the adapters, read and set up, but not compared with their bases.

        Raises as `prepare`.
        """
        read = [
            read_contents(subject, found.label, self._model, self._component_of(found, subject))
            for found, subject in zip(adapters, files, strict=True)
        ]
        contents = without_repeats(read)
        for each in contents:
            check_copies(each, self._model)
            check_replacements(each, self._model)
            check_activated(each, self._model)
        setups = [set_up(each, self._model) for each in contents]
        names = peft_names([found.label for found in adapters])
        ready = [
            ReadyAdapter(name=name, contents=each, setup=setup, weight=found.weight)
            for name, each, setup, found in zip(names, contents, setups, adapters, strict=True)
        ]
        check_mixture(ready)
        return ready

    def record(self, adapter: Prepared) -> AttachedAdapter:
        """Return the facts about an adapter that the model has now. Pins a build that declares no base to this one."""
        pinned = () if self._to_test else pin(self._library, adapter.found, self._known_base)
        return facts(adapter.found, adapter.ready, adapter.base, pinned)

    def _component_of(self, found: FoundAdapter, files: Subject) -> str:
        """Return the component of a pipeline whose own names the adapter uses; "" for the whole model."""

        def fits(component: str) -> bool:
            return self._check_of(component).allows(found)

        return component_for(found, files, self._model, fits)

    def _make_check(self, component: str) -> BaseCheck:
        loaded = self.loaded.part(component) if component else self.loaded
        known = cache(lambda: identify(loaded, self._library.bases)) if component else self._known_base
        how = {"allow_base_mismatch": self._allow_base_mismatch, "to_test": self._to_test}
        return BaseCheck(self._library, loaded, known, component=component, **how)

    def _files_of(self, found: FoundAdapter) -> Subject:
        if found.subject is not None:
            return found.subject
        assert self._reopen is not None  # only a check that comes with it returns no files
        return self._reopen(found.folder)


def check_copies(contents: AdapterContents, base: BaseModel) -> None:
    """Raise unless the adapter's copies of the base's embeddings equal them; PEFT may save copies with an adapter.

    Raises:
        RefusedAdapter: the adapter has a trained or resized embedding, which would replace that of the base.
        UnsupportedAdapter: it would damage modules that are quantised here.
    """
    magnitudes = contents.factors if contents.config.use_dora else ()
    ensure_unpacked(contents.label, base.modules, saved=contents.saved, magnitudes=magnitudes)
    if not contents.copies:
        return
    tensors = {tensor.name: tensor.tensor for tensor in base.tensors()}
    findings, hint = [], ""
    for name, spec in contents.copies.items():
        here = tensors[name].detach()
        if tuple(here.shape) != spec.shape or not torch.equal(contents.read(spec).to(here), here):
            findings.append(("E_BASE_WEIGHT", f"`{shown(spec.name)}` differs from the base's and would replace it"))
            hint = COPY_HINT if tuple(here.shape) != spec.shape else hint
    if findings:
        refusal = f"`{shown(contents.label)}` contains other weights of the base"
        raise RefusedAdapter(refusal, limited(findings), hint=hint)


def without_repeats(adapters: Sequence[AdapterContents]) -> list[AdapterContents]:
    """Return the adapters; a module that several replace with equal tensors stays with the first of them only.

    Raises:
        MergeRefused: two adapters replace a module, a bias or rows with different tensors, or one replaces what another
            adapts.
    """
    reasons: list[str] = _replaced_twice(adapters)
    first: dict[str, AdapterContents] = {}
    kept: list[AdapterContents] = []
    for adapter in adapters:
        own: dict[str, Mapping[str, TensorSpec]] = {}
        for module, specs in adapter.saved.items():
            earlier = first.setdefault(module, adapter)
            if earlier is adapter:
                own[module] = specs
            elif not _are_equal(earlier, adapter, module):
                reasons.append(
                    f"`{shown(module)}` is replaced whole by `{shown(earlier.label)}` and by `{shown(adapter.label)}`"
                )
        kept.append(replace(adapter, saved=MappingProxyType(own)))
    for adapter in kept:
        for module, owner in first.items():
            changed = [*adapter.factors, *adapter.biases, *adapter.rows]
            inside = [name for name in changed if name == module or name.startswith(module + ".")]
            reasons += [
                f"`{shown(n)}` is adapted by `{shown(adapter.label)}` and replaced whole by `{shown(owner.label)}`"
                for n in inside
            ]
    if reasons:
        raise MergeRefused("these adapters cannot be used together", reasons[:LISTED])
    return kept


def _replaced_twice(adapters: Sequence[AdapterContents]) -> list[str]:
    """Return a reason per bias, and per embedding with rows, that two adapters replace by different numbers."""
    reasons = []
    first: dict[str, AdapterContents] = {}
    for adapter in adapters:
        for name, spec in (*adapter.biases.items(), *adapter.rows.items()):
            earlier = first.setdefault(name, adapter)
            is_bias = name in adapter.biases
            before = (earlier.biases if is_bias else earlier.rows)[name]
            is_same = is_bias or earlier.trained_rows(name) == adapter.trained_rows(name)
            if not (is_same and _same_numbers(earlier, before, adapter, spec)):
                both = f"`{shown(earlier.label)}` and `{shown(adapter.label)}` both replace"
                what = "it (bias)" if is_bias else "rows of it (trainable_token_indices)"
                reasons.append(f"`{shown(name)}`: {both} {what}")
        others = {row for other in adapters if other is not adapter for row in other.rows}
        label = shown(adapter.label)
        reasons += [
            f"`{shown(name)}` is adapted by `{label}`, and another adapter replaces rows of it"
            for name in sorted(adapter.factors.keys() & others)
        ]
    return reasons


def check_mixture(adapters: Sequence[ReadyAdapter]) -> None:
    """Raise unless the adapters can be added up with their weights.

    Raises:
        MergeRefused: with every adapter that takes no weight, and with their methods if these differ.
    """
    reasons = []
    for adapter in adapters:
        if adapter.contents.config.adds or (len(adapters) == 1 and adapter.weight == 1):
            continue
        method = (
            "DoRA, whose magnitudes"
            if adapter.contents.config.use_dora
            else f"{adapter.contents.config.peft_type}, whose factors"
        )
        reasons.append(f"`{shown(adapter.contents.label)}` uses {method} do not add up: attach it alone, with weight 1")
    reasons += [
        f"`{shown(adapter.contents.label)}` acts from its invocation tokens on (aLoRA): attach it alone"
        for adapter in adapters
        if len(adapters) > 1 and adapter.contents.config.alora_invocation_tokens is not None
    ]
    types = sorted({adapter.contents.config.peft_type for adapter in adapters})
    if len(types) > 1:
        reasons.append(f"they have {len(types)} different types: {', '.join(types)}")
    if reasons:
        raise MergeRefused("these adapters cannot be added up", reasons)


def _are_equal(one: AdapterContents, other: AdapterContents, module: str) -> bool:
    mine, theirs = one.saved[module], other.saved[module]
    if mine.keys() != theirs.keys():
        return False
    return all(_same_numbers(one, mine[key], other, theirs[key]) for key in mine)


def _same_numbers(one: AdapterContents, mine: TensorSpec, other: AdapterContents, theirs: TensorSpec) -> bool:
    if one is other:
        return True
    same_kind = (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
    return same_kind and torch.equal(one.read(mine), other.read(theirs))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleGroup:
    """Modules whose updates have the same scale; `scaling` is the adapter's own, without its weight in a mixture."""

    rank: int
    alpha: float
    scaling: float
    modules: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachedAdapter:
    """The facts about one attached adapter. `compared` says in words how its base compares with the model."""

    label: str
    folder: Path
    weight: float
    method: tuple[str, ...]
    verdict: BaseVerdict
    compared: tuple[str, ...]
    scales: tuple[ScaleGroup, ...]
    saved_modules: tuple[str, ...]
    parameters: int
    warnings: tuple[str, ...]


def facts(found: FoundAdapter, ready: ReadyAdapter, base: BaseCheckResult, pinned: tuple[str, ...]) -> AttachedAdapter:
    """Return the facts about one adapter, collected from its checks."""
    contents = ready.contents
    tensors = [*contents.factors.values(), *contents.saved.values(), contents.shared, contents.biases, contents.rows]
    groups: Counter[Scale] = Counter(ready.setup.scales.values())
    replaces = {"modules": contents.saved, "biases": contents.biases, "rows of embeddings": contents.rows}
    replaced = " and ".join(what for what, tensors in replaces.items() if tensors)
    whole = f"its weight does not apply to {replaced} that it replaces" if replaced and found.weight != 1 else ""
    return AttachedAdapter(
        label=found.label,
        folder=found.folder,
        weight=found.weight,
        method=contents.config.methods(),
        verdict=base.comparison.verdict,
        compared=base.comparison.differences,
        scales=tuple(
            ScaleGroup(rank=scale.rank, alpha=scale.alpha, scaling=scale.scaling, modules=count)
            for scale, count in sorted(groups.items(), key=lambda group: (-group[1], group[0].rank, group[0].alpha))
        ),
        saved_modules=tuple(contents.saved),
        parameters=sum(spec.elements for specs in tensors for spec in specs.values()),
        warnings=(
            *found.warnings,
            *contents.warnings,
            *ready.setup.warnings,
            *base.warnings,
            *([whole] if whole else []),
            *pinned,
        ),
    )


def lines(adapter: AttachedAdapter) -> list[str]:
    """Return the facts in lines for people."""
    weight = f"  weight {adapter.weight:g}" if adapter.weight != 1 else ""
    text = [f"{shown(adapter.label, 200)}  {', '.join(adapter.method)}{weight}"]
    text.append(f"  base: {adapter.verdict.value}; {'; '.join(adapter.compared)}")
    text += [
        f"  scale {group.scaling:g} (rank {group.rank}, alpha {group.alpha:g}) in {group.modules} modules"
        for group in adapter.scales
    ]
    if adapter.saved_modules:
        text.append(f"  replaced whole: {', '.join(adapter.saved_modules)}")
    return [*text, *(f"  warning: {warning}" for warning in adapter.warnings)]


class Attached:
    """A base with adapters on it; a context manager that detaches at its end.

    `model` is PEFT's `PeftModel`; `adapters` are in the order of the call.
    """

    def __init__(
        self,
        base: BaseModel,
        model: PeftModel,
        adapters: tuple[AttachedAdapter, ...],
        ready: Sequence[ReadyAdapter],
    ) -> None:
        self.adapters = adapters
        self._base = base
        self._model = model
        self._ready = ready
        self._hooks = base.added_hooks()
        self._is_pipeline = isinstance(base.model, PipelineModules)

    @property
    def model(self) -> PeftModel:
        """The `PeftModel`; call it, or its `generate`, like the base. For a pipeline, the pipeline itself.

        Raises:
            UsageProblem: the adapters were detached.
        """
        if self._model is None:
            raise UsageProblem("the adapter was detached", hint="use the base model, which `detach()` returned")
        given: PeftModel = as_given(self._base.model) if self._is_pipeline else self._model  # a pipeline: itself
        return given

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings of all adapters, each with the adapter's name."""
        return tuple(f"`{shown(a.label, 200)}` {warning}" for a in self.adapters for warning in a.warnings)

    def explain(self) -> str:
        """Return the attached adapters in lines for people: base, scales, modules replaced whole, warnings."""
        return "\n".join(line for adapter in self.adapters for line in lines(adapter))

    def base_digest(self) -> Digest:
        """Digest over every parameter and buffer of the base, the same before, during and after an attach.

        Reads the whole base: 0.3 s for 500 MB.
        """
        return self._base.digest()

    @parsed
    def weigh(self, weights: Sequence[float]) -> None:
        """Give the adapters new weights, in the order of `adapters`. Attaches nothing again; takes milliseconds.

        Raises:
            UsageProblem: not one finite number for each adapter, or the adapters were detached.
            MergeRefused: the method of an adapter has no weights.
        """
        _ = self.model  # raises once they are detached
        modules = dict(self._model.get_base_model().named_modules(remove_duplicate=False))
        pairs = with_weights([adapter.folder for adapter in self.adapters], weights)
        ready = [replace(r, weight=weight) for r, (_, weight) in zip(self._ready, pairs, strict=True)]
        check_mixture(ready)
        for each in ready:
            set_scales(modules, each)
        self._ready = ready
        self.adapters = tuple(replace(a, weight=r.weight) for a, r in zip(self.adapters, ready, strict=True))

    @contextlib.contextmanager
    def base_alone(self) -> Iterator[None]:
        """Within, the model answers without the adapters, which stay attached.

        Raises:
            UsageProblem: the adapters were detached.
        """
        _ = self.model  # raises once they are detached
        with self._model.disable_adapter(), self._base.own_parameters():
            yield

    def detach(self) -> nn.Module:
        """Take the adapters off; returns the model that `attach` was given, unchanged. May be called twice."""
        if self._model is not None:
            self._base.restore(self._hooks)
            self._model = None
        return as_given(self._base.model)

    def __enter__(self) -> Self:
        """Go on with the attached adapters.

        Raises:
            UsageProblem: they were detached; a second block would run without them.
        """
        _ = self.model  # raises once they are detached
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


@parsed
def attach(
    model: ModelLike,
    adapter: AdapterLike | Sequence[AdapterLike] | Mapping[AdapterLike, float],
    *,
    library: LibraryLike = None,
    base: BaseSpec | str | None = None,
    weights: Sequence[float] | None = None,
    allow_base_mismatch: bool = False,
) -> Attached:
    """Put one or several adapters on `model`; the base stays frozen, and `detach` returns it unchanged.

    Several adapters add up at run time: the update is exactly the sum of weight * delta. Name an adapter by a spec, a
    folder or an installed build. `base` names the base for all of them; without it, the model itself decides which
    build fits. Sampled numbers of the model are compared with the base of each adapter before anything is wrapped. An
    adapter that declares no base gets a warning; if the model is a registered base, the adapter is pinned to it.

    `model` may be a pipeline: any object with a mapping `components`. An adapter of several components has their names
    in front of its modules (`unet.down_blocks.0…`); one of a single component has that model's own names.

    Raises:
        BaseMismatch: an adapter was made for another base (`allow_base_mismatch` permits one with the same shapes), or
            for modules or shapes that this model does not have.
        UnsupportedAdapter: PEFT cannot attach this kind of adapter, or not without changing the base.
        MergeRefused: the adapters cannot be added up.
        RefusedAdapter, Malformed, DigestMismatch: the contents or the files of an adapter are damaged or unsafe.
        AdapterNotFound, NoCompatibleRelease, AmbiguousSpec, BaseNotFound, UsageProblem: the request has no match, or
            more than one.

    After any of these errors the model is unchanged.
    """
    place = open_library(library)
    pairs = with_weights(adapter, weights)
    frozen = BaseModel(as_model(model))
    return _put_on(frozen, Preparation(frozen, place, base=base, allow_base_mismatch=allow_base_mismatch), pairs)


def attach_to_test(model: ModelLike, adapter: AdapterLike, *, library: Library, base: BaseSpec) -> Attached:
    """Put an adapter on any base that has its modules in their shapes, to test it there; `base` names the base.

    Other weights, another vocabulary and another number of layers are permitted, and a build that declares no base is
    not pinned to this one. Only for tests: how an adapter answers on another base is not known before.

    Raises:
        As `attach`: BaseMismatch where a module is missing or has another shape.
    """
    frozen = BaseModel(as_model(model))
    return _put_on(
        frozen, Preparation(frozen, library, base=base, allow_base_mismatch=True, to_test=True), [(adapter, 1.0)]
    )


def _put_on(frozen: BaseModel, preparation: Preparation, pairs: Sequence[tuple[AdapterLike, float]]) -> Attached:
    prepared = preparation.prepare([preparation.find(each, weight) for each, weight in pairs])
    ready = [each.ready for each in prepared]
    try:
        wrapped = inject(frozen, ready)
    except BaseException:
        frozen.restore(frozen.added_hooks())
        raise
    for each in ready:
        each.contents.weights.close()  # the model has all of it
    return Attached(frozen, wrapped, tuple(preparation.record(each) for each in prepared), ready)
