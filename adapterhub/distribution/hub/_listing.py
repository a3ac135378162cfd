"""Lists repositories, refs and files of a server; each response is bounded and checked before use.

The Hub's own client has calls for these, but they wait forever, read and unpack a response of any size, and accept any
name in it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import quote

from adapterhub.core.dates import parse_time
from adapterhub.core.digests import parse_digest
from adapterhub.core.errors import AdapterHubError, RefusedAdapter, RemoteUnreachable, shown
from adapterhub.core.hub_ids import is_hub_id
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.http.plain import ListedFile
from adapterhub.distribution.http.wire import HttpError, Wire

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
    """The repositories that may have an adapter, and the kinds of builds that count there as ones of the name.

    `org/name` may have any. A tag says that a manifest has the name; the tag of a plain folder's card says nothing, as
    anyone may write it. `org/name-<base>` may have any, but where the server keeps names, it tags those that have this.
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
    """The commit that a server names.

    Raises:
        ValueError: text that is no commit.
    """
    if not isinstance(text, str) or not _COMMIT.fullmatch(text):
        raise ValueError(f"{shown(text)} is no commit")
    return text


def dates_of(wire: Wire, repo: str, commits: Iterable[str]) -> dict[str, float]:
    """The Unix time of each commit that the server knows; one listing covers 200 commits.

    A server that does not answer is no error: the commit has no date, and callers that need one say so.
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
    """The files among `names` at a commit, by name; other listed files are ignored.

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
    """Why a listed name is invalid, as the end of a sentence; "" if it is valid."""
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
    """The error for a response that is no valid `expected`."""
    return RemoteUnreachable(f"`{shown(what)}`: {wire.endpoint} sent no valid {expected}")
