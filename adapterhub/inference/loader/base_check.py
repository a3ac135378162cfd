"""Compares the model in memory with the base that an adapter was made for, and pins adapters that declare none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from adapterhub.core.errors import AdapterHubError, BaseMismatch, shown
from adapterhub.distribution.finding import FoundAdapter
from adapterhub.formats.base.fingerprint import BaseFingerprint, BaseVerdict, Comparison
from adapterhub.inference.loader.identity import LoadedBase, compare_base
from adapterhub.library.bases.families import Families
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.library import Library


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseCheckResult:
    """How the model compares with the base of one adapter, and the warnings that follow."""

    comparison: Comparison
    warnings: tuple[str, ...] = ()


class BaseCheck:
    """Compares the model with the base that each adapter was made for, and with the base that the caller named."""

    def __init__(
        self,
        library: Library,
        loaded: LoadedBase,
        known_base: Callable[[], BaseRecord | None],
        *,
        allow_base_mismatch: bool,
        component: str = "",
    ) -> None:
        self.component = component
        self.library = library
        self.loaded = loaded
        self.known_base = known_base
        self.allow_base_mismatch = allow_base_mismatch
        self._comparisons: list[tuple[BaseFingerprint, Comparison]] = []

    def run(self, found: FoundAdapter) -> BaseCheckResult:
        """Compare one adapter's base.

        Raises:
            BaseMismatch: the model is another base.
        """
        named = found.wanted.record if found.wanted else None
        if named and self.component in named.components:
            named = named.part(self.component)
        warnings: list[str] = []
        with_named = self._compare(named.fingerprint) if named else None
        if with_named and named:
            warnings += self._check(found, with_named, lambda: f"was requested for base `{named.label}`")
        if found.base.fingerprint is None:
            hub_id = found.base.hints.hub_id
            config_names = f"; its config names `{shown(hub_id)}`" if hub_id else ""
            warnings.append(f"declares no base fingerprint{config_names}")
            unknown = Comparison(verdict=BaseVerdict.UNKNOWN, differences=("it declares no fingerprint",))
            return BaseCheckResult(comparison=with_named or unknown, warnings=tuple(warnings))
        comparison = self._compare(found.base.fingerprint)
        weights = found.base.fingerprint.weights[7:19]
        warnings += self._check(
            found, comparison, lambda: f"was made for base `{shown(self.library.base_label(found.base))}` ({weights})"
        )
        if comparison.verdict is BaseVerdict.SAME_WEIGHTS_RESIZED_VOCABULARY:
            label = self.library.base_label(found.base)
            warnings.append(
                f"was made for base `{shown(label)}` before its vocabulary was resized: {comparison.differences[0]}"
            )
        if comparison.verdict is BaseVerdict.SAME_FAMILY:
            warnings.append(f"runs on another base of its family: {comparison.differences[0]}")
        if comparison.verdict is BaseVerdict.UNKNOWN:
            warnings += [f"could not be compared with its base: {d}" for d in comparison.differences]
        return BaseCheckResult(comparison=comparison, warnings=tuple(warnings))

    def allows(self, found: FoundAdapter) -> bool:
        """Whether the model may be the base that the adapter declares; true when it declares none."""
        return found.base.fingerprint is None or self._compare(found.base.fingerprint).verdict.allows_attach

    def _compare(self, fingerprint: BaseFingerprint) -> Comparison:
        """`compare_base`, run once for each fingerprint."""
        # The whole fingerprint is the key: a manifest with false samples must not answer for another one.
        for known, comparison in self._comparisons:
            if known == fingerprint:
                return comparison
        comparison = compare_base(fingerprint, self.loaded)
        actual = self.known_base() if comparison.verdict is BaseVerdict.SAME_SHAPES else None
        if actual is not None:
            comparison = Families(self.library.bases).judged(comparison, fingerprint, actual.fingerprint)
        self._comparisons.append((fingerprint, comparison))
        return comparison

    def _check(self, found: FoundAdapter, comparison: Comparison, describe: Callable[[], str]) -> list[str]:
        """Raise unless the verdict permits the attach; a warning if only the caller permits it.

        `describe` gives the adapter's claim, for the message.
        """
        verdict = comparison.verdict
        if verdict.allows_attach:
            return []
        claim = describe()
        actual = self.known_base()
        this = f"`{actual.label}` ({actual.fingerprint.weights[7:19]})" if actual else "not a registered base"
        if verdict is BaseVerdict.SAME_SHAPES and self._is_overridden(found, actual):
            return [f"{claim}, this model is {this}: attached anyway, because a base mismatch is allowed"]
        hint = "load the base that it was made for"
        if verdict is BaseVerdict.SAME_SHAPES:
            hint += f"; {_way_around(found, actual)} (in Python, allow_base_mismatch=True)"
        elif actual:
            hint += f"; `adapt search --base {actual.label}` lists adapters for this one"
        lines = [
            f"`{shown(found.label, 200)}` {claim}, this model is {this}",
            *(f"  {d}" for d in comparison.differences),
        ]
        raise BaseMismatch("\n".join(lines), hint=hint)

    def _is_overridden(self, found: FoundAdapter, actual: BaseRecord | None) -> bool:
        """Whether the caller allows the mismatch now, or the build was installed for this base with that option."""
        if self.allow_base_mismatch or found.build is None or actual is None:
            return self.allow_base_mismatch
        return self.library.mismatch_allowed(found.build, actual.fingerprint)


def _way_around(found: FoundAdapter, actual: BaseRecord | None) -> str:
    """How to put an adapter on another base on purpose, whichever command refused it."""
    if found.build is None or actual is None:
        return "`adapt run --allow-base-mismatch` attaches it anyway"
    command = f"adapt install {shown(found.label, 200)} --base {actual.label} --allow-base-mismatch"
    return f"`{command}` allows this base for it"


def pin(library: Library, found: FoundAdapter, known_base: Callable[[], BaseRecord | None]) -> tuple[str, ...]:
    """Record the base of a build that declares none; returns the outcome as a warning."""
    build = found.build
    if build is None or found.base.fingerprint is not None:
        return ()
    named = found.wanted.record if found.wanted else None
    record = named if named and named.alias else known_base()
    if record is None:
        return ("is not pinned: this model is not a registered base (`adapt base add PATH` registers one)",)
    try:
        library.pin_base(build, record)
    except AdapterHubError as error:
        # The adapter works; a failure to record its base must not take it off again.
        return (f"could not be pinned to base `{record.label}`: {error.message.splitlines()[0]}",)
    return (f"is now pinned to base `{record.label}`, to which it was attached",)
