"""What clients and readers ask of a registry filled by `tests.bench.registry_filling`: each route and page, with its queries."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlencode

from adapterhub_registry.access.tokens import open_session
from adapterhub_registry.api.context import Registry

from tests.bench.registry_filling import LICENSES, TASKS, WORDS, Shape, digest

Who = Literal["anyone", "owner", "member", "admin"]
"""Anyone has no token; an owner's covers the namespace `corp`, and a member administers it."""


def tokens_in(registry: Registry) -> dict[str, str]:
    """A token of each kind of caller."""
    tokens = {"admin": registry.tokens.create("admin", "admin")}
    tokens["owner"] = registry.tokens.create("corp", "write", namespaces=["corp/*"])
    registry.members.add("corp", "corp", role="administer")
    with registry.db.begin() as connection:
        signed_in = open_session(connection, "corp", lasts_s=86_400, label="signed in")
    caller = registry.tokens.caller_numbered(signed_in)
    assert caller is not None
    tokens["member"] = registry.tokens.create_own(caller, scopes=["administer"])
    return tokens


@dataclass(frozen=True)
class Asked:
    """One request; `path` draws its values."""

    name: str
    route: str
    path: Callable[[], str]
    who: Who = "anyone"
    method: str = "GET"


@dataclass(frozen=True)
class Draw:
    """Values for paths, of a shape; repositories are public and open."""

    shape: Shape
    chance: random.Random

    def repo(self) -> int:
        while True:
            n = self.chance.randrange(2, self.shape.repos)
            if not self.shape.is_private(n) and not self.shape.is_gated(n):
                return n

    def name(self) -> str:
        return self.shape.full_name(self.repo())

    def corp(self) -> str:
        return self.shape.full_name(self.chance.randrange(10, self.shape.repos, 10))

    def aliased(self) -> str:
        return self.shape.full_name(self.chance.randrange(5, self.shape.repos, 5))

    def one(self, *of: str) -> str:
        return self.chance.choice(of)

    def base(self, *, common: bool = False) -> str:
        return self.shape.base_digest(0 if common else self.chance.randrange(self.shape.bases))

    def build(self) -> str:
        return digest(f"manifest {self.repo()} 0")

    def weights(self) -> str:
        return digest(f"weights {self.repo()} 1")


def requests(shape: Shape, seed: int = 0) -> Iterator[Asked]:
    """Every request, in the order of the routes."""
    draw = Draw(shape, random.Random(seed))
    yield from _files(draw)
    yield from _hub(draw)
    yield from _listings(draw)
    yield from _adapters(draw)
    yield from _search_pages(draw)
    yield from _pages(draw)
    yield from _administration(draw)


_REPO: Final = "/{namespace}/{name}"
_HUB: Final = f"/api/models{_REPO}"
_OURS: Final = "/api/adapt/v1"


def _files(d: Draw) -> Iterator[Asked]:
    resolve = _REPO + "/resolve/{rev}/{path:path}"
    file = "resolve/v1.0.0/adapter_model.safetensors"
    yield Asked("HEAD of a file", resolve, lambda: f"/{d.name()}/{file}", method="HEAD")
    yield Asked("HEAD, many versions", resolve, lambda: f"/{d.shape.large}/{file}", method="HEAD")
    long = f"/{d.shape.long}/resolve/main/adapter_model.safetensors"
    yield Asked("HEAD, long history", resolve, lambda: long, method="HEAD")
    yield Asked("GET of a small file", resolve, lambda: f"/{d.name()}/resolve/main/README.md")


