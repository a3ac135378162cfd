"""Contents of a repository: its files, its versions, and which of them are yanked.

Our registry lists them. On any other server, a version is a tag `v<version>`, and a tag `yanked-v<version>` marks it as
yanked; the reason is in `adapterhub.yanked.json` at the commit of that tag.
"""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import quote

from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError
from packaging.version import Version

from adapterhub.core.dates import parse_time
from adapterhub.core.digests import Digest, hex_of, parse_digest, strict_json
from adapterhub.core.errors import AdapterHubError, AdapterNotFound, RefusedAdapter, RemoteUnreachable, SpecError, shown
from adapterhub.core.specs import AdapterSpec, is_hub_id, parse_released, parse_version, version_of
from adapterhub.distribution.http.stream import ListedFile, described
from adapterhub.distribution.http.wire import HttpError, Wire, file_path, is_missing
from adapterhub.formats.manifest import CARD_FILE, CONFIG_FILE, MEDIA_TYPES
from adapterhub.formats.release import Release

YANKED_FILE: Final = "adapterhub.yanked.json"
YANKED_TAG: Final = "yanked-v"
SHOWN_REASON_CHARACTERS: Final = 200
PAGES: Final = "pages"
"""The feature of a registry that lists versions by pages and finds one by its name."""
_ASKED_AT_ONCE: Final = 50
_VERSIONS_AT_ONCE: Final = 500
_NEWEST: Final = 20
_DIGEST_CHARACTERS: Final = len("sha256:") + 64
_MOST_PAGES: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedVersion:
    """A commit that may hold a build; `version` is None for the head of a repository without versions.

    `yanked` is the reason, or None; `unyanked` that of a yank that a registry has taken back. `digest` comes from the
    registry, None without one; `released_at` otherwise is the commit's date.
    """

    repo: str
    commit: str
    version: str | None
    yanked: str | None = None
    unyanked: str | None = None
    digest: Digest | None = None
    released_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A release as a listing names it. `name` and `digest` are None if only the release itself has them."""

    repo: str
    version: str
    commit: str
    name: str | None = None
    digest: Digest | None = None
    yanked: bool = False


def newest_last(place: PublishedVersion) -> Version:
    """Sort key; a place without a version is the head, a descendant of every other commit."""
    return Version(place.version or "999999")


def versions_path(repo: str) -> str:
    """Return the address of the versions of a repository, for lists and for a new one."""
    return f"api/adapt/v1/adapters/{repo}/versions"


def places_in(wire: Wire, repo: str, features: Collection[str]) -> list[PublishedVersion]:
    """Return the versions of a repository, yanked ones included, or its head; none if it does not exist.

    `features` are those of the server, which may be a registry that lists them.
    """
    places = list(_listed(wire, repo, by_pages=PAGES in features)) if "versions" in features else []
    if places:
        return places
    try:
        with wire.plainly(f"`{repo}`"):
            refs = refs_of(wire, repo)
            versions = {tag[1:]: commit for tag, commit in refs.tags.items() if is_version_tag(tag)}
            yanks = [tag for tag in refs.tags if tag.startswith(YANKED_TAG)]
            marks = {version: yank_tags(yanks, version) for version in versions}
            reasons = {v: _reason(reasons_at(wire, repo, refs.tags[m[0]]), v) for v, m in marks.items() if m}
    except AdapterNotFound:
        return []
    if not versions:
        mains = [commit for name, commit in refs.branches.items() if name == "main"]
        return [PublishedVersion(repo=repo, commit=commit, version=None) for commit in mains]
    return [
        PublishedVersion(repo=repo, commit=commit, version=version, yanked=reasons.get(version))
        for version, commit in versions.items()
    ]


def _listed(wire: Wire, repo: str, *, by_pages: bool) -> Iterator[PublishedVersion]:
    """Yield the versions that the registry lists, newest first; none without such a list."""
    path = versions_path(repo)
    asked: dict[str, object] = {"limit": _VERSIONS_AT_ONCE} if by_pages and not wire.ahead.knows(path) else {}
    for _ in range(_MOST_PAGES):
        with wire.plainly(f"versions of `{repo}`"):
            try:
                told = wire.json(path, asked)
            except HfHubHTTPError as error:
                if not isinstance(error, RepositoryNotFoundError) and not is_missing(error):
                    raise
                return
        with _readable(wire, repo):
            yield from [_version_in(repo, item) for item in told["versions"]]
            below = told.get("next_below") if by_pages else None
            if below is None:
                return
            asked["below"] = parse_version(below)


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest versions of a repository. `is_all`: it has no others; `is_alike`: others are for the same base."""

    places: list[PublishedVersion]
    is_all: bool
    is_alike: bool


