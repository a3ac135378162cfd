"""`attach`: find, check, compare with the base, inject; and `Attached`, which holds until it is detached."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn

from adapterhub.bases import BaseRecord
from adapterhub.digests import Digest
from adapterhub.errors import AdapterHubError, BaseMismatch, UsageProblem, shown
from adapterhub.fingerprint import BaseVerdict, Comparison
from adapterhub.home import default_root
from adapterhub.library import Library
from adapterhub.loader.base_model import BaseModel
from adapterhub.loader.contents import read_contents
from adapterhub.loader.identity import LoadedBase, identify, judge, look_at
from adapterhub.loader.injection import Ready, inject, peft_names, set_scales
from adapterhub.loader.methods import Scale, set_up
from adapterhub.loader.mixture import check_copies, refuse_mixture, without_repeats
from adapterhub.loader.request import AdapterLike, Finder, Found, with_weights
from adapterhub.specs import BaseSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleGroup:
    """Modules whose update has the same scale; `scaling` is the adapter's own, without the weight in a mixture."""

    rank: int
    alpha: float
    scaling: float
    modules: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachedAdapter:
    """What is known of one attached adapter. `compared` says in words how its base stands to the model."""

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


class Attached:
    """A base with adapters on it; a context manager that detaches at its end.

    `model` is PEFT's `PeftModel`; `adapters` are in the order they were asked for.
    """

    def __init__(
        self,
        base: BaseModel,
        model: Any,  # noqa: ANN401 - PEFT is untyped
        adapters: tuple[AttachedAdapter, ...],
        ready: Sequence[Ready],
    ) -> None:
        self.adapters = adapters
        self._base = base
        self._model = model
        self._ready = ready
        self._hooks = base.added_hooks()

    @property
    def model(self) -> Any:  # noqa: ANN401 - PEFT is untyped
        """The `PeftModel`: call it, or its `generate`, as the base.

        Raises:
            UsageProblem: it was detached.
        """
        if self._model is None:
            raise UsageProblem("the adapter was detached", hint="`detach()` gave the base model back")
        return self._model

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings of all adapters, each with its name."""
        return tuple(f"`{shown(a.label, 200)}` {warning}" for a in self.adapters for warning in a.warnings)

    def explain(self) -> str:
        """What is attached, in lines for people: base, scales, modules replaced whole, warnings."""
        return "\n".join(line for adapter in self.adapters for line in _lines(adapter))

    def base_digest(self) -> Digest:
        """Digest over every parameter and buffer of the base, the same before, during and after an attach.

        It reads the whole base: 0.3 s for 500 MB.
        """
        return self._base.digest()

    def weigh(self, weights: Sequence[float]) -> None:
        """Give the adapters other weights, in the order of `adapters`, without attaching anything again: milliseconds.

        Raises:
            UsageProblem: not one sensible number each, or they were detached.
            MergeRefused: adapters of a method that a weight has no meaning for.
        """
        modules = dict(self.model.get_base_model().named_modules(remove_duplicate=False))
        pairs = with_weights([adapter.folder for adapter in self.adapters], weights)
        ready = [replace(r, weight=weight) for r, (_, weight) in zip(self._ready, pairs, strict=True)]
        refuse_mixture(ready)
        for each in ready:
            set_scales(modules, each)
        self._ready = ready
        self.adapters = tuple(replace(a, weight=r.weight) for a, r in zip(self.adapters, ready, strict=True))

    def detach(self) -> nn.Module:
        """The base as it was, without adapters; the model that `attach` was given. Detaching twice does no harm."""
        if self._model is not None:
            self._base.restore(self._hooks)
            self._model = None
        return self._base.model

    def __enter__(self) -> Attached:  # noqa: PYI034 - `typing.Self` comes with Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


def attach(
    model: nn.Module,
    adapter: AdapterLike | Sequence[AdapterLike] | Mapping[AdapterLike, float],
    *,
    library: Library | str | Path | None = None,
    base: BaseSpec | str | None = None,
    weights: Sequence[float] | None = None,
    allow_base_mismatch: bool = False,
) -> Attached:
    """Put one or several adapters on `model`, which stays frozen and comes back unchanged from `detach`.

    Several are added up at run time: the update is the sum of weight * delta, exactly. An adapter is named by a spec,
    a folder or an installed build. `base` names the base for all of them; without it, the model itself tells which
    build is meant. The model is compared by sampled numbers with what each adapter was made for, before anything is
    wrapped; an adapter that declares no base gets a warning and, if the model is a registered base, is pinned to it.

    Raises:
        BaseMismatch: made for another base (with the same shapes, `allow_base_mismatch` overrides it), or for
            modules or shapes that this model does not have.
        UnsupportedAdapter: a kind of adapter that cannot be attached without touching the base, or not by PEFT.
        MergeRefused: adapters that cannot be added up.
        RefusedAdapter: its contents are not sound; Malformed, DigestMismatch: its files are not.
        AdapterNotFound, NoCompatibleRelease, AmbiguousSpec, BaseNotFound, UsageProblem: what was asked for.

    After any of these the model is as it was before.
    """
    place = library if isinstance(library, Library) else Library(Path(library or default_root()))
    pairs = with_weights(adapter, weights)
    frozen = BaseModel(model)
    loaded = look_at(frozen)
    known_base = cache(lambda: identify(loaded, place.bases))  # reading all records takes a while: only when needed
    finder = Finder(place, base, known_base, allow_base_mismatch=allow_base_mismatch)
    found = [finder.find(what, weight) for what, weight in pairs]
    check = _BaseCheck(place, loaded, known_base, allow_base_mismatch=allow_base_mismatch)
    verdicts = [check.run(f) for f in found]
    contents = without_repeats([read_contents(f.folder, f.label, frozen) for f in found])
    for each in contents:
        check_copies(each, frozen)
    setups = [set_up(each, frozen) for each in contents]
    names = peft_names([f.label for f in found])
    ready = [
        Ready(name=name, contents=c, setup=s, weight=f.weight)
        for name, c, s, f in zip(names, contents, setups, found, strict=True)
    ]
    refuse_mixture(ready)
    try:
        wrapped = inject(frozen, ready)
    except BaseException:
        frozen.restore(frozen.added_hooks())
        raise
    adapters = [_facts(f, r, v, _pin(place, f, known_base)) for f, r, v in zip(found, ready, verdicts, strict=True)]
    return Attached(frozen, wrapped, tuple(adapters), ready)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verdict:
    comparison: Comparison
    warnings: tuple[str, ...] = ()


class _BaseCheck:
    """Compares the model with the base that each adapter was made for, or that the caller named."""

    def __init__(
        self,
        library: Library,
        loaded: LoadedBase,
        known_base: Callable[[], BaseRecord | None],
        *,
        allow_base_mismatch: bool,
    ) -> None:
        self.library = library
        self.loaded = loaded
        self.known_base = known_base
        self.allow_base_mismatch = allow_base_mismatch

    def run(self, found: Found) -> _Verdict:
        """The verdict on one adapter.

        Raises:
            BaseMismatch: the model is not the base.
        """
        named = found.wanted.record if found.wanted else None
        warnings: list[str] = []
        asked = judge(named.fingerprint, self.loaded) if named else None
        if asked and named:
            warnings += self._refused(found, f"was asked for on base `{named.label}`", asked)
        if found.base.fingerprint is None:
            named_by = found.base.hints.hub_id
            said = f"; its config names `{shown(named_by)}`" if named_by else ""
            warnings.append(f"declares no base fingerprint{said}")
            unknown = Comparison(verdict=BaseVerdict.UNKNOWN, differences=("it declares no fingerprint",))
            return _Verdict(comparison=asked or unknown, warnings=tuple(warnings))
        comparison = judge(found.base.fingerprint, self.loaded)
        made_for = self.library.base_label(found.base)
        weights = found.base.fingerprint.weights[7:19]
        warnings += self._refused(found, f"was made for base `{shown(made_for)}` ({weights})", comparison)
        if comparison.verdict is BaseVerdict.UNKNOWN:
            warnings += [f"could not be compared with its base: {d}" for d in comparison.differences]
        return _Verdict(comparison=comparison, warnings=tuple(warnings))

    def _refused(self, found: Found, claim: str, comparison: Comparison) -> list[str]:
        """Raise unless the verdict allows it; a warning when only the caller does."""
        verdict = comparison.verdict
        if verdict.allows_attach:
            return []
        actual = self.known_base()
        this = f"`{actual.label}` ({actual.fingerprint.weights[7:19]})" if actual else "no base that is registered here"
        if verdict is BaseVerdict.SAME_SHAPES and self._is_overridden(found, actual):
            return [f"{claim}, this model is {this}: attached all the same, as asked"]
        hint = "load the base it was made for"
        if verdict is BaseVerdict.SAME_SHAPES:
            hint += "; with `--allow-base-mismatch` (allow_base_mismatch=True) it is attached all the same"
        elif actual:
            hint += f"; `adapt search --base {actual.label}` lists adapters for this one"
        lines = [
            f"`{shown(found.label, 200)}` {claim}, this model is {this}",
            *(f"  {d}" for d in comparison.differences),
        ]
        raise BaseMismatch("\n".join(lines), hint=hint)

    def _is_overridden(self, found: Found, actual: BaseRecord | None) -> bool:
        """Whether the caller allows the mismatch now, or somebody did when the build was installed for this base."""
        if self.allow_base_mismatch or found.build is None or actual is None:
            return self.allow_base_mismatch
        return self.library.mismatch_allowed(found.build, actual.fingerprint)


def _pin(library: Library, found: Found, known_base: Callable[[], BaseRecord | None]) -> tuple[str, ...]:
    """Record the base of a build that declared none; what came of it, as a warning."""
    build = found.build
    if build is None or found.base.fingerprint is not None:
        return ()
    named = found.wanted.record if found.wanted else None
    record = named if named and named.alias else known_base()
    if record is None:
        return ("is not pinned: this model is no base that is registered here (`adapt base add PATH`)",)
    try:
        library.pin(build, record)
    except AdapterHubError as error:
        # The adapter works; that its base could not be written down does not take it off again.
        return (f"could not be pinned to base `{record.label}`: {error.message.splitlines()[0]}",)
    return (f"is now pinned to base `{record.label}`, on which it was attached",)


def _facts(found: Found, ready: Ready, verdict: _Verdict, pinned: tuple[str, ...]) -> AttachedAdapter:
    contents = ready.contents
    tensors = [*contents.factors.values(), *contents.saved.values(), contents.shared]
    groups: Counter[Scale] = Counter(ready.setup.scales.values())
    whole = "its weight does not change the modules it replaces whole" if contents.saved and found.weight != 1 else ""
    return AttachedAdapter(
        label=found.label,
        folder=found.folder,
        weight=found.weight,
        method=contents.config.methods(),
        verdict=verdict.comparison.verdict,
        compared=verdict.comparison.differences,
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
            *verdict.warnings,
            *([whole] if whole else []),
            *pinned,
        ),
    )


def _lines(adapter: AttachedAdapter) -> list[str]:
    weight = f"  weight {adapter.weight:g}" if adapter.weight != 1 else ""
    lines = [f"{shown(adapter.label, 200)}  {', '.join(adapter.method)}{weight}"]
    lines.append(f"  base: {adapter.verdict.value}; {'; '.join(adapter.compared)}")
    lines += [
        f"  scale {group.scaling:g} (rank {group.rank}, alpha {group.alpha:g}) in {group.modules} modules"
        for group in adapter.scales
    ]
    if adapter.saved_modules:
        lines.append(f"  replaced whole: {', '.join(adapter.saved_modules)}")
    return [*lines, *(f"  warning: {warning}" for warning in adapter.warnings)]