def _hub(d: Draw) -> Iterator[Asked]:
    large, long = d.shape.large, d.shape.long
    yield Asked("model info", _HUB, lambda: f"/api/models/{d.name()}")
    yield Asked("model info at a tag", _HUB + "/revision/{rev}", lambda: f"/api/models/{d.name()}/revision/v1.0.0")
    yield Asked("model info, many versions", _HUB, lambda: f"/api/models/{large}")
    yield Asked("model info, long history", _HUB, lambda: f"/api/models/{long}")
    yield Asked("commits", _HUB + "/commits/{rev}", lambda: f"/api/models/{d.name()}/commits/main")
    yield Asked("commits, many versions", _HUB + "/commits/{rev}", lambda: f"/api/models/{large}/commits/main")
    yield Asked("commits, long history", _HUB + "/commits/{rev}", lambda: f"/api/models/{long}/commits/main")
    yield Asked("refs", _HUB + "/refs", lambda: f"/api/models/{d.name()}/refs")
    yield Asked("refs, many versions", _HUB + "/refs", lambda: f"/api/models/{large}/refs")
    yield Asked("tree", _HUB + "/tree/{rev}", lambda: f"/api/models/{d.name()}/tree/main?expand=true")
    yield Asked("tree, long history", _HUB + "/tree/{rev}", lambda: f"/api/models/{long}/tree/main?expand=true")
    yield Asked("LFS files", _HUB + "/lfs-files", lambda: f"/api/models/{d.corp()}/lfs-files", "admin")
    yield Asked("LFS files, many versions", _HUB + "/lfs-files", lambda: f"/api/models/{large}/lfs-files", "admin")
    yield Asked("LFS files, long history", _HUB + "/lfs-files", lambda: f"/api/models/{long}/lfs-files", "admin")
    yield Asked("may I read", _HUB + "/auth-check", lambda: f"/api/models/{d.name()}/auth-check")
    yield Asked(
        "may I write", _HUB + "/auth-check/{right}", lambda: f"/api/models/{d.corp()}/auth-check/write", "owner"
    )
    yield Asked("who am I", "/api/whoami-v2", lambda: "/api/whoami-v2", "owner")
    own = "/api/organizations/{namespace}/settings/repositories"
    yield Asked("repositories of a namespace", own, lambda: "/api/organizations/corp/settings/repositories", "owner")
    yield Asked("own repositories", "/api/settings/repositories", lambda: "/api/settings/repositories", "owner")


def _listings(d: Draw) -> Iterator[Asked]:
    def listing(name: str, query: Callable[[], str], who: Who = "anyone") -> Asked:
        return Asked(f"models: {name}", "/api/models", lambda: f"/api/models?limit=20&{query()}", who)

    def base() -> str:
        return f"filter=base_model:adapter:org/base-{d.chance.randrange(d.shape.bases)}"

    def task() -> str:
        return f"filter=adapter-task:{d.one(*TASKS)}"

    common = "filter=base_model:adapter:org/base-0"
    for who in ("anyone", "owner", "admin"):
        yield listing(f"newest, {who}", lambda: "", who)  # type: ignore[arg-type]
    for sort in ("downloads", "createdAt", "likes"):
        yield listing(f"by {sort}", lambda sort=sort: f"sort={sort}")  # type: ignore[misc]
        yield listing(f"tag by {sort}", lambda sort=sort: f"sort={sort}&{base()}")  # type: ignore[misc]
        yield listing(f"common tag by {sort}", lambda sort=sort: f"sort={sort}&{common}")  # type: ignore[misc]
        yield listing(f"two tags by {sort}", lambda sort=sort: f"sort={sort}&{common}&{task()}")  # type: ignore[misc]
        yield listing(f"author by {sort}", lambda sort=sort: f"sort={sort}&author=corp")  # type: ignore[misc]
        yield listing(f"author and tag by {sort}", lambda sort=sort: f"sort={sort}&author=corp&{task()}")  # type: ignore[misc]
        yield listing(f"search by {sort}", lambda sort=sort: f"sort={sort}&search={d.one(*TASKS)}")  # type: ignore[misc]
    yield listing("tag", base)
    yield listing("common tag", lambda: common)
    yield listing("two tags", lambda: f"{common}&{task()}")
    yield listing("three tags", lambda: f"{common}&{task()}&filter=license:{d.one(*LICENSES)}")
    yield listing("tags that never meet", lambda: "filter=lora-rank:4&filter=lora-rank:8")
    yield listing("tags that never meet by downloads", lambda: "sort=downloads&filter=lora-rank:4&filter=lora-rank:8")
    yield listing("tag of one", lambda: f"filter=adapter-name:{d.name().partition('/')[2]}")
    yield listing("tag of none", lambda: "filter=zebra")
    yield listing("task", lambda: f"pipeline_tag={d.one(*TASKS)}")
    yield listing("large author", lambda: "author=corp")
    yield listing("author and tag", lambda: f"author=corp&{task()}")
    yield listing("author and rare tag", lambda: f"author=corp&{base()}")
    yield listing("small author", lambda: f"author={d.shape.namespace(d.repo() // 10 * 10 + 1)}")
    yield listing("search, a frequent part", lambda: f"search={d.one(*TASKS)}")
    yield listing("search, a name", lambda: f"search={d.name().partition('/')[2]}")
    yield listing("search, two words", lambda: f"search={d.one(*TASKS)}+{d.chance.randrange(10, 99)}")
    yield listing("search, none", lambda: "search=zebra")
    yield listing("search, words that never meet", lambda: "search=legal-qa+translate")
    yield listing("search, a letter", lambda: "search=q")
    yield listing("search, two letters", lambda: "search=t-")
    yield listing("search in an author", lambda: f"author=corp&search={d.one(*TASKS)}")
    yield listing("size", lambda: "num_parameters=min:1M,max:4M")
    yield listing("size of none", lambda: "num_parameters=min:100B")
    yield listing("size and tag", lambda: f"num_parameters=min:1M,max:4M&{common}")
    yield listing("gated", lambda: "gated=true")
    yield listing("gated and tag", lambda: f"gated=true&{common}")
    yield listing("gated by downloads", lambda: "gated=true&sort=downloads")
    yield listing("gated of an author", lambda: "gated=true&author=corp")
    yield listing("never", lambda: "inference=warm")
    yield listing("full", lambda: "full=true")
    yield listing("full, two tags", lambda: f"full=true&cardData=true&config=true&{common}&{task()}")


