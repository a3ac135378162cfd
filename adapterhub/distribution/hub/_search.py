"""Searches a server, by our registry's index or by the tags that every hub has; and the results of tests there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

from adapterhub.core.digests import Digest, parse_digest
from adapterhub.core.errors import (
    SEARCH_THERE,
    AdapterNotFound,
    NotAllowed,
    RemoteUnreachable,
    UsageProblem,
    no_adapter,
    shown,
)
from adapterhub.core.ranks import ANY_RANK, RankRange
from adapterhub.core.specs import AdapterSpec, is_hub_id
from adapterhub.distribution.http.wire import Wire
from adapterhub.distribution.hub._versions import PublishedVersion
from adapterhub.formats.administration import NamespaceRule, TesterKey
from adapterhub.formats.contract.results import RESULT_LIMIT_BYTES, Attested
from adapterhub.formats.documented import Documented
from adapterhub.formats.manifest import CONTRACT_FILE, Manifest
from adapterhub.formats.relevance import Matched
from adapterhub.formats.signature import Bundle

PAGE = 100
TAG_HEX = 32
"""Hex digits of a base's digest in a tag: hubs bound the length of tags."""

SCANNED = 1000
"""How many repositories with the right tags are checked for a range of ranks, which tags cannot express."""


SHOWN_CHARACTERS: Final = 200
"""Of a text that a server sends, so many are shown."""
LEAST_COSINE: Final = 0.9
"""Servers list none below."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """The conditions of a search, all of which have to hold. `base_weights` is a digest or a prefix of one.

    `license` is as the card states it, `signed` asks for a signature, and `tested` for recorded tests.
    """

    text: str = ""
    all_words: bool = False
    by: Literal["auto", "words", "meaning"] = "auto"
    base_weights: str = ""
    base_hub_id: str = ""
    task: str = ""
    ranks: RankRange = ANY_RANK
    method: str = ""
    license: str = ""
    signed: bool = False
    tested: bool = False
    limit: int = PAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchHit:
    """One repository with an adapter, from the server's index; not checked."""

    repo: str
    name: str | None
    version: str | None
    base_hub_id: str | None
    base_weights: Annotated[str | None, "`sha256:` and 64 hex digits"]
    task: str | None
    rank: int | None
    method: tuple[str, ...]
    description: str
    digest: Annotated[str | None, "`sha256:` and 64 hex digits"]
    score: Annotated[float | None, "how well it fits the text, more is better; null where the server does not say"] = (
        None
    )
    by: Annotated[str | None, "`words` or `meaning`: what the score compares"] = None
    matched: Matched | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OneAlikeThere(Documented):
    """A build on a server whose update is alike; below 0, `cosine` is that of the opposite. Not checked."""

    repo: str
    version: Annotated[str | None, "null for a commit without a release"]
    commit: str
    digest: Digest
    cosine: Annotated[float, "an estimate, rounded to 0.01"]
    same_base: Annotated[bool, "both declare one base"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AlikeThere(Documented):
    """What a server finds alike, among what the caller may read there."""

    repo: str
    version: str
    digest: Digest
    state: Annotated[str, "`made`; `waiting` for a worker of the server; `none`: nothing to compare"]
    similar: tuple[OneAlikeThere, ...]


def alike_on(
    wire: Wire,
    spec: AdapterSpec,
    above: float,
    features: frozenset[str],
    versions: Callable[[str], Sequence[PublishedVersion]],
) -> AlikeThere:
    """Return the builds on a registry like the newest release of `spec` that is not yanked, with cosines from `above`.

    Raises:
        UsageProblem: the server does not compare updates, or `above` is not from 0.9 to 1.
        AdapterNotFound: it has no such release.
    """
    if not LEAST_COSINE <= above <= 1:
        raise UsageProblem(f"`above` is {above}, expected {LEAST_COSINE} to 1, as a server lists no others")
    if "similar" not in features:
        raise UsageProblem(f"{wire.endpoint} does not compare updates", hint="install the adapter and compare here")
    places = [one for one in versions(spec.full_name) if one.yanked is None and spec.matches(str(one.version))]
    if not places:
        raise no_adapter(spec, wire.endpoint, hint=SEARCH_THERE)
    repo, version = places[0].repo, str(places[0].version)
    with wire.plainly(f"builds like `{spec}`"):
        told = wire.json(f"api/adapt/v1/adapters/{repo}/{version}/similar", {"above": above})
    try:
        found = tuple(
            OneAlikeThere(
                repo=shown(str(one["repo"]), SHOWN_CHARACTERS),
                version=None if one["version"] is None else shown(str(one["version"]), SHOWN_CHARACTERS),
                commit=shown(str(one["commit"]), SHOWN_CHARACTERS),
                digest=parse_digest(one["digest"]),
                cosine=min(1.0, max(-1.0, float(one["cosine"]))),
                same_base=bool(one["same_base"]),
            )
            for one in told["similar"]
        )
        state, digest = shown(str(told["state"]), SHOWN_CHARACTERS), parse_digest(told["digest"])
        return AlikeThere(repo=repo, version=version, digest=digest, state=state, similar=found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RemoteUnreachable(f"like updates: {wire.endpoint} sent no list of builds: {error!r}") from None


def _without_filters(who: str) -> UsageProblem:
    return UsageProblem(
        f"{who} does not know which adapters have a signature or tests", hint="leave out `--signed` and `--tested`"
    )


def search_registry(wire: Wire, search: Search, *, filters: bool) -> list[SearchHit]:
    """Search by `/api/adapt/v1/adapters`, page by page; `filters` says that it knows licence, signature and tests.

    Raises:
        UsageProblem: the search names one of these, and the server passes over it.
    """
    if not filters and (search.license or search.signed or search.tested):
        raise _without_filters(f"{wire.endpoint} is older and")
    is_ranked = search.by == "meaning" or (len(search.text.split()) > 1 and not search.all_words)
    asked: dict[str, Any] = {
        "q": search.text,
        "base_sha256": search.base_weights,
        "base": search.base_hub_id,
        "task": search.task,
        "rank_min": search.ranks.low,
        "rank_max": search.ranks.high,
        "peft_type": search.method,
        "license": search.license,
        "signed": "true" if search.signed else None,
        "tested": "true" if search.tested else None,
        "limit": min(search.limit, PAGE),
        # a server that knows no order by relevance passes over the name, and matches every word
        "rank_by": "relevance" if is_ranked else None,
        "by": search.by if search.by != "auto" else None,
    }
    asked = {name: value for name, value in asked.items() if value not in (None, "")}
    found: list[SearchHit] = []
    while len(found) < search.limit:
        try:
            page = wire.json("api/adapt/v1/adapters", asked)
            found += [_of_row(row, page.get("by")) for row in page["adapters"]]
            cursor = page["next_cursor"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RemoteUnreachable(f"search: {wire.endpoint} sent no list of adapters: {error!r}") from None
        if not cursor:
            break
        asked["cursor"] = cursor
    return found[: search.limit]


def search_tags(wire: Wire, search: Search) -> list[SearchHit]:
    """Search by `/api/models`, which every hub has: tags match base, task and exact rank; a range filters one page.

    Raises:
        UsageProblem: the search asks for signatures or tests.
    """
    tags = ["peft" if not search.base_weights and not search.task else "adapterhub"]
    if search.signed or search.tested:
        raise _without_filters(wire.endpoint)
    if search.license:
        tags.append(f"license:{search.license.lower()}")
    if search.base_weights:
        tags.append(f"base-sha256:{search.base_weights.removeprefix('sha256:')[:TAG_HEX]}")
    if search.base_hub_id:
        tags.append(f"base_model:adapter:{search.base_hub_id}")
    if search.task:
        tags.append(f"adapter-task:{search.task}")
    if search.ranks.low is not None and search.ranks.low == search.ranks.high:
        tags.append(f"lora-rank:{search.ranks.low}")
    asked: dict[str, Any] = {"filter": tags, "sort": "lastModified", "limit": SCANNED}
    listed = wire.json("api/models", asked | ({"search": search.text} if search.text else {}))
    if not isinstance(listed, list) or not all(isinstance(item, dict) and "id" in item for item in listed):
        raise RemoteUnreachable(f"search: {wire.endpoint} sent no list of repositories")
    fitting = (found for found in map(_of_model, listed) if search.ranks.includes(found.rank) and _is(search, found))
    return list(islice(fitting, search.limit))


def _is(search: Search, found: SearchHit) -> bool:
    return not search.method or search.method.lower() in {m.lower() for m in found.method}


def _hub_id(text: str | None) -> str | None:
    """Return the base that a server names, if it is a valid id."""
    return text if text is not None and is_hub_id(text) else None


def _of_row(row: Mapping[str, Any], by: object) -> SearchHit:
    weights = row["base_sha256"]
    return SearchHit(
        repo=str(row["repo"]),
        name=row["name"],
        version=row["version"],
        base_hub_id=_hub_id(row["base"]),
        base_weights=f"sha256:{weights}" if weights else None,
        task=row["task"],
        rank=row["rank"],
        method=tuple(str(m) for m in row["method"]),
        description=str(row["description"]),
        digest=row["digest"],
        score=row.get("score"),
        by=str(by) if by in {"words", "meaning"} else None,
        matched=Matched(str(row["matched"]["part"]), str(row["matched"]["text"])) if row.get("matched") else None,
    )


def _of_model(model: Mapping[str, Any]) -> SearchHit:
    told = model.get("tags")
    tags = [str(tag) for tag in told] if isinstance(told, list) else []

    def said(kind: str) -> str | None:
        return next(_values(tags, kind), None)

    rank, weights = said("lora-rank:"), max(_values(tags, "base-sha256:"), key=len, default=None)
    return SearchHit(
        repo=str(model["id"]),
        name=said("adapter-name:"),
        version=None,
        base_hub_id=_hub_id(said("base_model:adapter:")),
        base_weights=f"sha256:{weights}" if weights else None,
        task=said("adapter-task:"),
        rank=int(rank) if rank and rank.isascii() and rank.isdigit() else None,
        method=("LORA",) if "lora" in tags else (),
        description="",
        digest=None,
    )


def _values(tags: list[str], kind: str) -> Iterator[str]:
    return (tag.removeprefix(kind) for tag in tags if tag.startswith(kind))


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
        """Return the results on a version, the newest first, unverified; none if the version is unknown."""
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
            raise UsageProblem(
                f"{self._wire.endpoint} keeps no signed results of tests. Nothing was sent",
                hint="`adapt remote list` shows the kinds of the servers; a registry of adapterhub keeps results",
            )
        with self._wire.plainly(f"result on `{repo}` {version}"):
            self._wire.put(_path(repo, version), raw)

    def rule(self, namespace: str) -> NamespaceRule:
        """Return a namespace's demands; a server that keeps no results has none."""
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
        """Refuse to send a version that the namespace would not publish; the server decides when it gets its tag.

        Raises:
            NotAllowed: there is no contract, or no PASS by a key of the namespace, neither there nor in this push.
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
                hint=f"`adapt test {manifest.name} --sign --key NAME` makes one, which the next push includes; "
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
