"""Brings a locked build into the library, by its digest, and checks that the policy `tests` allows it in a folder.

A place is not trusted: the digests of the manifest and of the files come from the lock. Objects that the library has
are not fetched again.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from adapterhub.core.digests import Progress
from adapterhub.core.errors import (
    AdapterHubError,
    AdapterNotFound,
    DigestMismatch,
    NamespaceBound,
    NotAllowed,
    NotFound,
    RemoteUnreachable,
    no_adapter,
    problem_list,
    reworded,
)
from adapterhub.distribution.install import Admitted, Beside, Expecting, admit
from adapterhub.distribution.remote_kinds import kind_named
from adapterhub.formats.contract.reader import read_rules
from adapterhub.formats.manifest import MANIFEST_FILE, Manifest
from adapterhub.formats.release import Release
from adapterhub.library.admission import Admission, InstallRequest
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.library import Library
from adapterhub.library.own_settings import OwnSettings
from adapterhub.library.passed import AskedBase, why_not_passed
from adapterhub.library.results import keeps_results, results_at, take_results
from adapterhub.library.store.catalog import Installed
from adapterhub.library.transfer import Source, copy, together
from adapterhub.projects.builds import (
    SignatureRequirement,
    ensure_locked_build,
    exact_spec,
    has_objects,
    label_of,
    locked_build,
    namespace_of,
)
from adapterhub.projects.lock.conflicts import yanked_notice
from adapterhub.projects.values import SHOWN_DIGEST, Lock, Locked, LockedAdapter, LockedMerge

Places = Callable[[Locked], Iterable[Source]]
"""Yields the places that may have a locked build, first where it was locked from. It may raise."""

PolicyFor = Callable[[Locked], SignatureRequirement]
"""Returns the signature policy of this run for a build; None means the user's policies."""

_ELSEWHERE: Final = (RemoteUnreachable, NotFound, DigestMismatch)
"""Failures of one place after which another place is tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Brought:
    """A locked build that is in the library now. `sent_bytes` were transferred; `warnings` are for the user."""

    entry: Locked
    origin: str
    sent_bytes: int
    warnings: tuple[str, ...] = ()


def bring(
    library: Library,
    entry: Locked,
    places: Places,
    *,
    base: BaseRecord | None,
    policy: SignatureRequirement,
    progress: Progress | None,
) -> Brought:
    """Install the locked build. `base` is used for the check if the build declares no fingerprint.

    Raises:
        DigestMismatch: a place has other content under that name and version, and no place has the locked build.
        AdapterNotFound, RemoteUnreachable: no place has it; the message has each place's reason.
        SignatureRefused: the policy refuses it, or its signature is false.
        NamespaceBound: the namespace belongs to a server that does not have it.
    """
    admission = Admission(library)
    namespace = namespace_of(entry)
    proves_itself = isinstance(entry, LockedMerge) or not admission.needs_proof(entry.digest, entry.name, policy)
    if proves_itself and has_objects(library, entry):
        manifest = library.store.read_manifest(entry.digest)
        release = Release(manifest=manifest, namespace=exact_spec(entry).namespace, origin=library.label)
        return _take(library, entry, release, library, base=base, policy=policy, progress=progress)
    failures: list[AdapterHubError] = []
    for source in _each(places, entry, failures):
        try:
            admission.ensure_place_allowed(source.place, namespace)
            release = locked_one(entry, source.releases(exact_spec(entry)), source)
        except AdapterHubError as error:
            failures.append(_if_elsewhere_may_help(error))
            continue
        _check_not_taken(library, entry, release)
        try:
            return _take(library, entry, release, source, base=base, policy=policy, progress=progress)
        except AdapterHubError as error:
            failures.append(_if_elsewhere_may_help(error))
    foreign = locked_build(library, entry)
    if foreign is not None:
        admission.ensure_own_origin(foreign)
    raise _nowhere(entry, failures)


def _if_elsewhere_may_help(error: AdapterHubError) -> AdapterHubError:
    """Return a failure that another place may avoid; raise any other at once (a full disk, a signature, the lock)."""
    if isinstance(error, (*_ELSEWHERE, NamespaceBound)) or type(error) is NotAllowed:
        return error
    raise error


def _nowhere(entry: Locked, failures: Sequence[AdapterHubError]) -> AdapterHubError:
    """Return the refusal when no place has the locked build: the wrong content of one place, or each place's reason."""
    asked = [error for error in failures if not isinstance(error, NamespaceBound)]
    if failures and not asked:
        return failures[0]
    failures = asked  # a place that may not answer is irrelevant if others may
    mismatch = next((error for error in failures if isinstance(error, DigestMismatch)), None)
    if mismatch is not None:
        return mismatch
    kind = next((type(e) for e in failures if not isinstance(e, NotFound)), AdapterNotFound)
    reasons = "; ".join(dict.fromkeys(error.message for error in failures))
    where = reasons or "it was locked from a library, and no other known place has it"
    hint = next((error.hint for error in failures if error.hint), "")
    if isinstance(entry, LockedAdapter) and entry.source.is_library:
        hint = (
            f"`adapt push {exact_spec(entry)} --to PLACE` where it was locked, and `adapt lock --upgrade {entry.key}`"
        )
    return kind(f"`{label_of(entry)}`, locked as {entry.digest}, is not available: {where}", hint=hint)