def _adapters(d: Draw) -> Iterator[Asked]:
    def found(name: str, query: Callable[[], dict[str, object]], who: Who = "anyone") -> Asked:
        path = f"{_OURS}/adapters"
        return Asked(f"adapters: {name}", path, lambda: f"{path}?{urlencode({'limit': 20} | query())}", who)

    yield found("newest", dict)
    yield found("newest, owner", dict, "owner")
    yield found("newest, admin", dict, "admin")
    filters = _filters(d)
    for name, value in filters.items():
        yield found(name, value)
    for one, other in (("task", "common base"), ("rank", "common base"), ("method", "license"), ("task", "license")):
        yield found(f"{one} and {other}", lambda a=one, b=other: filters[a]() | filters[b]())  # type: ignore[misc]
    for one, other in (("signed", "license"), ("tested", "task"), ("words", "common base"), ("ranks", "tested")):
        yield found(f"{one} and {other}", lambda a=one, b=other: filters[a]() | filters[b]())  # type: ignore[misc]
    names = ("task", "common base", "ranks", "license", "signed", "method")
    yield found("six filters", lambda: {key: v for one in names for key, v in filters[one]().items()})
    yield found("ranked", lambda: {"q": f"{d.one(*WORDS)} {d.one(*WORDS)}", "rank_by": "relevance", "by": "words"})
    one = f"{_OURS}/adapters{_REPO}"
    route = f"{_OURS}/adapters{_REPO}"
    yield Asked("versions", f"{route}/versions", lambda: f"{_OURS}/adapters/{d.name()}/versions")
    large = f"{_OURS}/adapters/{d.shape.large}"
    yield Asked("20 of many versions", f"{route}/versions", lambda: f"{large}/versions?limit=20")
    yield Asked("20 below one", f"{route}/versions", lambda: f"{large}/versions?limit=20&below=15.0.0")
    of_build = digest("manifest 0 7")
    yield Asked("version of a build", f"{route}/versions", lambda: f"{large}/versions?digest={of_build}")
    yield Asked("all of many versions", f"{route}/versions", lambda: f"{large}/versions")
    yield Asked("one version", f"{route}/versions/{{version}}", lambda: f"{large}/versions/7.0.0")
    yield Asked("aliases", f"{route}/aliases", lambda: f"{_OURS}/adapters/{d.shape.large}/aliases")
    history = "aliases/{alias}/history"
    yield Asked("moves of an alias", f"{route}/{history}", lambda: f"{large}/aliases/prod/history")
    kept = "aliases/{alias}/retention"
    yield Asked("kept of an alias", f"{route}/{kept}", lambda: f"{large}/aliases/prod/retention")
    yield Asked("results of a version", f"{route}/tests/{{version}}", lambda: f"{large}/tests/1.0.0")
    named = f"{_OURS}/aliases{_REPO}/{{alias}}"
    yield Asked("an alias by name", named, lambda: f"{_OURS}/aliases/{d.shape.large}/prod")
    yield Asked("releases of a namespace", f"{_OURS}/releases", lambda: f"{_OURS}/releases?namespace=corp&limit=100")
    yanked = f"{_OURS}/yanked"
    many = lambda: "&".join(f"digest={d.build()}" for _ in range(50))  # noqa: E731
    yield Asked("which are yanked", yanked, lambda: f"{yanked}?{many()}")
    yield Asked("places of weights", f"{_OURS}/blobs/{{sha256}}", lambda: f"{_OURS}/blobs/{d.weights()}")
    shared = digest("never")
    yield Asked("places of no file", f"{_OURS}/blobs/{{sha256}}", lambda: f"{_OURS}/blobs/{shared}")
    yield Asked("ahead", f"{_OURS}/ahead", lambda: f"{_OURS}/ahead?adapter={d.name()}")
    yield Asked(
        "ahead, ten", f"{_OURS}/ahead", lambda: f"{_OURS}/ahead?{'&'.join(f'adapter={d.name()}' for _ in range(10))}"
    )
    yield Asked("ahead of many versions", f"{_OURS}/ahead", lambda: f"{_OURS}/ahead?adapter={d.shape.large}")
    yield Asked("events from now on", f"{_OURS}/events", lambda: f"{_OURS}/events")
    yield Asked("first events", f"{_OURS}/events", lambda: f"{_OURS}/events?since=0&limit=100")
    yield Asked("first events, admin", f"{_OURS}/events", lambda: f"{_OURS}/events?since=0&limit=100", "admin")
    yield Asked(
        "names of a namespace", f"{_OURS}/namespaces/{{namespace}}/names", lambda: f"{_OURS}/namespaces/corp/names"
    )
    yield Asked("line about a namespace", f"{_OURS}/namespaces/{{namespace}}", lambda: f"{_OURS}/namespaces/corp")
    yield Asked(
        "rule of a namespace", f"{_OURS}/namespaces/{{namespace}}/tests", lambda: f"{_OURS}/namespaces/corp/tests"
    )
    yield Asked("info", f"{_OURS}/info", lambda: f"{_OURS}/info")
    del one


