"""The input of the checks: one adapter, and the library and places around it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from adapterhub.core.digests import Digest, Progress
from adapterhub.core.disk.root import absolute
from adapterhub.core.errors import AdapterHubError, RefusedAdapter, RemoteUnreachable, shown
from adapterhub.core.specs import AdapterSpec, fold, is_one_edit_apart, one_edit_from
from adapterhub.formats.base.fingerprint import BaseFingerprint
from adapterhub.formats.documented import Documented
from adapterhub.formats.licenses import Expression, Term
from adapterhub.formats.manifest import MANIFEST_FILE, BaseRef, Manifest
from adapterhub.formats.release import Release
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.directory import PlainFolder
from adapterhub.library.find.sketching import sketches
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import Installed
from adapterhub.library.store.origins import Origin
from adapterhub.library.store.rows import BuildRow, SketchRow
from adapterhub.library.transfer import Source
from adapterhub.trust.findings import Finding
from adapterhub.trust.verify import Report
from adapterhub.trust.verify.checks.digests import read_manifest_file
from adapterhub.trust.verify.subject import list_folder

if TYPE_CHECKING:
    from adapterhub.library.find.likeness import Similar

FindSource = Callable[[Origin], Source]
"""The place of an origin as a source; it may raise any `AdapterHubError`."""

_UNNAMED = AdapterSpec.parse("unnamed")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedAdapter:
    """An installed build, or a folder (`build` is None). Without `manifest`, `seen` holds the reasons.

    `base` is what the manifest declares or what was pinned since.
    """

    target: AuditTarget
    manifest: Manifest | None
    base: BaseRef
    build: Installed | None = None
    seen: tuple[Finding, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder with its files."""
        return self.target.folder

    @property
    def namespace(self) -> str | None:
        """The namespace it is installed in."""
        return self.build.namespace if self.build else None


class InstalledNames:
    """Full names, among which look-alikes are found at a cost that does not grow with their number."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names: frozenset[str] = frozenset()
        self._letters: list[str] = []
        self._folded: dict[str, list[str]] = {}
        self.change(names)

    def change(self, names: Iterable[str]) -> None:
        """Hold these names; only those that came or went are looked at."""
        before, self._names = self._names, frozenset(names)
        self._letters = sorted(set().union(self._letters, *(self._names - before)))
        for name in self._names - before:
            self._folded.setdefault(fold(name), []).append(name)
        for name in before - self._names:
            self._folded[fold(name)].remove(name)

    def like(self, name: str) -> list[str]:
        """Return the others that read the same, or differ by one character, sorted."""
        near = (
            one for one in one_edit_from(name, self._letters) if one in self._names and is_one_edit_apart(name, one)
        )
        return sorted({*near, *self._folded.get(fold(name), ())} - {name})


_NAMES: Final[dict[Path, tuple[object, InstalledNames]]] = {}
_naming: Final = threading.Lock()


def _names_of(library: Library) -> InstalledNames:
    """Return the names of a library, which a process keeps until the index changes."""
    with _naming:
        stamp = library.catalog.index.stamp()
        kept, names = _NAMES.get(library.root, (None, InstalledNames()))
        if stamp is None or stamp != kept:
            names.change(library.catalog.read(lambda index: index.names()))
            _NAMES[library.root] = stamp, names
        return names


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """The library and the places to look up; `find_source` is None if no place may be contacted.

    `with_bytes`: every byte is compared with its digest. `with_log`: the logs of servers are asked. Slow results
    are cached.
    """

    library: Library
    find_source: FindSource | None = None
    with_bytes: bool = False
    with_log: bool = False
    progress: Progress | None = None
    told_bases: set[str] = field(default_factory=set, repr=False, compare=False)
    """Findings about bases, which many adapters share, so that one audit reports each once."""
    looked_at: dict[str, BaseFingerprint] = field(default_factory=dict, repr=False, compare=False)
    _bases: dict[str, BaseRecord | None] = field(default_factory=dict, repr=False, compare=False)
    _sources: dict[str, Source] = field(default_factory=dict, repr=False, compare=False)
    _answers: dict[tuple[str, str], Sequence[Release] | AdapterHubError] = field(
        default_factory=dict, repr=False, compare=False
    )

    def build_with(self, digest: Digest) -> Installed | None:
        """Return the installed build with that digest; None if there is none."""
        row = self.library.catalog.read(lambda index: index.of_digest(digest))
        return next(self.library.readable_in([self.library.root / row.folder]), None) if row is not None else None

    @cached_property
    def names(self) -> InstalledNames:
        """The full names of all builds."""
        return _names_of(self.library)

    @cached_property
    def _sketches(self) -> tuple[Mapping[str, SketchRow], Mapping[str, Sequence[BuildRow]]]:
        return sketches(self.library) if find_spec("numpy") is not None else ({}, {})

    @cached_property
    def _packed(self) -> tuple[Sequence[SketchRow], bytes]:
        made = [one for one in self._sketches[0].values() if one.sketch]
        return made, b"".join(one.sketch for one in made)

    def copies_of(self, build: Installed) -> list[Similar]:
        """Return the installed builds of the same update, negated ones included; none without numpy."""
        known, rows = self._sketches
        mine = known.get(build.manifest.digest)
        if mine is None or not mine.sketch:
            return []
        from adapterhub.library.find.likeness import same_as

        made, packed = self._packed
        return same_as(self.library, build, mine, lambda choose: [made[at] for at in choose(packed)], lambda: rows)

    def base_of(self, fingerprint: BaseFingerprint | None) -> BaseRecord | None:
        """Return the registered base with that fingerprint."""
        if fingerprint is None:
            return None
        if fingerprint.weights not in self._bases:
            self._bases[fingerprint.weights] = self.library.bases.by_fingerprint(fingerprint)
        return self._bases[fingerprint.weights]

    def manifest_of(self, digest: Digest) -> Manifest | None:
        """Return the manifest with that digest, if the library has it."""
        if (build := self.build_with(digest)) is not None:
            return build.manifest
        try:
            return self.library.store.read_manifest(digest) if self.library.store.has_manifest(digest) else None
        except AdapterHubError:
            return None

    def source_of(self, origin: Origin) -> Source:
        """Return the place of an origin, which knows the releases that it gave to `ask`; raises as `find_source`."""
        assert self.find_source is not None  # callers say "cannot tell" without it
        if origin.place not in self._sources:
            self._sources[origin.place] = self.find_source(origin)
        return self._sources[origin.place]

    def ask(self, origin: Origin) -> Sequence[Release]:
        """Return the releases that an origin offers under its name, cached for each place and name.

        Raises:
            AdapterHubError: the place does not answer. An unreachable place is not tried again.
        """
        for key in ((origin.place, ""), (origin.place, origin.name)):
            answer = self._answers.get(key)
            if isinstance(answer, AdapterHubError):
                raise answer
            if answer is not None:
                return answer
        try:
            answer = self.source_of(origin).releases(AdapterSpec.parse(origin.name))
        except AdapterHubError as error:
            # a refusal of one name says nothing of others; a server that is away is away for all
            self._answers[origin.place, "" if isinstance(error, RemoteUnreachable) else origin.name] = error
            raise
        self._answers[origin.place, origin.name] = answer
        return answer


def subject_of_build(build: Installed) -> AuditedAdapter:
    """Return an installed build."""
    manifest = build.manifest
    target = AuditTarget(
        label=f"{build.full_name} {manifest.label}",
        folder=build.folder,
        name=build.full_name,
        version=manifest.version,
        digest=manifest.digest,
    )
    return AuditedAdapter(target=target, manifest=manifest, base=build.base, build=build)


def subject_of_folder(folder: Path, label: str) -> AuditedAdapter:
    """Return a folder that is not installed, with a manifest or without; never raises for its contents."""
    folder = Path(absolute(folder))
    try:
        manifest, is_named = _manifest_in(folder)
    except AdapterHubError as error:
        target = AuditTarget(label=shown(label, 200), folder=folder)
        return AuditedAdapter(target=target, manifest=None, base=BaseRef(), seen=tuple(_refusals(error)))
    target = AuditTarget(
        label=shown(label, 200),
        folder=folder,
        name=manifest.name if is_named else "",
        version=manifest.version if is_named else "",
        digest=manifest.digest,
    )
    return AuditedAdapter(target=target, manifest=manifest, base=manifest.base)


def _manifest_in(folder: Path) -> tuple[Manifest, bool]:
    """Return the folder's own manifest, or one made from its files; and whether it states a name and version."""
    entry = list_folder(folder).taken.get(MANIFEST_FILE)
    if entry is not None:
        return read_manifest_file(entry), True
    return PlainFolder(folder).releases(_UNNAMED)[0].manifest, False


