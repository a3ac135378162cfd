"""The counter at which an engine asks for adapters by name and gets a folder that stays as it is."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Final

from adapterhub.core.digests import Digest, hex_of
from adapterhub.core.disk.files import read_json
from adapterhub.core.errors import (
    AdapterNotFound,
    BaseMismatch,
    NoCompatibleRelease,
    RefusedAdapter,
    SpecError,
    UnsupportedAdapter,
    shown,
)
from adapterhub.core.ranks import RankRange
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.install import InstallPlan, plan_install, run_install
from adapterhub.formats.base.hints import CONFIG_LIMIT_BYTES
from adapterhub.formats.manifest import MANIFEST_FILE, BaseRef
from adapterhub.inference.engines import BaseFacts, Verdict, judge
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.bases.requested import RequestedBase, requested_base
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import Installed
from adapterhub.library.transfer import Source
from adapterhub.trust.signing.policy import SignaturePolicy
from adapterhub.trust.verify import Report, Subject, ensure_undamaged, open_subject, verify

FORGET_S: Final = 10.0
"""How long a name that nobody has is not asked for again: clients may repeat it much faster than servers answer."""

RANK_SETTING: Final = "max-lora-rank"
"""As vLLM's rules call the rank that they need."""

_REMEMBERED: Final = 1024
_STRIPES: Final = 64
_OURS_ALONE: Final = 0o700