def _filters(d: Draw) -> dict[str, Callable[[], dict[str, object]]]:
    return {
        "base": lambda: {"base_sha256": d.base()},
        "common base": lambda: {"base_sha256": d.base(common=True)},
        "base by name": lambda: {"base": f"org/base-{d.chance.randrange(d.shape.bases)}"},
        "task": lambda: {"task": d.one(*TASKS)},
        "no such task": lambda: {"task": "zebra"},
        "rank": lambda: {"rank_min": 16, "rank_max": 16},
        "ranks": lambda: {"rank_max": 16},
        "no such rank": lambda: {"rank_min": 5, "rank_max": 6},
        "method": lambda: {"peft_type": "LOHA"},
        "license": lambda: {"license": d.one(*LICENSES)},
        "no such license": lambda: {"license": "zebra"},
        "signed": lambda: {"signed": "true"},
        "unsigned": lambda: {"signed": "false"},
        "tested": lambda: {"tested": "true"},
        "untested": lambda: {"tested": "false"},
        "words": lambda: {"q": f"{d.one(*WORDS)} {d.one(*TASKS)}"},
        "a name": lambda: {"q": d.name().partition("/")[2]},
        "no such words": lambda: {"q": "zebra"},
        "a letter": lambda: {"q": "q"},
    }


