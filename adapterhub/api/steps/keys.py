"""Keys and tokens: `library.keys` and `library.remotes`, and how other verbs sign with a key."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from adapterhub.core.arguments import Namespace, StrPath, parsed, path_of
from adapterhub.core.digests import Digest
from adapterhub.core.errors import (
    CHECK_FILE,
    AdapterNotFound,
    Conflict,
    NotAllowed,
    NotFound,
    RemoteUnreachable,
    SignatureRefused,
    UsageProblem,
)
from adapterhub.distribution.remote_kinds import kind_of
from adapterhub.formats.documented import Documented
from adapterhub.formats.signature import Bundle, PublicKey, pre_authentication
from adapterhub.library.remotes import HUB_NAME, HUB_URL, Remote
from adapterhub.library.store.origins import is_url
from adapterhub.trust.signing.policy import SignaturePolicy
from adapterhub.trust.signing.trust import RevokedKey, TrustedKey, TrustFile

if TYPE_CHECKING:
    from adapterhub.distribution.hub import Published
    from adapterhub.distribution.hub.device import CodeToType
    from adapterhub.library.library import Library
    from adapterhub.library.store.catalog import Installed
    from adapterhub.library.store.signed_files import SignedFiles
    from adapterhub.projects.session import Session
    from adapterhub.trust.signing.keys import SigningKey


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnKey(Documented, keys="name kind fingerprint"):
    """A key pair of your own."""

    name: str
    key: PublicKey

    @property
    def kind(self) -> str:
        """`own`, `trusted` or `revoked`."""
        return "own"

    @property
    def fingerprint(self) -> Digest:
        """Of the public half."""
        return self.key.fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey(OwnKey, keys="name fingerprint private public encrypted=is_encrypted"):
    """A new key pair."""

    private: Annotated[Path, "file of the private key"]
    public: Annotated[Path, "file of the public key"]
    is_encrypted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedKey(OwnKey, keys="name fingerprint pem=key.pem", title="PublicKey"):
    """The public half of a key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacePolicy(Documented):
    """The signature policy of one place."""

    place: Annotated[str, "`*` for all places, a namespace, or `remote NAME`"]
    policy: Annotated[str, "`require`, `warn`, `off` or `default`"]


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


