"""The identity of a job in a CI, which a registry takes in place of a stored token.

GitHub gives a job with `permissions: id-token: write` an address that makes identity tokens. Elsewhere, as in GitLab,
the variable ADAPTERHUB_ID_TOKEN holds one. A token goes only to the server that it is for.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote, urlsplit

from adapterhub.core.digests import strict_json
from adapterhub.core.errors import NotAllowed, RemoteUnreachable, UsageProblem, shown
from adapterhub.core.hosts import is_loopback
from adapterhub.core.redaction import keep_secret
from adapterhub.distribution.http.wire import Wire

GIVEN: Final = "ADAPTERHUB_ID_TOKEN"
ADDRESS: Final = "ACTIONS_ID_TOKEN_REQUEST_URL"
ADDRESS_TOKEN: Final = "ACTIONS_ID_TOKEN_REQUEST_TOKEN"  # noqa: S105 - the name of a variable
EXCHANGE: Final = "api/adapt/v1/publish-token"
_MOST_CHARACTERS: Final = 16_384
_NO_SUCH_ROUTE: Final = (404, 405)


def publish_token(endpoint: str, repository: str, variables: Mapping[str, str]) -> str | None:
    """Return a token for `repository` on the registry at `endpoint`, from the identity of this job.

    None if this job has no identity, or the server takes none.

    Raises:
        NotAllowed: the server does not trust this job to publish there.
        UsageProblem: the identity is for another server, and only that one may see it. Nothing was sent.
        RemoteUnreachable: the CI or the server does not answer, or the connection is not encrypted.
    """
    if not variables.get(GIVEN) and not variables.get(ADDRESS):
        return None
    _check_encrypted(endpoint)
    identity = variables.get(GIVEN) or _of_github(endpoint, variables)
    keep_secret(identity)
    _check_audience(identity, endpoint)
    server = Wire(endpoint, None, version=None)
    try:
        with server.plainly(f"identity of this job for `{repository}`"):
            body = json.dumps({"repo": repository, "token": identity}).encode()
            answer = server.json(EXCHANGE, form=body)
    except NotAllowed as refused:
        raise NotAllowed(
            f"{refused.message}. Nothing was sent", hint="an administrator trusts a job by `adapt registry publishers`"
        ) from None
    except RemoteUnreachable as error:
        if error.status in _NO_SUCH_ROUTE:
            return None
        raise
    token = answer.get("token") if isinstance(answer, dict) else None
    if not isinstance(token, str) or not token.isascii() or not token.isprintable():
        raise RemoteUnreachable(f"{endpoint} sent no token for the identity of this job")
    keep_secret(token)
    return token


def _of_github(endpoint: str, variables: Mapping[str, str]) -> str:
    """Return the identity token that GitHub makes for this server."""
    address, token = variables[ADDRESS], variables.get(ADDRESS_TOKEN, "")
    keep_secret(token)
    try:
        place = urlsplit(address)
    except ValueError:
        raise UsageProblem(f"{ADDRESS} is not an address, expected the one that GitHub gives a job") from None
    if place.scheme not in {"http", "https"} or not place.hostname or place.username or not token:
        raise UsageProblem(f"{ADDRESS} and {ADDRESS_TOKEN}: expected the address and the token of a job")
    _check_encrypted(address)
    query = f"{place.query}&" if place.query else ""
    server = Wire(f"{place.scheme}://{place.netloc}", token, version=None)
    with server.plainly("identity token of this job"):
        answer = server.json(f"{place.path.lstrip('/')}?{query}audience={quote(endpoint, safe='')}")
    value = answer.get("value") if isinstance(answer, dict) else None
    if not isinstance(value, str) or not 0 < len(value) <= _MOST_CHARACTERS:
        raise RemoteUnreachable(f"`{shown(place.netloc)}` gave no identity token for this job")
    return value


def _check_audience(identity: str, endpoint: str) -> None:
    """Raise unless a token is for this server only. Whether it is genuine is for the server to find out."""
    try:
        middle = identity.split(".")[1]
        claims = strict_json(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
        audience = claims.get("aud") if isinstance(claims, dict) else None
    except (ValueError, IndexError):
        raise UsageProblem(f"{GIVEN}: expected an identity token, which has three parts. Nothing was sent") from None
    if audience not in (endpoint, [endpoint]):
        raise UsageProblem(
            f"the identity token of this job is for `{shown(str(audience))}`, not for {endpoint}. Nothing was sent",
            hint=f"in GitLab: `id_tokens: {GIVEN}: aud: {endpoint}`",
        )


def _check_encrypted(url: str) -> None:
    place = urlsplit(url)
    if place.scheme != "https" and not is_loopback(place.hostname):
        raise RemoteUnreachable(f"`{shown(url)}` is not encrypted: others could take the identity of this job")
