"""Keys and tokens: sign a build, trust a key, log in to a server."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.core.errors import NotAllowed, NotFound, RemoteUnreachable, SignatureRefused, UsageProblem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.formats.signed import PublicKey
    from adapterhub.library.library import Library
    from adapterhub.library.remotes import Remote
    from adapterhub.library.store.catalog import Installed
    from adapterhub.projects.session import Session
    from adapterhub.trust.signing.keys import SigningKey
    from adapterhub.trust.signing.trust import RevokedKey, TrustedKey


def sign_build(library: Library, build: Installed, namespace: str | None, signer: SigningKey) -> bool:
    """Sign a build unless the key has already signed it; returns whether it did."""
    from adapterhub.formats.manifest import SIGNATURE_FILE
    from adapterhub.library.store.signatures import attach_signature
    from adapterhub.trust.signing.making import is_signed_by, sign_folder
    from adapterhub.trust.signing.provenance import read_signature

    path = build.folder / SIGNATURE_FILE
    is_new = not is_signed_by(read_signature(path), build.manifest, namespace, signer.public)
    if is_new:
        raw = sign_folder(build.folder, build.manifest, namespace, signer)
        attach_signature(library.store, build.folder, raw)
    return is_new


def sign_made(library: Library, build: Installed, signer: SigningKey) -> Path:
    """Sign a statement of how a build was made, unless the key has already signed it; the file of the statement.

    Raises:
        UsageProblem: the build has no recipe: it was trained, or its maker says nothing.
    """
    import adapterhub
    from adapterhub.formats.made import made_statement
    from adapterhub.library.intake.statements import files_in
    from adapterhub.trust.signing.results import sign_result
    from adapterhub.trust.signing.statements import read_made
    from adapterhub.trust.signing.trust import Trust, TrustedKey, clock

    manifest = build.manifest
    if not manifest.recipe:
        raise UsageProblem(
            f"{build.full_name} {manifest.label} has no recipe, so there is nothing to state. Nothing was signed",
            hint="`adapt merge` and `adapt resize` record one; `adapt sign` without `--statement` signs the files",
        )
    files = files_in(library.store, manifest.digest)
    mine = Trust(keys=(TrustedKey(name="mine", key=signer.public),))
    for raw in files.read():
        with contextlib.suppress(SignatureRefused):
            if read_made(raw, mine, full_name=build.full_name, manifest=manifest, now=clock()).signer:
                return files.add(raw)
    return files.add(sign_result(made_statement(manifest, build.full_name, adapterhub.__version__), signer))


def signing_key(session: Session, name: str | None, password: str | None = None) -> SigningKey:
    """The key by that name, else the one of ADAPTERHUB_KEY, else the only one.

    The password is `password`, else ADAPTERHUB_PASSWORD, else what the user of the session types for an encrypted key.

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
    from adapterhub.trust.signing.trust import TrustFile

    if (gone := TrustFile(session.root).read().revoked_of(signer.public.fingerprint)) is not None:
        why = f": {gone.reason}" if gone.reason else ""
        raise NotAllowed(
            f"the key `{signer.name}` was revoked here{why}. Nothing was signed",
            hint="`adapt key new NAME` makes another; `--key NAME` signs with it",
        )
    return signer


def revoke_key(session: Session, name: str, file: Path | None = None, *, reason: str = "") -> RevokedKey:
    """Refuse whatever a key signed: that in a PEM file, or the one that is known by that name.

    Raises:
        NotFound: no key is known by that name.
    """
    from adapterhub.formats.signed import PublicKey
    from adapterhub.trust.signing.trust import TrustFile

    found = PublicKey.parse(_read(file), str(file)) if file else public_key(session, name)
    return TrustFile(session.root).revoke(name, found, reason)


def trust_key(
    session: Session,
    name: str,
    file: Path | None = None,
    *,
    scope: Sequence[str] = (),
    remotes: Sequence[str] = (),
    not_after: str | None = None,
    replace: bool = False,
    accept: Sequence[str] = (),
) -> TrustedKey:
    """Trust a public key in a PEM file, or the key that is known by that name, under these terms."""
    from adapterhub.formats.signed import PublicKey
    from adapterhub.trust.signing.trust import Terms, TrustFile, parse_day

    try:
        end = parse_day(not_after) if not_after else None
    except ValueError as error:
        raise UsageProblem(f"--not-after: {error}") from None
    found = PublicKey.parse(_read(file), str(file)) if file else public_key(session, name)
    terms = Terms(adapters=tuple(scope) or None, remotes=tuple(remotes) or None, not_after=end, accepts=tuple(accept))
    return TrustFile(session.root).trust(name, found, terms, replace_key=replace)


def _read(path: Path) -> bytes:
    from adapterhub.core.disk.files import read_plain
    from adapterhub.core.disk.nearest import ensure_there
    from adapterhub.formats.signed import KEY_LIMIT_BYTES

    ensure_there(path, NotFound)
    try:
        return read_plain(path, KEY_LIMIT_BYTES)
    except OSError as error:
        raise UsageProblem(f"cannot read `{path}`: {error.strerror}") from None


def public_key(session: Session, name: str) -> PublicKey:
    """The key of that name: a trusted one, else your own."""
    from adapterhub.trust.signing.keys import KeyFolder
    from adapterhub.trust.signing.trust import TrustFile

    known = next((trusted for trusted in TrustFile(session.root).read().keys if trusted.name == name), None)
    if known is not None:
        return known.key
    keys = KeyFolder(session.root)
    if name in keys.names():
        return keys.public(name)
    raise NotFound(
        f"no key `{name}`, neither your own nor trusted", hint=f"`adapt key trust {name} FILE` trusts a public key"
    )


def login_to(session: Session, remote: Remote, token: str) -> str:
    """Keep a token for a server, after asking the server whose it is; "" where the server does not answer.

    Raises:
        NotAllowed: the server does not take it; nothing was kept.
    """
    who = ""
    try:
        opened: Any = session.open_remote(remote, token=token)
        who = opened.who()
    except RemoteUnreachable as error:
        session.out.warn(f"stored without a check: {error.message}")
    except NotAllowed as error:
        raise NotAllowed(f"{remote.url} refuses this token; nothing was stored", hint=error.message) from None
    session.remotes.login(remote, token)
    return who
