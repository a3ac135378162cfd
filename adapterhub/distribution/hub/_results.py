"""The signed results of tests that our registry keeps, and what a namespace asks of a version."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import quote

from adapterhub.core.digests import parse_digest
from adapterhub.core.errors import AdapterNotFound, NotAllowed, RemoteUnreachable, UsageProblem, shown
from adapterhub.distribution.http.wire import Wire
from adapterhub.formats.administration import NamespaceRule, TesterKey
from adapterhub.formats.contract.attested import RESULT_LIMIT_BYTES, Attested
from adapterhub.formats.manifest import CONTRACT_FILE, Manifest
from adapterhub.formats.signed import Bundle

FEATURE: Final = "tests"
_API: Final = "api/adapt/v1"
_MOST: Final = 100


class RegistryResults:
    """The results on one server, which keeps them if `is_offered`; making this sends nothing."""

    def __init__(self, wire: Wire, offers: Callable[[], bool]) -> None:
        self._wire = wire
        self._offers = offers

    @property
    def is_offered(self) -> bool:
        """Whether the server keeps results."""
        return self._offers()

    def on(self, repo: str, version: str) -> list[bytes]:
        """The results on a version, the newest first, unverified; none where the version is unknown."""
        if not self.is_offered:
            return []
        try:
            with self._wire.plainly(f"results on `{repo}` {version}"):
                told = self._wire.json(_path(repo, version))
        except AdapterNotFound:
            return []
        try:
            found = [one["bundle"].encode() for one in told["results"][:_MOST]]
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise self._nonsense(error) from None
        return [raw for raw in found if len(raw) <= RESULT_LIMIT_BYTES]

    def send(self, repo: str, version: str, raw: bytes) -> None:
        """Store a result on a version.

        Raises:
            UsageProblem: the server keeps none.
            NotAllowed, Conflict, RemoteUnreachable: the server does not take it.
        """
        if not self.is_offered:
            raise UsageProblem(f"{self._wire.endpoint} keeps no signed results of tests. Nothing was sent")
        with self._wire.plainly(f"result on `{repo}` {version}"):
            self._wire.put(_path(repo, version), raw)

    def rule(self, namespace: str) -> NamespaceRule:
        """What a namespace asks; a server that keeps no results asks nothing."""
        if not self.is_offered:
            return NamespaceRule(namespace=namespace)
        with self._wire.plainly(f"tests of `{namespace}`"):
            told = self._wire.json(f"{_API}/namespaces/{quote(namespace, safe='')}/tests")
        try:
            keys = [
                TesterKey(name=shown(str(one["name"]), 64), fingerprint=parse_digest(one["fingerprint"]), pem="")
                for one in told["keys"]
            ]
            return NamespaceRule(namespace=namespace, asks=told["asks"], keys=tuple(keys))
        except (LookupError, TypeError, ValueError) as error:
            raise self._nonsense(error) from None

    def ensure_may_publish(self, repo: str, manifest: Manifest, results: Sequence[bytes], *, is_new: bool) -> None:
        """Refuse to send what the namespace would not publish; the server decides when the version gets its tag.

        Raises:
            NotAllowed: there is no contract, or no PASS by a key of the namespace goes along or is there.
        """
        rule = self.rule(repo.partition("/")[0])
        if rule.asks not in ("contract", "passed"):
            return
        what = f"`{rule.namespace}` on {self._wire.endpoint} publishes only versions with"
        if manifest.file(CONTRACT_FILE) is None:
            raise NotAllowed(
                f"{what} a contract, and {manifest.name} {manifest.version} has none. Nothing was sent",
                hint=f"`adapt contract record {manifest.name} --examples FILE` makes the next version with one",
            )
        there = [] if is_new else self.on(repo, manifest.version)
        if rule.asks == "passed" and not any(_passes(raw, rule) for raw in [*results, *there]):
            names = ", ".join(f"`{name}`" for name in sorted(key.name for key in rule.keys))
            raise NotAllowed(
                f"{what} a PASS by {names or 'one of its keys'}, and {manifest.name} {manifest.version} has none. "
                "Nothing was sent",
                hint=f"`adapt test {manifest.name} --sign --key NAME` makes one, which the next push takes along; "
                "`adapt mirror --tests` brings those of another server",
            )

    def _nonsense(self, error: Exception) -> RemoteUnreachable:
        return RemoteUnreachable(f"{self._wire.endpoint} sent no valid results: {shown(repr(error), 160)}")


def _passes(raw: bytes, rule: NamespaceRule) -> bool:
    try:
        bundle = Bundle.parse(raw)
        return rule.key_of(bundle.hint) is not None and Attested.parse(bundle.payload).verdict == "PASS"
    except ValueError:
        return False


def _path(repo: str, version: str) -> str:
    return f"{_API}/adapters/{repo}/tests/{quote(version, safe='')}"
