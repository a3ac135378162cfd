"""The versions of a repository, and which of them are yanked.

Our registry lists them. On any other server, a version is a tag `v<version>`, and a tag `yanked-v<version>` marks it as
yanked; the reason is in `adapterhub.yanked.json` at the commit of that tag.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError
from packaging.version import Version

from adapterhub.core.dates import parse_time
from adapterhub.core.digests import Digest, hex_of, parse_digest, strict_json
from adapterhub.core.errors import AdapterNotFound, RemoteUnreachable, SpecError, shown
from adapterhub.core.specs import AdapterSpec, parse_version
from adapterhub.distribution.hub._listing import commit_in, refs_of
from adapterhub.distribution.hub._wire import Wire, file_path, is_missing

YANKED_FILE: Final = "adapterhub.yanked.json"
YANKED_TAG: Final = "yanked-v"
SHOWN_REASON_CHARACTERS: Final = 200
_ASKED_AT_ONCE: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedVersion:
    """A commit that may hold a build; `version` is None for the head of a repository without versions.

    `yanked` is the reason, or None. `digest` comes from the registry, None without one; `released_at` otherwise is the
    commit's date.
    """

    repo: str
    commit: str
    version: str | None
    yanked: str | None = None
    digest: Digest | None = None
    released_at: float | None = None


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
            versions = {tag[1:]: commit for tag, commit in refs.tags.items() if _is_version_tag(tag)}
            marks = {version: refs.tags.get(f"{YANKED_TAG}{version}") for version in versions}
            reasons = {v: reasons_at(wire, repo, mark).get(v, "") for v, mark in marks.items() if mark is not None}
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
            yanked, released = item.get("yanked"), item.get("released_at")
            yield PublishedVersion(
                repo=repo,
                commit=commit_in(item["commit"]),
                version=parse_version(item["version"]),
                yanked=None if yanked is None else shown(str(yanked["reason"]), SHOWN_REASON_CHARACTERS),
                digest=parse_digest(item["digest"]),
                released_at=None if released is None else parse_time(released),
            )
    except (KeyError, TypeError, AttributeError, ValueError, SpecError) as error:
        reason = shown(repr(error), 160)
        raise RemoteUnreachable(f"`{repo}`: {wire.endpoint} sent no list of versions: {reason}") from None


def yanked_on_registry(wire: Wire, builds: Mapping[Digest, AdapterSpec]) -> dict[Digest, str]:
    """The reason of each of `builds` that a registry has yanked in the namespace of its name; 50 in one request."""
    digests, found = list(builds), {}
    for start in range(0, len(digests), _ASKED_AT_ONCE):
        asked = [hex_of(digest) for digest in digests[start : start + _ASKED_AT_ONCE]]
        with wire.plainly("list of yanked releases"):
            told = wire.json("api/adapt/v1/yanked", {"digest": asked})
        try:
            for one in told["releases"]:
                digest, repo, reason = parse_digest(one["digest"]), str(one["repo"]), str(one["yanked"]["reason"])
                if digest in builds and builds[digest].namespace == repo.partition("/")[0]:
                    found[digest] = shown(reason, SHOWN_REASON_CHARACTERS)
        except (KeyError, TypeError, ValueError) as error:
            text = shown(repr(error), 160)
            raise RemoteUnreachable(f"{wire.endpoint} sent no list of yanked releases: {text}") from None
    return found


def reasons_at(wire: Wire, repo: str, commit: str) -> dict[str, str]:
    """The reasons at one commit, by version; none if the file is missing or cannot be read."""
    with contextlib.suppress(EntryNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        versions = strict_json(wire.get(file_path(repo, commit, YANKED_FILE)))["versions"]
        return {str(v): shown(str(one["reason"]), SHOWN_REASON_CHARACTERS) for v, one in versions.items()}
    return {}


def _is_version_tag(name: str) -> bool:
    if not name.startswith("v"):
        return False
    try:
        parse_version(name[1:])
    except SpecError:
        return False
    return True
