"""The policy `tests` of a project and of its user: which locked builds have a PASS on the base of the project.

Nothing is run here. `library.passed` says which PASS counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from adapterhub.core.errors import AdapterHubError, NotAllowed, problem_list
from adapterhub.formats.contract.rules import read_rules
from adapterhub.library.library import Library
from adapterhub.library.own_settings import OwnSettings
from adapterhub.library.passed import AskedBase, why_not_passed
from adapterhub.library.results import keeps_results, results_at, take_results
from adapterhub.library.store.catalog import Installed
from adapterhub.projects.builds import exact_spec, label_of, locked_build
from adapterhub.projects.sync._bringing import Places
from adapterhub.projects.values import Lock, Locked, LockedMerge


def ensure_tested(
    library: Library, project: Path, lock: Lock, entries: Iterable[Locked], places: Places
) -> tuple[str, ...]:
    """Apply the policy `tests` of a lock, or the user's own if that is stricter, to builds that are in the library.

    Where no result here suffices, the places of a build are searched for signed ones. Returns warnings under `warn`.

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
        record = next((each for each in bases.list() if each.fingerprint.weights == weights), None)
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