def server_of(entry: Locked, places: Places) -> list[Source]:
    """Return the server that a build was locked from, if any.

    None if it cannot be opened, for which `bring` has the words.
    """
    if entry.source.is_library or not kind_named(entry.source.kind).is_server:
        return []
    with contextlib.suppress(AdapterHubError):
        # the commit in the lock, and its server
        return [source for source in itertools.islice(places(entry), 2) if source.place == entry.source.address]
    return []


def _each(places: Places, entry: Locked, failures: list[AdapterHubError]) -> Iterator[Source]:
    """Yield the places in order; a place that cannot be opened is added to the failures."""
    try:
        yield from places(entry)
    except _ELSEWHERE as error:
        failures.append(error)


def locked_one(entry: Locked, releases: Sequence[Release], source: Source) -> Release:
    """Return the release with the locked digest."""
    same = next((release for release in releases if release.digest == entry.digest), None)
    if same is not None:
        return same
    spec = exact_spec(entry)
    other = next((release for release in releases if spec.matches(release.manifest.version)), None)
    if other is not None:
        raise DigestMismatch(
            f"`{label_of(entry)}` in {other.origin}",
            expected=entry.digest,
            actual=other.digest,
            hint=f"the place has different content under this version; if you trust it, "
            f"`adapt lock --upgrade {entry.key}` locks it",
        )
    raise no_adapter(label_of(entry), source.label, hint="`adapt lock` chooses another release")


def _take(
    library: Library,
    entry: Locked,
    release: Release,
    source: Source,
    *,
    base: BaseRecord | None,
    policy: SignatureRequirement,
    progress: Progress | None,
) -> Brought:
    """Copy one build into the library, checking digest and signature."""
    ensure_locked_build(entry, release.manifest.to_json())
    warnings = []
    if release.yanked is not None:
        warnings.append(yanked_notice(entry.key, entry.name, entry.version, release.yanked))
    admitted: Admitted | None = None
    if source is not library:
        declared = release.manifest.base.fingerprint
        spec = replace(exact_spec(entry), digest_prefix=entry.digest)
        asked = InstallRequest(spec=spec, bases=(declared.weights if declared else "",))
        admitted = admit(library, release, source, asked, policy)
        if admitted.finding.severity == "warning":
            warnings.append(f"[{admitted.finding.code}] {admitted.finding.message}")
    offered = Beside.at(source, release) if admitted else None
    destination = Expecting(library, base)
    if admitted is not None:
        admitted.remember()
    copied = copy(release, source, destination, progress, signature=admitted.signature if admitted else None)
    if admitted is not None:
        admitted.arrived()
    build = locked_build(library, entry)
    if build is not None and offered is not None:
        library.note_origin(build, source.place, release.repository)
        library.saw_yanks(source.place, [release])
        offered.take(library, build)
    if destination.added is not None:
        warnings += [f"[{f.code}] {f.message}" for f in destination.added.report.warnings]
    return Brought(entry=entry, origin=release.origin, sent_bytes=copied.sent_bytes, warnings=tuple(warnings))


def _check_not_taken(library: Library, entry: Locked, release: Release) -> None:
    """Raise if the library has another build where this one belongs."""
    path = library.folder_for(release.manifest, release.namespace) / MANIFEST_FILE
    with contextlib.suppress(FileNotFoundError):
        there = Manifest.read(path).digest
        if there != entry.digest:
            raise DigestMismatch(
                f"{library.label}: `{label_of(entry)}`",
                expected=entry.digest,
                actual=there,
                hint=f"the library has different content under this version; "
                f"`adapt remove '{entry.name}#{there[:SHOWN_DIGEST]}' --yes` makes room",
            )


