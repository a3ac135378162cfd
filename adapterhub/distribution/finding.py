"""Resolves specs, paths and installed builds to adapter folders whose bytes are verified."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adapterhub.core.arguments import path_of
from adapterhub.core.disk.files import ensure_there
from adapterhub.core.errors import (
    AdapterNotFound,
    AmbiguousSpec,
    RefusedAdapter,
    SpecError,
    UsageProblem,
    reworded,
    shown,
)
from adapterhub.core.specs import ADD_FIRST, AdapterSpec, BaseSpec, names_folder
from adapterhub.distribution.choosing import find_installed
from adapterhub.formats.base.fingerprint import BaseHints
from adapterhub.formats.manifest import BaseRef, Manifest
from adapterhub.formats.peft.config import ensure_attachable
from adapterhub.library.admission import Admission
from adapterhub.library.aliasing import alias_of
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.bases.requested import RequestedBase, requested_base
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import AdapterLike, Installed
from adapterhub.library.upkeep.damage import ensure_manifest_unchanged
from adapterhub.trust.findings import Finding
from adapterhub.trust.verify import Report, Subject, ensure_undamaged, manifest_in, open_subject, verify
from adapterhub.trust.verify.checks.base import claims_base

MAX_WEIGHT = 1e6
"""Weights of mixtures are near 1; anything beyond this is a mistake."""


def ensure_folder(path: Path) -> None:
    """Raise if nothing is at `path`, and for a file, such as a LoRA of another program.

    Raises:
        AdapterNotFound: the hint offers the nearest path, or the command that makes an adapter of the file.
    """
    ensure_there(path, hint="`adapt list` shows adapters that need no path")
    if not path.is_dir():
        raise AdapterNotFound(f"`{shown(str(path), 200)}` is a file; an adapter is a folder", hint=ADD_FIRST)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundAdapter:
    """One adapter to attach. `base` is the base that it declares; `build` is None for a folder outside the library.

    `manifest` is that of the build or of the folder, if it has one. `wanted` is the base that the caller named for it.
    `subject` holds the verified files: read the adapter's bytes from there, and drop it from anything that you keep.
    """

    label: str
    folder: Path
    weight: float
    base: BaseRef
    build: Installed | None
    wanted: RequestedBase | None
    manifest: Manifest | None = None
    warnings: tuple[str, ...] = ()
    subject: Subject | None = None


def with_weights(
    adapter: AdapterLike | Sequence[AdapterLike] | Mapping[AdapterLike, float], weights: Sequence[float] | None
) -> list[tuple[AdapterLike, float]]:
    """Each adapter with its weight, 1.0 where none is given.

    Raises:
        UsageProblem: no adapter, weights given twice or not one each, or a weight out of range.
    """
    if isinstance(adapter, Mapping):
        if weights is not None:
            raise UsageProblem("weights are given twice, in the mapping and beside it", hint="give them once")
        pairs = list(adapter.items())
    else:
        single = isinstance(adapter, str | os.PathLike | AdapterSpec | Installed)
        asked: list[AdapterLike] = [adapter] if single else list(adapter)  # type: ignore[arg-type, list-item] # just told apart
        given = [1.0] * len(asked) if weights is None else list(weights)
        if len(given) != len(asked):
            raise UsageProblem(f"{len(asked)} adapters with {len(given)} weights, expected one each")
        pairs = list(zip(asked, given, strict=True))
    if not pairs:
        raise UsageProblem("no adapter to attach", hint="`adapt list` shows what is installed")
    for what, weight in pairs:
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not math.isfinite(weight) or abs(weight) > MAX_WEIGHT:
            raise UsageProblem(
                f"weight {shown(weight)} of `{shown(str(what))}`, expected a number within {MAX_WEIGHT:g}"
            )
    return [(what, float(weight)) for what, weight in pairs]


Identify = Callable[[], BaseRecord | None]
"""Returns the registered base of the model in memory."""

Check = Callable[[Path, str, "Manifest | None", "Identify | None"], "tuple[Subject | None, tuple[str, ...]]"]
"""Checks the files of a folder, given its label and manifest. Returns the checked files and warnings, or raises."""


class Finder:
    """Finds adapters in a library and in folders. `base` applies to every adapter that names no base itself.

    `identify` returns the registered base of the model in memory and runs only when a spec needs it. `check` runs on
    every folder that is found.
    """

    def __init__(
        self,
        library: Library,
        base: BaseSpec | str | None,
        identify: Callable[[], BaseRecord | None],
        *,
        allow_base_mismatch: bool,
        check: Check | None = None,
    ) -> None:
        self.library = library
        self.identify = identify
        self.check = check or check_folder
        self.allow_base_mismatch = allow_base_mismatch
        self.base = BaseSpec.parse(base) if isinstance(base, str) else base

    def find(self, what: AdapterLike, weight: float) -> FoundAdapter:
        """Return the adapter, checked against its manifest and by `verify`.

        Raises:
            AdapterNotFound, NoCompatibleRelease, AmbiguousSpec, BaseNotFound: no adapter, or several, match.
            DigestMismatch: a file differs from the manifest.
            RefusedAdapter: `verify` finds an error.
            SignatureRefused, NamespaceBound: an installed build may not be used.
        """
        folder = folder_in(what)
        if folder is not None:
            return self._in_folder(folder, weight)
        if isinstance(what, Installed):
            Admission(self.library).ensure_usable(what)
            return self._installed(what, weight, requested_base(self.base, self.library.bases))
        spec = what if isinstance(what, AdapterSpec) else _parse_spec(str(what))
        if alias_of(self.library, spec) is not None:
            wanted = requested_base(self.base, self.library.bases)
            return self._installed(self._choose(spec, wanted), weight, wanted)
        wanted = requested_base(spec.base or self.base, self.library.bases, spec)
        return self._installed(self._choose(spec, wanted), weight, wanted)

    def _choose(self, spec: AdapterSpec, wanted: RequestedBase | None) -> Installed:
        allow = self.allow_base_mismatch or self._was_allowed(spec, wanted)
        try:
            build, _ = find_installed(self.library, spec, wanted=wanted, allow_base_mismatch=allow)
        except AmbiguousSpec:
            # Builds for several bases and no base named: take the base of the model in memory.
            record = self.identify() if wanted is None else None
            if record is None:
                raise
            build, _ = find_installed(
                self.library, spec, wanted=RequestedBase(text=record.label, record=record, bases=self.library.bases)
            )
        return build

    def _was_allowed(self, spec: AdapterSpec, wanted: RequestedBase | None) -> bool:
        """Return whether a build of that name was installed with `--allow-base-mismatch` for this base."""
        if wanted is None or wanted.record is None:
            return False
        builds = self.library.builds_named(spec.name, spec.namespace)
        return any(self.library.mismatch_allowed(build, wanted.record.fingerprint) for build in builds)

    def _installed(self, build: Installed, weight: float, wanted: RequestedBase | None) -> FoundAdapter:
        ensure_manifest_unchanged(self.library, build)
        label = f"{build.full_name}=={build.manifest.version}"
        subject, warnings = self.check(build.folder, label, build.manifest, None)
        return FoundAdapter(
            label=label,
            folder=build.folder,
            weight=weight,
            base=build.base,
            build=build,
            wanted=wanted,
            manifest=build.manifest,
            warnings=warnings,
            subject=subject,
        )

    def _in_folder(self, folder: Path, weight: float) -> FoundAdapter:
        ensure_folder(folder)
        manifest = manifest_in(folder)
        label = str(folder)
        subject, warnings = self.check(folder, label, manifest, None if self.allow_base_mismatch else self.identify)
        return FoundAdapter(
            label=label,
            folder=folder,
            weight=weight,
            base=manifest.base if manifest else BaseRef(hints=BaseHints()),
            build=None,
            wanted=requested_base(self.base, self.library.bases),
            manifest=manifest,
            warnings=warnings,
            subject=subject,
        )


def folder_in(what: AdapterLike) -> Path | None:
    """Return the folder that `what` names; None when `what` is a spec or an installed build."""
    if isinstance(what, os.PathLike):
        return path_of(what)
    if isinstance(what, str) and names_folder(what):
        return path_of(what)
    return None


def _parse_spec(text: str) -> AdapterSpec:
    try:
        return AdapterSpec.parse(text)
    except SpecError as error:
        if not error.hint and os.path.isdir(text):  # noqa: PTH112 - false for a text that can be no path
            raise reworded(error, hint=f"a folder is written `./{shown(text)}`") from None
        raise


def check_folder(
    folder: Path,
    label: str,
    manifest: Manifest | None,
    identify: Identify | None = None,
    *,
    in_memory: bool = False,
    to_attach: bool = False,
) -> tuple[Subject, tuple[str, ...]]:
    """Verify the folder and compare its files with the manifest. Returns the verified files and the warnings.

    `to_attach` refuses first what can never be attached.

    The base is not checked here: `attach` compares the model in memory itself. `identify` runs only when the config
    of a plain folder states a hash of its base.
    """
    subject, findings = open_subject(folder, manifest=manifest, base_named=True, in_memory=in_memory)
    if subject is not None and to_attach:
        ensure_attachable(subject.config, label)
    if subject is not None and manifest is None and identify is not None and claims_base(subject.config):
        record = identify()
        subject = replace(subject, base_fingerprint=record.fingerprint) if record else subject
    report = verify(subject, seen=findings, with_facts=False) if subject is not None else Report.of(findings)
    ensure_sound(report.errors, f"`{shown(label, 200)}` was not attached", f"{folder}/")
    assert subject is not None  # without one there is an error
    return subject, tuple(f.text for f in report.warnings)


def ensure_sound(errors: Sequence[Finding], refusal: str, place: str) -> None:
    """Raise if `verify` found errors. `refusal` is the message, `place` goes before the names of damaged files.

    Raises:
        DigestMismatch: a file is damaged.
        RefusedAdapter: with every error.
    """
    ensure_undamaged(errors, place)
    if errors:
        listed = [(f.code, f.text) for f in errors]
        raise RefusedAdapter(refusal, listed, hint=next((f.hint for f in errors if f.hint), ""))
