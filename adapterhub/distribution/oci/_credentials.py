"""The user's credentials for a registry: a token that was given, else what Docker's programs keep.

    REGISTRY_AUTH_FILE                     Podman's and Skopeo's file
    DOCKER_CONFIG/config.json              Docker's file [default: ~/.docker/config.json]
    XDG_RUNTIME_DIR/containers/auth.json   Podman's default

A file has an entry for each host, or names a program `docker-credential-NAME` that keeps it.
"""

from __future__ import annotations

import base64
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adapterhub.core.digests import strict_json
from adapterhub.core.disk.files import read_json
from adapterhub.core.errors import NotAllowed, shown

_LIMIT_BYTES: Final = 4 << 20
_HELPER: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HELPER_S: Final = 30
_DOCKER_HUB: Final = ("docker.io", "index.docker.io", "registry-1.docker.io")
_REFRESHES: Final = "<token>"
"""The user name under which a program keeps a token that gets others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A user with a password; or a token: `bearer` is sent unchanged, `refresh` gets others."""

    user: str = ""
    password: str = ""
    bearer: str = ""
    refresh: str = ""

    @property
    def basic(self) -> str:
        """The header `Authorization` of user and password; "" without them."""
        pair = f"{self.user}:{self.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}" if self.user else ""


def credentials_for(host: str, token: str | None, variables: Mapping[str, str]) -> Credentials:
    """The credentials for `host`, empty where there are none; `token` is `USER:PASSWORD`, or a bearer token.

    Raises:
        NotAllowed: a file or a program that should have them does not give them.
    """
    if token:
        user, colon, password = token.partition(":")
        return Credentials(user=user, password=password) if colon else Credentials(bearer=token)
    names = _DOCKER_HUB if host in _DOCKER_HUB else (host,)
    for path in _files(variables):
        if not path.is_file():
            continue
        try:
            held = read_json(path, _LIMIT_BYTES)
            found = _in_file(held if isinstance(held, dict) else {}, names, variables)
        except (OSError, ValueError) as error:
            raise NotAllowed(
                f"`{path}` has no credentials for {host} that can be read: {shown(str(error), 160)}",
                hint="`docker login` writes the file, `adapt remote login` stores a token without it",
            ) from None
        if found is not None:
            return found
    return Credentials()


def _files(variables: Mapping[str, str]) -> Iterator[Path]:
    if named := variables.get("REGISTRY_AUTH_FILE"):
        yield Path(named)
    if folder := variables.get("DOCKER_CONFIG"):
        yield Path(folder) / "config.json"
    elif home := variables.get("HOME"):
        yield Path(home) / ".docker" / "config.json"
    if folder := variables.get("XDG_RUNTIME_DIR"):
        yield Path(folder) / "containers" / "auth.json"


def _in_file(held: Mapping[str, Any], names: tuple[str, ...], variables: Mapping[str, str]) -> Credentials | None:
    helpers, entries = held.get("credHelpers", {}), held.get("auths", {})
    for name in names:
        if isinstance(helpers, dict) and isinstance(helper := helpers.get(name), str):
            return _from_helper(helper, name, variables)
    for key, entry in entries.items() if isinstance(entries, dict) else ():
        if isinstance(entry, dict) and _host_of(key) in names and (entry.get("auth") or entry.get("identitytoken")):
            user, _, password = base64.b64decode(str(entry.get("auth") or ""), validate=True).decode().partition(":")
            return Credentials(user=user, password=password, refresh=str(entry.get("identitytoken") or ""))
    if isinstance(store := held.get("credsStore"), str) and store:
        return _from_helper(store, "https://index.docker.io/v1/" if "docker.io" in names else names[0], variables)
    return None


def _host_of(key: str) -> str:
    return key.partition("://")[2].partition("/")[0] if "://" in key else key


def _from_helper(helper: str, key: str, variables: Mapping[str, str]) -> Credentials | None:
    """What `docker-credential-HELPER get` prints for `key`; None where it has nothing."""
    if not _HELPER.fullmatch(helper):
        raise ValueError(f"`{shown(helper)}` is no name of a program")
    try:
        done = subprocess.run(  # noqa: S603 - the user's own file names it, as for Docker
            [f"docker-credential-{helper}", "get"],
            input=key.encode(),
            capture_output=True,
            check=False,
            timeout=_HELPER_S,
            env=dict(variables),
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"`docker-credential-{helper}` does not answer") from None
    if done.returncode:
        return None  # as Docker takes it: there are none
    told = strict_json(done.stdout)
    if not isinstance(told, dict):
        raise ValueError(f"`docker-credential-{helper}` printed no object")  # noqa: TRY004 - one class for the caller
    user, secret = str(told.get("Username", "")), str(told.get("Secret", ""))
    return Credentials(refresh=secret) if user == _REFRESHES else Credentials(user=user, password=secret)