Sources = Callable[[AdapterSpec], Sequence[Source]]
"""The places besides the library that may be asked for a spec, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """One adapter that an engine may read from `folder`, an absolute path that ends in the digest, until we close."""

    label: str
    folder: Path
    digest: Digest
    rank: int | None
    verdict: Verdict
    warnings: tuple[str, ...]


class AdapterProvider:
    """Finds, checks and leases adapters for one served base. Safe to use from several threads.

    Every name is resolved in the library, then in `sources`; what is installed that way stays installed. Before a
    build is handed out the first time, its bytes, format, shapes, numbers and base are checked, and what `engine` (such
    as `vllm@0.32`) says of it. From then on it is leased and has links of its own, so neither `adapt remove` nor
    `adapt gc` nor `rm` takes it away from the engine.
    """

    def __init__(
        self,
        library: Library,
        base: BaseRecord,
        *,
        engine: str,
        sources: Sources = lambda _: (),
        max_rank: int | None = None,
        signatures: SignaturePolicy | None = None,
    ) -> None:
        self.library = library
        self.base = base
        self.engine = engine
        self._sources = sources
        self._bounds = RankRange(max_rank=max_rank)
        self._signatures = signatures
        self._wanted = RequestedBase(text=base.label, record=base)
        self._base_facts = facts_of(base)
        self._handed: dict[Digest, Handed] = {}
        self._unknown: dict[str, tuple[float, AdapterNotFound]] = {}
        self._locks = [Lock() for _ in range(_STRIPES)]
        self._kept = contextlib.ExitStack()
        self._keeping = Lock()
        self._folder: Path | None = None

    def close(self) -> None:
        """End all leases; the folders that were handed out are gone."""
        with self._keeping:
            self._kept.close()
            self._handed.clear()
            self._folder = None

    def find(self, name: str) -> Handed:
        """The adapter that `name`, a spec, means here; what is handed out already costs a look into the library.

        Raises:
            SpecError: not a spec, or it names a base by path.
            AdapterNotFound, NoCompatibleRelease, AmbiguousSpec, BaseMismatch: nothing, or nothing that fits.
            UnsupportedAdapter: the engine cannot serve it, with each reason.
            RefusedAdapter, DigestMismatch: what it holds must not be loaded.
            RemoteUnreachable, NotAllowed: as an install.
        """
        spec = AdapterSpec.parse(name)
        self._refuse_other_base(spec)
        known = self._unknown.get(name)
        if known is not None and known[0] > time.monotonic():
            raise known[1]
        with self._locks[hash(spec.full_name) % _STRIPES]:  # first requests for one adapter fetch it once
            try:
                build = self._installed(spec)
            except AdapterNotFound as error:
                self._remember_unknown(name, error)
                raise
            return self._hand_out(build)

    # ------------------------------------------------------------ find
    def _refuse_other_base(self, spec: AdapterSpec) -> None:
        if spec.base is None:
            return
        if spec.base.kind == "path":
            raise SpecError(str(spec), "a request names its base by alias, Hub id or digest, not by a path")
        named = requested_base(spec.base, self.library.bases)
        served = BaseRef(fingerprint=self.base.fingerprint, hints=self.base.hints)
        if named is not None and not named.judge(served).verdict.allows_attach:
            raise BaseMismatch(f"`{spec}` names another base than the one that is served, `{self.base.label}`")

    def _installed(self, spec: AdapterSpec) -> Installed:
        asked = replace(spec, base=None)
        try:
            plan = self._planned(asked, allow_base_mismatch=False)
        except NoCompatibleRelease:
            if not self._was_allowed(asked):
                raise
            plan = self._planned(asked, allow_base_mismatch=True)
        added = run_install(self.library, plan, signatures=self._signatures)
        build = plan.present or (added.build if added else None)
        assert build is not None  # it was there, or was added
        return build

    def _planned(self, spec: AdapterSpec, *, allow_base_mismatch: bool) -> InstallPlan:
        return plan_install(
            self.library,
            spec,
            self._sources(spec),
            wanted=self._wanted,
            bounds=self._bounds,
            allow_base_mismatch=allow_base_mismatch,
        )

    def _was_allowed(self, spec: AdapterSpec) -> bool:
        """Whether somebody installed a build of that name for this base although it was made for another."""
        builds = self.library.builds_named(spec.name, spec.namespace)
        return any(self.library.mismatch_allowed(build, self.base.fingerprint) for build in builds)

    def _remember_unknown(self, name: str, error: AdapterNotFound) -> None:
        if len(self._unknown) >= _REMEMBERED:
            self._unknown.clear()
        self._unknown[name] = time.monotonic() + FORGET_S, error

    # ------------------------------------------------------------ check and lease
    def _hand_out(self, build: Installed) -> Handed:
        digest = build.manifest.digest
        if digest in self._handed:
            return self._handed[digest]
        with contextlib.ExitStack() as undo:
            undo.enter_context(self.library.lease(build))
            folder = self._linked(build, undo)
            verdict, warnings = self._check(build, folder)
            handed = Handed(
                label=f"{build.full_name}=={build.manifest.version}",
                folder=folder,
                digest=digest,
                rank=build.manifest.rank,
                verdict=verdict,
                warnings=warnings,
            )
            with self._keeping:
                self._kept.push(undo.pop_all())
                self._handed[digest] = handed
        return handed

    def _linked(self, build: Installed, undo: contextlib.ExitStack) -> Path:
        """Links to the build's files in a folder named by its digest, which goes with this process.

        The name matters: an engine that keys its caches by path can never take one adapter's for another's.
        """
        with self._keeping:
            if self._folder is None:
                self._folder = self._kept.enter_context(self.library.store.intent("serve")).folder.absolute()
                self._folder.chmod(_OURS_ALONE)  # nobody else puts other files there once these are checked
            folder = self._folder / f"sha256-{hex_of(build.manifest.digest)}"
        store = self.library.store
        with store.os_errors_as_refusals():
            folder.mkdir(mode=_OURS_ALONE)
        undo.callback(_remove, folder)
        for entry in build.manifest.files:
            store.link(entry.sha256, folder / entry.path)
        store.link_manifest(build.manifest.digest, folder / MANIFEST_FILE)
        return folder

    def _check(self, build: Installed, folder: Path) -> tuple[Verdict, tuple[str, ...]]:
        """Everything `verify` looks at, and the engine's own rules: its verdict, and warnings."""
        allowed = self.library.mismatch_allowed(build, self.base.fingerprint)
        subject, findings = open_subject(
            folder,
            base_tensors=self.base.tensors,
            base_fingerprint=self.base.fingerprint,
            manifest=build.manifest.with_base(build.base),
        )
        report = Report.of(findings) if subject is None else verify(subject, seen=findings)
        label = f"{build.full_name}=={build.manifest.version}"
        errors = [f for f in report.errors if not (allowed and f.code == "E_BASE_MISMATCH")]
        ensure_undamaged(errors, f"{label} ")
        if errors:
            listed = [(f.code, f"{f.where}: {f.message}" if f.where else f.message) for f in errors]
            raise RefusedAdapter(f"`{shown(label, 200)}` was not handed to the engine", listed)
        assert subject is not None  # without one there is an error
        verdict = self._judged(subject, label)
        warnings = [f"{f.where}: {f.message}" if f.where else f.message for f in report.warnings]
        return verdict, (*warnings, *verdict.notes)

    def _judged(self, subject: Subject, label: str) -> Verdict:
        verdict = judge(self.engine, subject.config, subject.weights, base=self._base_facts)
        reasons = [reason.text for reason in verdict.reasons]
        needed, most = verdict.settings.get(RANK_SETTING), self._bounds.max_rank
        if most is not None and isinstance(needed, int) and needed > most:
            reasons.append(f"rank {needed}: this server was started for ranks up to {most}")
        if reasons:
            hint = f"`adapt check {label} --target {self.engine}` says more; `adapt export` writes other forms"
            raise UnsupportedAdapter(f"`{shown(label)}` cannot be served by {self.engine}", reasons, hint=hint)
        return verdict


def facts_of(base: BaseRecord) -> BaseFacts:
    """What the base's `config.json` tells the rules; nothing where there is none."""
    if base.path is None:
        return BaseFacts()
    try:
        values = read_json(base.path / "config.json", CONFIG_LIMIT_BYTES)
    except (OSError, ValueError):
        return BaseFacts()
    return BaseFacts.from_config(values) if isinstance(values, dict) else BaseFacts()


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
