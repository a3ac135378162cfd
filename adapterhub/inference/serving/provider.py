"""Resolves adapter names for an inference engine, checks the adapters, and leases their folders."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Final
from weakref import WeakValueDictionary

from packaging.version import Version

from adapterhub.core.digests import Digest, Progress, hex_of
from adapterhub.core.disk.held_file import used_memory
from adapterhub.core.errors import (
    AdapterHubError,
    AdapterNotFound,
    BaseMismatch,
    BaseNotFound,
    Malformed,
    NamespaceBound,
    NoCompatibleRelease,
    NotAllowed,
    SpecError,
    UnsupportedAdapter,
    reworded,
    shown,
)
from adapterhub.core.ranks import RankRange
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.finding import ensure_sound
from adapterhub.distribution.install import InstallPlan, plan_install, run_install
from adapterhub.formats.contract.reader import Rules
from adapterhub.formats.contract.standards import Standards
from adapterhub.formats.engines import BaseFacts, Verdict, judge
from adapterhub.formats.manifest import MANIFEST_FILE, BaseRef
from adapterhub.formats.prompts.form import PromptForm
from adapterhub.inference.engine_bases import base_facts
from adapterhub.inference.serving.access.denied import NO_REASON, Denied, ensure_none
from adapterhub.inference.serving.access.watched import stamp_of
from adapterhub.inference.serving.aliases import TTL_S, ServedAliases
from adapterhub.inference.serving.effects import AWAKE, Asleep
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.bases.requested import RequestedBase, requested_base
from adapterhub.library.library import Library
from adapterhub.library.passed import AskedBase, why_not_passed
from adapterhub.library.store.catalog import Installed
from adapterhub.library.transfer import Source
from adapterhub.trust.signing.policy import SignaturePolicy
from adapterhub.trust.verify import Report, Subject, open_subject, verify

BuildGate = Callable[[Installed], tuple[str, ...]]
"""Looks at a build before an engine may read it: returns warnings, or raises if the build is not served."""


def no_gate(_build: Installed) -> tuple[str, ...]:
    """Lets every build through."""
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PassGate:
    """Lets a build through if it has a PASS that counts on `base`.

    Under the policy `warn` others come through with a warning, under `off` without a look.
    """

    library: Library
    base: BaseRecord
    standards: Standards
    rules: Callable[[], Rules | None]

    def __call__(self, build: Installed) -> tuple[str, ...]:
        """Look for a PASS.

        Raises:
            NotAllowed: under `require`, there is none that counts.
            NotFound, Malformed: the rules of the project cannot be read.
        """
        if self.standards.policy == "off":
            return ()
        rules = self.rules()
        base = partial(AskedBase.of, self.library, self.base)
        reason = why_not_passed(self.library, build, self.standards, base=base, rules=rules, is_merge=True)
        if reason is None or self.standards.policy == "warn":
            return (reason,) if reason else ()
        label = f"{build.full_name}=={build.manifest.version}"
        raise NotAllowed(
            f"`{shown(label, 200)}` is not served: {reason}",
            hint="`adapt serve --test` tests its arguments; `adapt test NAME --base BASE` tests one build",
        )


UNKNOWN_S: Final = 10.0
"""How long an unknown name is refused without another search: clients can repeat it much faster than servers answer."""

REFUSED_S: Final = 2.0
"""The same for every other refusal, such as of a damaged adapter, which costs a read of its files."""

RANK_SETTING: Final = "max-lora-rank"
"""The setting by which vLLM's rules give the rank that they need."""

_IN_MEMORY_BYTES: Final = 64 << 20  # the other checks run while these are hashed; a larger file's hash outlasts them
_REMEMBERED: Final = 1024
_STATE_FILES: Final = ("index.db", "remotes.json", "trusted_keys.json", "origins")  # an origin comes after its build
_DIGEST_SHOWN: Final = len("sha256:") + 12
_OWNER_ONLY: Final = 0o700