def _search_pages(d: Draw) -> Iterator[Asked]:
    def page(name: str, query: Callable[[], dict[str, object]]) -> Asked:
        return Asked(f"search page: {name}", "/", lambda: f"/?{urlencode(query())}")

    filters: dict[str, Callable[[], dict[str, object]]] = {
        "words": lambda: {"q": f"{d.one(*WORDS)} {d.one(*TASKS)}", "sort": "newest"},
        "relevance": lambda: {"q": f"{d.one(*WORDS)} {d.one(*WORDS)}", "sort": "relevance"},
        "base": lambda: {"base": d.base()},
        "common base": lambda: {"base": d.base(common=True)},
        "base by name": lambda: {"base": f"org/base-{d.chance.randrange(d.shape.bases)}"},
        "task": lambda: {"task": d.one(*TASKS)},
        "rank": lambda: {"rank": "16"},
        "method": lambda: {"method": "LOHA"},
        "license": lambda: {"license": d.one(*LICENSES)},
        "signed": lambda: {"signed": "yes"},
        "unsigned": lambda: {"signed": "no"},
        "contract": lambda: {"contract": "yes"},
        "no contract": lambda: {"contract": "no"},
        "tested": lambda: {"tested": "passed"},
        "none yanked": lambda: {"yanked": "no"},
        "yanked": lambda: {"yanked": "yes"},
    }
    yield page("newest", dict)
    for sort in ("newest", "changed", "downloads"):
        yield page(f"by {sort}", lambda sort=sort: {"sort": sort})  # type: ignore[misc]
        for name, value in filters.items():
            if name != "relevance":
                yield page(f"{name} by {sort}", lambda v=value, s=sort: v() | {"sort": s})  # type: ignore[misc]
    yield page("relevance", filters["relevance"])
    for one, other in (("yanked", "task"), ("yanked", "common base"), ("yanked", "words"), ("yanked", "license")):
        for sort in ("newest", "downloads"):
            both = lambda a=one, b=other, s=sort: filters[a]() | filters[b]() | {"sort": s}  # noqa: E731
            yield page(f"{one} and {other} by {sort}", both)
    for one, other in (("task", "common base"), ("license", "rank"), ("signed", "method"), ("relevance", "task")):
        for sort in ("changed", "downloads", "relevance"):
            both = lambda a=one, b=other, s=sort: filters[a]() | filters[b]() | {"sort": s}  # noqa: E731
            yield page(f"{one} and {other} by {sort}", both)


def _pages(d: Draw) -> Iterator[Asked]:
    large, long = d.shape.large, d.shape.long
    yield Asked("bases page", "/bases", lambda: "/bases")
    yield Asked("namespace page", "/{namespace}", lambda: "/corp")
    yield Asked("namespace page, owner", "/{namespace}", lambda: "/corp?sort=downloads", "owner")
    yield Asked("page of a small namespace", "/{namespace}", lambda: f"/{d.name().partition('/')[0]}")
    yield Asked("activity of a namespace", "/{namespace}", lambda: "/corp?tab=activity")
    yield Asked("adapter page", _REPO, lambda: f"/{d.name()}")
    yield Asked("adapter page, many versions", _REPO, lambda: f"/{large}")
    yield Asked("adapter page, below one", _REPO, lambda: f"/{large}?below=9.0.0")
    yield Asked("adapter page, long history", _REPO, lambda: f"/{long}")
    yield Asked("build page", f"{_REPO}/{{version}}", lambda: f"/{d.name()}/1.0.0")
    yield Asked("build page, many versions", f"{_REPO}/{{version}}", lambda: f"/{large}/7.0.0")
    yield Asked("commit page", f"{_REPO}/commit/{{revision}}", lambda: f"/{d.name()}/commit/v1.0.0")
    yield Asked("commit page, long history", f"{_REPO}/commit/{{revision}}", lambda: f"/{long}/commit/main")
    prefix = digest("commit 1 7")[:12]
    yield Asked("commit page by a prefix", f"{_REPO}/commit/{{revision}}", lambda: f"/{long}/commit/{prefix}")
    yield Asked("tree page", f"{_REPO}/tree/{{revision}}", lambda: f"/{d.name()}/tree/main")
    yield Asked("blob page", f"{_REPO}/blob/{{revision}}/{{path:path}}", lambda: f"/{d.name()}/blob/main/README.md")
    yield Asked("raw file", f"{_REPO}/raw/{{revision}}/{{path:path}}", lambda: f"/{d.name()}/raw/main/README.md")
    yield Asked("base page", "/base/{fingerprint}", lambda: f"/base/{d.base(common=True)}")
    yield Asked("base page, admin", "/base/{fingerprint}", lambda: f"/base/{d.base(common=True)}", "admin")
    yield Asked("base page, owner", "/base/{fingerprint}", lambda: f"/base/{d.base(common=True)}", "owner")
    yield Asked("page of a rare base", "/base/{fingerprint}", lambda: f"/base/{d.base()}")
    yield Asked("lineage page", f"/lineage{_REPO}", lambda: f"/lineage/{d.name()}")
    yield Asked("lineage page, many versions", f"/lineage{_REPO}", lambda: f"/lineage/{large}")
    yield Asked("compare page", "/compare", lambda: f"/compare?a={d.name()}")
    yield Asked("feed of a namespace", "/feed", lambda: "/feed?namespace=corp")
    yield Asked("feed of a small namespace", "/feed", lambda: f"/feed?namespace={d.name().partition('/')[0]}")
    yield Asked("feed of a base", "/feed", lambda: f"/feed?base={d.base(common=True)}")
    yield Asked("feed of a rare base", "/feed", lambda: f"/feed?base={d.base()}")
    yield Asked("feed of a base by name", "/feed", lambda: "/feed?base=org/base-0")


