"""`adapt key`: manage your key pairs, trusted keys and signature policies."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from adapterhub.cli.completion.completing import complete_own_key, complete_remote
from adapterhub.cli.groups import Group
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.params import SPEC, Session, common, rank_option
from adapterhub.core.errors import UsageProblem
from adapterhub.trust.signing.policy import SignaturePolicy

if TYPE_CHECKING:
    from adapterhub.core.specs import AdapterSpec
    from adapterhub.trust.signing.trust import TrustedKey


@click.group(cls=Group)
def key() -> None:
    """Sign adapters; manage keys, trust and signature policies.

    \b
    Examples:
      adapt key new ana
      adapt key sign legal-qa
      adapt key trust ben ./ben.pub --scope 'acme/*'
    """


@key.command("new")
@click.argument("name")
@click.option("--unencrypted", is_flag=True, help="Store the private key without a password, for automated machines.")
@common
def new_(session: Session, name: str, unencrypted: bool) -> None:
    """Create a P-256 key pair. The private key stays here, encrypted and readable only by you.

    Reads the password from ADAPTERHUB_PASSWORD, or asks for it on a terminal.

    \b
    Example:
      adapt key new ana
    """
    made = session.opened.keys.new(name, _new_password(unencrypted=unencrypted))
    session.out.result(made.to_json(), lambda: session.out.line(f"{name}  {made.fingerprint}  {made.public}"))
    session.out.note("share the public key and its fingerprint over different channels; keep the private key secret")


@key.command("list")
@common
def list_(session: Session) -> None:
    """List your own keys and the trusted keys.

    \b
    Example:
      adapt key list
    """
    rows = [one.to_json() for one in session.opened.keys.all()]
    columns = ("name", "kind", "fingerprint", "adapters", "remotes", "not after")
    cells = [
        (
            r["name"],
            r["kind"],
            r["fingerprint"],
            " ".join(r.get("adapters", ())),
            " ".join(r.get("remotes", ())),
            (r.get("not_after") or "")[:10],
        )
        for r in rows
    ]
    session.out.result(rows, lambda: session.out.table(columns, cells))


@key.command("show")
@click.argument("name", shell_complete=complete_own_key)
@common
def show(session: Session, name: str) -> None:
    """Print your own or a trusted public key as PEM on stdout, and its fingerprint on stderr.

    \b
    Example:
      adapt key show ana > ana.pub
    """
    found = session.opened.keys.show(name)
    session.out.result(found.to_json(), lambda: session.out.line(found.key.pem.rstrip()))
    session.out.note(f"fingerprint {found.key.fingerprint}")


@key.command("trust")
@click.argument("name")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--scope", multiple=True, metavar="GLOB", help="Trust it for adapters such as `acme/*`; repeatable [*].")
@click.option("--remote", "remotes", multiple=True, metavar="GLOB", help="Trust it on these remotes; repeatable [*].")
@click.option("--not-after", metavar="DAY", help="Trust it until this day, such as 2027-01-31 [never ends].")
@click.option("--replace", is_flag=True, help="Replace the key of that name, which then no longer signs its adapters.")
@click.option("--accept", multiple=True, metavar="GLOB", help="Let it sign adapters of another key; repeatable.")
@common
def trust(session: Session, name: str, file: Path | None, **options: Any) -> None:
    """Trust a public key (a PEM file) and print its fingerprint. Compare the fingerprint with its owner's.

    Without FILE, trusts your own key of that name, or changes the terms of a trusted key. An adapter that another key
    has signed so far stays refused until you `--replace` that key or `--accept` the change.

    \b
    Examples:
      adapt key trust ana
      adapt key trust ben ./ben.pub --scope 'acme/*' --not-after 2027-12-31
      adapt key trust ben --accept acme/legal-qa
    """
    made = session.opened.keys.trust(name, file, **options)
    session.out.result(made.to_json(), lambda: session.out.line(_text(made)))


@key.command("untrust")
@click.argument("name")
@common
def untrust(session: Session, name: str) -> None:
    """Stop trusting a key. Installed adapters that it signed stay.

    \b
    Example:
      adapt key untrust ben
    """
    gone = session.opened.keys.untrust(name)
    session.out.result(
        gone.to_json(), lambda: session.out.line(f"{gone.name}  {gone.fingerprint}  is no longer trusted")
    )


@key.command("revoke")
@click.argument("name")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--reason", default="", metavar="TEXT", help="The reason, which refusals show.")
@common
def revoke(session: Session, name: str, file: Path | None, reason: str) -> None:
    """Refuse whatever a key signed, whenever it did: it was stolen or lost. No policy lets it in.

    Without FILE, revokes the key that is trusted by that name, or your own. `install`, every command that uses a
    build, `verify` and `audit` then refuse its signatures with the reason, and `sign` refuses to use it. To go on with
    a new key, run `adapt key rotate`; others run `adapt key trust NAME FILE --replace`.

    \b
    Examples:
      adapt key revoke ben --reason "stolen on 2026-11-30"
      adapt key revoke old-ci ./old-ci.pub
    """
    gone = session.opened.keys.revoke(name, file, reason=reason)
    session.out.result(gone.to_json(), lambda: session.out.line(f"{gone.name}  {gone.fingerprint}  is revoked"))


@key.command("sign")
@click.argument("spec", type=SPEC)
@click.option(
    "--key",
    metavar="NAME",
    shell_complete=complete_own_key,
    help="Sign with this key [default: ADAPTERHUB_KEY, or your only key].",
)
@click.option("--namespace", metavar="NAMESPACE", help="Sign for this namespace [default: the adapter's own].")
@click.option("--statement", is_flag=True, help="Also sign how it was merged: parents, weights, base and recipe.")
@rank_option
@common
def sign(session: Session, spec: AdapterSpec, **options: Any) -> None:
    """Sign an installed adapter: write `model.sig` for its name, version, base, rank, parents and files.

    Checks every file first. `push`, `mirror` and `pull` copy the signature, and `model_signing` can verify it.
    The statement of --statement is in-toto's, SLSA provenance; `push` sends it to directories and OCI registries.

    \b
    Examples:
      adapt key sign legal-qa@base-7b
      adapt key sign legal-qa@base-7b==1.0.0 --key ana --namespace acme
      adapt key sign all-in-one --statement
    """
    signed = session.opened.sign(spec, **options)
    done = "signed" if signed.created else "already signed:"
    what = f"{signed.build.full_name} {signed.build.manifest.label}"
    where = f" for `{signed.namespace}`" if signed.namespace else ""
    made = f"\nstated how it was made  {signed.statement}" if signed.statement else ""
    text = f"{done} {what}{where} with {signed.key}  {signed.path}{made}"
    session.out.result(signed.to_json(), lambda: session.out.line(text))


@key.command("rotate")
@click.argument("old", shell_complete=complete_own_key)
@click.argument("new")
@click.option("--unencrypted", is_flag=True, help="Store the new private key without a password.")
@click.option("--push", is_flag=True, help="Also sign again the published versions that are installed here.")
@click.option("--revoke", is_flag=True, help="Then revoke the old key: whatever it signed is refused here.")
@click.option("--reason", default="", metavar="TEXT", help="The reason of the revocation, which refusals show.")
@click.option("--offline", is_flag=True, help="Ask no server what the old key signed there.")
@common
def rotate(session: Session, old: str, new: str, unencrypted: bool, **options: Any) -> None:
    """Go over from your key OLD to NEW, which is made unless you have it.

    Trusts NEW where OLD is trusted here, signs again what OLD signed in the library, and lists the published versions
    that OLD signed, with the command that signs each again. OLD stays trusted until you `--revoke` it. Interrupted, the
    command goes on when you run it again.

    \b
    Examples:
      adapt key rotate ana ana-2
      adapt key rotate ana ana-2 --push --revoke --reason "stolen on 2026-11-30"
    """
    password = functools.partial(_new_password, unencrypted=unencrypted)
    done = session.opened.keys.rotate(old, new, password=password, **options)

    def text() -> None:
        session.out.line(f"{new}  {done.fingerprint}" + ("  is trusted" if done.is_trusted else ""))
        for spec in done.signed:
            session.out.line(f"signed {spec} again")
        if done.statements:
            session.out.line(f"signed {done.statements} results and statements again")
        for one in done.published:
            there = f"{one.repo} {one.version} on {one.server}"
            session.out.line(f"signed {there} again" if one.is_done else f"still signed by {old}: {there}")
        if done.is_revoked:
            session.out.line(f"{old}  is revoked")

    session.out.result(done.to_json(), text)
    for one in done.published:
        if not one.is_done:
            session.out.hint(f"`{one.command}`")


@key.command("policy")
@click.argument("policy", required=False, type=kind_of(SignaturePolicy, "default"))
@click.option("--namespace", metavar="NAMESPACE", help="Set the policy of this namespace only.")
@click.option("--remote", metavar="NAME", shell_complete=complete_remote, help="Set the policy of this server only.")
@common
def policy(session: Session, policy: SignaturePolicy | Literal["default"] | None, **options: Any) -> None:
    """Set the signature policy, in general, of a namespace or of a server; without an argument, show all policies.

    `require`: accept only adapters that a trusted key signed. `warn`: accept others with a warning. `off`: accept
    others silently. `default`: accept unsigned adapters silently and unknown keys with a warning. Every policy refuses
    a false signature. The policy of the namespace comes first, then the remote's, then the general one.

    \b
    Examples:
      adapt key policy require --namespace acme
      adapt key policy default --remote ours
      adapt key policy
    """
    policies = session.opened.keys.policy(policy, **options)
    cells = [("in general" if one.place == "*" else one.place, one.policy) for one in policies]
    session.out.result([one.to_json() for one in policies], lambda: session.out.table(("place", "policy"), cells))


def _new_password(*, unencrypted: bool) -> str | None:
    password = None if unencrypted else os.environ.get("ADAPTERHUB_PASSWORD")
    if not unencrypted and not password:
        if not sys.stdin.isatty():
            raise UsageProblem(
                "the new key needs a password",
                hint="set ADAPTERHUB_PASSWORD, or pass `--unencrypted` to store the key without one",
            )
        password = click.prompt("password for the new key", hide_input=True, confirmation_prompt=True, err=True)
    return password


def _text(made: TrustedKey) -> str:
    parts = [f"trusted {made.name}  {made.fingerprint}", f"for {' '.join(made.adapters)}"]
    if made.remotes != ("*",):
        parts.append(f"from {' '.join(made.remotes)}")
    if made.end is not None:
        parts.append(f"until {made.end[:10]}")
    return "  ".join(parts)
