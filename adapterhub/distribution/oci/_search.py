"""Searches a registry of images: the names of its repositories, and the annotations of the images in them.

The spec has no search, and many registries list no repositories; one that is named in full is always found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final

from huggingface_hub.errors import HfHubHTTPError

from adapterhub.core.digests import strict_json
from adapterhub.core.errors import NotAllowed, RemoteUnreachable, SpecError, UsageProblem, shown
from adapterhub.core.specs import parse_version
from adapterhub.distribution.hub import Search, SearchHit
from adapterhub.distribution.oci._image import MANIFEST_LIMIT_BYTES, Image, OciWire
from adapterhub.library.remotes import is_oci_path

_CATALOG: Final = "v2/_catalog?n=1000"
MOST_REPOSITORIES: Final = 1000
_SHOWN: Final = 200


def repositories_for(wire: OciWire, prefix: str, text: str) -> list[str]:
    """Return the repositories below `prefix` that a search for `text` looks into; with `/` in it, the text names one.

    Raises:
        UsageProblem: the registry lists no repositories, and the text names none.
    """
    words = text.lower().split()
    if len(words) == 1 and "/" in words[0]:
        named = f"{prefix}/{words[0]}".strip("/")
        return [named] if is_oci_path(named) else []
    try:
        with wire.plainly("list of repositories"):
            listed = list(islice(_catalog(wire), MOST_REPOSITORIES))
    except (NotAllowed, RemoteUnreachable) as error:
        raise UsageProblem(
            f"{wire.endpoint} lists no repositories: {error.message}",
            hint="name one in full, as in `adapt search acme/legal-qa --remote NAME`",
        ) from None
    inside = [name for name in listed if name.startswith(f"{prefix}/" if prefix else "")]
    return [name for name in inside if not words or any(word in name[len(prefix) :] for word in words)]


def _catalog(wire: OciWire) -> Iterator[str]:
    is_listed = False
    for raw in wire.pages(_CATALOG):
        is_listed = True
        try:
            names = strict_json(raw, limit_bytes=MANIFEST_LIMIT_BYTES)["repositories"] or []
            yield from (name for name in names if is_oci_path(name))
        except (ValueError, KeyError, TypeError):
            raise RemoteUnreachable(f"{wire.endpoint} sent no valid list of repositories") from None
    if not is_listed:
        raise RemoteUnreachable("it has no such list")


def hits_in(
    repositories: Iterable[str],
    images_of: Callable[[str], Iterable[Image]],
    search: Search,
) -> list[SearchHit]:
    """Return the descriptions of the images that fit `search`; not checked."""
    found: list[SearchHit] = []
    for repository in repositories:
        try:
            hits = [hit for image in images_of(repository) if _fits(hit := _hit(repository, image), search)]
        except (HfHubHTTPError, NotAllowed):  # a catalog may list what this user may not read
            continue
        found += hits
        if len(found) >= search.limit:
            break
    return found[: search.limit]


def _hit(repository: str, image: Image) -> SearchHit:
    notes = {key: shown(text, _SHOWN) for key, text in image.annotations.items()}
    rank = notes.get("vnd.adapterhub.rank", "")
    try:
        version = parse_version(notes.get("org.opencontainers.image.version", ""))
    except SpecError:
        version = None
    return SearchHit(
        repo=repository,
        name=notes.get("org.opencontainers.image.title"),
        version=version,
        base_hub_id=notes.get("vnd.adapterhub.base.hub-id"),
        base_weights=notes.get("vnd.adapterhub.base"),
        task=notes.get("vnd.adapterhub.task"),
        rank=int(rank) if rank.isascii() and rank.isdecimal() else None,
        method=tuple(filter(None, notes.get("vnd.adapterhub.method", "").split(","))),
        description=notes.get("org.opencontainers.image.description", ""),
        digest=notes.get("vnd.adapterhub.digest"),
    )


def _fits(hit: SearchHit, search: Search) -> bool:
    ranks = search.ranks
    return (
        (hit.base_weights or "").startswith(search.base_weights)
        and search.base_hub_id in ("", hit.base_hub_id)
        and search.task in ("", hit.task)
        and (not search.method or search.method.lower() in hit.method)
        and ranks.includes(hit.rank)
    )
