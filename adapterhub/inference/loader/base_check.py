"""Comparing the model in memory with the base that an adapter was made for, and writing down which base it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from adapterhub.core.errors import AdapterHubError, BaseMismatch, shown
from adapterhub.distribution.finding import Found
from adapterhub.formats.base.fingerprint import BaseFingerprint, BaseVerdict, Comparison
from adapterhub.inference.loader.identity import LoadedBase, judge
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.library import Library


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How the model stands to the base of one adapter, and what is to be said of it."""

    comparison: Comparison
    warnings: tuple[str, ...] = ()


class BaseCheck:
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
        self._judged: list[tuple[BaseFingerprint, Comparison]] = []

    def run(self, found: Found) -> Verdict:
        """The verdict on one adapter.

        Raises:
            BaseMismatch: the model is not the base.
        """
        named = found.wanted.record if found.wanted else None
        warnings: list[str] = []
        asked = self._judge(named.fingerprint) if named else None
        if asked and named:
            warnings += self._refused(found, asked, lambda: f"was asked for on base `{named.label}`")
        if found.base.fingerprint is None:
            named_by = found.base.hints.hub_id
            said = f"; its config names `{shown(named_by)}`" if named_by else ""
            warnings.append(f"declares no base fingerprint{said}")
            unknown = Comparison(verdict=BaseVerdict.UNKNOWN, differences=("it declares no fingerprint",))
            return Verdict(comparison=asked or unknown, warnings=tuple(warnings))
        comparison = self._judge(found.base.fingerprint)
        weights = found.base.fingerprint.weights[7:19]
        warnings += self._refused(
            found, comparison, lambda: f"was made for base `{shown(self.library.base_label(found.base))}` ({weights})"
        )
        if comparison.verdict is BaseVerdict.UNKNOWN:
            warnings += [f"could not be compared with its base: {d}" for d in comparison.differences]
        return Verdict(comparison=comparison, warnings=tuple(warnings))

    def _judge(self, fingerprint: BaseFingerprint) -> Comparison:
        """As `judge`, once for each base."""
        # equal in everything: a manifest that lies about its samples answers for no other
        for known, comparison in self._judged:
            if known == fingerprint:
                return comparison
        comparison = judge(fingerprint, self.loaded)
        self._judged.append((fingerprint, comparison))
        return comparison

    def _refused(self, found: Found, comparison: Comparison, describe: Callable[[], str]) -> list[str]:
        """Raise unless the verdict allows it; a warning when only the caller does. `describe` says what was claimed."""
        verdict = comparison.verdict
        if verdict.allows_attach:
            return []
        claim = describe()
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


def pin(library: Library, found: Found, known_base: Callable[[], BaseRecord | None]) -> tuple[str, ...]:
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
