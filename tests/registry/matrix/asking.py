"""The requests of a matrix, made of the application's own table of routes. A route without values ends the run."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from starlette.routing import Route

from tests.registry.matrix.worlds import MARK

REPOS = (("acme", "open"), ("acme", "secret"), ("hidden", "secret"), ("bob", "same"))
ZERO = "0" * 64

IN_PATH: dict[str, tuple[str, ...]] = {
    "rev": ("main", "v1.0.0", "v2.0.0"),
    "revision": ("main", "v2.0.0"),
    "version": ("1.0.0", "2.0.0"),
    "path": ("README.md", "adapter_config.json"),
    "alias": ("prod",),
    "right": ("read", "write"),
    "status": ("pending",),
    "number": ("1", "2", "3"),
    "token_id": ("1", "2"),
    "space": ("acme", "hidden"),
    **dict.fromkeys(("member", "team"), ("nobody",)),
    "sha256": ("WEIGHTS", "OTHER WEIGHTS"),
    "fingerprint": ("BASE",),
    "tile": ("0/000.p/1", "entries/000.p/2"),
    **dict.fromkeys(("rest", "kind", "part", "below", "last", "topic", "prefix", "chunk", "xorb"), ("nothing",)),
    **dict.fromkeys(("token", "scope", "epoch"), ("1",)),
}
"""Values of parameters of paths besides `namespace` and `name`. Capitals stand for digests of the builds."""

IN_QUERY: dict[str, tuple[str, ...]] = {
    "version": ("1.0.0", "2.0.0"),
    "base": ("org/base",),
    "base_sha256": ("BASE",),
    "task": (f"{MARK}-task", "quiet-task"),
    "rank_min": ("1",),
    "rank_max": ("64",),
    "peft_type": ("LORA",),
    "license": ("mit",),
    "signed": ("false",),
    "tested": ("false",),
    "q": (MARK, "quiet", "about"),
    "rank_by": ("words",),
    "by": ("downloads",),
    "limit": ("1",),
    "namespace": ("acme", "hidden"),
    "digest": (f"sha256:{ZERO}", "BUILD"),
    "since": ("0",),
    "adapter": ("acme/open", "acme/secret", "hidden/secret"),
    "repo": ("acme/open", "acme/secret", "hidden/secret"),
    "dtype": ("float32",),
    "verdict": ("PASS",),
    "above": ("0.9",),
    "right": ("write",),
    "recursive": ("true",),
    "expand": ("true",),
    "include_prs": ("1",),
    "witness": (f"witness.example/{MARK}",),
    "service": ("git-upload-pack", "git-receive-pack"),
    "below": ("9.0", "2.0.0"),
    **dict.fromkeys(("old", "new"), ("1",)),
    **dict.fromkeys(("user", "action", "address", "until", "order"), ()),
    **dict.fromkeys(("cursor", "wait", "create_pr", "after", "rest", "last"), ()),
}
MORE_QUERIES: dict[str, tuple[str, ...]] = {
    "/api/models": ("limit=1", f"search={MARK}", "search=secret", "author=hidden", "author=acme", "sort=downloads",
                    "sort=createdAt&limit=1", "full=true", f"filter={MARK}-task", "filter=lora", "filter=quiet-task"),
    "/api/models/{namespace}/{name}": ("blobs=true", "securityStatus=true"),
    "/": ("q=secret", f"q={MARK}", "q=quiet", "yanked=yes", "sort=downloads", "task=quiet-task", "license=mit", "format=json"),
    "/feed": ("namespace=acme", "namespace=hidden"),
    "/join": ("code=inv_x",),
    "/admin-log": ("repo=acme",),
    "/{namespace}": ("tab=activity", "tab=keys", "base=x"),
    "/compare": ("a=acme/open&b=acme/secret", "a=acme/open&b=hidden/secret", "a=acme/open&b=bob/same"),
    "/admin-adapter": ("repo=acme/secret", "repo=hidden/secret"),
    "/lineage/{namespace}/{name}": ("version=1.0.0",),
    "/{namespace}/{name}": ("below=9.0",),
}  # fmt: skip
"""Queries of routes that read theirs by hand."""

_REPO = {"organization": "NAMESPACE", "name": "NAME"}
_WEIGHTS = {"oid": "WEIGHTS", "size": "SIZE"}
_LINES = [
    {"key": "header", "value": {"summary": "x"}},
    {"key": "file", "value": {"path": "a.txt", "content": "eA==", "encoding": "base64"}},
]
_VERSION = {
    "version": "3.0.0",
    "title": "x",
    "files": [{"path": "adapter.json", "size": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}],
}
_BATCHES = tuple({"operation": one, "objects": [_WEIGHTS], "hash_algo": "sha256"} for one in ("upload", "download"))
_WANTS = (f"0032want {'1' * 40}\n00000009done\n", "0000")
BODIES: dict[str, tuple[Any, ...]] = {
    "/api/adapt/v1/adapters/{namespace}/{name}/versions": (f"{json.dumps(_VERSION)}\n{{}}",),
    "/api/adapt/v1/adapters/{namespace}/{name}/yank": ({"version": "2.0.0", "reason": "why"},),
    "/api/adapt/v1/adapters/{namespace}/{name}/unyank": ({"version": "2.0.0"},),
    "/api/adapt/v1/tokens": ({"user": "x", "role": "read"}, {"scopes": ["read"], "namespaces": ["hidden"]}),
    "/api/adapt/v1/publishers": (
        {"repo": "NAMESPACE/NAME", "issuer": "https://x.example", "claims": {"repository": "a/b"}},
    ),
    "/api/adapt/v1/device": ({"client": "x"},),
    "/api/adapt/v1/device/token": ({"device_code": "x"},),
    "/api/adapt/v1/accounts": ({"user": "rita", "subject": "x"},),
    "/api/adapt/v1/tlog/cosignatures": ({"checkpoint": "x"}, {"checkpoint": "x", "repo": "NAMESPACE/NAME"}),
    "/api/adapt/v1/publish-token": ({"repo": "NAMESPACE/NAME", "token": "e30.e30.e30"},),
    "/api/adapt/v1/webhooks": ({"scope": "NAMESPACE/NAME", "url": "https://x.example/"},),
    "/api/adapt/v1/adapters/{namespace}/{name}/aliases/{alias}": ({"targets": [{"version": "1.0.0"}]},),
    "/api/adapt/v1/adapters/{namespace}/{name}/aliases/{alias}/retention": ({"newest": 5},),
    "/api/adapt/v1/adapters/{namespace}/{name}/aliases/{alias}/rollback": ({"to": 1},),
    "/api/adapt/v1/namespaces/{namespace}": ({"about": "Adapters for contracts"},),
    "/api/adapt/v1/namespaces/{namespace}/tests": ({"asks": "nothing"},),
    "/api/adapt/v1/namespaces/{namespace}/names": ({"name": "secret", "repo": "NAMESPACE/NAME"},),
    "/api/adapt/v1/namespaces/{space}/members": ({"user": "rita", "role": "read"},),
    "/api/adapt/v1/namespaces/{space}/teams": ({"name": "t", "role": "read"},),
    "/api/adapt/v1/namespaces/{space}/invitations": ({"role": "read"},),
    "/api/adapt/v1/invitations/accept": ({"code": "inv_x", "user": "x"},),
    "/api/repos/create": (_REPO, _REPO | {"visibility": "private"}),
    "/api/repos/delete": (_REPO,),
    "/api/repos/move": (
        {"fromRepo": "NAMESPACE/NAME", "toRepo": "bob/moved"},
        {"fromRepo": "bob/same", "toRepo": "NAMESPACE/NAME"},
    ),
    "/api/models/{namespace}/{name}/settings": ({"gated": "auto"},),
    "/api/models/{namespace}/{name}/tag/{rev}": ({"tag": "t"},),
    "/api/models/{namespace}/{name}/branch/{rev}": ({},),
    "/api/models/{namespace}/{name}/paths-info/{rev}": ({"paths": ["README.md"], "expand": True},),
    "/{namespace}/{name}.git/info/lfs/objects/batch": _BATCHES,
    "/models/{namespace}/{name}.git/info/lfs/objects/batch": _BATCHES,
    "/{namespace}/{name}/git-upload-pack": _WANTS,
    "/models/{namespace}/{name}/git-upload-pack": _WANTS,
    "/{namespace}/{name}.git/info/lfs/verify": (_WEIGHTS,),
    "/_lfs/complete/{token}": ({"parts": []},),
    "/api/validate-yaml": ({"content": "---\n---\n"},),
    "/api/models/{namespace}/{name}/preupload/{rev}": ({"files": [{"path": "README.md", "size": 4, "sample": ""}]},),
    "/api/models/{namespace}/{name}/commit/{rev}": ("\n".join(map(json.dumps, _LINES)),),
    "/api/models/{namespace}/{name}/super-squash/{rev}": ({"message": "x"},),
    "/api/models/{namespace}/{name}/lfs-files/batch": ({"deletions": {"sha": ["WEIGHTS"], "rewriteHistory": True}},),
    "/api/models/{namespace}/{name}/user-access-request/grant": ({"user": "rita"},),
    "/api/models/{namespace}/{name}/user-access-request/handle": ({"user": "rita", "status": "accepted"},),
}
"""What POST, PUT and DELETE send, by route; a digest of hidden bytes is among it."""
BODILESS = re.compile(
    r".*/(git-receive-pack|readmit|test|remove|cancel|ask-access|deliveries|shards|telemetry)|/_lfs/(object|part)/.*|/_xet/.*|.*\{rest:path\}"
    r"|/api/\{kind\}|.*/\{part\}|/api/adapt/v1/(tokens|users|accounts|publishers|webhooks)/\{\w+\}|.*/tests/\{version\}"
)
"""Routes that take no body, or bytes."""
WITH_FORM = re.compile(
    r"/|/settings|/join|/\{namespace\}/-/settings|/admin[a-z-]*|/updates|/playground[a-z-]*|/sign-(in|out)(/device)?"
)
"""Pages that take a form, which needs the token of a form."""


@dataclass(frozen=True)
class Request:
    """One request; `route` is the path of its route, with its parameters, `body` is JSON: a text is sent as it is."""

    method: str
    route: str
    path: str
    body: str = "null"


def requests(app: FastAPI, digests: dict[str, str]) -> Iterator[Request]:
    """Every route with every method and value; those that read come first, as writing changes what they find."""
    every = list(dict.fromkeys(one for route in app.router.routes for one in _of_route(route, digests)))
    reads = ("GET", "HEAD")
    yield from (one for one in every if one.method in reads)
    rest = [one for one in every if one.method not in reads]
    last = ("/api/repos/move", "/api/repos/delete")
    yield from sorted(rest, key=lambda one: (one.route in last, one.method == "DELETE"))


def _of_route(route: Any, digests: dict[str, str]) -> Iterator[Request]:
    place = str(route.path)
    names = [name.partition(":")[0] for name in re.findall(r"\{([^}]+)\}", place)]
    missing = [name for name in names if name not in IN_PATH and name not in {"namespace", "name"}]
    if missing:
        raise KeyError(f"{place}: add values of {', '.join(missing)} to IN_PATH")
    for repo in REPOS if {"namespace", "name"} & set(names) else REPOS[:1]:
        known = {"namespace": (repo[0],), "name": (repo[1],)} | IN_PATH
        for values in itertools.product(*(known[name] for name in names)):
            path = place
            for name, value in zip(names, values, strict=True):
                path = re.sub(r"\{" + name + r"(:path)?\}", digests.get(value, value), path, count=1)
            for method in sorted(route.methods or ()):
                yield from _asked(route, method, path, digests)


def _asked(route: Any, method: str, path: str, digests: dict[str, str]) -> Iterator[Request]:
    place = str(route.path)
    if method in {"GET", "HEAD"}:
        yield Request(method, place, path)
        if method == "GET":
            for query in _queries(route):
                name, _, value = query.partition("=")
                yield Request(method, place, f"{path}?{name}={digests.get(value, value)}")
    elif place in BODIES:
        for body in BODIES[place]:
            for repo in REPOS if "NAME" in json.dumps(body) else REPOS[:1]:
                yield Request(method, place, path, _filled(body, repo, digests))
    elif BODILESS.fullmatch(place) or (isinstance(route, Route) and WITH_FORM.fullmatch(place)):
        yield Request(method, place, path)
    elif method in {"POST", "PUT", "PATCH"}:
        raise KeyError(f"{method} {place}: add what it sends to BODIES, or the route to BODILESS")
    else:
        yield Request(method, place, path)


def _queries(route: Any) -> Iterator[str]:
    for name in _parameters(getattr(route, "dependant", None)):
        if name not in IN_QUERY:
            raise KeyError(f"{route.path}: add values of the parameter {name} to IN_QUERY")
        yield from (f"{name}={value}" for value in IN_QUERY[name])
    yield from MORE_QUERIES.get(route.path, ())


def _parameters(dependant: Any) -> Iterator[str]:
    if dependant is None:
        return
    for parameter in dependant.query_params:
        yield from getattr(parameter.field_info.annotation, "model_fields", None) or [parameter.name]
    for below in dependant.dependencies:
        yield from _parameters(below)


def _filled(body: Any, repo: tuple[str, str], digests: dict[str, str]) -> str:
    text = json.dumps(body).replace("NAMESPACE", repo[0]).replace("NAME", repo[1])
    for name, value in digests.items():
        text = text.replace(f'"{name}"', value if name == "SIZE" else json.dumps(value))
    return text