Sources = Callable[[AdapterSpec], Sequence[Source]]
"""The sources besides the library in which a spec may be looked up, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasedAdapter:
    """An adapter that an engine may read from `folder` until the provider closes.

    `folder` is an absolute path that ends in the digest. `model` is the one name of the adapter in the engine, whatever
    spec a client writes: `acme/legal-qa==1.2.0#sha256:9f86d0818843`.
    """

    label: str
    model: str
    folder: Path
    digest: Digest
    rank: int | None
    verdict: Verdict
    warnings: tuple[str, ...]
    prompt: PromptForm | None = None
    asleep: Asleep = AWAKE

    @property
    def version(self) -> str:
        """Its version."""
        return self.label.rpartition("==")[2]


class AdapterProvider:
    """Finds, checks and leases adapters for one served base. Thread-safe.

    `find_installed` looks a name up in the library and never waits for a source; `fetch` looks in the library and then
    in `sources`, and installs what it finds there. Before the first lease of a build, it checks the bytes, format,
    shapes, numbers and base, the rules of `engine` (such as `vllm@0.32`), and then calls `gate`. A leased build has its
    own links, so `adapt remove`, `adapt cache clean` and `rm` cannot take it away from the engine. `progress` counts
    the bytes that come from sources.
    """

    def __init__(  # noqa: PLR0913 - the sides of one server
        self,
        library: Library,
        base: BaseRecord,
        *,
        engine: str,
        sources: Sources = lambda _: (),
        max_rank: int | None = None,
        signatures: SignaturePolicy | None = None,
        alias_ttl_s: float = TTL_S,
        denied: Denied | None = None,
        gate: BuildGate = no_gate,
        progress: Progress | None = None,
    ) -> None:
        self.library = library
        self.aliases = ServedAliases(library, sources, ttl_s=alias_ttl_s)
        self.base = base
        self.engine = engine
        self.denied = denied or Denied()
        self._sources, self.gate = sources, gate
        self._progress = progress
        self._bounds = RankRange(high=max_rank)
        self._signatures = signatures
        self._wanted = RequestedBase(text=base.label, record=base, bases=library.bases)
        self._base_facts = _facts_of(base)
        self._leased: dict[Digest, LeasedAdapter] = {}
        self._names: dict[str, LeasedAdapter] = {}
        self._earlier: dict[str, LeasedAdapter] = {}
        """What names meant before the library changed."""
        self._names_of: object = None
        self._names_lock = Lock()
        self._refused: dict[str, tuple[float, AdapterHubError]] = {}
        self._locks: WeakValueDictionary[str, Lock] = WeakValueDictionary()
        self._leases: dict[Digest, contextlib.ExitStack] = {}
        self._links = contextlib.ExitStack()
        self._leases_lock = Lock()
        self._folder: Path | None = None

    def close(self) -> None:
        """End all leases and remove their folders."""
        for digest in list(self._leases):
            self.release(digest)
        with self._leases_lock:
            self._links.close()
            self._folder = None

    def leased(self) -> dict[Digest, str]:
        """Return the labels of the adapters that the engine may read now."""
        return {digest: one.label for digest, one in list(self._leased.items())}

    def is_leased(self, digest: Digest) -> bool:
        """Return whether the engine may read it now."""
        return digest in self._leased

    def release(self, digest: Digest) -> None:
        """End the lease of one adapter, which the engine must not read again; the next `find` makes a new one."""
        with self._lock_of(digest):
            self._leased.pop(digest, None)
            with self._names_lock:
                self._names = {name: leased for name, leased in self._names.items() if leased.digest != digest}
            lease = self._leases.pop(digest, None)
            if lease is not None:
                lease.close()

    def _lock_of(self, key: str) -> Lock:
        """Return the lock of one name or digest, which goes with its last holder: no other one waits for it."""
        with self._leases_lock:
            return self._locks.setdefault(key, Lock())

    def known(self, name: str) -> LeasedAdapter | None:
        """Return the adapter that `name` was found to be, if the library has not changed since.

        Costs one look at a file.
        """
        with self._names_lock:
            return self._names_now().get(name)

    def find(self, name: str) -> LeasedAdapter:
        """Return the adapter for the spec or alias `name`, leased: from the library, or else fetched.

        Raises as `fetch`.

        Of an alias with several targets, it is the one with the largest weight.
        """
        exact = next(iter(self.targets(name)), name)
        return self.find_installed(exact) or self.fetch(exact)

    def targets(self, name: str) -> list[str]:
        """Return the exact specs that the alias `name` means now, the largest weight first; none if it is not an alias.

        Raises:
            AmbiguousSpec, RemoteUnreachable: it may be an alias, but of which adapter, or what it means, is unknown.
        """
        if "@" in name and self.aliases.is_due(name):
            self.aliases.look_up(name)
        return self.aliases.specs(name)

    def find_installed(self, name: str) -> LeasedAdapter | None:
        """Return the adapter for the spec `name`, leased; None if only a source may have one that fits.

        A name keeps its adapter until the library changes: then every spelling of it is looked up again, so that two
        spellings never mean two versions at one time.

        Raises:
            SpecError: the name is not a spec, or names a base by path.
            AdapterHubError: any refusal of `fetch`, also one of some seconds ago.
        """
        found = self.known(name)
        if found is not None:
            return found
        spec, state = self._spec(name), self.state()
        with self._remembering(name):
            try:
                build = self._build(spec, ())
            except (AdapterNotFound, NoCompatibleRelease, NamespaceBound):
                self._ensure_not_denied(spec)
                earlier = self._earlier.get(name)  # its folder was deleted by hand: the lease holds its files
                if earlier is None or earlier.digest not in self._leased:
                    return None
                self.denied.ensure_allowed(earlier.label, earlier.digest)
                return earlier
            leased = self._lease(build)
        with self._names_lock:
            names = self._names_now()
            if self._names_of == state:  # else the library changed during the lookup
                names[name] = leased
        return leased

    def fetch(self, name: str) -> LeasedAdapter:
        """Return the adapter for the spec `name`, leased, from the library or the first source that has one that fits.

        Raises:
            SpecError: the name is not a spec, or names a base by path.
            AdapterNotFound, NoCompatibleRelease, AmbiguousSpec, BaseMismatch: no adapter fits, or several do.
            UnsupportedAdapter: the engine cannot serve it, with each reason.
            RefusedAdapter, DigestMismatch: its contents must not be loaded.
            RemoteUnreachable, NotAllowed: as for an install.
        """
        spec = self._spec(name)
        with self._remembering(name):
            with self._lock_of(spec.full_name):  # simultaneous first requests fetch it once
                build = self._build(spec, self._sources(spec))
            return self._lease(build)

    def state(self) -> object:
        """Return a value that changes with builds, their origins, trusted keys, remotes and denied builds."""
        return self.denied.edition, *(stamp_of(self.library.root / name) for name in _STATE_FILES)

    def in_use(self) -> dict[str, LeasedAdapter]:
        """Return the current or last meaning of each name that was looked up lately."""
        with self._names_lock:
            return {**self._earlier, **self._names}

    def bring_newest(self, spec: AdapterSpec, than: LeasedAdapter) -> None:
        """Install the build that sources have for `spec`, if it is newer `than` the present one and can be served.

        Raises:
            AdapterNotFound, NoCompatibleRelease: no source has one that fits.
            AdapterHubError: it cannot be served, and was not kept; or as `fetch`.
        """
        sources = self._sources(spec)
        plan = self._planned(replace(spec, base=None), sources, allow_base_mismatch=False, library_first=False)
        if plan.present is not None or Version(plan.release.manifest.version) <= Version(than.version):
            return
        added = run_install(self.library, plan, self._progress, signatures=self._signatures)
        if added is None:
            return
        try:
            self._lease(added.build)
        except AdapterHubError:
            self.library.remove([added.build])
            raise

    # ------------------------------------------------------------ find
    def _spec(self, name: str) -> AdapterSpec:
        spec = AdapterSpec.parse(name)
        self._ensure_served_base(spec)
        until, error = self._refused.get(name, (0.0, None))
        if error is not None and until > time.monotonic():
            raise reworded(error)
        return spec

    def _ensure_served_base(self, spec: AdapterSpec) -> None:
        if spec.base is None:
            return
        if spec.base.kind == "path":
            raise SpecError(
                str(spec),
                "a request may name its base by its name, Hub id or digest, not by path",
                hint="`adapt base list` shows the names",
            )
        try:
            named = requested_base(spec.base, self.library.bases)
        except BaseNotFound as error:
            raise reworded(error, f"`{spec}` names no alias, and {error.message}") from None
        served = BaseRef(fingerprint=self.base.fingerprint, hints=self.base.hints)
        if named is not None and not named.judge(served).verdict.allows_attach:
            raise BaseMismatch(f"`{spec}` names another base than the served one, `{self.base.label}`")

    def _build(self, spec: AdapterSpec, sources: Sequence[Source]) -> Installed:
        without_base = replace(spec, base=None)
        try:
            plan = self._planned(without_base, sources, allow_base_mismatch=False)
        except NoCompatibleRelease:
            if not self._was_allowed(without_base):
                raise
            plan = self._planned(without_base, sources, allow_base_mismatch=True)
        added = run_install(self.library, plan, self._progress, signatures=self._signatures)
        build = plan.present or (added.build if added else None)
        assert build is not None  # it was there, or was added
        return build

    def _planned(
        self, spec: AdapterSpec, sources: Sequence[Source], *, allow_base_mismatch: bool, library_first: bool = True
    ) -> InstallPlan:
        return plan_install(
            self.library,
            spec,
            sources,
            wanted=self._wanted,
            bounds=self._bounds,
            allow_base_mismatch=allow_base_mismatch,
            library_first=library_first,
            objection=lambda one: self._reason(f"{one.full_name}=={one.version}", one.digest, one.yanked),
        )

    def _reason(self, label: str, digest: Digest, yanked: str | None) -> str | None:
        """Return why a build is not served; None if it may be."""
        return self.denied.reason(label, digest) or (None if yanked is None else yanked or NO_REASON)

    def _ensure_not_denied(self, spec: AdapterSpec) -> None:
        """Refuse a name that only a withdrawn build of the library fits: no source is searched for another one."""
        for build in self.library.builds_named(spec.name, spec.namespace):
            version, digest = build.manifest.version, build.manifest.digest
            if spec.matches(version) and digest.startswith(spec.digest_prefix or ""):
                label = f"{build.full_name}=={version}"
                ensure_none(label, self._reason(label, digest, self.library.yanked(build)))

    def _was_allowed(self, spec: AdapterSpec) -> bool:
        """Return whether a build of that name was installed for this base with `--allow-base-mismatch`."""
        builds = self.library.builds_named(spec.name, spec.namespace)
        return any(self.library.mismatch_allowed(build, self.base.fingerprint) for build in builds)

    @contextlib.contextmanager
    def _remembering(self, name: str) -> Iterator[None]:
        """Remember a refusal for some seconds."""
        try:
            yield
        except AdapterHubError as error:
            if len(self._refused) >= _REMEMBERED:
                self._refused.clear()
            lasts = UNKNOWN_S if isinstance(error, AdapterNotFound) else REFUSED_S
            self._refused[name] = time.monotonic() + lasts, reworded(error)
            raise

    def _names_now(self) -> dict[str, LeasedAdapter]:
        state = self.state()
        if state != self._names_of or len(self._names) >= _REMEMBERED:
            merged = {**self._earlier, **self._names}
            self._earlier = merged if len(merged) <= _REMEMBERED else self._names
            self._names, self._names_of = {}, state
        return self._names

    # ------------------------------------------------------------ check and lease
    def _lease(self, build: Installed) -> LeasedAdapter:
        digest = build.manifest.digest
        with self._lock_of(digest):
            if digest not in self._leased:
                self._leased[digest] = self._new_lease(build)
            return self._leased[digest]

    def _new_lease(self, build: Installed) -> LeasedAdapter:
        with contextlib.ExitStack() as undo:
            undo.enter_context(self.library.lease(build))
            folder = self._linked(build, undo)
            with used_memory(_IN_MEMORY_BYTES) as room:
                verdict, warnings, asleep = self._check(build, folder, room)
            leased = LeasedAdapter(
                label=(label := f"{build.full_name}=={build.manifest.version}"),
                model=f"{label}#{build.manifest.digest[:_DIGEST_SHOWN]}",
                folder=folder,
                digest=build.manifest.digest,
                rank=build.manifest.rank,
                verdict=verdict,
                warnings=warnings,
                prompt=build.manifest.prompt,
                asleep=asleep,
            )
            self._leases[leased.digest] = undo.pop_all()
        return leased

    def _linked(self, build: Installed, undo: contextlib.ExitStack) -> Path:
        """Links to the build's files in a folder named by its digest, which ends with this process.

        The name matters: an engine whose caches have paths as keys can then never confuse two adapters.
        """
        with self._leases_lock:
            if self._folder is None:
                self._folder = self._links.enter_context(self.library.store.intent("serve")).folder.absolute()
                self._folder.chmod(_OWNER_ONLY)  # no other user can replace the files after the check
            folder = self._folder / f"sha256-{hex_of(build.manifest.digest)}"
        store = self.library.store
        with store.os_errors_as_refusals():
            folder.mkdir(mode=_OWNER_ONLY)
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        for entry in build.manifest.files:
            store.link(entry.sha256, folder / entry.path)
        store.link(build.manifest.digest, folder / MANIFEST_FILE, is_manifest=True)
        return folder

    def _check(self, build: Installed, folder: Path, room: memoryview) -> tuple[Verdict, tuple[str, ...], Asleep]:
        """Run all checks of `verify` and the engine's own rules, in `room`; the engine's verdict, and the warnings.

        Also what the numbers say of the adapter's effect.
        """
        allowed = self.library.mismatch_allowed(build, self.base.fingerprint)
        subject, findings = open_subject(
            folder,
            base_tensors=self.base.weights,
            base_fingerprint=self.base.fingerprint,
            base_type=self.base.hints.model_type,
            manifest=build.manifest.with_base(build.base),
            in_memory=room,
            judge=self.library.bases.judged,
        )
        report = Report.of(findings) if subject is None else verify(subject, seen=findings)
        label = f"{build.full_name}=={build.manifest.version}"
        errors = [f for f in report.errors if not (allowed and f.code == "E_BASE_MISMATCH")]
        ensure_sound(errors, f"`{shown(label, 200)}` was not given to the engine", f"{label} ")
        assert subject is not None  # else there is an error
        verdict = self._engine_verdict(subject, label)
        zero = next((f.message for f in report.warnings if f.code == "W_NOOP"), "")
        asleep = Asleep(zero=zero, wakes=subject.config.alora_invocation_tokens is not None)
        return verdict, (*(f.text for f in report.warnings), *verdict.notes, *self.gate(build)), asleep

    def _engine_verdict(self, subject: Subject, label: str) -> Verdict:
        dialect = subject.inner.dialect if subject.inner is not None else "peft"
        verdict = judge(
            self.engine, subject.config, subject.weights, base=self._base_facts, keys=subject.keys, dialect=dialect
        )
        reasons = [reason.text for reason in verdict.reasons]
        needed, most = verdict.settings.get(RANK_SETTING), self._bounds.high
        if most is not None and isinstance(needed, int) and needed > most:
            reasons.append(f"rank {needed}: this server accepts ranks up to {most}, as it was started")
        if reasons:
            hint = f"`adapt verify {label} --engine {self.engine}` shows details; `adapt export` writes other formats"
            raise UnsupportedAdapter(f"`{shown(label)}` cannot be served by {self.engine}", reasons, hint=hint)
        return verdict


def _facts_of(base: BaseRecord) -> BaseFacts:
    """Return the facts for the rules; none if the base's config cannot be read."""
    try:
        return base_facts(base)
    except Malformed:
        return BaseFacts()
