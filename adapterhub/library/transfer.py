"""Copy one build between two places: the protocols of both ends, and the `copy` that install, push and mirror share.

`together` copies several builds at once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Annotated, Final, Protocol, TypeVar

from adapterhub.core.digests import Progress
from adapterhub.core.errors import AdapterHubError, RefusedAdapter, UsageProblem, shown
from adapterhub.core.limits import limits
from adapterhub.core.specs import AdapterSpec, version_of
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE, FileEntry
from adapterhub.formats.release import Provenance, Release

if TYPE_CHECKING:
    from adapterhub.formats.cards.card import Card
    from adapterhub.formats.contract.contract import Contract
    from adapterhub.formats.manifest import Manifest

AT_ONCE: Final = 8
"""How many builds are asked for and fetched at the same time."""

_T = TypeVar("_T")
_R = TypeVar("_R")


class Source(Protocol):
    """A place that builds come from."""

    @property
    def label(self) -> str:
        """The place in words, for messages."""

    @property
    def place(self) -> str:
        """The URL or absolute path of the place."""

    def releases(self, spec: AdapterSpec) -> Sequence[Release]:
        """Every build with the name in `spec`, whatever its base, version and rank."""

    def open(self, release: Release, entry: FileEntry) -> IO[bytes]:
        """Open one file of a build."""

    def provenance(self, release: Release) -> Provenance:
        """Return the signature of a build that `releases` returned, and what lies beside it."""


class Receiver(Protocol):
    """Takes one build; the build is invisible before `publish`."""

    def has(self, entry: FileEntry) -> bool:
        """Return whether the destination already has the bytes."""

    def put(self, entry: FileEntry, stream: IO[bytes], progress: Progress | None = None) -> None:
        """Take one file; raises `DigestMismatch` unless the bytes are those of `entry`."""

    def sign(self, signature: bytes) -> bool:
        """Take the signature, after the files; returns whether it differs from the one already there."""

    def publish(self) -> None:
        """Make the build visible, all at once."""


class Destination(Protocol):
    """A place that builds go to."""

    @property
    def label(self) -> str:
        """The place in words, for messages."""

    def receive(self, release: Release) -> AbstractContextManager[Receiver]:
        """Begin to take a build; leaving the block without `publish` changes nothing."""


class Place(Destination, Protocol):
    """A destination that builds are published to."""

    @property
    def kind(self) -> str:
        """`directory` or `repository`."""

    @property
    def commit_url(self) -> str:
        """The page of the last commit that was sent; empty without any."""

    @property
    def refused_results(self) -> Sequence[str]:
        """Why signed results were not taken, one reason each."""

    def tag_of(self, manifest: Manifest) -> str:
        """Return the tag that a build gets."""

    def card_of(self, release: Release, contract: Contract | None = None) -> Card:
        """Return the card as it will be shown, with examples from the build's contract.

        Raises:
            Malformed: a server would refuse its metadata.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """The result of a copy: files and bytes sent, files already there, and whether a signature was sent."""

    sent_files: Annotated[int, "0: they existed already"]
    sent_bytes: int
    present_files: int
    sent_signature: bool = False


def check_sizes(release: Release) -> None:
    """Raise if a manifest announces more bytes than an adapter may have; call it before fetching any.

    Raises:
        RefusedAdapter: lists every file that is too large.
    """
    most = limits()
    bounds = {WEIGHTS_FILE: most.file_bytes, CONFIG_FILE: most.config_bytes}
    found = [
        ("E_LIMIT", f"{entry.path}: holds {entry.size_bytes} bytes, expected at most {bound}")
        for entry in release.manifest.files
        if entry.size_bytes > (bound := bounds.get(entry.path, most.text_bytes))
    ]
    if found:
        raise RefusedAdapter(f"refused `{shown(release.origin, 200)}`. Nothing was stored", found)


def publishable(release: Release) -> Release:
    """`release`, if it may be published: `==1.0` must mean one build, and a local version `1.0+x` reads like it.

    Raises:
        UsageProblem: nothing was sent.
    """
    version = version_of(release.facts.version)
    if version.local is not None:
        raise UsageProblem(
            f"`{release.full_name}` {version} has a local version (`+{version.local}`), which stays on this machine: "
            "snapshots and merges of a project get one. Nothing was sent",
            hint=f"add or merge it again with a version to publish, as in `--version {version.public}`",
        )
    return release


def copy(
    release: Release,
    source: Source,
    destination: Destination,
    progress: Progress | None = None,
    *,
    signature: bytes | None = None,
    results: Sequence[bytes] = (),
    statements: Sequence[bytes] = (),
) -> Copied:
    """Bring one build from `source` to `destination`: blobs first, then the manifest with the release.

    Each stream is hashed against its entry by the receiver; right length with wrong bytes is refused.
    An interrupted copy never shows half a release. The caller has checked `signature`, which is passed on unchanged.
    A receiver with `take_source` gets the source, to read files again. One with `take_results` gets the signed
    `results` of tests, one with `take_statements` the signed `statements` of how the build was made; readers check
    both.
    """
    sent_files = sent_bytes = present = 0
    check_sizes(release)
    with destination.receive(release) as receiver:
        if (take_source := getattr(receiver, "take_source", None)) is not None:
            take_source(source, progress)
        for entry in release.manifest.files:
            if receiver.has(entry):
                present += 1
                continue
            with source.open(release, entry) as stream:
                receiver.put(entry, stream, progress)
            sent_files += 1
            sent_bytes += entry.size_bytes
        is_signed_anew = signature is not None and receiver.sign(signature)
        for beside, taken in ((results, "take_results"), (statements, "take_statements")):
            if beside and (take := getattr(receiver, taken, None)) is not None:
                take(beside)
        receiver.publish()
    return Copied(sent_files=sent_files, sent_bytes=sent_bytes, present_files=present, sent_signature=is_signed_anew)


def together(
    items: Sequence[_T], one: Callable[[_T, Progress], _R], progress: Progress | None = None, *, at_once: int = AT_ONCE
) -> Generator[_R | AdapterHubError, None, None]:
    """Yield the result or refusal of `one` per item, in order; works on `at_once` items at the same time.

    `one` gets a function for its bytes. When the caller stops early, by an interrupt or because it wants no more, that
    function raises `KeyboardInterrupt` in the items that are still worked on, and no other is begun.
    """
    stopped = False

    def counted(done: int) -> None:
        if stopped:
            raise KeyboardInterrupt
        if progress is not None:
            progress(done)

    def tried(item: _T) -> _R | AdapterHubError:
        try:
            return one(item, counted)
        except AdapterHubError as error:
            return error

    if min(at_once, len(items)) <= 1:  # in this thread, where an interrupt ends it at any line
        for item in items:
            try:
                yield one(item, counted)
            except AdapterHubError as error:
                yield error
        return
    from concurrent.futures import ThreadPoolExecutor  # 3 ms of a start that brings nothing

    with ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(tried, item) for item in items]
        try:
            for future in futures:
                yield future.result()
        finally:
            stopped = True
            pool.shutdown(wait=False, cancel_futures=True)