def newest_on(wire: Wire, repo: str, *, digest: Digest | None = None, below: str | None = None) -> Newest:
    """Return the newest versions, those below one, or those of one build, of a registry with the feature `pages`."""
    asked: dict[str, object] = {"limit": _NEWEST, **({} if digest is None else {"digest": hex_of(digest)})}
    asked |= {} if below is None else {"below": below}
    with wire.plainly(f"versions of `{repo}`"):
        try:
            told = wire.json(versions_path(repo), asked)
        except HfHubHTTPError as error:
            if not isinstance(error, RepositoryNotFoundError) and not is_missing(error):
                raise
            return Newest([], is_all=True, is_alike=True)
    with _readable(wire, repo):
        places = [_version_in(repo, item) for item in told["versions"]]
        return Newest(places, is_all=told["next_below"] is None, is_alike=told["one_base"] is True)


def some_on(wire: Wire, repo: str, spec: AdapterSpec) -> list[PublishedVersion]:
    """Return the build that a spec names exactly on a registry with the feature `pages`; none for other specs."""
    if spec.digest_prefix is not None and len(spec.digest_prefix) == _DIGEST_CHARACTERS:
        return newest_on(wire, repo, digest=Digest(spec.digest_prefix)).places
    if spec.pinned_version is None:
        return []
    with contextlib.suppress(AdapterNotFound), wire.plainly(f"versions of `{repo}`"):
        found = version_on(wire, repo, spec.pinned_version)
        return [] if found is None else [found]
    return []


def version_on(wire: Wire, repo: str, version: str) -> PublishedVersion | None:
    """One version, however it is spelled, on a registry with the feature `pages`; None if there is none.

    Raises:
        RepositoryNotFoundError: there is no such repository.
    """
    try:
        told = wire.json(f"{versions_path(repo)}/{quote(version, safe='')}")
    except HfHubHTTPError as error:
        if isinstance(error, RepositoryNotFoundError) or not is_missing(error):
            raise
        return None
    with _readable(wire, repo):
        return _version_in(repo, told)


@contextlib.contextmanager
def _readable(wire: Wire, repo: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError, SpecError) as error:
        reason = shown(repr(error), 160)
        raise RemoteUnreachable(f"`{repo}`: {wire.endpoint} sent no list of versions: {reason}") from None


def _version_in(repo: str, item: dict[str, Any]) -> PublishedVersion:
    yanked, released, unyanked = (item.get(name) for name in ("yanked", "released_at", "unyanked"))
    return PublishedVersion(
        repo=repo,
        commit=commit_in(item["commit"]),
        version=parse_version(item["version"]),
        yanked=None if yanked is None else shown(str(yanked["reason"]), SHOWN_REASON_CHARACTERS),
        unyanked=None if unyanked is None else shown(str(unyanked), SHOWN_REASON_CHARACTERS),
        digest=parse_digest(item["digest"]),
        released_at=None if released is None else parse_time(released),
    )


def published_in(wire: Wire, namespace: str, *, is_registry: bool) -> list[Published]:
    """Every tagged version in a namespace; of its PEFT repositories only, where the server is not our registry."""
    if is_registry:
        try:
            return _listed_by_registry(wire, namespace)
        except HfHubHTTPError as error:
            if not is_missing(error):
                raise
    return [
        Published(repo=repo, version=parse_version(tag[1:]), commit=commit, yanked=bool(yank_tags(refs.tags, tag[1:])))
        for repo in repositories_tagged(wire, namespace, "peft")
        for refs in (refs_of(wire, repo),)
        for tag, commit in refs.tags.items()
        if is_version_tag(tag)
    ]


