"""The differences that are meant, each with its reason. A row that nothing needs any more fails the run."""

from __future__ import annotations

from typing import Final

_ASKED: Final = (
    "who names a yanked version gets it, with the header X-HF-Warning or a badge: old locks stay installable"
)
_HEAD: Final = (
    "a yank moves no branch, so what describes the head of `main` describes a yanked head, too, as on the Hub"
)
_HISTORY: Final = "a yank is public: the reason and the version stay in the history of the repository"

MEANT: Final[dict[tuple[str, str], str]] = {
    ("yanked", "/{namespace}/{name}/resolve/{rev}/{path:path}"): _ASKED,
    ("yanked", "/{namespace}/{name}/raw/{revision}/{path:path}"): _ASKED,
    ("yanked", "/{namespace}/{name}/blob/{revision}/{path:path}"): _ASKED,
    ("yanked", "/{namespace}/{name}/{version}"): _ASKED,
    ("yanked", "/{namespace}/{name}/commit/{revision}"): _HISTORY,
    ("yanked", "/api/adapt/v1/adapters/{namespace}/{name}/versions"): _HISTORY,
    ("yanked", "/api/adapt/v1/adapters/{namespace}/{name}/versions/{version}"): _HISTORY,
    ("yanked", "/api/adapt/v1/events"): _HISTORY,
    ("yanked", "/feed"): _HISTORY,
    ("yanked", "/{namespace}"): _HISTORY,
    ("yanked", "/api/models"): _HEAD,
    ("yanked", "/api/models/{namespace}/{name}"): _HEAD,
    ("yanked", "/api/models/{namespace}/{name}/revision/{rev}"): _HEAD,
    ("yanked", "/{namespace}/{name}"): _HEAD,
}
"""By kind and route: why an answer tells of what is hidden."""
