"""Publishes to a model repository: one commit with all files, then the tag that makes it a version."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import stat
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError

from adapterhub.core.digests import Progress, copy_hashed, digest_of, hex_of, strict_json
from adapterhub.core.disk.held_file import REPAIR_HINT
from adapterhub.core.errors import (
    AdapterHubError,
    Conflict,
    DigestMismatch,
    Malformed,
    NotAllowed,
    ReleaseExists,
    RemoteUnreachable,
    UsageProblem,
    problem_list,
    shown,
)
from adapterhub.core.specs import is_hub_id, version_of
from adapterhub.distribution.http.wire import HttpError, Wire, file_path
from adapterhub.distribution.hub._search import RegistryResults
from adapterhub.distribution.hub._versions import (
    PAGES,
    commit_in,
    is_version_tag,
    look_at,
    refs_of,
    version_on,
    versions_path,
)
from adapterhub.distribution.hub._withdrawal import FEATURE as ALIASES
from adapterhub.distribution.hub._withdrawal import RegistryAliases
from adapterhub.formats.cards.card import Card, make_card, refusals_of
from adapterhub.formats.manifest import (
    CARD_FILE,
    MANIFEST_FILE,
    MEDIA_TYPES,
    SIGNATURE_FILE,
    WEIGHTS_FILE,
    FileEntry,
    Manifest,
)
from adapterhub.formats.release import Release
from adapterhub.trust.signing.appraisal import bounded

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from adapterhub.formats.contract.contract import Contract

_OURS = frozenset({*MEDIA_TYPES, SIGNATURE_FILE})
"""Files that a new version deletes if only an earlier one has them; every version has manifest and card."""


class HubRepository:
    """One model repository that builds are published to.

    `by_xet`: it is on the Hugging Face Hub, which stores large files by Xet only. `mends`: omits metadata of an
    author's card that the server would refuse, which otherwise stops the push. `moves_tags`: whether it moves a tag in
    one step.
    """

    kind = "repository"

    def __init__(
        self,
        api: HfApi,
        wire: Wire,
        repo: str,
        *,
        private: bool,
        by_xet: bool,
        mends: bool = False,
        features: Callable[[], Collection[str]] = frozenset,
        tests: RegistryResults | None = None,
    ) -> None:
        """`repo` names its owner; a single word would be a folder to some users.

        Raises:
            UsageProblem: it is no `org/repo`.
        """
        if "/" not in repo or not is_hub_id(repo):
            raise UsageProblem(f"`{shown(repo)}` is not a repository `org/repo`", hint="a folder is written `./folder`")
        self.repo = repo
        self.commit_url = ""
        self.refused_results: list[str] = []
        self.signs_again = False  # a signature may take the place of that of a published version
        self.alias: str | None = None  # shall mean the version once it is published
        self._api, self._wire, self._tests = api, wire, tests
        self._private, self._by_xet, self._mends, self._features = private, by_xet, mends, features
        self._exists = False
        self._commit: str | None = None

    @property
    def label(self) -> str:
        """The repository in words."""
        return f"`{self.repo}` on {self._wire.endpoint}"

    @contextlib.contextmanager
    def receive(self, release: Release) -> Iterator[_Upload]:
        """Take the files and send them in one commit; does nothing if the version exists.

        Weights that lie on this machine are sent from where they are; all else is staged in a temporary folder.

        Raises:
            ReleaseExists: the version exists with other content.
            Malformed: as `card_of`.
        """
        with contextlib.ExitStack() as files:
            if not self._by_xet:
                look_at(self._wire, self.repo, release.manifest.version)
                files.callback(self._wire.ahead.forget)
            is_there = self._has(release.manifest)
            if not is_there:
                self.card_of(release)  # before any byte is copied
            folder = files.enter_context(tempfile.TemporaryDirectory(prefix="adapt-push-"))
            yield _Upload(self, release, Path(folder), files, is_there=is_there)

    def _has(self, manifest: Manifest) -> bool:
        """Return whether the version exists with this build."""
        if PAGES in self._features():
            return self._lists(manifest)
        tag = version_tag(manifest)
        with self._wire.plainly(f"push to `{self.repo}`"):
            try:
                refs = refs_of(self._wire, self.repo)
            except RepositoryNotFoundError:
                return False  # created once everything is staged
            self._exists = True
            commit = refs.tags.get(tag)
            if commit is None:
                _ensure_unspelled(self.repo, refs.tags, manifest.version)
                return False
            raw = self._wire.get(file_path(self.repo, commit, MANIFEST_FILE))
        if Manifest.parse(raw, f"{self.repo} {tag}: {MANIFEST_FILE}").digest == manifest.digest:
            self._commit = commit
            return True
        raise self._other_build(tag)

    def _lists(self, manifest: Manifest) -> bool:
        """As `_has`, of a registry that finds one version, however many there are."""
        with self._wire.plainly(f"push to `{self.repo}`"):
            try:
                there = version_on(self._wire, self.repo, manifest.version)
            except RepositoryNotFoundError:
                return False
        self._exists = True
        if there is None or there.version is None:
            return False
        if there.digest == manifest.digest:
            self._commit = there.commit
            return True
        _ensure_unspelled(
            self.repo, () if there.version == manifest.version else [f"v{there.version}"], manifest.version
        )
        raise self._other_build(version_tag(manifest))

    def _other_build(self, tag: str) -> ReleaseExists:
        return ReleaseExists(
            f"`{self.repo}` has another build tagged `{tag}`; a release never changes",
            hint="push it under a new version or to its own repository",
        )

    def needs_signature(self, manifest: Manifest, signature: bytes) -> bool:
        """Return whether the published version has another signature or none. Call it only if the version exists.

        Raises:
            ReleaseExists: it has, and no one asked to sign it again.
        """
        assert self._commit is not None  # `_has` found it
        there = signature_at(self._wire, self.repo, self._commit)
        if there != signature and not self.signs_again:
            how = "without a signature" if there is None else "with another signature"
            raise ReleaseExists(
                f"`{self.repo}` has {manifest.version} {how}. Nothing was sent",
                hint="`adapt push --sign` puts your signature there; the bytes of the build stay",
            )
        return there != signature

    def add_signature(self, manifest: Manifest, signature: bytes) -> None:
        """Give a published version this signature: its tag moves to a commit with the same build.

        Locks keep the commit that they name. Our registry moves the tag in one step. An interrupt on another server may
        leave the version without its tag; a second push goes on.
        """
        from huggingface_hub import CommitOperationAdd

        assert self._commit is not None  # `_has` found it
        api, repo, tag = self._api, self.repo, version_tag(manifest)
        with self._wire.plainly(f"signature of `{repo}`"):
            branches = refs_of(self._wire, repo).branches
            is_newest = branches.get(_MAIN) == self._commit
            branch = _MAIN if is_newest else f"signature-of-{tag}"
            if not is_newest:
                if branch in branches:  # left by an interrupt
                    api.delete_branch(repo, branch=branch)
                api.create_branch(repo, branch=branch, revision=self._commit)
            added = [CommitOperationAdd(SIGNATURE_FILE, io.BytesIO(signature))]
            message = f"Sign {manifest.name} {manifest.version}"
            made = api.create_commit(repo, added, commit_message=message, revision=branch, parent_commit=self._commit)
            if MOVING_TAGS in self._features():
                moved = json.dumps({"tag": tag, "overwrite": True}).encode()
                self._wire.json(f"api/models/{repo}/tag/{made.oid}", form=moved)
            else:
                api.delete_tag(repo, tag=tag)
                api.create_tag(repo, tag=tag, revision=made.oid)
            if not is_newest:
                api.delete_branch(repo, branch=branch)
        self.commit_url = f"{self._wire.endpoint}/{repo}/commit/{made.oid}"

    def tag_of(self, manifest: Manifest) -> str:
        """Return the tag that a build gets."""
        return version_tag(manifest)

    def card_of(self, release: Release, contract: Contract | None = None) -> Card:
        """Return the card as this repository shows it, with examples from the build's contract.

        Raises:
            Malformed: the server would refuse its metadata; every reason is listed.
        """
        make = partial(
            make_card,
            release.manifest,
            base_hub_id=release.base_hub_id,
            repo=self.repo,
            endpoint="" if self._by_xet else self._wire.endpoint,
            contract=contract,
        )
        card = make()
        refused = refusals_of(release.manifest, card)
        if not refused:
            return card
        if self._mends:
            return make(without={re.split(r"[.\[]", problem.key)[0] for problem in refused})
        raise Malformed(
            problem_list(
                f"{self.label} would refuse the metadata of `{CARD_FILE}`. Nothing was sent",
                [problem.text for problem in refused],
            ),
            hint=f"mend `{CARD_FILE}` in the folder of the adapter, then add it with the next `--version`",
        )

    def publish(
        self,
        release: Release,
        folder: Path,
        signature: bytes | None = None,
        results: Sequence[bytes] = (),
        weights: IO[bytes] | None = None,
    ) -> None:
        """Send the staged files and results. An interrupt before the tag leaves no version; a second call continues.

        `weights` are an open file to send in place of a staged one.

        Raises:
            DigestMismatch: `weights` changed since they were hashed; no commit was made.
            ReleaseExists: someone published this version meanwhile.
            NotAllowed: the namespace asks for a contract or a PASS that the version does not have.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        from adapterhub.formats.cards.card import contract_shown

        api, repo, manifest = self._api, self.repo, release.manifest
        if self._tests is not None:
            self._tests.ensure_may_publish(repo, manifest, results, is_new=not self._exists)
        if self._exists and PUBLISH in self._features() and not (results or self._private):
            if not self._send_whole(release, folder, signature, weights):
                self.point_alias(manifest)
            return
        message = f"{manifest.name} {manifest.version}"
        with contextlib.ExitStack() as files, self._wire.plainly(f"push to `{repo}`"):
            is_new = not self._exists and self._created()
            head = api.model_info(repo)
            if is_new:
                files.push(partial(self._undo, head.sha))
            if self._private and head.private is False:
                raise NotAllowed(f"`{repo}` exists and is public; only a new repository can be made private")
            before = {item.rfilename for item in head.siblings or []}
            card = self.card_of(release, contract_shown(folder))
            texts = {MANIFEST_FILE: manifest.to_bytes(), CARD_FILE: card.text.encode()}
            contents: dict[str, Any] = {name: io.BytesIO(data) for name, data in texts.items()}
            if signature is not None:
                contents[SIGNATURE_FILE] = io.BytesIO(signature)
            for entry in manifest.files:
                path = folder / entry.path
                if entry.path == WEIGHTS_FILE and weights is not None:
                    contents[entry.path] = _OPENED.format(weights.fileno()) if self._by_xet else weights
                    continue
                # The client uploads an open file by LFS, directly to the server's blob storage, and a path by Xet.
                contents[entry.path] = str(path) if self._by_xet else files.enter_context(path.open("rb"))
            added = {name: CommitOperationAdd(name, data) for name, data in sorted(contents.items())}
            _ensure_unchanged(manifest, added[WEIGHTS_FILE].upload_info.sha256.hex())
            operations: list[Any] = list(added.values())
            # delete files that only earlier versions have: a tag holds exactly one build
            operations += [CommitOperationDelete(n) for n in sorted(before & _OURS - contents.keys())]
            # naming the parent serializes concurrent pushes
            commit = api.create_commit(repo, operations, commit_message=message, parent_commit=head.sha).oid
        self.send_results(manifest, results)  # before the tag, which may need them
        try:
            with self._wire.plainly(f"tag of `{repo}`"):
                api.create_tag(repo, tag=version_tag(manifest), revision=commit)
        except Conflict:
            if not self._has(manifest):
                raise
        self.commit_url = f"{self._wire.endpoint}/{repo}/commit/{commit}"
        self.point_alias(manifest)

    def point_alias(self, manifest: Manifest) -> None:
        """Let `alias`, if one is wanted, mean a published version."""
        if self.alias is not None:
            known = RegistryAliases(self._wire, is_offered=ALIASES in self._features())
            known.set(self.repo, self.alias, [(manifest.version, 1.0)])

    def _send_whole(self, release: Release, folder: Path, signature: bytes | None, weights: IO[bytes] | None) -> bool:
        """Send the version in one request, to a registry that takes it and has the repository.

        Returns whether the wanted alias moved with it.
        """
        from adapterhub.formats.cards.card import contract_shown

        manifest = release.manifest
        card = self.card_of(release, contract_shown(folder))
        beside = {MANIFEST_FILE: manifest.to_bytes(), CARD_FILE: card.text.encode()}
        if signature is not None:
            beside[SIGNATURE_FILE] = signature
        opened = {} if weights is None else {WEIGHTS_FILE: weights}
        alias = self.alias if PUBLISH_ALIAS in self._features() else None
        body = _WholeVersion(manifest, folder, beside, opened, alias)
        headers = {"content-type": "application/octet-stream", "content-length": str(body.size_bytes)}
        url = f"{self._wire.endpoint}/{versions_path(self.repo)}"
        try:
            with self._wire.plainly(f"push to `{self.repo}`"), self._wire.answering(url, headers, form=body) as answer:
                commit = commit_in(strict_json(self._wire.whole(answer, url))["commit"])
        except Conflict:  # someone was faster, or the answer to the first attempt was lost
            if not self._has(manifest):
                raise
            assert self._commit is not None  # `_has` found it
            commit, alias = self._commit, None
        self.commit_url = f"{self._wire.endpoint}/{self.repo}/commit/{commit}"
        return alias == self.alias

    def _created(self) -> bool:
        """Create the repository; False when it exists."""
        try:
            self._api.create_repo(self.repo, private=self._private or None, exist_ok=False)
        except HfHubHTTPError as error:
            if error.response.status_code != HTTPStatus.CONFLICT:
                raise
            return False
        return True

    def _undo(self, first: str | None, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Remove the repository that this push created, at its commit `first`, when the server refused what it is for.

        After a fault of the network it stays, and the next push goes on.
        """
        if isinstance(error, AdapterHubError) and not isinstance(error, RemoteUnreachable):
            with contextlib.suppress(HfHubHTTPError, HttpError, OSError):
                if self._api.model_info(self.repo).sha == first:
                    self._api.delete_repo(self.repo)

    def send_results(self, manifest: Manifest, results: Sequence[bytes]) -> int:
        """Send signed results of tests on a version; returns how many the server has taken.

        `refused_results` then holds its reasons for refusing others. A server that keeps none gets none.
        """
        if not results or self._tests is None or not self._tests.is_offered:
            return 0
        count = 0
        for raw in results:
            try:
                self._tests.send(self.repo, manifest.version, raw)
                count += 1
            except (NotAllowed, Conflict, RemoteUnreachable) as error:
                self.refused_results.append(error.message)
        return count


class _WholeVersion:
    """The body that publishes a version: a line of JSON, then the bytes of the files; it can be sent again."""

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        beside: Mapping[str, bytes],
        opened: Mapping[str, IO[bytes]],
        alias: str | None,
    ) -> None:
        """`beside`: the bytes of files that the manifest does not list; `opened`: files to send from another place."""
        self._manifest, self._folder, self._beside, self._opened = manifest, folder, beside, opened
        listed = [{"path": one.path, "size": one.size_bytes, "sha256": hex_of(one.sha256)} for one in manifest.files]
        listed += [
            {"path": name, "size": len(data), "sha256": hex_of(digest_of(data))} for name, data in beside.items()
        ]
        told = {"version": manifest.version, "title": f"{manifest.name} {manifest.version}", "files": listed}
        told |= {} if alias is None else {"alias": alias}
        self._line = json.dumps(told).encode() + b"\n"
        self.size_bytes = len(self._line) + manifest.size_bytes + sum(map(len, beside.values()))

    def __iter__(self) -> Iterator[bytes]:
        """Yield the pieces.

        Raises:
            DigestMismatch: a file changed since it was hashed; its last piece is not sent.
        """
        yield self._line
        for entry in self._manifest.files:
            with contextlib.ExitStack() as files:
                stream = self._opened.get(entry.path) or files.enter_context((self._folder / entry.path).open("rb"))
                yield from _unchanged(entry, stream)
        yield from self._beside.values()


def _unchanged(entry: FileEntry, stream: IO[bytes]) -> Iterator[bytes]:
    """Yield the bytes of a file; the last piece comes only if the whole has the digest in the manifest."""
    stream.seek(0)
    hasher, left = hashlib.sha256(), entry.size_bytes
    while left > 0 and (piece := stream.read(min(_PIECE_BYTES, left))):
        hasher.update(piece)
        left -= len(piece)
        if left > 0:
            yield piece
    if left > 0 or hasher.hexdigest() != hex_of(entry.sha256):
        raise DigestMismatch(entry.path, expected=entry.sha256, actual=f"sha256:{hasher.hexdigest()}", hint=REPAIR_HINT)
    if entry.size_bytes:
        yield piece


class _Upload:
    def __init__(
        self, place: HubRepository, release: Release, folder: Path, files: contextlib.ExitStack, *, is_there: bool
    ) -> None:
        self._files = files
        self._place, self._release, self._folder, self._is_there = place, release, folder, is_there
        self._signature: bytes | None = None
        self._results: Sequence[bytes] = ()
        self._weights: IO[bytes] | None = None

    def has(self, entry: FileEntry) -> bool:  # noqa: ARG002 - the client asks the server for each digest itself
        """Whether the version exists; otherwise False, because the upload protocol skips blobs that the server has."""
        return self._is_there

    def put(self, entry: FileEntry, stream: IO[bytes], progress: Progress | None = None) -> None:
        """Stage one file, hashed during the copy; weights in a file of this machine are hashed and kept open."""
        own = _opened_again(stream) if entry.path == WEIGHTS_FILE else None
        if own is not None:
            self._weights = self._files.enter_context(own)
            digest, _ = copy_hashed(stream, None, progress)
        else:
            with (self._folder / entry.path).open("xb") as sink:
                digest, _ = copy_hashed(stream, sink, progress)
        if digest != entry.sha256:
            raise DigestMismatch(entry.path, expected=entry.sha256, actual=digest, hint=REPAIR_HINT)

    def sign(self, signature: bytes) -> bool:
        """Take the signature.

        Raises:
            ReleaseExists: the version exists with another signature or without one, and keeps it.
        """
        is_needed = not self._is_there or self._place.needs_signature(self._release.manifest, signature)
        self._signature = signature if is_needed else None
        return is_needed

    def take_results(self, results: Sequence[bytes]) -> None:
        """Take signed results of tests."""
        self._results = results

    def publish(self) -> None:
        """Create one commit with all files, then the version tag; an existing version only gets the missing parts."""
        if self._is_there:
            if self._signature is not None:
                self._place.add_signature(self._release.manifest, self._signature)
            self._place.send_results(self._release.manifest, self._results)
            self._place.point_alias(self._release.manifest)
        else:
            self._place.publish(self._release, self._folder, self._signature, self._results, self._weights)


MOVING_TAGS: Final = "moving-tags"
"""The feature of a server that moves a tag in one step."""

PUBLISH: Final = "publish"
"""The feature of a server that takes a version in one request."""

PUBLISH_ALIAS: Final = "publish-alias"
"""The feature of a server that also moves an alias to the version in that request."""

_PIECE_BYTES: Final = 1 << 20

_MAIN: Final = "main"

_OPENED: Final = "/proc/self/fd/{}"
"""The path of an open file, on Linux: the upload by Xet takes a path."""


def _opened_again(stream: IO[bytes]) -> IO[bytes] | None:
    """Reopen the same local file, even if it was renamed; None if the stream is not a local file."""
    try:
        again = Path(_OPENED.format(stream.fileno())).open("rb")  # noqa: SIM115 - the caller closes it
    except OSError:  # a file on a server has no number, and another system no such path
        return None
    if stat.S_ISREG(os.fstat(again.fileno()).st_mode):
        return again
    again.close()
    return None


def _ensure_unchanged(manifest: Manifest, sent: str) -> None:
    """Raise unless the weights that the client hashed are those of the manifest."""
    entry = manifest.file(WEIGHTS_FILE)
    if entry is not None and sent != hex_of(entry.sha256):
        raise DigestMismatch(WEIGHTS_FILE, expected=entry.sha256, actual=f"sha256:{sent}", hint=REPAIR_HINT)


def signature_at(wire: Wire, repo: str, commit: str) -> bytes | None:
    """Return the signature in a repository at one commit; None if there is none.

    Raises:
        SignatureRefused: it is larger than any signature.
    """
    with wire.plainly(f"`{SIGNATURE_FILE}` of `{repo}`"):
        try:
            raw = wire.get(file_path(repo, commit, SIGNATURE_FILE))
        except EntryNotFoundError:
            return None
    return bounded(raw, f"{repo}/{SIGNATURE_FILE}")


def _ensure_unspelled(repo: str, tags: Iterable[str], version: str) -> None:
    """Raise if a tag names the same version in another spelling.

    Raises:
        ReleaseExists: `v1.0` for 1.0.0.
    """
    same = next((tag for tag in tags if is_version_tag(tag) and version_of(tag[1:]) == version_of(version)), None)
    if same is not None:
        raise ReleaseExists(
            f"`{repo}` has `{same}`, the same version as {version}; a release never changes. Nothing was sent",
            hint="push it under a new version",
        )


def version_tag(manifest: Manifest) -> str:
    """Return the tag that marks this version in a repository."""
    return f"v{manifest.version}"
