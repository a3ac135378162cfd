"""Goes over from one signing key to another: trust, what it signed in the library, and what is published with it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from adapterhub.api.steps.keys import sign_build, signing_key
from adapterhub.core.digests import Digest
from adapterhub.core.errors import (
    AdapterNotFound,
    Conflict,
    NotAllowed,
    RemoteUnreachable,
    SignatureRefused,
    UsageProblem,
)
from adapterhub.distribution.hub import Hub
from adapterhub.formats.documented import Documented
from adapterhub.formats.manifest import SIGNATURE_FILE
from adapterhub.formats.signature import read_statement
from adapterhub.formats.signed import Bundle, PublicKey, pre_authentication
from adapterhub.library.admission.admission import Admission
from adapterhub.library.intake.statements import files_in
from adapterhub.library.results import ResultFiles
from adapterhub.trust.signing.provenance import read_signature

if TYPE_CHECKING:
    from adapterhub.distribution.hub import Published
    from adapterhub.library.library import Library
    from adapterhub.library.remotes import Remote
    from adapterhub.library.store.catalog import Installed
    from adapterhub.projects.session import Session
    from adapterhub.trust.signing.keys import SigningKey


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedThere(Documented, keys="server repo version done=is_done command"):
    """A published version that the old key signed."""

    server: str
    repo: str
    version: str
    command: Annotated[str, "what signs it again"]
    is_done: Annotated[bool, "true: it has the signature of the new key"] = False


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Rotated(Documented, keys="old new fingerprint trusted=is_trusted signed statements published revoked=is_revoked"):
    """What went over from the key `old` to the key `new`."""

    old: str
    new: str
    fingerprint: Annotated[Digest, "of the new key"]
    is_trusted: Annotated[bool, "the new key is trusted here"]
    signed: Annotated[tuple[str, ...], "the installed builds that were signed again"]
    statements: Annotated[int, "signed results and statements of how builds were made that were signed again"]
    published: tuple[SignedThere, ...]
    is_revoked: Annotated[bool, "the old key is revoked"]

    def __repr__(self) -> str:
        return f"<Rotated {self.old} to {self.new}, {len(self.signed)} builds signed again>"


def rotate_key(
    session: Session,
    old: str,
    new: str,
    password: str | None = None,
    *,
    send: Callable[[Installed, str, str], None] | None = None,
    revoke: bool = False,
    reason: str = "",
    offline: bool = False,
) -> Rotated:
    """Go over from your key `old` to `new`, which is made unless you have it.

    `send` signs a build again in a repository on a remote.
    An interrupted call goes on when repeated. The revocation comes last, after every push.

    Raises:
        NotFound: you have no key `old`.
        UsageProblem: both are one key, or `reason` is none or without `revoke`.
        Conflict: `new` names a trusted key of somebody else.
        As `send`.
    """
    from adapterhub.trust.signing.keys import KeyFolder
    from adapterhub.trust.signing.trust import TrustFile, parse_reason

    if parse_reason(reason) and not revoke:
        raise UsageProblem("a reason is for `--revoke`. Nothing was changed")
    keys, file, library = KeyFolder(session.root), TrustFile(session.root), session.library
    before = keys.public(old)
    if old == new:
        raise UsageProblem(f"`{old}` is the old key and the new one. Nothing was changed")
    if new not in keys.names():
        if any(key.name == new for key in file.read().keys):
            raise Conflict(f"`{new}` is a key that you trust; nothing was changed", hint="choose another name")
        keys.new(new, password)
    signer = signing_key(session, new, password)
    file.succeed(before.fingerprint, new, signer.public)

    builds = list(library.installed())
    signers = [_signed_by(build) for build in builds]
    signed = []
    for build, (key, namespace) in zip(builds, signers, strict=True):
        if key == before.fingerprint:
            sign_build(library, build, namespace, signer)
            signed.append(str(build.spec))
    statements = sum(_sign_files(files, before, signer) for build in builds for files in _files_on(library, build))

    ours = {before.fingerprint, signer.public.fingerprint}  # the new one, where an earlier call was interrupted
    namespaces = sorted({namespace for key, namespace in signers if namespace and key in ours})
    there = [] if offline else [one for name in namespaces for one in _published(session, name, before.fingerprint)]
    by_digest = {build.manifest.digest: build for build in builds}
    published = []
    for remote, one in there:
        here = by_digest.get(one.digest) if one.digest else None
        if send is not None and here is not None:
            send(here, one.repo, remote.name)
        published.append(_told(remote, one, here, new, is_done=send is not None and here is not None))
    if revoke:
        file.revoke(old, before, reason or f"replaced by the key {new}")
    return Rotated(
        old=old,
        new=new,
        fingerprint=signer.public.fingerprint,
        is_trusted=file.read().key_of(signer.public.fingerprint) is not None,
        signed=tuple(signed),
        statements=statements,
        published=tuple(published),
        is_revoked=file.read().revoked_of(before.fingerprint) is not None,
    )


def _told(remote: Remote, one: Published, build: Installed | None, new: str, *, is_done: bool) -> SignedThere:
    spec = build.spec if build is not None else f"{one.repo}=={one.version}"
    command = f"adapt push '{spec}' --to {one.repo} --remote {remote.name} --sign --key {new}"
    if build is None:
        command = f"adapt install '{spec}' --remote {remote.name} && {command}"
    return SignedThere(server=remote.url, repo=one.repo, version=one.version, command=command, is_done=is_done)


def _signed_by(build: Installed) -> tuple[Digest | None, str | None]:
    """The key that the signature of a build names, and the namespace that it was made for; None without either."""
    with contextlib.suppress(SignatureRefused, ValueError):
        if raw := read_signature(build.folder / SIGNATURE_FILE):
            bundle = Bundle.parse(raw)
            identity = read_statement(bundle.payload).identity
            return bundle.hint, identity.namespace if identity else None
    return None, None


def _files_on(library: Library, build: Installed) -> tuple[ResultFiles, ...]:
    """The signed results of tests on a build, and the statements of how it was made."""
    digest = build.manifest.digest
    return ResultFiles.of_library(library.store, digest), files_in(library.store, digest)


def _sign_files(files: ResultFiles, old: PublicKey, signer: SigningKey) -> int:
    """Sign again what the old key signed, unless the new one has; how many are new."""
    bundles = []
    for raw in files.read():
        with contextlib.suppress(ValueError):
            bundles.append(Bundle.parse(raw))
    done = {bundle.payload for bundle in bundles if bundle.hint == signer.public.fingerprint}
    again = [
        replace(bundle, hint=signer.public.fingerprint, signature=signer.sign(message))
        for bundle in bundles
        if bundle.hint == old.fingerprint and bundle.payload not in done
        for message in (pre_authentication(bundle.payload),)
        if old.verifies(bundle.signature, message)
    ]
    for bundle in again:
        files.add(bundle.to_bytes())
    return len(again)


def _published(session: Session, namespace: str, old: Digest) -> Iterator[tuple[Remote, Published]]:
    """What `old` signed among the versions in a namespace, on every server that may have it; one request for each."""
    admission = Admission(session.library)
    for remote in session.remotes.all():
        if not admission.may_offer(remote.url, namespace):
            continue
        opened = session.open_remote(remote)
        hub = getattr(opened, "hub", opened)
        if not isinstance(hub, Hub):
            continue
        try:
            for one in hub.published(namespace):
                raw = hub.signature_at(one.repo, one.commit)
                with contextlib.suppress(ValueError):
                    if raw is not None and Bundle.parse(raw).hint == old:
                        yield remote, one if one.digest else replace(one, digest=hub.digest_at(one.repo, one.commit))
        except (RemoteUnreachable, NotAllowed, AdapterNotFound, SignatureRefused) as error:
            session.out.warn(f"{remote.label} did not say what it has in `{namespace}`: {error.message}")
