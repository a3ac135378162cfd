"""Calls that the Hub has and this registry does not: each gets 501 and a reason. Include this router last."""

from __future__ import annotations

from typing import Final

from fastapi import Request
from fastapi.responses import Response

from adapterhub.core.errors import shown
from adapterhub_registry.api.bodies import hub_router
from adapterhub_registry.errors import SEE_ROUTES, HttpRefusal, no_such_route, not_offered, repo_not_found

router = hub_router()
METHODS: Final = ["GET", "POST", "PUT", "PATCH", "DELETE"]
OTHER_KINDS: Final = ("datasets", "spaces", "kernels", "buckets")
MISSING: Final = {
    **{kind: f"{kind}; it holds models only" for kind in OTHER_KINDS},
    "collections": "collections",
    "daily_papers": "papers",
    "jobs": "jobs",
    "models-tags-by-type": "list of tags by type",
    "notifications": "notifications",
    "organizations": "pages of organizations",
    "papers": "papers",
    "resource-groups": "resource groups",
    "scheduled-jobs": "jobs",
    "settings": "webhooks and settings of accounts",
    "users": "pages of users",
}
"""What the calls below `/api/NAME` are about."""
MISSING_OF_MODELS: Final = {
    "discussions": "discussions and pull requests; commit to a branch",
    "duplicate": "copies made by the server; download the repository, then upload it under its new name",
    "lfs-files": "copies made by the server; download the files, then upload them",
    "like": "likes",
    "likers": "likes",
    "resource-group": "resource groups",
}
"""What the calls below `/api/models/NAMESPACE/NAME/PART` are about."""
CALLS_ON_MODELS: Final = {
    *("branch", "commit", "commits", "paths-info", "preupload", "refs", "revision", "settings", "tag", "tree"),
    *MISSING_OF_MODELS,
}


def _lacking(what: str) -> HttpRefusal:
    """501 for a feature of the Hub that this registry lacks; some name what to do in its place."""
    return not_offered(f"this registry has no {what if ';' in what else f'{what}; {SEE_ROUTES}'}")


@router.api_route("/api/models/{namespace}/{name}/{part}", methods=METHODS)
@router.api_route("/api/models/{namespace}/{name}/{part}/{rest:path}", methods=METHODS)
async def of_models(request: Request, name: str, part: str) -> Response:
    """501 for a call on a repository; 404 when its id has no namespace."""
    if name in CALLS_ON_MODELS:
        raise repo_not_found(shown(request.path_params["namespace"]))
    what = MISSING_OF_MODELS.get(part, f"call `{request.method} …/{shown(part)}`")
    raise _lacking(what)


@router.api_route("/api/{kind}", methods=METHODS)
@router.api_route("/api/{kind}/{rest:path}", methods=METHODS)
async def other_calls(request: Request, kind: str, rest: str = "") -> Response:
    """Answer 501, or 404 for an id without a namespace and for a look at one repository, which asks if it exists."""
    namespace, _, name = rest.partition("/")
    name, _, below = name.partition("/")
    if kind == "models" and namespace:
        raise repo_not_found(shown(namespace))
    is_look = request.method == "GET" and bool(namespace) and (not below or below.startswith("revision/"))
    if is_look and kind in OTHER_KINDS:
        raise HttpRefusal(
            404, "RepoNotFound", f"this registry has no {kind.rstrip('s')} `{shown(rest)}`, expected a model"
        )
    if kind not in MISSING:
        raise no_such_route()
    raise _lacking(MISSING[kind])


@router.api_route("/{name}/resolve/{rest:path}", methods=["GET", "HEAD"])
@router.api_route("/{name}/{below}/{last}/resolve/{rest:path}", methods=["GET", "HEAD"])
async def other_files(name: str, below: str = "", last: str = "") -> Response:
    """404: only old ids of the public Hub have no namespace, and only other kinds have a prefix."""
    raise repo_not_found(shown("/".join(part for part in (name, below, last) if part)))
