"""Publish from Python: push, pull, mirror, yank, delete, sign, and the keys and servers that belong to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from adapterhub.api.opened import BaseLike, OpenedLibrary, SpecLike, base_of, spec_of
from adapterhub.core.arguments import Namespace, StrPath, Testing, parsed, path_of
from adapterhub.core.digests import Digest, Progress, digest_of
from adapterhub.core.errors import NotAllowed, NotFound, UsageProblem, problem_list, shown
from adapterhub.core.ranks import RankRange, Ranks
from adapterhub.core.specs import AdapterSpec, names_folder, parse_namespace
from adapterhub.formats.documented import Documented
from adapterhub.formats.manifest import CARD_FILE, MANIFEST_FILE, SIGNATURE_FILE, FileEntry
from adapterhub.formats.release import Release
from adapterhub.library.store.catalog import Installed
from adapterhub.library.store.origins import is_url
from adapterhub.projects.session import hub_of, wanted_from
from adapterhub.trust.signing.policy import SignaturePolicy

if TYPE_CHECKING:
    from collections.abc import Callable

    from adapterhub.api.steps.keys import Keys, KnownRemotes
    from adapterhub.api.steps.publishing import Mirrored, Pulled
    from adapterhub.distribution.hub import Hub
    from adapterhub.distribution.mirroring import RepositoryPattern
    from adapterhub.distribution.withdrawal import Withdrawn
    from adapterhub.formats.contract.results import Tested
    from adapterhub.library.bases.requested import RequestedBase
    from adapterhub.library.remotes import Remote
    from adapterhub.library.transfer import Copied, Place
    from adapterhub.projects.session import Session


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Sent(
    Documented,
    keys="name=build.full_name version=build.manifest.version digest=build.manifest.digest to sent_files sent_bytes"
    " created signed=is_signed url mount tests?",
    title="Pushed",
):
    """A published build."""

    build: Installed
    to: Annotated[str, "the repository or directory"]
    place: str
    """The same in words, with its server."""
    sent_files: Annotated[int, "number of files sent"] = 0
    sent_bytes: int = 0
    sent_signature: bool = False
    is_signed: bool = False
    url: Annotated[str | None, "URL of the commit; null for a directory"] = None
    mount: Annotated[str | None, "the image that container runtimes mount; null outside OCI registries"] = None
    sent_mount: bool = False
    tests: Annotated[tuple[Tested, ...] | None, "with --test: how it does by its contract"] = None

    @property
    def created(self) -> bool:
        """False: it existed already."""
        return self.sent_files > 0

    def __repr__(self) -> str:
        what = f"{self.build.full_name} {self.build.manifest.version}"
        return f"<{type(self).__name__} {what} to {self.to}, {self.sent_files} files>"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SentResults(
    Sent, keys="name=build.full_name version=build.manifest.version digest=build.manifest.digest to sent_results"
):
    """With --results: the signed results of tests that a registry has taken."""

    sent_results: Annotated[int, "how many it has taken, or had already"]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PushPlan(
    Sent,
    keys="dry_run to kind commit_message tag mount digest=build.manifest.digest signed=is_signed files tags card"
    " card_notes tests?",
):
    """Exactly what a push would send."""

    dry_run: Annotated[bool, "true"] = True
    kind: Annotated[str, "`directory` or `repository`"]
    commit_message: str
    tag: str
    files: tuple[FileEntry, ...]
    tags: Annotated[tuple[str, ...], "searchable facts in the card"]
    card: Annotated[str, "text of README.md"]
    card_notes: Annotated[tuple[str, ...], "what the card leaves out of the author's metadata, or words as hubs do"]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Signed(
    Documented,
    keys="name=build.full_name version=build.manifest.version namespace digest=build.manifest.digest key"
    " fingerprint path created statement?",
):
    """A new or existing signature."""

    build: Installed
    namespace: Annotated[str | None, "the namespace it is signed for"]
    key: str
    fingerprint: Annotated[Digest, "of the key"]
    created: Annotated[bool, "false: the same signature existed already"]
    statement: Annotated[Path | None, "with --statement: the file that says how it was made"] = None

    @property
    def path(self) -> Path:
        """The signature file."""
        return self.build.folder / SIGNATURE_FILE

    def __repr__(self) -> str:
        return f"<Signed {self.build.full_name} {self.build.manifest.version} with {self.key}>"


@parsed
class WithPublishing(OpenedLibrary):
    """Everything that leaves the library, and who may be believed about what comes in."""

    def push(
        self,
        spec: SpecLike,
        *,
        to: StrPath,
        rank: Ranks | None = None,
        sign: bool = False,
        key: str | None = None,
        password: str | None = None,
        private: bool = False,
        test: Testing | None = None,
        results: bool = False,
        dry_run: bool = False,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> Sent:
        """Publish an installed adapter: its files, its manifest, a card, and a tag for the version.

        Args:
            spec: the installed adapter.
            to: a repository (`acme/legal-qa`), an image (`oci://host/repo[:tag]`), or a directory (`./published`).
            rank: this rank, or one in a range: `8`, `"4-16"`, `"4-"`, `"-16"`.
            sign: sign it first, with `key` and its `password` (see `sign`).
            key: name of the key.
            password: of the key.
            private: make a new repository private.
            test: `keep` sends it only if it answers as its contract records; `warn` sends it with a warning.
            results: send only the signed results of its tests, to a repository that has the version; returns
                `SentResults`. The token of a tester whom the namespace knows needs no right to write.
            dry_run: send nothing, and return a `PushPlan` of exactly what would be sent.
            remote: the server; default: the one that has the namespace, then the default one.
            token: access token for it; default: the stored one, or in a CI one for the identity of the job.
            offline: refuse to open a connection.

        Raises:
            AdapterNotFound, NoCompatibleRelease: nothing installed answers to the spec.
            SignatureRefused, NamespaceBound: it may not be used here, so it is not passed on either.
            BehaviourChanged, CouldNotTell: it does not pass its test; nothing was sent.
            ReleaseExists: the version is there with other bytes.
            NotFound, UsageProblem: with `results`, there is no signed one, or the place keeps none.
            RemoteUnreachable, NotAllowed: the server does not answer, or not to you; no half of a release is shown.
        """
        from adapterhub.api.searching import find_build
        from adapterhub.api.steps.contracts.gating import ContractGate
        from adapterhub.api.steps.contracts.recording import contract_line, sign_results
        from adapterhub.api.steps.contracts.testing import TestQuestion
        from adapterhub.api.steps.keys import sign_build, signing_key
        from adapterhub.formats.cards.card import contract_shown, tags_for
        from adapterhub.library.admission import Admission

        if key and not sign:
            raise UsageProblem("`--key` needs `--sign`", hint="add `--sign`")
        if results and (dry_run or sign or test):
            raise UsageProblem("`--results` sends only results", hint="leave out `--sign`, `--test` and `--dry-run`")
        bounds = RankRange.of(rank)
        build = find_build(self.session, spec_of(spec), bounds, to="send")
        there = to if isinstance(to, str) else str(Path(to).absolute())
        if results:
            return self._send_results(build, there, remote=remote, token=token, offline=offline)
        gate = ContractGate(self.session, test, TestQuestion(base_alone=True)) if test else None
        release = _release_of(self, build)
        signer = signing_key(self.session, key, password) if sign and not dry_run else None
        if signer is not None:
            sign_build(self, build, build.namespace or _namespace_in(there), signer)
        if not (sign and dry_run):  # otherwise it is not signed yet
            Admission(self).ensure_usable(build)
        place = _place_for(
            self.session,
            there,
            private=private,
            signs_again=sign,
            remote=remote,
            token=token,
            offline=offline,
            sends=not dry_run,
        )
        card = place.card_of(release, contract_shown(build.folder))
        for note in card.notes:
            self.reports.note(note)
        if gate is not None:
            gate.admit(build, undone="Nothing was sent")
        facts: dict[str, Any] = {"build": build, "to": there, "place": place.label}
        facts |= {"tests": tuple(gate.results) if gate else None}
        name_mount = getattr(place, "mount_of", None)
        facts |= {"mount": name_mount(build.manifest) if name_mount else None}
        signature = self.provenance(release).signature
        if dry_run:
            texts = {MANIFEST_FILE: build.manifest.to_bytes(), CARD_FILE: card.text.encode()}
            return PushPlan(
                **facts,
                is_signed=sign or signature is not None,
                kind=place.kind,
                commit_message=f"{build.manifest.name} {build.manifest.version}",
                tag=place.tag_of(build.manifest),
                files=tuple(sorted((*build.manifest.files, *starmap(_entry, texts.items())), key=lambda one: one.path)),
                tags=tuple(tags_for(build.manifest, release.base_hub_id)),
                card=card.text,
                card_notes=tuple(card.notes),
            )
        if gate is not None and signer is not None:
            sign_results(self, build, gate.results, signer)
        size_bytes = build.manifest.size_bytes * (2 if facts["mount"] else 1)
        with self.reports.progress(f"push {build.full_name}", size_bytes) as progress:
            copied = _copied(self.session, release, place, signature, progress)
        if gate is None:
            self.reports.note(contract_line(self, build))
        return Sent(
            **facts,
            is_signed=signature is not None,
            sent_files=copied.sent_files,
            sent_bytes=copied.sent_bytes,
            sent_signature=copied.sent_signature,
            url=place.commit_url or None,
            sent_mount=getattr(place, "sent_mount", False),
        )

    def _send_results(
        self, build: Installed, to: str, *, remote: str | None, token: str | None, offline: bool
    ) -> SentResults:
        """Send the signed results on an installed build to the repository that has it.

        Raises:
            NotFound: no result was signed here.
            UsageProblem: `to` is a directory, or a server that keeps no results.
            NotAllowed: the server takes none of them; each reason is listed.
        """
        from adapterhub.api.steps.publishing import opened_to_write, remote_for, tell_refused
        from adapterhub.library.results import ResultFiles

        if names_folder(to) or is_url(to):
            kind = "an image" if is_url(to) else "a directory"
            raise UsageProblem(f"`{shown(to)}` is {kind}", hint="`adapt push` without `--results` also copies results")
        results = ResultFiles.of_library(self.store, build.manifest.digest).current(build.full_name)
        if not results:
            raise NotFound(
                f"there is no signed result on {build.full_name} {build.manifest.label}. Nothing was sent",
                hint=f"`adapt test {build.full_name} --sign --key NAME` makes one",
            )
        there = remote_for(self.session, to, remote)
        named = remote or there.name or there.url
        hub = hub_of(opened_to_write(self.session, there, named, to, token=token, offline=offline))
        if not hub.keeps_results:
            raise UsageProblem(
                f"{hub.endpoint} keeps no signed results of tests. Nothing was sent",
                hint="`adapt remote list` shows the kinds of the servers; a registry of adapterhub keeps results",
            )
        place = hub.to(to)
        count = place.send_results(build.manifest, results)
        if not count:
            raise NotAllowed(
                problem_list(f"{place.label} takes none of the results", place.refused_results),
                hint="`adapt registry tests NAMESPACE` shows whose results the registry stores",
            )
        tell_refused(self.session, place)
        return SentResults(build=build, to=to, place=place.label, sent_results=count)

    def pull(
        self,
        spec: SpecLike,
        folder: StrPath,
        *,
        base: BaseLike | None = None,
        rank: Ranks | None = None,
        exclude_newer: str | None = None,
        signatures: SignaturePolicy | None = None,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> Pulled:
        """Write the plain files of a build to a new folder, checked as `install` does; the library does not change.

        The library is asked first, then the servers; with `remote` only that server. Arguments and errors are those
        of `install`.

        Raises:
            AdapterNotFound, NoCompatibleRelease: an adapter is not here, or none fits.
            BaseNotFound, Malformed: the base is not known here, or its record or folder cannot be read.
            NotFound: no remote has that name.
        """
        from adapterhub.api.steps.publishing import pull_release
        from adapterhub.projects.places import objection_from

        return pull_release(
            self.session,
            spec_of(spec),
            path_of(folder),
            base=base_of(base),
            bounds=RankRange.of(rank),
            objection=objection_from(self.session, exclude_newer),
            signatures=signatures,
            remote=remote,
            token=token,
            offline=offline,
        )

    def mirror(
        self,
        *specs: SpecLike | RepositoryPattern,
        origin: str,
        target: str,
        namespace: Namespace | None = None,
        base: BaseLike | None = None,
        rank: Ranks | None = None,
        private: bool = False,
        tests: bool = False,
        witness: bool = False,
        dry_run: bool = False,
        ignore_bindings: bool = False,
    ) -> Sequence[Mirrored]:
        """Copy builds from the server `origin` to the server `target`, each with the token that is kept for it.

        Args:
            specs: what to copy; `acme/*` copies every released version of these repositories that the target lacks.
            origin: name or URL of the server to copy from.
            target: name or URL of the server to copy to.
            namespace: publish under this namespace; default: the same.
            base: the base, where a spec names none.
            rank: this rank, or one in a range: `8`, `"4-16"`, `"4-"`, `"-16"`.
            private: make new repositories private.
            tests: also copy the signed results of tests.
            witness: co-sign the head of the log of `origin`, after its checks, with the key of this library.
            dry_run: send nothing.
            ignore_bindings: copy although another remote of yours has the namespace.

        Raises:
            NotFound: no remote has that name.
            BaseNotFound, Malformed: the base is not known here, or its record or folder cannot be read.
            AdapterNotFound, NoCompatibleRelease: an adapter is not here, or none fits.
        """
        from adapterhub.api.steps.publishing import mirror_releases

        return list(
            mirror_releases(
                self.session,
                [_repositories_of(spec) for spec in specs],
                origin=origin,
                target=target,
                namespace=namespace,
                base=base_of(base),
                bounds=RankRange.of(rank),
                private=private,
                tests=tests,
                witness=witness,
                dry_run=dry_run,
                ignore_bindings=ignore_bindings,
            )
        )

    # ------------------------------------------------------------ withdrawal
    def yank(
        self,
        spec: SpecLike,
        *,
        reason: str = "",
        undo: bool = False,
        dry_run: bool = False,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> Withdrawn:
        """Yank a published version: nothing new installs it, what is locked goes on, and users see the reason.

        Args:
            spec: the version, by its repository or its adapter: `acme/legal-qa==1.1.0`.
            reason: one line of at most 500 characters.
            undo: take the yank back.
            dry_run: find the version and change nothing.
            remote: the server; default: the one that has the namespace, then the default one.
            token: access token for it.
            offline: refuse to open a connection.

        Raises:
            UsageProblem: `spec` names no namespace or no version; or a `reason` to `undo`.
            AmbiguousSpec: several repositories have this version; the choices name them.
            AdapterNotFound: the server has no such version.
            RemoteUnreachable, NotAllowed: the server does not answer, or not to you.
        """
        from adapterhub.distribution import withdrawal

        if undo and reason:
            raise UsageProblem("`--undo` takes a yank back and needs no `--reason`", hint="drop `--reason`")
        hub, asked, wanted = self._asked(spec, remote, token, offline=offline)
        if undo:
            return withdrawal.unyank(hub, self, asked, wanted, dry_run=dry_run)
        return withdrawal.yank(hub, self, asked, wanted, reason, dry_run=dry_run)

    def delete(
        self,
        spec: SpecLike,
        *,
        dry_run: bool = False,
        agree: Callable[[Withdrawn], None] | None = None,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> Withdrawn:
        """Delete a published version, or without a version the whole repository, without asking.

        A locked install of a deleted version fails on a machine that does not have it; `yank` avoids that.
        `agree` is called with what will be deleted, before it is, and may raise. Other arguments and errors are those
        of `yank`.
        """
        from adapterhub.distribution import withdrawal

        hub, asked, wanted = self._asked(spec, remote, token, offline=offline)
        plan = withdrawal.plan_deletion(hub, self, asked, wanted)
        if dry_run:
            return plan
        if agree is not None:
            agree(plan)
        return withdrawal.delete(hub, asked, plan)

    def _asked(
        self, spec: SpecLike, remote: str | None, token: str | None, *, offline: bool
    ) -> tuple[Hub, AdapterSpec, RequestedBase | None]:
        from adapterhub.api.steps.publishing import server_of

        asked = spec_of(spec)
        hub = server_of(self.session, asked, remote, token=token, offline=offline)
        return hub, asked, wanted_from(self, asked, None)

    # ------------------------------------------------------------ signatures
    def sign(
        self,
        spec: SpecLike,
        *,
        key: str | None = None,
        password: str | None = None,
        namespace: Namespace | None = None,
        statement: bool = False,
        rank: Ranks | None = None,
    ) -> Signed:
        """Sign an installed adapter: `model.sig` beside its files.

        Args:
            spec: the installed adapter.
            key: name of the key; default: ADAPTERHUB_KEY, or your only key.
            password: of the key; default: ADAPTERHUB_PASSWORD.
            namespace: the namespace it is signed for; default: the one it has here.
            statement: also sign how it was merged, as an in-toto statement.
            rank: this rank, or one in a range: `8`, `"4-16"`, `"4-"`, `"-16"`.

        Raises:
            AdapterNotFound, NoCompatibleRelease: an adapter is not here, or none fits.
        """
        from adapterhub.api.searching import find_build
        from adapterhub.api.steps.keys import sign_build, sign_made, signing_key

        bounds = RankRange.of(rank)
        build = find_build(self.session, spec_of(spec), bounds, to="send")
        if namespace is not None:
            parse_namespace(namespace)
        signer = signing_key(self.session, key, password)
        made = sign_made(self, build, signer) if statement else None
        namespace = namespace or build.namespace
        return Signed(
            build=build,
            namespace=namespace,
            key=signer.name,
            fingerprint=signer.public.fingerprint,
            created=sign_build(self, build, namespace, signer),
            statement=made,
        )

    @property
    def keys(self) -> Keys:
        """Your keys, those that you trust and the signature policies: `new`, `all`, `show`, `trust`, `rotate`, ….

        `untrust`, `revoke` and `policy` are others.
        """
        from adapterhub.api.steps.keys import Keys

        return Keys(self.session, self.push)

    @property
    def remotes(self) -> KnownRemotes:
        """The servers that are known by name: `add`, `set`, `all`, `get`, `remove`, `login`, `logout`."""
        from adapterhub.api.steps.keys import KnownRemotes

        return KnownRemotes(self.session)


def push_as(library: OpenedLibrary, alias: str, build: Installed, *, to: str, remote: str, token: str | None) -> None:
    """Publish a build and let an alias of its repository mean it, in one request where the server can.

    Raises:
        UsageProblem: the remote keeps no aliases; nothing was sent.
        ReleaseExists, RemoteUnreachable, NotAllowed: as `push`.
    """
    from adapterhub.distribution.hub import HubRepository
    from adapterhub.library.admission import Admission

    session, release = library.session, _release_of(library, build)
    Admission(library).ensure_usable(build)
    place = _place_for(
        session, to, private=False, signs_again=False, remote=remote, token=token, offline=False, sends=False
    )
    if not isinstance(place, HubRepository):
        raise UsageProblem(
            f"{place.label} keeps no aliases. Nothing was sent",
            hint="push without an alias; only a registry of adapterhub keeps aliases",
        )
    place.alias = alias
    _copied(session, release, place, library.provenance(release).signature, None)


def _release_of(library: OpenedLibrary, build: Installed) -> Release:
    """Return the published state of an installed build.

    Raises:
        UsageProblem: its version is local.
    """
    from adapterhub.library.transfer import publishable

    hub_id = library.bases.hub_id_of(build.base)
    return publishable(
        Release(manifest=build.manifest, namespace=build.namespace, origin=library.label, base_hub_id=hub_id)
    )


def _copied(
    session: Session, release: Release, place: Place, signature: bytes | None, progress: Progress | None
) -> Copied:
    """Send a build with its results and statements, and report the files that the place refused."""
    from adapterhub.api.steps.publishing import tell_refused
    from adapterhub.library.intake.statements import files_in
    from adapterhub.library.results import ResultFiles
    from adapterhub.library.transfer import copy

    library = session.library
    tested = ResultFiles.of_library(library.store, release.digest).current(release.full_name)
    made = files_in(library.store, release.digest).read()
    copied = copy(release, library, place, progress, signature=signature, results=tested, statements=made)
    tell_refused(session, place)
    return copied


def _repositories_of(spec: SpecLike | RepositoryPattern) -> AdapterSpec | RepositoryPattern:
    from adapterhub.distribution.mirroring import RepositoryPattern, parse_repositories

    if isinstance(spec, RepositoryPattern):
        return spec
    return parse_repositories(spec) if isinstance(spec, str) else spec_of(spec)


def _namespace_in(to: str) -> str | None:
    """Return the namespace that a build gets at the place `to`: the word before the name of the repository."""
    words = to.partition("://")[2].split("/")[1:] if is_url(to) else to.split("/")
    return None if names_folder(to) or len(words) < 2 else words[-2]


def _entry(path: str, data: bytes) -> FileEntry:
    return FileEntry(path=path, sha256=digest_of(data), size_bytes=len(data), media_type="")


def _place_for(
    session: Session,
    to: str,
    *,
    private: bool,
    signs_again: bool,
    remote: str | None,
    token: str | None,
    offline: bool,
    sends: bool,
) -> Place:
    """Return the directory or the repository `to`.

    Only in a job of a CI without a token is a request sent, where it `sends`.

    With `signs_again`, a signature may take the place of that of a published version.
    """
    from adapterhub.api.steps.publishing import opened_to_write, remote_for
    from adapterhub.distribution.remote_kinds import kind_named

    if names_folder(to):
        from adapterhub.library.directory import PublishedDirectory

        return PublishedDirectory(path_of(to))
    there, repository = _registry_of(session, to, remote) if is_url(to) else (remote_for(session, to, remote), to)
    named = remote or there.name or there.url
    opened = opened_to_write(session, there, named, repository, token=token, offline=offline, sends=sends)
    return kind_named(there.kind).destination(opened, repository, private=private, signs_again=signs_again)


def _registry_of(session: Session, to: str, remote: str | None) -> tuple[Remote, str]:
    """Return remote and repository of `oci://HOST/REPOSITORY[:TAG]`: the remote with the longest part of it."""
    from adapterhub.library.remotes import HUB_NAME, kind_in

    kind, (host, _, path) = kind_in(to), to.partition("://")[2].partition("/")
    if kind == HUB_NAME or not path or remote:
        raise UsageProblem(
            f"`{shown(to)}` is not a place to push to: expected `org/repo` with `--remote`, `oci://host/repo[:tag]` "
            "without, or a directory"
        )
    known = [one for one in session.remotes.all() if one.kind == kind and to.startswith(f"{one.url}/")]
    found = max(known, key=lambda one: len(one.url), default=None) or session.remotes.get(f"{kind}://{host}")
    return found, to[len(found.url) + 1 :] if to.startswith(f"{found.url}/") else path
