"""The versions of a repository, and which of them are yanked.

Our registry lists them. On any other server, a version is a tag `v<version>`, and a tag `yanked-v<version>` marks it as
yanked; the reason is in `adapterhub.yanked.json` at the commit of that tag.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError
from packaging.version import Version

from adapterhub.core.dates import parse_time
from adapterhub.core.digests import Digest, hex_of, parse_digest, strict_json
from adapterhub.core.errors import AdapterNotFound, RemoteUnreachable, SpecError, shown
from adapterhub.core.hub_ids import is_hub_id
from adapterhub.core.specs import AdapterSpec, parse_released, parse_version, version_of
from adapterhub.distribution.http.wire import Wire, file_path, is_missing
from adapterhub.distribution.hub._listing import commit_in, nonsense, refs_of, repositories_tagged

YANKED_FILE: Final = "adapterhub.yanked.json"
YANKED_TAG: Final = "yanked-v"
SHOWN_REASON_CHARACTERS: Final = 200
_ASKED_AT_ONCE: Final = 50
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
    """A release as a listing names it. `name` and `digest` are None where only the release itself has them."""

    repo: str
    version: str
    commit: str
    name: str | None = None
    digest: Digest | None = None
    yanked: bool = False


def newest_last(place: PublishedVersion) -> Version:
    """Sort key; a place without a version is the head, a descendant of every other commit."""
    return Version(place.version or "999999")


def places_in(wire: Wire, repo: str, *, lists_versions: bool) -> list[PublishedVersion]:
    """The versions of a repository, yanked ones included, else its head; none if it does not exist.

    `lists_versions`: the server is a registry that lists them.
    """
    places = list(_listed(wire, repo)) if lists_versions else []
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


def _listed(wire: Wire, repo: str) -> Iterator[PublishedVersion]:
    """The versions that the registry lists; none without such a list."""
    with wire.plainly(f"versions of `{repo}`"):
        try:
            told = wire.json(f"api/adapt/v1/adapters/{repo}/versions")
        except HfHubHTTPError as error:
            if not isinstance(error, RepositoryNotFoundError) and not is_missing(error):
                raise
            return
    try:
        for item in told["versions"]:
            yanked, released, unyanked = (item.get(name) for name in ("yanked", "released_at", "unyanked"))
            yield PublishedVersion(
                repo=repo,
                commit=commit_in(item["commit"]),
                version=parse_version(item["version"]),
                yanked=None if yanked is None else shown(str(yanked["reason"]), SHOWN_REASON_CHARACTERS),
                unyanked=None if unyanked is None else shown(str(unyanked), SHOWN_REASON_CHARACTERS),
                digest=parse_digest(item["digest"]),
                released_at=None if released is None else parse_time(released),
            )
    except (KeyError, TypeError, AttributeError, ValueError, SpecError) as error:
        reason = shown(repr(error), 160)
        raise RemoteUnreachable(f"`{repo}`: {wire.endpoint} sent no list of versions: {reason}") from None


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
    """The reasons at one commit, by version, or those `taken_back`; none if the file is missing or cannot be read."""
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
    """Why a version was yanked, whichever spelling of it has the reason; "" for none."""
    same = (why for text, why in reasons.items() if yank_tags([f"{YANKED_TAG}{text}"], version))
    return reasons.get(version) or next(same, "")


def is_version_tag(name: str) -> bool:
    """Whether a tag marks a released version; a local version (`v1.0+x`) is none."""
    if not name.startswith("v"):
        return False
    try:
        parse_released(name[1:])
    except SpecError:
        return False
    return True
