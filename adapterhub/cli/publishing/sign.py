"""`adapt sign`: put a signature beside the files of an installed build."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_own_key
from adapterhub.cli.options.params import SPEC, Session, common, rank_options
from adapterhub.core.errors import UsageProblem
from adapterhub.projects.session import wanted_from

if TYPE_CHECKING:
    from adapterhub.core.specs import AdapterSpec
    from adapterhub.library.library import Library
    from adapterhub.library.store.catalog import Installed
    from adapterhub.trust.signing.keys import SigningKey


@click.command()
@click.argument("spec", type=SPEC)
@click.option(
    "--key",
    metavar="NAME",
    shell_complete=complete_own_key,
    help="The key to sign with [default: ADAPTERHUB_KEY, else your only key].",
)
@click.option("--namespace", metavar="NAMESPACE", help="The namespace it is signed for [default: the one it has here].")
@rank_options
@common
def sign(
    session: Session,
    spec: AdapterSpec,
    key: str | None,
    namespace: str | None,
    rank: int | None,
    min_rank: int | None,
    max_rank: int | None,
) -> None:
    """Sign an installed adapter: `model.sig` beside its files, for this name, version, base, rank and parents.

    The file goes along with `push`, `mirror` and `pull`, and `model_signing` reads it. Every file is read again first.

    \b
    Examples:
      adapt sign legal-qa@base-7b
      adapt sign legal-qa@base-7b==1.0.0 --key ana --namespace acme
    """
    from adapterhub.core.ranks import RankRange
    from adapterhub.core.specs import parse_namespace
    from adapterhub.distribution.choosing import look_up

    library = session.library
    bounds = RankRange(rank=rank, min_rank=min_rank, max_rank=max_rank)
    build, _ = look_up(library, spec, wanted=wanted_from(library, spec, None), bounds=bounds)
    if namespace is not None:
        parse_namespace(namespace)
    signer = signing_key(session, key)
    document = sign_build(library, build, namespace or build.namespace, signer)
    session.out.result(document, lambda: session.out.line(_text(build, document)))


def sign_build(library: Library, build: Installed, namespace: str | None, signer: SigningKey) -> dict[str, Any]:
    """Sign a build with an opened key, unless it is signed so already; what was done, as JSON."""
    from adapterhub.formats.manifest import SIGNATURE_FILE
    from adapterhub.library.store.signatures import attach_signature
    from adapterhub.trust.signing.making import is_signed_by, sign_folder
    from adapterhub.trust.signing.provenance import read_signature

    path = build.folder / SIGNATURE_FILE
    is_new = not is_signed_by(read_signature(path), build.manifest, namespace, signer.public)
    if is_new:
        raw = sign_folder(build.folder, build.manifest, namespace, signer)
        attach_signature(library.store, build.folder, raw)
    return {
        "name": build.full_name,
        "version": build.manifest.version,
        "namespace": namespace,
        "digest": build.manifest.digest,
        "key": signer.name,
        "fingerprint": signer.public.fingerprint,
        "path": str(path),
        "created": is_new,
    }


def signing_key(session: Session, name: str | None) -> SigningKey:
    """The key that `--key` names, else the one of the environment, else the only one; its password is asked for.

    Raises:
        UsageProblem: nothing says which, or there is nobody to ask for a password.
    """
    from adapterhub.trust.signing.keys import KeyFolder, SigningKey

    password = os.environ.get("ADAPTERHUB_PASSWORD")
    given = os.environ.get("ADAPTERHUB_KEY")
    if name is None and given:
        return SigningKey.parse(given.encode(), password, name="ADAPTERHUB_KEY", where="ADAPTERHUB_KEY")
    keys = KeyFolder(session.root)
    names = keys.names()
    if name is None and len(names) != 1:
        known = f"there are {', '.join(f'`{n}`' for n in names)}" if names else "there is none"
        raise UsageProblem(f"no key to sign with was named, and {known}",
                           hint="`--key NAME` names one" if names else "`adapt key new NAME` makes one")  # fmt: skip
    chosen = name or names[0]
    if password is None and keys.is_encrypted(chosen) and sys.stdin.isatty():
        password = click.prompt(f"password of key {chosen}", hide_input=True, err=True)
    return keys.open(chosen, password)


def _text(build: Installed, document: dict[str, Any]) -> str:
    done = "signed" if document["created"] else "signed already:"
    where = f" for `{document['namespace']}`" if document["namespace"] else ""
    return f"{done} {build.full_name} {build.manifest.label}{where} with {document['key']}  {document['path']}"
