"""A stream: the versions `0.0.1`, `0.0.2`, … of one adapter for one base, and the alias that means the current one.

A version counts when the alias has moved to it, which is one rename. The parts that it needs are there before: its
files, then its folder. `docs/reference/files.md` lists the state after a crash at each point.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from adapterhub.core.arguments import Between, Seconds, parsed, path_of
from adapterhub.core.digests import Digest, hex_of
from adapterhub.core.disk.root import living, myself
from adapterhub.core.errors import (
    AdapterHubError,
    BlobNotFound,
    Conflict,
    DigestMismatch,
    NotAllowed,
    StoreLocked,
)
from adapterhub.core.specs import AdapterSpec, BaseSpec
from adapterhub.formats.alias import Alias, AliasTarget, parse_alias
from adapterhub.formats.manifest import MANIFEST_FILE, MEDIA_TYPES, FileEntry
from adapterhub.formats.release import Release
from adapterhub.library.aliasing import ensure_no_base
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.following import ANNOTATION, Gate, Published, live_notes, objection
from adapterhub.library.intake.description import Description, check_description, describe
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import Installed
from adapterhub.library.store.roots import KnownProjects, roots_of
from adapterhub.live.following import Follower, Registry, builds_of
from adapterhub.live.published import LiveEvent
from adapterhub.live.weights import State, config_bytes, state_of

if TYPE_CHECKING:
    from typing_extensions import Self


_VERSION: Final = re.compile(r"0\.0\.([1-9][0-9]{0,17})(?:-r[0-9]+)?")
WAIT_S: Final = 30.0
"""How long a publish waits for another one of the same stream."""


class LiveStream:
    """The versions of one adapter for one base. `Library.live` makes one, which costs nothing and writes nothing.

    Threads and processes may share a stream: they publish one after the other.
    """

    def __init__(  # noqa: PLR0913 - as `Library.live`
        self,
        library: Library,
        spec: AdapterSpec,
        base: BaseRecord,
        *,
        alias: str = "live",
        keep: int | None = 5,
        config: object = None,
        about: Mapping[str, Any] | None = None,
        gate: Gate | None = None,
        send: Callable[[Published], None] | None = None,
        registry: Registry | None = None,
    ) -> None:
        """Prepare a stream; see `Library.live`. `send` takes each version that became current to a registry.

        `registry` is the one from which `follow` brings them.
        """
        self.library, self.spec, self.base = library, spec, base
        self.alias, self.keep, self.gate = parse_alias(alias), keep, gate
        self.adapter = spec.full_name
        self._weights = [record.fingerprint.weights for record in (base, *base.parts())]
        self._checked: Digest | None = None
        self._config = None if config is None else config_bytes(config)
        self._about: dict[str, Any] = dict(about or {})
        self._send, self._registry = send, registry
        self._folders: dict[int, Path] = {}
        self._seen: list[int] = []
        self._is_clear = False
        self._old: dict[int, tuple[object, Installed | None]] = {}
        self._executor: tuple[int, ThreadPoolExecutor] | None = None
        check_description(self._described(0, 1, {}))
        ensure_no_base(library, self.alias, self.adapter)

    def __repr__(self) -> str:
        return f"<Stream {self.adapter}@{self.alias} for {self.base.label}, in {self.library.label}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Return when everything that was published is durable. The stream may be used again."""
        if self._executor is not None and self._executor[0] == os.getpid():
            self._executor[1].shutdown(wait=True)
        self._executor = None

    # ------------------------------------------------------------ read
    def target(self) -> AliasTarget | None:
        """Version and digest of the current version; None before the first. It costs the read of one file."""
        alias = self.library.aliases.get(self.adapter, self.alias)
        return None if alias is None else alias.main

    def current(self) -> Installed | None:
        """Return the current version; None before the first, and where it is not installed any more."""
        target = self.target()
        return None if target is None else self.build(target.version, target.digest)

    def build(self, version: str, digest: Digest) -> Installed | None:
        """Return the installed version with this digest; None if it was dropped."""
        found = _VERSION.fullmatch(version)
        folder = self._listed().get(int(found[1])) if found else None
        for build in self.library.still_in([folder] if folder else []):
            if build.manifest.digest == digest:
                return build
        return None

    def events(self, after: tuple[int, int] = (0, 0)) -> list[LiveEvent]:
        """Return the moves and refusals behind the one whose `place` is `after`, oldest first: at most 100 and 20."""
        alias = self.library.aliases.ever(self.adapter, self.alias)
        if alias is None:
            return []
        moved = [
            LiveEvent(
                kind="moved",
                version=move.targets[0].version,
                digest=move.targets[0].digest,
                at=move.at,
                place=(number, 0),
            )
            for number, move in enumerate(alias.moves, alias.dropped + 1)
            if move.targets
        ]
        refused = [
            LiveEvent(
                kind="refused",
                version=one.version,
                digest=one.digest,
                at=one.at,
                why=one.why,
                place=(one.after, _number(one.version)),
            )
            for one in alias.refused
        ]
        return sorted((one for one in (*moved, *refused) if one.place > after), key=lambda one: one.place)

    # ------------------------------------------------------------ follow
    @property
    def followed(self) -> AdapterSpec:
        """The alias that followers look at, such as `agent@live`; that of a registry has a namespace."""
        own = replace(self.spec, base=BaseSpec(kind="alias", text=self.alias))
        return self._registry.alias if self._registry else own

    @parsed
    def follow(self, since: Published | str | None = None, timeout_s: Seconds | None = None) -> Follower:
        """Return the current version, and then each that becomes current, in the order of the moves; here or elsewhere.

        A rollback is a move like others, and gives the version before again. Of moves that come while you are busy or
        away, only the last counts. The same version never comes twice in a row, and none whose files are not whole.
        The version that came last is leased until the next one comes or the follower is closed.

        With a `remote`, a thread waits there for events and installs what the alias means, before it comes here.

        Args:
            since: a version, its digest or what `publish` or a follower gave: it does not come while it is current.
            timeout_s: end when no version came for so many seconds; 0 gives the current one, if any, and ends.

        Returns:
            An iterator and context manager: `.version`, `.digest`, `.step`, `.build.folder` of each.

        Raises:
            NotAllowed: the library cannot be written, so nothing can be leased.
            Malformed: the file of the alias is damaged.

        Example:
            >>> with stream.follow() as versions:
            ...     for version in versions:
            ...         engine.load(version.build.folder)
        """
        known = since.digest if isinstance(since, Published) else since
        return Follower(self.builds(since=known, timeout_s=timeout_s))

    def builds(
        self, *, since: str | None = None, timeout_s: float | None = None, stopped: threading.Event | None = None
    ) -> Generator[Published, None, None]:
        """As `follow`; ends also when `stopped` is set."""
        return builds_of(self.library, self.followed, self._registry, since=since, timeout_s=timeout_s, stopped=stopped)

    # ------------------------------------------------------------ publish
    @parsed
    def publish(
        self,
        source: Any,
        *,
        step: Annotated[int, Between(0)],
        metrics: Mapping[str, Any] | None = None,
        sync: bool = True,
    ) -> Published:
        """Install an adapter as the next version and make it the current one; returns when others can read it.

        Args:
            source: a PEFT model, a model of transformers with an adapter, a state dict with the names of a PEFT file,
                of tensors of torch or numpy, or a PEFT folder.
            step: of the training; may come twice, for example after a resume.
            metrics: figures for the manifest, such as `{"loss": 0.4}`; JSON values.
            sync: also wait until a power cut cannot take it back, here and at the `remote`. Otherwise a thread sees to
                that later, and sends it there; until then a power cut brings the version before back, whole.

        Returns:
            `.version`, `.digest`, `.spec`; `.refused` is the reason why the gate did not let it become current,
            `.unsent` the reason why the `remote` did not acknowledge it.

        Raises:
            RefusedAdapter, BaseMismatch: its numbers are not finite, or it does not fit the base; nothing was stored.
            UsageProblem: there are no tensors, or no config.
            StoreLocked: another process was publishing for 30 seconds, its registry included.
            DiskFull, NotAllowed: the library cannot be written; the version before stays current.
        """
        given = path_of(source) if isinstance(source, str | os.PathLike) else state_of(source, self._config)
        with contextlib.ExitStack() as held:
            with self._turn("Nothing was published", "publish again"):
                self._clear_halves()
                alias = self.library.aliases.ever(self.adapter, self.alias)
                if (other := self._other_base(alias)) is not None:
                    raise Conflict(
                        f"{other}. Nothing was published",
                        hint='give this stream an alias of its own, such as `alias="live-7b"`',
                    )
                # a first move has no version before it that a power cut could bring back
                is_durable = sync or alias is None or not alias.targets or not myself().boot
                about = self._described(step, self._next(alias), metrics or {})
                published = Published(build=self._installed(given, about, durable=is_durable), alias=self.alias)
                if self.gate is None:
                    return self._moved(published, None, durable=is_durable)
                held.enter_context(self.library.lease(published.build))  # others publish, and drop what is old
            why = objection(self.gate, published)
            with self._turn(
                f"`{published.label}` is installed, and did not become current",
                f'`Library.set_alias("{self.alias}", "{published.label}")` makes it current',
            ):
                return self._moved(published, why or self._overtaken(published), durable=is_durable)

    def _moved(self, published: Published, why: str | None, *, durable: bool) -> Published:
        """Move the alias to a version, unless something speaks against it; then drop what is old and send the new."""
        target = AliasTarget(version=published.version, digest=published.digest)
        if why is None:
            moved = self.library.aliases.move(self.adapter, self.alias, [target], durable=durable)
            published, self._checked = replace(published, moved_at=moved.last.at), published.digest
        else:
            self.library.aliases.refuse(self.adapter, self.alias, target, why)
            published = replace(published, refused=why)
        self._drop_old()
        if not durable:
            return replace(published, durable=self._later(published))
        return published if self._send is None or why is not None else self._sent(published)

    def _overtaken(self, published: Published) -> str | None:
        """Return why the alias cannot move to a version any more, although its gate let it through."""
        alias = self.library.aliases.ever(self.adapter, self.alias)
        since = [one.targets[0].version for one in alias.moves if one.targets] if alias else []
        later = max(since, key=_number, default="")
        if _number(later) > _number(published.version):
            return f"{later} became current while the gate was asked"
        return self._other_base(alias)

    @contextlib.contextmanager
    def _turn(self, so_far: str, hint: str) -> Iterator[None]:
        """Let others publish before and after, not meanwhile: the numbers and the moves come in one order."""
        with contextlib.ExitStack() as held:
            lock = self.library.store.lock(f"live-{self.adapter.replace('/', '--')}", exclusive=True, wait_s=WAIT_S)
            try:
                held.enter_context(lock)
            except StoreLocked as error:
                raise StoreLocked(
                    f"{error.message}. It publishes a version of `{self.adapter}`, and its registry has to answer "
                    f"before the next one. {so_far}",
                    hint=hint,
                ) from None
            yield

    def _other_base(self, alias: Alias | None) -> str | None:
        """Say that the alias means a build for another base, if it does: it is the adapter's, whatever the base."""
        if alias is None or not alias.targets or alias.main.digest == self._checked:
            return None
        with contextlib.suppress(BlobNotFound):
            fingerprint = self.library.store.read_manifest(alias.main.digest).base.fingerprint
            if fingerprint is None or fingerprint.weights not in self._weights:
                return f"`{alias}` is {alias.text()}, which is for another base than `{self.base.label}`"
        return None

    def _described(self, step: int, number: int, metrics: Mapping[str, Any]) -> Description:
        return Description(
            name=self.spec.name,
            version=f"0.0.{number}",
            metrics=metrics,
            annotations={ANNOTATION: {"alias": self.alias, "step": step}},
            **self._about,
        )

    def _installed(self, source: State | Path, description: Description, *, durable: bool) -> Installed:
        from adapterhub.library.intake.staging import ensure_no_errors, refused, stage_files
        from adapterhub.trust.verify import open_subject

        library = self.library
        what = str(source) if isinstance(source, Path) else f"{self.adapter} {description.version}"
        with library.store.intent(f"publish {self.adapter}") as intent:
            folder = source if isinstance(source, Path) else intent.folder
            if isinstance(source, State):
                library.store.need_room(source.size_bytes)
                with library.store.os_errors_as_refusals():
                    source.write(folder)
            subject, findings = open_subject(
                folder, base_tensors=self.base.weights, base_type=self.base.hints.model_type
            )
            if subject is None:
                raise refused(what, findings)
            ensure_no_errors(what, findings)
            taken = [subject.listing.taken[name] for name in sorted(subject.listing.taken.keys() & MEDIA_TYPES.keys())]
            if isinstance(source, Path):
                library.store.need_room(sum(entry.size_bytes for entry in taken))
                entries = stage_files(library.store, intent, subject, taken, None)
            else:
                _ = subject.numbers  # one pass reads the numbers and hashes the file
                entries = [
                    FileEntry(
                        path=file.name,
                        sha256=file.held.digest,
                        size_bytes=file.held.size_bytes,
                        media_type=MEDIA_TYPES[file.name],
                    )
                    for file in taken
                ]
            base = self.base.narrowed((p.module for p in subject.keys.pairs), description.annotations)
            manifest = describe(subject, entries, description, base)
            release = Release(manifest=manifest, namespace=self.spec.namespace, origin=what)
            added = library.publish_staged(intent, release, base, findings, scanned=subject, durable=durable)
        self._folders[_number(description.version)] = added.build.folder
        self._seen = list(map(_changed_at, self._parents()))
        return added.build

    # ------------------------------------------------------------ numbers
    def _parents(self) -> list[Path]:
        """Return the folders of the versions: one, or one for each component of a pipeline."""
        name, root = self.adapter.replace("/", "--"), self.library.root / "adapters"
        return [root / hex_of(weights)[:12] / name for weights in self._weights]

    def _listed(self) -> dict[int, Path]:
        """Return the folders of the versions by number; listed again when somebody else changed them."""
        parents = self._parents()
        changed = list(map(_changed_at, parents))
        if changed != self._seen:
            self._folders = {
                int(found[1]): parent / name
                for parent, at in zip(parents, changed, strict=True)
                for name in (os.listdir(parent) if at else ())  # noqa: PTH208 - ten thousand names
                if (found := _VERSION.fullmatch(name))
            }
            self._seen = changed
        return self._folders

    def _next(self, alias: Alias | None) -> int:
        """One more than any version that is here or that the alias ever meant or refused."""
        known = [*self._listed()]
        if alias is not None:
            known += [_number(target.version) for move in alias.moves for target in move.targets]
            known += [_number(one.version) for one in alias.refused]
        return max(known, default=0) + 1

    # ------------------------------------------------------------ later
    def _later(self, published: Published) -> Future[None]:
        """Make a version durable in the thread of this stream, and then the move of the alias to it."""
        if self._executor is None or self._executor[0] != os.getpid():  # a fork has no threads
            self._executor = (os.getpid(), ThreadPoolExecutor(1, thread_name_prefix="durable"))
        return self._executor[1].submit(self._settle, published)

    def _settle(self, published: Published) -> None:
        self.library.settle(published.build, look=False)
        self.library.aliases.settle(self.adapter, self.alias, published.digest)
        target = self.target()
        if self._send is not None and target is not None and target.digest == published.digest:
            self._sent(published)

    def _sent(self, published: Published) -> Published:
        """Send a version to the registry; a failure ends no training."""
        assert self._send is not None
        try:
            self._send(published)
        except AdapterHubError as error:
            return replace(published, unsent=error.message)
        return published

    # ------------------------------------------------------------ after a power cut
    def _clear_halves(self) -> None:
        """Once, before the first version: put into quarantine what a power cut left of versions that were not durable.

        What is whole of them, such as after the end of a process, becomes durable. No alias that counts means a half.
        """
        if self._is_clear:
            return
        library, halves = self.library, list[Path]()
        for folder in self._listed().values():
            with contextlib.suppress(FileNotFoundError):
                if (folder / MANIFEST_FILE).stat().st_mode & stat.S_IWUSR:
                    halves += [] if self._is_settled(folder) else [folder]
        if halves:
            with library.store.lock("publish", exclusive=True), library.catalog.changing():
                for folder in halves:
                    library.store.quarantine(folder)
            library.catalog.rebuild()
        self._is_clear = True

    def _is_settled(self, folder: Path) -> bool:
        """Make a version durable if it is whole; False if it is not."""
        with contextlib.suppress(DigestMismatch, NotAllowed):
            for build in self.library.readable_in([folder]):
                self.library.settle(build)
                return True
        return False

    # ------------------------------------------------------------ old versions
    def _drop_old(self) -> None:
        """Remove the versions of this stream that are not among the last `keep`, unless something needs them."""
        old = [] if self.keep is None else sorted(self._listed())[: -self.keep]
        builds = {number: build for number in old if (build := self._read_once(number)) is not None}
        needed = roots_of(KnownProjects(self.library.root).all()) if builds else set()
        for number, build in builds.items():
            if build.manifest.digest not in needed and self._dropped(build, needed):
                del self._folders[number]
        self._old = {number: self._old[number] for number in old if number in self._folders}
        if builds:
            self._seen = list(map(_changed_at, self._parents()))

    def _read_once(self, number: int) -> Installed | None:
        """Return an old version of this stream; None for another one.

        It reads a manifest again only where it changed.
        """
        folder = self._folders[number]
        stamp = (folder, _identity(folder / MANIFEST_FILE))
        if number not in self._old or self._old[number][0] != stamp:
            own = [one for one in self.library.readable_in([folder]) if live_notes(one).get("alias") == self.alias]
            self._old[number] = stamp, own[0] if own else None
        return self._old[number][1]

    def _dropped(self, build: Installed, needed: set[Digest]) -> bool:
        """Remove a version and the objects that were its alone; False while a process or an alias needs it.

        An object with one name left is in no folder. `gc` takes what stays here.
        """
        store = self.library.store
        objects = [(build.folder / MANIFEST_FILE, store.manifest_path(build.manifest.digest))]
        objects += [(build.folder / name, store.blob_path(digest)) for name, digest in build.manifest.digests.items()]
        with contextlib.suppress(OSError):
            linked = [path for file, path in objects if file.samefile(path)]
            try:
                Library.remove(self.library, [build])  # that of the store, whatever the face does
            except (StoreLocked, Conflict):
                return False
            with contextlib.suppress(AdapterHubError), store.lock("store", exclusive=True, wait_s=1.0):
                claims = (*living(store.root / "intents"), *living(store.root / "leases"))
                spared = {hex_of(digest) for digest in needed.union(*(claim.digests for claim in claims))}
                for path in linked:
                    if path.name.partition(".")[0] not in spared and path.lstat().st_nlink == 1:
                        path.unlink()
        return True


def _changed_at(folder: Path) -> int:
    """When names in a folder changed last; 0 where there is none."""
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _identity(file: Path) -> tuple[int, int, int]:
    """Return the stamp that differs once a file is another one; zeros where there is none."""
    try:
        facts = file.stat()
    except FileNotFoundError:
        return 0, 0, 0
    return facts.st_ino, facts.st_mtime_ns, facts.st_size


def _number(version: str) -> int:
    """N of `0.0.N`; 0 for another version, to which the user pointed the alias."""
    found = _VERSION.fullmatch(version)
    return int(found[1]) if found else 0
