"""The command `adapt registry tests`: what a namespace asks of new versions, on the server's machine or from afar."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import click

from adapterhub.core.disk.files import read_plain
from adapterhub.core.errors import NotFound, RemoteUnreachable, UsageProblem, shown
from adapterhub.formats.signed import KEY_LIMIT_BYTES
from adapterhub_registry.access.tokens import LOCAL
from adapterhub_registry.operations.far import FarRegistry
from adapterhub_registry.operations.far_options import far_registry, local_database, where_options
from adapterhub_registry.operations.options import JSON
from adapterhub_registry.results.rules import ASKS, NamespaceRule, TesterKey, change_rule, rule_of


class FarTests(FarRegistry):
    """The rules of namespaces on the registry at `url`; to change one takes an administrator's token of all of it."""

    needs: ClassVar[str] = "a token with the role `admin` for the whole namespace"

    def rule(self, namespace: str) -> NamespaceRule:
        """The rule of a namespace."""
        return self._read(self.send("GET", f"namespaces/{quote(namespace, safe='')}/tests"))

    def change(
        self,
        namespace: str,
        *,
        asks: str | None,
        keys_only: bool | None,
        trust: Sequence[tuple[str, str]],
        distrust: Sequence[str],
    ) -> NamespaceRule:
        """Change the rule of a namespace; see `change_rule`."""
        body = {"asks": asks, "keys_only": keys_only, "distrust": list(distrust)}
        keys = [{"name": name, "pem": pem} for name, pem in trust]
        return self._read(self.send("POST", f"namespaces/{quote(namespace, safe='')}/tests", body | {"trust": keys}))

    def _read(self, answer: dict[str, object]) -> NamespaceRule:
        try:
            keys = [
                TesterKey(name=str(key["name"]), fingerprint=str(key["fingerprint"])[7:], pem=str(key["pem"]))
                for key in answer["keys"]  # type: ignore[attr-defined]  # else it raises what is caught
            ]
            return NamespaceRule(
                namespace=str(answer["namespace"]),
                asks=answer["asks"],  # type: ignore[arg-type]  # a word of the server
                keys_only=answer["keys_only"] is True,
                keys=tuple(keys),
            )
        except (LookupError, TypeError) as error:
            raise RemoteUnreachable(f"{self.url} sent no rule: {shown(repr(error), 160)}") from None


@click.command()
@click.argument("namespace")
@click.option(
    "--require",
    "asks",
    type=click.Choice(ASKS),
    help="Publish only versions with a contract, or with a PASS by a key of the namespace as well.",
)
@click.option(
    "--trust", multiple=True, metavar="NAME=FILE", help="Let the results of this public key count; repeatable."
)
@click.option("--distrust", multiple=True, metavar="NAME", help="Remove this key; repeatable.")
@click.option("--keys-only/--any-key", default=None, help="Store results by these keys only, or by any key.")
@where_options("Namespace administrator's")
@JSON
def tests(
    namespace: str,
    asks: str | None,
    trust: tuple[str, ...],
    distrust: tuple[str, ...],
    keys_only: bool | None,
    as_json: bool,
    **given: object,
) -> None:
    """Show or change what NAMESPACE asks of a version before it is published.

    `contract` asks for a contract in the adapter. `passed` also asks for a signed PASS by one of the namespace's keys,
    by that contract and on the base that the adapter declares. Versions that are published already stay.

    \b
    Examples:
      adapt registry tests acme --url https://registry.example.org
      adapt registry tests acme --require passed --trust ben=ben.pub --url https://registry.example.org
      adapt registry tests acme --require off --root ./registry-data
    """
    changes = {
        "asks": asks,
        "keys_only": keys_only,
        "trust": [_key_file(text) for text in trust],
        "distrust": distrust,
    }
    changed = any(value not in (None, [], ()) for value in changes.values())
    far = far_registry(given, FarTests)
    if far is not None:
        rule = far.change(namespace, **changes) if changed else far.rule(namespace)  # type: ignore[arg-type]
    else:
        with local_database(given).begin() as connection:
            rule = rule_of(connection, namespace)
            if changed:
                rule = change_rule(connection, namespace, by=LOCAL, **changes)  # type: ignore[arg-type]
    _show(rule, as_json=as_json)


def _key_file(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if not name or not path:
        raise UsageProblem(f"--trust `{shown(text)}`: expected NAME=FILE", hint="such as `--trust ben=ben.pub`")
    try:
        raw = read_plain(Path(path), KEY_LIMIT_BYTES)
    except OSError as error:
        raise NotFound(f"no key `{shown(path, 200)}`: {error.strerror}; nothing was changed") from None
    return name, raw.decode("utf-8", "replace")


def _show(rule: NamespaceRule, *, as_json: bool) -> None:
    keys = [{"name": key.name, "fingerprint": f"sha256:{key.fingerprint}"} for key in rule.keys]
    if as_json:
        document = {"namespace": rule.namespace, "asks": rule.asks, "keys_only": rule.keys_only, "keys": keys}
        click.echo(json.dumps(document, indent=1))
        return
    asked = {"off": "nothing", "contract": "a contract", "passed": "a contract, and a PASS by one of its keys"}
    click.echo(f"{rule.namespace} asks of a new version: {asked[rule.asks]}")
    click.echo(f"results: {'by these keys only' if rule.keys_only else 'by any key, where the sender may write'}")
    for key in keys:
        click.echo(f"key {key['name']}\t{key['fingerprint']}")