def _listed_by_registry(wire: Wire, namespace: str) -> list[Published]:
    """One request for each page of a thousand; raises the Hub client's error if the server has no such listing."""
    found: list[Published] = []
    cursor: str | None = None
    for _ in range(_MOST_PAGES):
        more = {"cursor": cursor} if cursor else {}
        told = wire.json("api/adapt/v1/releases", {"namespace": namespace, **more})
        try:
            found += [_published(item, namespace) for item in told["releases"]]
            cursor = told["next_cursor"]
        except (LookupError, TypeError, ValueError, SpecError):
            raise nonsense(wire, namespace, "list of releases") from None
        if not isinstance(cursor, str):
            return found
    raise RemoteUnreachable(f"`{namespace}`: {wire.endpoint} sent more than {_MOST_PAGES} pages of releases")


def _published(item: dict[str, Any], namespace: str) -> Published:
    repo, name = item["repo"], item["name"]
    if not isinstance(repo, str) or not repo.startswith(f"{namespace}/") or not is_hub_id(repo):
        raise ValueError("no repository of the namespace")
    return Published(
        repo=repo,
        version=parse_version(item["version"]),
        commit=commit_in(item["commit"]),
        name=name if isinstance(name, str) else None,
        digest=parse_digest(item["digest"]),
        yanked=bool(item["yanked"]),
    )


def yanked_on_registry(wire: Wire, builds: Mapping[Digest, AdapterSpec]) -> Iterator[tuple[Digest, str, str]]:
    """Each of `builds` that a registry has yanked in the namespace of its name, with repository and reason.

    It answers for 50 builds in one request.
    """
    digests = list(builds)
    for start in range(0, len(digests), _ASKED_AT_ONCE):
        asked = [hex_of(digest) for digest in digests[start : start + _ASKED_AT_ONCE]]
        with wire.plainly("list of yanked releases"):
            told = wire.json("api/adapt/v1/yanked", {"digest": asked})
        try:
            for one in told["releases"]:
                digest, repo, reason = parse_digest(one["digest"]), str(one["repo"]), str(one["yanked"]["reason"])
                if digest in builds and builds[digest].namespace == repo.partition("/")[0]:
                    yield digest, repo, shown(reason, SHOWN_REASON_CHARACTERS)
        except (KeyError, TypeError, ValueError) as error:
            text = shown(repr(error), 160)
            raise RemoteUnreachable(f"{wire.endpoint} sent no list of yanked releases: {text}") from None