def _refusals(error: AdapterHubError) -> Iterator[Finding]:
    """Why there is no manifest."""
    if isinstance(error, RefusedAdapter):
        for code, text in error.findings:
            yield Finding(code, "", text, hint=error.hint)
        return
    yield Finding("E_MANIFEST", MANIFEST_FILE, error.message, hint=error.hint)


STORE: Final = "the store"
"""The label of findings that are about no adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditTarget:
    """The audited thing. `label` is a full name and version, a folder as typed, or `the store`."""

    label: str
    folder: Path
    name: str = ""
    version: str = ""
    digest: Digest | None = None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Audited(
    Documented,
    keys="adapter=target.label name=target.name version=target.version digest=target.digest path=target.folder"
    " status=report.status license findings=report.findings ignored",
):
    """The audit of one adapter. `license` is the composition of its licences, `ignored` counts hidden findings."""

    target: AuditTarget
    report: Report
    license: Annotated[Composition | None, "null if it could not be read"] = None
    ignored: Annotated[int, "number of findings left out by --ignore"] = 0

    def __repr__(self) -> str:
        return f"<Audited {self.target.label}: {self.report!r}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part(Documented, keys="part=role name stated spdx", title="LicensePart"):
    """One part with a licence of its own: the adapter, a parent, the base. `stated` is the stated licence as text."""

    role: Annotated[str, "`adapter`, `base` or `parent`"]
    name: str
    stated: Annotated[str | None, "as stated by its author"]
    why_not: str = ""

    @property
    def expression(self) -> Expression | None:
        """What is stated, where that can be read."""
        return Expression.parse(self.stated) if self.stated else None

    @property
    def spdx(self) -> str | None:
        """The SPDX expression, where that can be read."""
        return self.expression.text if self.expression else None

    @property
    def title(self) -> str:
        """How findings call it."""
        return "the adapter itself" if self.role == "adapter" else f"{self.role} `{shown(self.name)}`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition(Documented, keys="spdx terms complete parts", title="License"):
    """The licences of all parts together; `whole` is None if none is known."""

    parts: tuple[Part, ...]
    whole: Expression | None
    unknown: tuple[Part, ...] = field(default=())

    @property
    def spdx(self) -> str | None:
        """An SPDX expression; None if no licence is known."""
        return self.whole.text if self.whole else None

    @property
    def terms(self) -> list[str]:
        """What the licences forbid or require."""
        known = self.whole.best.terms - {Term.UNKNOWN} if self.whole else frozenset()
        return sorted(term.name.lower() for term in known)

    @property
    def complete(self) -> bool:
        """Whether the licence of every part is known."""
        return not self.unknown and (self.whole is None or Term.UNKNOWN not in self.whole.best.terms)