def _administration(d: Draw) -> Iterator[Asked]:
    for who in ("anyone", "owner", "admin"):
        yield Asked(f"metrics, {who}", f"{_OURS}/metrics", lambda: f"{_OURS}/metrics", who)  # type: ignore[arg-type]
    yield Asked("tokens", f"{_OURS}/tokens", lambda: f"{_OURS}/tokens", "admin")
    yield Asked("own tokens", f"{_OURS}/tokens", lambda: f"{_OURS}/tokens", "owner")
    yield Asked("users", f"{_OURS}/users", lambda: f"{_OURS}/users", "admin")
    yield Asked("log of tokens", f"{_OURS}/log", lambda: f"{_OURS}/log", "admin")
    log, searches = f"{_OURS}/log", ("user=user7", "action=yank", "address=10.0.0.9", "order=newest&repo=corp")
    for text in (*searches, "since=2020-01-01T00:00:00Z&action=yank&until=2030-01-01T00:00:00Z", "after=500"):
        yield Asked(f"log, {text}", log, lambda text=text: f"{log}?{text}", "admin")  # type: ignore[misc]
    yield Asked("log of a repository", log, lambda: f"{log}?repo={d.corp()}", "member")
    yield Asked("page of the log", "/admin-log", lambda: "/admin-log?user=user7", "admin")
    yield Asked("page of the log of a namespace", "/{namespace}/-/log", lambda: "/corp/-/log", "member")
    settings = "/{namespace}/-/settings"
    yield Asked("page of a namespace's settings", settings, lambda: "/corp/-/settings", "member")
    yield Asked("page of all members", "/admin-members", lambda: "/admin-members", "admin")
    yield Asked("page of oneself", "/settings", lambda: "/settings", "member")
    people = f"{_OURS}/namespaces/{{space}}"
    for what in ("members", "teams", "invitations"):
        yield Asked(what, f"{people}/{what}", lambda what=what: f"{_OURS}/namespaces/corp/{what}", "member")  # type: ignore[misc]
    late = f"{_OURS}/namespaces/corp/members?after=/user500/"
    yield Asked("members, late", f"{people}/members", lambda: late, "member")
    yield Asked("HEAD by a member", "/{namespace}/{name}/resolve/{rev}/{path:path}",
                lambda: f"/{d.corp()}/resolve/main/README.md", "member", "HEAD")  # fmt: skip
    yield Asked("a member's listing", "/api/models", lambda: "/api/models?author=corp&limit=10", "member")
    yield Asked("webhooks", f"{_OURS}/webhooks", lambda: f"{_OURS}/webhooks", "admin")
    yield Asked("page of tokens", "/admin", lambda: "/admin", "admin")
    yield Asked("page of users", "/admin-users", lambda: "/admin-users", "admin")
    yield Asked("page of space", "/admin-space", lambda: "/admin-space", "admin")
    yield Asked("page of refusals", "/admin-refusals", lambda: "/admin-refusals", "admin")
    yield Asked("page of one adapter", "/admin-adapter", lambda: f"/admin-adapter?repo={d.shape.large}", "admin")
    yield Asked("health", "/healthz", lambda: "/healthz")
    yield Asked("counters", "/metrics", lambda: "/metrics", "admin")