def reasons_at(wire: Wire, repo: str, commit: str, *, taken_back: bool = False) -> dict[str, str]:
    """Return the reasons at one commit, by version, or those `taken_back`.

    None if the file is missing or cannot be read.
    """
    with contextlib.suppress(EntryNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        versions = strict_json(wire.get(file_path(repo, commit, YANKED_FILE)))["versions"]
        meant = {v: one for v, one in versions.items() if (one.get("taken_back") is True) is taken_back}
        return {str(v): shown(str(one["reason"]), SHOWN_REASON_CHARACTERS) for v, one in meant.items()}
    return {}


def yank_tags(tags: Iterable[str], version: str) -> list[str]:
    """Those of `tags` that mark a version as yanked, however they spell it."""
    marks = [tag for tag in tags if tag.startswith(YANKED_TAG) and is_version_tag(f"v{tag.removeprefix(YANKED_TAG)}")]
    return [tag for tag in marks if version_of(tag.removeprefix(YANKED_TAG)) == version_of(version)]


def _reason(reasons: Mapping[str, str], version: str) -> str:
    """Return why a version was yanked, whichever spelling of it has the reason; "" for none."""
    same = (why for text, why in reasons.items() if yank_tags([f"{YANKED_TAG}{text}"], version))
    return reasons.get(version) or next(same, "")


def is_version_tag(name: str) -> bool:
    """Return True if a tag marks a released version, which a local version (`v1.0+x`) is not."""
    if not name.startswith("v"):
        return False
    try:
        parse_released(name[1:])
    except SpecError:
        return False
    return True


_COMMIT: Final = re.compile(r"[0-9a-f]{40,64}")
_DRIVE: Final = re.compile(r"[A-Za-z]:")
_MOST_REPOSITORIES: Final = 1000
_COMMITS_AT_ONCE: Final = 200

Kinds = Literal["any", "manifests", "plain"]
"""The builds of a repository: those with a manifest, which names them, and those of plain folders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refs:
    """Branches and tags of a repository: the commit by name."""

    branches: dict[str, str]
    tags: dict[str, str]


def repositories_tagged(wire: Wire, namespace: str, tag: str) -> list[str]:
    """Model repositories of a namespace that carry `tag`; at most a thousand."""
    listed = wire.json("api/models", {"author": namespace, "filter": tag, "limit": _MOST_REPOSITORIES})
    if not isinstance(listed, list):
        raise nonsense(wire, namespace, "list of repositories")
    names = [item.get("id") for item in listed if isinstance(item, dict)]
    prefix = f"{namespace}/"
    return [name for name in names if isinstance(name, str) and name.startswith(prefix) and is_hub_id(name)]


def repositories_of(wire: Wire, spec: AdapterSpec, *, keeps_names: bool) -> Iterator[tuple[str, Kinds]]:
    """Yield the repositories that may have an adapter, and the kinds of builds that count there as ones of the name.

    `org/name` may have any. A tag proves that a manifest has the name; the tag of a plain folder's card proves nothing,
    as anyone may write it. `org/name-<base>` may have any, but where the server keeps names, it tags those that have
    this.
    """
    # before the listing: this request fails at once for an unreachable server
    yield spec.full_name, "any"
    with wire.plainly(f"list adapters of `{spec.namespace}`"):
        tagged = repositories_tagged(wire, spec.namespace or "", f"adapter-name:{spec.name}")
    if spec.base is not None and spec.base.kind == "alias":
        for_base = f"{spec.full_name}-{spec.base.text}"
        yield for_base, "plain" if keeps_names and for_base not in tagged else "any"
    yield from ((repo, "manifests") for repo in tagged)


def refs_of(wire: Wire, repo: str) -> Refs:
    """Branches and tags; raises the Hub client's error if the repository does not exist."""
    told = wire.json(f"api/models/{repo}/refs")
    try:
        kinds = {
            kind: {str(item["name"]): commit_in(item["targetCommit"]) for item in told[kind]}
            for kind in ("branches", "tags")
        }
    except (KeyError, TypeError, ValueError):
        raise nonsense(wire, repo, "list of branches and tags") from None
    return Refs(**kinds)


def commit_in(text: object) -> str:
    """Return the commit that a server names.

    Raises:
        ValueError: text that is not a commit.
    """
    if not isinstance(text, str) or not _COMMIT.fullmatch(text):
        raise ValueError(f"{shown(text)} is not a commit")
    return text


def dates_of(wire: Wire, repo: str, commits: Iterable[str]) -> dict[str, float]:
    """Return the Unix time of each commit that the server knows; one listing covers 200 commits.

    A server that does not answer raises nothing: the commit has no date, and callers that need one report that.
    """
    found: dict[str, float] = {}
    for commit in commits:
        if commit in found:
            continue
        try:
            told = wire.json(f"api/models/{repo}/commits/{quote(commit, safe='')}", {"limit": _COMMITS_AT_ONCE})
        except (HttpError, OSError, AdapterHubError):
            break
        for item in told if isinstance(told, list) else ():
            with contextlib.suppress(KeyError, TypeError, ValueError):
                found.setdefault(commit_in(item["id"]), parse_time(item["date"]))
    return found


def files_of(wire: Wire, repo: str, commit: str, names: Sequence[str]) -> dict[str, ListedFile]:
    """Return the files among `names` at a commit, by name; other listed files are ignored.

    Raises:
        RefusedAdapter: the server lists a file twice, or a name that leads out of the repository.
    """
    listed = wire.json(f"api/models/{repo}/paths-info/{quote(commit, safe='')}", form={"paths": list(names)})
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise nonsense(wire, repo, "list of files")
    found: dict[str, ListedFile] = {}
    for item in listed:
        path = item.get("path")
        if not isinstance(path, str):
            raise nonsense(wire, repo, "list of files")
        problem = listed_name_problem(path) or ("which is listed twice" if path in found else "")
        if problem:
            found_code = ("E_NAME", f"the server lists `{shown(path)}`, {problem}")
            raise RefusedAdapter(f"refused `{repo} at {commit[:12]}`. Nothing was stored", [found_code])
        if path in names and item.get("type") == "file":
            found[path] = _file(wire, repo, item)
    return found


def listed_name_problem(path: str) -> str:
    """Return why a listed name is invalid, as the end of a sentence; "" if it is valid."""
    if "\0" in path or "\\" in path:
        return "which holds a NUL or a backslash"
    if _DRIVE.match(path):
        return "which begins with a drive"
    if any(part in ("", ".", "..") for part in path.split("/")):
        return "which is no path inside a repository"
    return ""


def _file(wire: Wire, repo: str, item: dict[str, Any]) -> ListedFile:
    size, lfs, oid = item.get("size"), item.get("lfs"), item.get("oid")
    try:
        sha256 = None if lfs is None else parse_digest(f"sha256:{lfs['oid']}")
    except (KeyError, TypeError, ValueError):
        raise nonsense(wire, repo, "digest of a file") from None
    if type(size) is not int or size < 0:
        raise nonsense(wire, repo, "size of a file")
    is_git = sha256 is None and isinstance(oid, str) and re.fullmatch(r"[0-9a-f]{40}", oid) is not None
    return ListedFile(path=item["path"], size_bytes=size, sha256=sha256, git_sha1=oid if is_git else None)


def nonsense(wire: Wire, what: str, expected: str) -> RemoteUnreachable:
    """Return the error for a response that is not a valid `expected`."""
    return RemoteUnreachable(f"`{shown(what)}`: {wire.endpoint} sent no valid {expected}")


_FEATURE: Final = "ahead"
_AHEAD_AT_ONCE: Final = 25


def look_ahead(wire: Wire, specs: Sequence[AdapterSpec], features: Callable[[], Collection[str]]) -> None:
    """Ask for 25 adapters in one request, and keep the answers in `wire`, whose readers check them as all others.

    Failures here are ignored; the requests that follow report them.
    """
    wire.ahead.forget()
    wanted = [spec for spec in specs if spec.namespace is not None]
    with contextlib.suppress(AdapterHubError, HttpError, OSError, LookupError, TypeError, ValueError):
        if not wanted[1:] or _FEATURE not in features():
            return
        for start in range(0, len(wanted), _AHEAD_AT_ONCE):
            some = wanted[start : start + _AHEAD_AT_ONCE]
            named = [f"{one.full_name}-{one.base.text}" for one in some if one.base and one.base.kind == "alias"]
            asked = {"adapter": sorted({one.full_name for one in some}), "repo": sorted(set(named))}
            _take(wire, asked)


def look_at(wire: Wire, repo: str, version: str) -> None:
    """Fetch, as `look_ahead`, the answers that a push first needs on a repository, its namespace and the server."""
    with contextlib.suppress(AdapterHubError, HttpError, OSError, LookupError, TypeError, ValueError):
        _take(wire, {"repo": [repo], "version": [version]})


def _take(wire: Wire, asked: Mapping[str, list[str]]) -> None:
    told = wire.json("api/adapt/v1/ahead", asked)["answers"]
    wire.ahead.take(
        {str(one["path"]): str(one["error"]) if one["error"] else base64.b64decode(one["body"]) for one in told}
    )


def plain_release(wire: Wire, repo: str, commit: str, spec: AdapterSpec, *, version: str | None) -> Release | None:
    """Return the adapter at one commit, under the name in `spec`; None if there is no adapter.

    Raises:
        RefusedAdapter: the adapter is not safe to store.
    """
    origin = f"{repo} at {commit[:12]}"
    with wire.plainly(f"`{origin}`"):
        files = files_of(wire, repo, commit, [*MEDIA_TYPES, CARD_FILE])
    if CONFIG_FILE not in files:
        return None
    placed = {file_path(repo, commit, path): item for path, item in files.items()}
    return described(wire, placed, spec, origin=origin, version=version or f"0+{commit[:12]}")