@parsed
class Keys:
    """Your own keys, those that you trust, and the signature policies."""

    def __init__(self, session: Session, push: Callable[..., Any]) -> None:
        """`push` publishes a build again after a rotation."""
        from adapterhub.trust.signing.keys import KeyFolder

        self._session, self._push = session, push
        self._own, self._file = KeyFolder(session.root), TrustFile(session.root)

    def new(self, name: str, password: str | None = None) -> NewKey:
        """Make a P-256 pair; without a password the private key is not encrypted.

        Raises:
            Conflict: a key has that name already.
        """
        made = self._own.new(name, password)
        private, public = self._own.path(name), self._own.public_path(name)
        return NewKey(name=name, key=made, private=private, public=public, is_encrypted=password is not None)

    def all(self) -> Sequence[OwnKey | TrustedKey | RevokedKey]:
        """Your own keys, then the trusted ones, then the revoked ones."""
        trust = self._file.read()
        own = [OwnKey(name=name, key=self._own.public(name)) for name in self._own.names()]
        return [*own, *trust.keys, *trust.revoked]

    def show(self, name: str) -> NamedKey:
        """Return the public key of that name: a trusted one, or your own.

        Raises:
            NotFound: there is none.
        """
        known = next((trusted for trusted in self._file.read().keys if trusted.name == name), None)
        if known is not None:
            return NamedKey(name=name, key=known.key)
        if name in self._own.names():
            return NamedKey(name=name, key=self._own.public(name))
        raise NotFound(
            f"no key `{name}`, neither your own nor trusted", hint=f"`adapt key trust {name} FILE` trusts a public key"
        )

    def trust(
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
        from adapterhub.trust.signing.trust import Terms, parse_day

        try:
            end = parse_day(not_after) if not_after else None
        except ValueError as error:
            raise UsageProblem(f"--not-after: {error}", hint="write a day, as in `--not-after 2027-01-31`") from None
        found = self._key_in(name, file)
        terms = Terms(
            adapters=tuple(scope) or None, remotes=tuple(remotes) or None, not_after=end, accepts=tuple(accept)
        )
        return self._file.trust(name, found, terms, replace_key=replace)

    def untrust(self, name: str) -> TrustedKey:
        """Trust a key no longer, and return it. Installed adapters that it signed stay.

        Raises:
            NotFound: no trusted key has that name.
        """
        return self._file.untrust(name)

    def revoke(self, name: str, file: StrPath | None = None, *, reason: str = "") -> RevokedKey:
        """Refuse whatever a key signed, whenever it did, under every policy: it was stolen or lost.

        Args:
            name: of your own key or of a trusted one; with `file`, what to call it.
            file: a PEM file.
            reason: what refusals say.

        Raises:
            NotFound: no key is known by that name.
        """
        return self._file.revoke(name, self._key_in(name, file), reason)

    def _key_in(self, name: str, file: StrPath | None) -> PublicKey:
        """Return the key in a PEM file, or the one that is known by that name."""
        if file is None:
            return self.show(name).key
        path = path_of(file)
        return PublicKey.parse(_read(path), str(path))

    def policy(
        self,
        policy: SignaturePolicy | Literal["default"] | None = None,
        *,
        namespace: Namespace | None = None,
        remote: str | None = None,
    ) -> Sequence[PlacePolicy]:
        """Set the signature policy in general, of a namespace or of a remote; then return every policy there is.

        Args:
            policy: `require` accepts only what a trusted key signed, `warn` accepts the rest with a warning, `off`
                without one; `default` unsets it.
            namespace: the one whose policy it is.
            remote: the one whose policy it is.

        Raises:
            NotFound: no remote has that name.
            UsageProblem: `namespace` or `remote` without a policy, or both.
        """
        from adapterhub.trust.signing.trust import GENERAL

        if (namespace or remote) and (policy is None or (namespace and remote)):
            hint = "`adapt key policy` shows all policies"
            raise UsageProblem("`--namespace` and `--remote` each need a policy, and exclude each other", hint=hint)
        value = None if policy == "default" else policy
        if remote is not None:
            self._session.remotes.set_signatures(remote, value)
        elif policy is not None:
            self._file.set_policy(namespace, value)
        policies = {GENERAL: "default", **self._file.read().policies}
        policies |= {f"remote {one.name}": one.signatures for one in self._session.remotes.all() if one.signatures}
        return [PlacePolicy(place=place, policy=value) for place, value in policies.items()]

    def rotate(
        self,
        old: str,
        new: str,
        *,
        password: str | Callable[[], str | None] | None = None,
        push: bool = False,
        revoke: bool = False,
        reason: str = "",
        offline: bool = False,
    ) -> Rotated:
        """Go over from your key `old` to `new`, which is made unless you have it; a repeated call goes on.

        The new key is trusted where the old one is, and what the old one signed in the library is signed again. The
        revocation comes last, after every push.

        Args:
            old: name of your key so far.
            new: name of the other one.
            password: of the new key; a key that is made without one is not encrypted. A function is called if the key
                is made.
            push: also sign again the published versions that are installed here.
            revoke: then revoke the old key.
            reason: why it is revoked; refusals quote it.
            offline: ask no server what the old key signed there.

        Returns:
            What was signed again, and in `published` what the old key signed on servers.

        Raises:
            NotFound: you have no key `old`.
            Conflict: `new` names a key that you trust.
            UsageProblem: both are one key, or `reason` is not one line, or given without `revoke`.
            NotAllowed: the password is missing or wrong, or a server does not take a push.
            RemoteUnreachable: a push did not reach its server.
        """
        from adapterhub.library.intake.statements import files_in
        from adapterhub.library.results import ResultFiles
        from adapterhub.trust.signing.trust import parse_reason

        if parse_reason(reason) and not revoke:
            raise UsageProblem(
                "a reason is for `--revoke`. Nothing was changed", hint="add `--revoke`, or drop `--reason`"
            )
        session, library = self._session, self._session.library
        before = self._own.public(old)
        if old == new:
            raise UsageProblem(
                f"`{old}` is the old key and the new one. Nothing was changed",
                hint="choose another name for the new key",
            )
        if new not in self._own.names():
            if any(key.name == new for key in self._file.read().keys):
                raise Conflict(f"`{new}` is a key that you trust; nothing was changed", hint="choose another name")
            password = password() if callable(password) else password
            self._own.new(new, password)
        password = None if callable(password) else password
        signer = signing_key(session, new, password)
        self._file.succeed(before.fingerprint, new, signer.public)

        builds = list(library.installed())
        signers = [_signed_by(build) for build in builds]
        signed = []
        for build, (key, namespace) in zip(builds, signers, strict=True):
            if key == before.fingerprint:
                sign_build(library, build, namespace, signer)
                signed.append(str(build.spec))
        statements = 0  # signed results of tests on a build, and statements of how it was made
        for digest in [build.manifest.digest for build in builds]:
            for files in (ResultFiles.of_library(library.store, digest), files_in(library.store, digest)):
                statements += _sign_files(files, before, signer)

        ours = {before.fingerprint, signer.public.fingerprint}  # the new one, where an earlier call was interrupted
        namespaces = sorted({namespace for key, namespace in signers if namespace and key in ours})
        there = [] if offline else [one for name in namespaces for one in _published(session, name, before.fingerprint)]
        by_digest = {build.manifest.digest: build for build in builds}
        published = []
        for remote, one in there:
            here = by_digest.get(one.digest) if one.digest else None
            if push and here is not None:
                self._push(here.spec, to=one.repo, remote=remote.name, sign=True, key=new, password=password)
            published.append(_told(remote, one, here, new, is_done=push and here is not None))
        if revoke:
            self._file.revoke(old, before, reason or f"replaced by the key {new}")
        return Rotated(
            old=old,
            new=new,
            fingerprint=signer.public.fingerprint,
            is_trusted=self._file.read().key_of(signer.public.fingerprint) is not None,
            signed=tuple(signed),
            statements=statements,
            published=tuple(published),
            is_revoked=self._file.read().revoked_of(before.fingerprint) is not None,
        )


def _told(remote: Remote, one: Published, build: Installed | None, new: str, *, is_done: bool) -> SignedThere:
    spec = build.spec if build is not None else f"{one.repo}=={one.version}"
    command = f"adapt push '{spec}' --to {one.repo} --remote {remote.name} --sign --key {new}"
    if build is None:
        command = f"adapt install '{spec}' --remote {remote.name} && {command}"
    return SignedThere(server=remote.url, repo=one.repo, version=one.version, command=command, is_done=is_done)


def _signed_by(build: Installed) -> tuple[Digest | None, str | None]:
    """Return the key that the signature of a build names, and the namespace that it was made for.

    None without either.
    """
    from adapterhub.formats.manifest import SIGNATURE_FILE
    from adapterhub.formats.signature import read_statement
    from adapterhub.trust.signing.appraisal import read_signature

    with contextlib.suppress(SignatureRefused, ValueError):
        if raw := read_signature(build.folder / SIGNATURE_FILE):
            bundle = Bundle.parse(raw)
            identity = read_statement(bundle.payload).identity
            return bundle.hint, identity.namespace if identity else None
    return None, None


def _sign_files(files: SignedFiles, old: PublicKey, signer: SigningKey) -> int:
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
    """Yield the versions in a namespace that `old` signed, on every server that may have some; one request for each."""
    from adapterhub.distribution.kinds.hub import hub_behind
    from adapterhub.library.admission import Admission

    admission = Admission(session.library)
    for remote in session.remotes.all():
        if not admission.may_offer(remote.url, namespace):
            continue
        hub = hub_behind(session.open_remote(remote))
        if hub is None:
            continue
        try:
            for one in hub.published(namespace):
                raw = hub.signature_at(one.repo, one.commit)
                with contextlib.suppress(ValueError):
                    if raw is not None and Bundle.parse(raw).hint == old:
                        yield remote, one if one.digest else replace(one, digest=hub.digest_at(one.repo, one.commit))
        except (RemoteUnreachable, NotAllowed, AdapterNotFound, SignatureRefused) as error:
            session.out.warn(f"{remote.label} did not say what it has in `{namespace}`: {error.message}")


def _read(path: Path) -> bytes:
    from adapterhub.core.disk.files import ensure_there, read_plain
    from adapterhub.formats.signature import KEY_LIMIT_BYTES

    ensure_there(path, NotFound)
    try:
        return read_plain(path, KEY_LIMIT_BYTES)
    except OSError as error:
        raise UsageProblem(f"cannot read `{path}`: {error.strerror}", hint=CHECK_FILE) from None


# ---------------------------------------------------------------- signing
def sign_build(library: Library, build: Installed, namespace: str | None, signer: SigningKey) -> bool:
    """Sign a build unless the key has already signed it; returns whether it did."""
    from adapterhub.formats.manifest import SIGNATURE_FILE
    from adapterhub.library.intake.staging import attach_signature
    from adapterhub.trust.signing.appraisal import read_signature
    from adapterhub.trust.signing.keys import is_signed_by, sign_folder

    path = build.folder / SIGNATURE_FILE
    is_new = not is_signed_by(read_signature(path), build.manifest, namespace, signer.public)
    if is_new:
        raw = sign_folder(build.folder, build.manifest, namespace, signer)
        attach_signature(library.store, build.folder, raw)
    return is_new


def sign_made(library: Library, build: Installed, signer: SigningKey) -> Path:
    """Sign a statement of how a build was made, unless the key has already signed it; the file of the statement.

    Raises:
        UsageProblem: the build has no recipe: it was trained, or its maker recorded none.
    """
    import adapterhub
    from adapterhub.formats.signature import made_statement
    from adapterhub.library.intake.statements import files_in
    from adapterhub.trust.signing.results import read_made, sign_result
    from adapterhub.trust.signing.trust import Trust, clock

    manifest = build.manifest
    if not manifest.recipe:
        raise UsageProblem(
            f"{build.full_name} {manifest.label} has no recipe, so there is nothing to state. Nothing was signed",
            hint="`adapt merge` and `adapt resize` record one; `adapt key sign` without `--statement` signs the files",
        )
    files = files_in(library.store, manifest.digest)
    mine = Trust(keys=(TrustedKey(name="mine", key=signer.public),))
    for raw in files.read():
        with contextlib.suppress(SignatureRefused):
            if read_made(raw, mine, full_name=build.full_name, manifest=manifest, now=clock()).signer:
                return files.add(raw)
    return files.add(sign_result(made_statement(manifest, build.full_name, adapterhub.__version__), signer))


def signing_key(session: Session, name: str | None, password: str | None = None) -> SigningKey:
    """Return the key by that name, or the one of ADAPTERHUB_KEY, or the only one.

    The password is `password`, or ADAPTERHUB_PASSWORD, or what the user of the session types for an encrypted key.

    Raises:
        UsageProblem: no key is chosen, or it needs a password and stdin is not a terminal.
    """
    from adapterhub.trust.signing.keys import KeyFolder, SigningKey

    password = password if password is not None else session.variables.get("ADAPTERHUB_PASSWORD")
    given = session.variables.get("ADAPTERHUB_KEY")
    if name is None and given:
        parsed = SigningKey.parse(given.encode(), password, name="ADAPTERHUB_KEY", where="ADAPTERHUB_KEY")
        return _not_revoked(session, parsed)
    keys = KeyFolder(session.root)
    names = keys.names()
    if name is None and len(names) != 1:
        known = f"you have {', '.join(f'`{n}`' for n in names)}" if names else "you have none"
        hint = "choose one with `--key NAME`" if names else "`adapt key new NAME` creates one"
        raise UsageProblem(f"no signing key chosen, and {known}", hint=hint)
    chosen = name or names[0]
    if password is None and session.ask_password is not None and keys.is_encrypted(chosen):
        password = session.ask_password(chosen)
    return _not_revoked(session, keys.open(chosen, password))


def _not_revoked(session: Session, signer: SigningKey) -> SigningKey:
    if (gone := TrustFile(session.root).read().revoked_of(signer.public.fingerprint)) is not None:
        why = f": {gone.reason}" if gone.reason else ""
        raise NotAllowed(
            f"the key `{signer.name}` was revoked here{why}. Nothing was signed",
            hint="`adapt key new NAME` makes another; `--key NAME` signs with it",
        )
    return signer


# ---------------------------------------------------------------- servers
@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRemote(
    Remote,
    Documented,
    keys="name url namespaces default=is_default signatures witness=witness_text token=has_token",
    title="Remote",
):
    """A named server."""

    has_token: Annotated[bool, "whether a token is stored"] = False

    @property
    def witness_text(self) -> Annotated[str | None, "key of a witness that must have co-signed its log"]:
        """The key in the form of `signed-note`."""
        return None if self.witness is None else str(self.witness)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedIn(Documented, title="Login"):
    """A server with a stored token."""

    name: str | None
    url: str
    who: Annotated[str | None, "the user that the server recognises; null if it was not contacted"]
    scopes: Annotated[tuple[str, ...] | None, "what the token may do at most; null if it was not made here"] = None
    expires: Annotated[str | None, "RFC 3339; null if the token was not made here"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedOut(Documented, title="Logout"):
    """A server without a stored token."""

    url: str
    forgotten: Annotated[bool, "false: none was stored"]


@parsed
class KnownRemotes:
    """The servers that are known by name, their namespaces and tokens."""

    def __init__(self, session: Session) -> None:
        self._session, self._known = session, session.remotes
        self._warned: set[str] = set()

    def add(
        self,
        name: str,
        url: str,
        *,
        namespaces: Sequence[str] = (),
        default: bool = False,
        signatures: SignaturePolicy | None = None,
        witness: str | None = None,
    ) -> KnownRemote:
        """Name a server. A repeated call changes its namespaces; policy and witness stay unless one is given.

        Raises:
            Conflict: the name belongs to another URL, or another remote has one of the namespaces.
        """
        address = kind_of(url).parse_address(url) if is_url(url) else url
        made = self._known.add(
            name, address, namespaces=namespaces, default=default, signatures=signatures, witness=witness
        )
        if made.is_plain_text:
            self._session.out.warn(f"{made.url} is not encrypted: others on the network can read tokens and adapters")
        return self._told(made)

    def all(self) -> Sequence[KnownRemote]:
        """Return the servers in the order in which they are asked; the default one is marked."""
        chosen = self._session.remote(None).url
        return [replace(self._told(one), is_default=one.url == chosen) for one in self._known.all()]

    def get(self, remote: str) -> KnownRemote:
        """Return the server with that name or URL; any URL is accepted.

        Raises:
            NotFound: no remote has that name.
        """
        return self._told(self._known.get(remote))

    def remove(self, name: str) -> KnownRemote:
        """Remove a server and its token; installed adapters stay.

        Raises:
            NotFound: no remote has that name.
        """
        return self._told(self._known.remove(name))

    def login(self, remote: str, token: str | Callable[[], str]) -> LoggedIn:
        """Keep a token for a server, after asking the server whose it is; `.who` is None if it does not answer.

        A function is called for the token once the server is known.

        Raises:
            NotFound: no remote has that name.
            NotAllowed: the server does not take the token; nothing was kept.
        """
        place = self._known.get(remote)
        self._warn(place)
        token = (token() if callable(token) else token).strip()
        if not token:
            raise UsageProblem("no token given", hint=f"`adapt remote login {remote} < token.txt`")
        return self._kept(place, token)

    def _warn(self, place: Remote) -> None:
        """Warn, once for each server, that a token goes to it unencrypted."""
        if place.is_plain_text and place.url not in self._warned:
            self._warned.add(place.url)
            self._session.out.warn(f"{place.url} is not encrypted: others on the network can read the token")

    def _kept(self, place: Remote, token: str) -> LoggedIn:
        """Store a token that the server takes, or that cannot be checked now."""
        who = ""
        try:
            opened: Any = self._session.open_remote(place, token=token)
            who = opened.who()
        except RemoteUnreachable as error:
            self._session.out.warn(f"stored without a check: {error.message}")
        except NotAllowed as error:
            raise NotAllowed(f"{place.url} refuses this token; nothing was stored", hint=error.message) from None
        self._known.login(place, token)
        return LoggedIn(name=place.name or None, url=place.url, who=who or None)

    def sign_in(
        self,
        remote: str,
        show: Callable[[CodeToType], None],
        *,
        scopes: Sequence[str] = ("read", "write", "release"),
        days: int = 30,
    ) -> LoggedIn:
        """Keep a token that a person approves on a page of the registry, and that no one types or copies.

        Args:
            remote: a name or a URL.
            show: tells the person the code to type, before the wait begins.
            scopes: the most that the token may do: `read`, `write`, `release` or `administer`.
            days: how long it may work; the registry may shorten it.

        Raises:
            NotFound: no remote has that name.
            NotAllowed: the person refused, or approved nothing in time; nothing was kept.
            Conflict: the server makes no tokens in this way.
        """
        import socket

        from adapterhub.distribution.hub.device import approved_token

        place = self._known.get(remote)
        made = None
        if place.kind == HUB_NAME and place.url != HUB_URL:
            self._warn(place)
            client = f"adapt on {socket.gethostname()}"[:100].encode("ascii", "replace").decode()
            made = approved_token(place.url, client=client, scopes=scopes, days=days, show=show)
        if made is None:
            raise Conflict(
                f"{place.url} makes no tokens that a person approves", hint=f"`adapt remote login {remote} < token.txt`"
            )
        done = self._kept(place, made.token)
        return replace(done, scopes=made.scopes, expires=made.expires or None)

    def logout(self, remote: str) -> LoggedOut:
        """Delete the stored token of a server.

        Raises:
            NotFound: no remote has that name.
        """
        place = self._known.get(remote)
        return LoggedOut(url=place.url, forgotten=self._known.logout(place))

    def _told(self, remote: Remote) -> KnownRemote:
        facts = {field.name: getattr(remote, field.name) for field in fields(remote)}
        return KnownRemote(**facts, has_token=self._known.has_token(remote))
