"""Publish from Python: sign, push, pull, mirror, and the keys, policies and tokens that belong to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.api.opened import BaseLike, OpenedLibrary, SpecLike, base_of, spec_of
from adapterhub.api.results import Sent
from adapterhub.core.arguments import Namespace, Rank, StrPath, Testing, parsed, path_of
from adapterhub.core.ranks import RankRange
from adapterhub.core.specs import AdapterSpec, parse_namespace
from adapterhub.trust.signing.policy import SignaturePolicy

if TYPE_CHECKING:
    from adapterhub.distribution.mirroring import RepositoryPattern
    from adapterhub.formats.signed import PublicKey
    from adapterhub.trust.signing.keys import KeyFolder
    from adapterhub.trust.signing.trust import RevokedKey, TrustedKey


@parsed
class WithPublishing(OpenedLibrary):
    """Everything that leaves the library, and who may be believed about what comes in."""

    def push(
        self,
        spec: SpecLike,
        *,
        to: StrPath,
        rank: Rank | None = None,
        min_rank: Rank | None = None,
        max_rank: Rank | None = None,
        sign: bool = False,
        key: str | None = None,
        password: str | None = None,
        private: bool = False,
        test: Testing | None = None,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> Sent:
        """Publish an installed adapter: its files, its manifest, a card, and a tag for the version.

        Args:
            spec: the installed adapter.
            to: a repository (`acme/legal-qa`), an image (`oci://host/repo[:tag]`), or a directory (`./published`).
            rank: this rank only.
            min_rank: this rank or a higher one.
            max_rank: this rank or a lower one.
            sign: sign it first, with `key` and its `password` (see `sign`).
            key: name of the key.
            password: of the key.
            private: make a new repository private.
            test: `keep` sends it only if it answers as its contract records; `warn` only says so.
            remote: the server; default: the one that has the namespace, then the default one.
            token: access token for it.
            offline: refuse to open a connection.

        Raises:
            AdapterNotFound, NoCompatibleRelease: nothing installed answers to the spec.
            SignatureRefused, NamespaceBound: it may not be used here.
            BehaviourChanged, CouldNotTell: it does not pass its test; nothing was sent.
            ReleaseExists: the version is there with other bytes.
            RemoteUnreachable, NotAllowed: the server does not answer, or not to you; no half of a release is shown.
        """
        from adapterhub.api.steps.contracts.gating import contract_gate
        from adapterhub.api.steps.finding import find_build
        from adapterhub.api.steps.keys import signing_key
        from adapterhub.api.steps.publishing import push_build

        bounds = RankRange(rank=rank, min_rank=min_rank, max_rank=max_rank)
        build = find_build(self.session, spec_of(spec), bounds, to="send")
        place = to if isinstance(to, str) else str(Path(to).absolute())
        gate = contract_gate(self, test, bars=self.reports, out=self.reports)
        pushed = push_build(
            self.session,
            build,
            place,
            signer=signing_key(self.session, key, password) if sign else None,
            private=private,
            remote=remote,
            token=token,
            offline=offline,
            gate=gate,
            bars=self.reports,
        )
        return Sent(
            name=build.full_name,
            version=build.manifest.version,
            digest=build.manifest.digest,
            to=place,
            sent_files=pushed.copied.sent_files,
            sent_bytes=pushed.copied.sent_bytes,
            source=self.label,
            url=pushed.url,
            is_signed=pushed.is_signed,
            tests=tuple(gate.results) if gate else (),
        )

    def push_results(
        self,
        spec: SpecLike,
        *,
        to: str,
        rank: Rank | None = None,
        min_rank: Rank | None = None,
        max_rank: Rank | None = None,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> int:
        """Send the signed results of tests on an installed adapter to the repository that has it.

        Args:
            spec: the installed adapter.
            to: the repository (`acme/legal-qa`) of a registry.
            rank: this rank only.
            min_rank: this rank or a higher one.
            max_rank: this rank or a lower one.
            remote: the server; default: the one that has the namespace, then the default one.
            token: access token for it; that of a tester whom the namespace knows needs no right to write.
            offline: refuse to open a connection.

        Returns:
            How many results the server has taken.

        Raises:
            NotFound: there is no signed result.
            UsageProblem: the place keeps none.
            NotAllowed: the server takes none of them.
        """
        from adapterhub.api.steps.finding import find_build
        from adapterhub.api.steps.publishing import push_results

        bounds = RankRange(rank=rank, min_rank=min_rank, max_rank=max_rank)
        build = find_build(self.session, spec_of(spec), bounds, to="send")
        return push_results(self.session, build, to, remote=remote, token=token, offline=offline)

    def pull(
        self,
        spec: SpecLike,
        folder: StrPath,
        *,
        base: BaseLike | None = None,
        rank: Rank | None = None,
        min_rank: Rank | None = None,
        max_rank: Rank | None = None,
        exclude_newer: str | None = None,
        signatures: SignaturePolicy | None = None,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> Sent:
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

        place = path_of(folder)
        pulled = pull_release(
            self.session,
            spec_of(spec),
            place,
            base=base_of(base),
            bounds=RankRange(rank=rank, min_rank=min_rank, max_rank=max_rank),
            objection=objection_from(self.session, exclude_newer),
            signatures=signatures,
            remote=remote,
            token=token,
            offline=offline,
            bars=self.reports,
        )
        release, copied = pulled.release, pulled.copied
        return Sent(
            name=release.full_name,
            version=release.manifest.version,
            digest=release.digest,
            to=str(place),
            sent_files=copied.sent_files,
            sent_bytes=copied.sent_bytes,
            source=release.origin,
        )

    def mirror(
        self,
        *specs: SpecLike | RepositoryPattern,
        origin: str,
        target: str,
        namespace: Namespace | None = None,
        base: BaseLike | None = None,
        rank: Rank | None = None,
        min_rank: Rank | None = None,
        max_rank: Rank | None = None,
        private: bool = False,
        tests: bool = False,
        dry_run: bool = False,
        ignore_bindings: bool = False,
    ) -> Sequence[Sent]:
        """Copy builds from the server `origin` to the server `target`, each with the token that is kept for it.

        Args:
            specs: what to copy; `acme/*` copies every released version of these repositories that the target lacks.
            origin: name or URL of the server to copy from.
            target: name or URL of the server to copy to.
            namespace: publish under this namespace; default: the same.
            base: the base, where a spec names none.
            rank: this rank only.
            min_rank: this rank or a higher one.
            max_rank: this rank or a lower one.
            private: make new repositories private.
            tests: copy the signed results of tests, too.
            dry_run: send nothing.
            ignore_bindings: copy although another remote of yours has the namespace.

        Raises:
            NotFound: no remote has that name.
            BaseNotFound, Malformed: the base is not known here, or its record or folder cannot be read.
            AdapterNotFound, NoCompatibleRelease: an adapter is not here, or none fits.
        """
        from adapterhub.api.steps.publishing import mirror_releases

        found = mirror_releases(
            self.session,
            [_repositories_of(spec) for spec in specs],
            origin=origin,
            target=target,
            namespace=namespace,
            base=base_of(base),
            bounds=RankRange(rank=rank, min_rank=min_rank, max_rank=max_rank),
            private=private,
            tests=tests,
            dry_run=dry_run,
            ignore_bindings=ignore_bindings,
            bars=self.reports,
        )
        return [
            Sent(
                name=one.name,
                version=one.version,
                digest=one.digest or "",
                to=one.to,
                sent_files=one.copied.sent_files if one.copied else 0,
                sent_bytes=one.copied.sent_bytes if one.copied else 0,
                source=one.origin,
            )
            for one in found
        ]

    # ------------------------------------------------------------ signatures
    def sign(
        self,
        spec: SpecLike,
        *,
        key: str | None = None,
        password: str | None = None,
        namespace: Namespace | None = None,
        statement: bool = False,
        rank: Rank | None = None,
        min_rank: Rank | None = None,
        max_rank: Rank | None = None,
    ) -> Mapping[str, Any]:
        """Sign an installed adapter: `model.sig` beside its files.

        Args:
            spec: the installed adapter.
            key: name of the key; default: ADAPTERHUB_KEY, else your only key.
            password: of the key; default: ADAPTERHUB_PASSWORD.
            namespace: the namespace it is signed for; default: the one it has here.
            statement: also sign how it was merged, as an in-toto statement.
            rank: this rank only.
            min_rank: this rank or a higher one.
            max_rank: this rank or a lower one.

        Returns:
            As `adapt sign --json` prints it; `created` is False when it was signed so already.

        Raises:
            AdapterNotFound, NoCompatibleRelease: an adapter is not here, or none fits.
        """
        from adapterhub.api.steps.finding import find_build
        from adapterhub.api.steps.keys import sign_build, sign_made, signing_key

        bounds = RankRange(rank=rank, min_rank=min_rank, max_rank=max_rank)
        build = find_build(self.session, spec_of(spec), bounds, to="send")
        if namespace is not None:
            parse_namespace(namespace)
        signer = signing_key(self.session, key, password)
        made = {"statement": str(sign_made(self, build, signer))} if statement else {}
        return sign_build(self, build, namespace or build.namespace, signer) | made

    @property
    def keys(self) -> KeyFolder:
        """Your own key pairs: `new(name, password)`, `names()`, `public(name)`."""
        from adapterhub.trust.signing.keys import KeyFolder

        return KeyFolder(self.root)

    @property
    def trusted_keys(self) -> Sequence[TrustedKey]:
        """The keys that are trusted."""
        from adapterhub.trust.signing.trust import TrustFile

        return TrustFile(self.root).read().keys

    def public_key(self, name: str) -> PublicKey:
        """A public key by its name, your own or a trusted one: `.pem`, `.fingerprint`.

        Raises:
            NotFound: there is none.
        """
        from adapterhub.api.steps.keys import public_key

        return public_key(self.session, name)

    def trust_key(
        self,
        name: str,
        file: StrPath | None = None,
        *,
        scope: Sequence[str] = (),
        remotes: Sequence[str] = (),
        not_after: str | None = None,
        replace: bool = False,
        accept: Sequence[str] = (),
    ) -> TrustedKey:
        """Trust a public key; compare its `.fingerprint` with what its owner tells you.

        Args:
            name: what to call it.
            file: a PEM file; default: your own key by that name, or the one that is trusted already.
            scope: globs of the adapters it may sign, such as `acme/*`; default: all.
            remotes: globs of the places it may sign for; default: all.
            not_after: the last day it is trusted, such as `2027-01-31`.
            replace: overwrite the key of that name.
            accept: globs of adapters that it takes over from another key.

        Raises:
            NotFound: there is no such file, nor a key of that name.
            Conflict: the name belongs to another key.
        """
        from adapterhub.api.steps.keys import trust_key

        path = path_of(file) if file is not None else None
        return trust_key(
            self.session,
            name,
            path,
            scope=scope,
            remotes=remotes,
            not_after=not_after,
            replace=replace,
            accept=accept,
        )

    def untrust_key(self, name: str) -> TrustedKey:
        """Trust a key no longer, and return it. What it signed and is installed stays.

        Raises:
            NotFound: no trusted key has that name.
        """
        from adapterhub.trust.signing.trust import TrustFile

        return TrustFile(self.root).untrust(name)

    def revoke_key(self, name: str, file: StrPath | None = None, *, reason: str = "") -> RevokedKey:
        """Refuse whatever a key signed, whenever it did, under every policy: it was stolen or lost.

        Args:
            name: of your own key or of a trusted one; with `file`, what to call it.
            file: a PEM file.
            reason: what refusals say.

        Raises:
            NotFound: no key is known by that name.
        """
        from adapterhub.api.steps.keys import revoke_key

        path = path_of(file) if file is not None else None
        return revoke_key(self.session, name, path, reason=reason)

    def signature_policies(self) -> Mapping[str, SignaturePolicy | None]:
        """The policies by namespace; `*` is the general one, None stands for the default."""
        from adapterhub.trust.signing.trust import GENERAL, TrustFile

        return {GENERAL: None, **TrustFile(self.root).read().policies}

    def set_signature_policy(self, policy: SignaturePolicy | None, *, namespace: str | None = None) -> None:
        """Require signatures, warn without them, or not: in general, or in one namespace. None is the default."""
        from adapterhub.trust.signing.trust import TrustFile

        TrustFile(self.root).set_policy(namespace, policy)

    def login(self, remote: str, token: str) -> str:
        """Keep a token for a server, and return whose it is; "" where the server does not answer.

        `library.remotes` has the servers themselves: `add`, `all`, `remove`, `set_signatures`, `logout`.

        Raises:
            NotFound: no remote has that name.
            NotAllowed: the server does not take the token; nothing was kept.
        """
        from adapterhub.api.steps.keys import login_to

        return login_to(self.session, self.remotes.get(remote), token)


def _repositories_of(spec: SpecLike | RepositoryPattern) -> AdapterSpec | RepositoryPattern:
    from adapterhub.distribution.mirroring import RepositoryPattern, parse_repositories

    if isinstance(spec, RepositoryPattern):
        return spec
    return parse_repositories(spec) if isinstance(spec, str) else spec_of(spec)