def bring_together(
    entries: Sequence[Locked], one: Callable[[Locked, Progress], Brought], progress: Progress | None
) -> list[Brought]:
    """Bring several builds at once under one bar; an interrupt ends all of them."""
    answers = list(together(entries, one, progress))
    failures = [answer for answer in answers if isinstance(answer, AdapterHubError)]
    if failures:
        raise _all_of(failures)
    return [answer for answer in answers if isinstance(answer, Brought)]


def _all_of(failures: Sequence[AdapterHubError]) -> AdapterHubError:
    """One failure with the messages of all. Wrong content ranks before missing builds, then unreachable places."""
    order = {DigestMismatch: 0, NotFound: 1}
    ranked = sorted(failures, key=lambda e: min((n for kind, n in order.items() if isinstance(e, kind)), default=2))
    first = ranked[0]
    others = [message for message in dict.fromkeys(e.message for e in ranked) if message != first.message]
    return reworded(first, "\n".join([first.message, *(f"also: {message}" for message in others)]))


def ensure_tested(
    library: Library, project: Path, lock: Lock, entries: Iterable[Locked], places: Places
) -> tuple[str, ...]:
    """Apply the policy `tests` of a lock, or the user's own if that is stricter, to builds that are in the library.

    If no result here suffices, the places of a build are searched for signed ones. Returns warnings under `warn`.

    Raises:
        NotAllowed: under `require`; names each build that may not be used, and why.
        NotFound, Malformed: the rules of the project, or the user's own settings, cannot be read.
    """
    policy = lock.policy
    standards = policy.standards.and_own(OwnSettings(library.root).read())
    if standards.policy == "off":
        return ()
    rules = read_rules(project / policy.tests_never) if policy.tests_never is not None else None
    problems, has_merge, base_of = [], False, _Bases(library, lock)
    for entry in entries:
        build = locked_build(library, entry)
        if build is None:
            continue
        reason = why_not_passed(
            library,
            build,
            standards,
            base=partial(base_of, build),
            rules=rules,
            fetch=partial(_fetch, library, build, entry, places),
            is_merge=isinstance(entry, LockedMerge),
        )
        if reason is not None:
            problems.append(f"`{entry.key}` {label_of(entry)}: {reason}")
            has_merge |= isinstance(entry, LockedMerge)
    if not problems:
        return ()
    if standards.policy == "warn":
        return tuple(problems)
    whose = (
        'the policy `tests = "require"`' if policy.tests == "require" else "your own `adapt contract policy require`"
    )
    title = f"{whose} refuses what did not pass its contract; no folder was changed"
    hint = "`adapt test NAME` tests a build here; `adapt key trust NAME FILE` lets the signed results of a tester count"
    if has_merge:
        hint = f"`adapt sync --test` tests everything, merges too; {hint}"
    raise NotAllowed(problem_list(title, problems), hint=hint)


class _Bases:
    """The base of the project, or the component of that pipeline which a build is for; each is read once."""

    def __init__(self, library: Library, lock: Lock) -> None:
        self._library, self._lock = library, lock
        self._read: dict[str, AskedBase] = {}

    def __call__(self, build: Installed) -> AskedBase | None:
        declared, bases = build.base.fingerprint, self._library.bases
        weights = (self._lock.base.weights if self._lock.base else None) or (declared.weights if declared else None)
        record = bases.by_weights(weights)  # a result is about the weights that were asked, not about their copy
        if record is None:
            return AskedBase(weights=weights) if weights is not None else None
        record = record.narrowed(declared=declared)
        if record.label not in self._read:
            self._read[record.label] = AskedBase.of(self._library, record)
        return self._read[record.label]


def _fetch(library: Library, build: Installed, entry: Locked, places: Places) -> bool:
    """Look for signed results where the build may lie; whether any came. A place that fails is passed over."""
    count = 0
    try:
        for source in places(entry):
            if source is library or not keeps_results(source):
                continue
            for release in source.releases(exact_spec(entry)):
                if release.digest == entry.digest:
                    count += take_results(library, results_at(source, release), entry.digest, build.full_name)
    except AdapterHubError:
        return count > 0
    return count > 0
