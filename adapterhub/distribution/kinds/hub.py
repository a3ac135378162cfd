"""A server that speaks the Hugging Face Hub's protocol: a URL, and a repository at a commit for one build."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from adapterhub.core.errors import shown
from adapterhub.core.specs import is_hub_id
from adapterhub.distribution.kind import Kind, RemoteAccess
from adapterhub.library.remotes import parse_url

if TYPE_CHECKING:
    from adapterhub.core.specs import AdapterSpec
    from adapterhub.distribution.hub import Hub
    from adapterhub.formats.release import Release
    from adapterhub.library.transfer import Place, Source

_COMMIT: Final = re.compile(r"[0-9a-f]{40,64}")


class HubKind(Kind):
    """See the module."""

    name = "hub"
    pin_keys = ("repo", "commit")

    def parse_address(self, text: str) -> str:
        """Return the URL of the server, normalized."""
        return parse_url(text)

    def open(self, address: str, access: RemoteAccess) -> Hub:
        """Return the server; the token is for it alone."""
        from huggingface_hub import constants
        from huggingface_hub.utils.tqdm import disable_progress_bars

        from adapterhub.distribution.hub import Hub, bound_client

        if not access.allows_telemetry:
            constants.HF_HUB_DISABLE_TELEMETRY = True  # else the client calls its maker's server from any endpoint
        if not access.shows_bars:
            disable_progress_bars()
        bound_client(access.silence_s)
        return Hub(
            endpoint=address,
            token=access.token,
            label=access.label,
            silence_s=access.silence_s,
            witness=access.witness,
        )

    def claims(self, place: str) -> bool:
        """Return whether it is a web address."""
        return place.startswith(("http://", "https://"))

    def destination(self, source: Source, repository: str, *, private: bool, signs_again: bool) -> Place:
        """Return the repository; a private one is made where it is new."""
        found = _server(source).to(repository, private=private)
        found.signs_again = signs_again
        return found

    def within(self, source: Source, namespace: str) -> Source:
        """One namespace of the server."""
        return _server(source).within(namespace)

    def pin(self, source: Source, release: Release) -> Mapping[str, str]:
        """Repository and commit."""
        repo, commit = _server(source).repository_of(release)
        return {"repo": repo, "commit": commit}

    def pinned(self, source: Source, pin: Mapping[str, str], spec: AdapterSpec) -> Iterable[Source]:
        """Yield the commit, then the server: the same release may have moved to another repository."""
        if pin:
            yield _server(source).at(pin["repo"], pin["commit"])
        if spec.namespace is not None:
            yield source

    def problems(self, address: str, pin: Mapping[str, str]) -> list[str]:
        """Return the faults of a pin: the URL is normal; repository and commit stand together, or neither does."""
        found = [problem for problem in super().problems(address, pin) if not problem.endswith(": missing")]
        repo, commit = (pin.get(key, "") for key in self.pin_keys)
        if repo and not ("/" in repo and is_hub_id(repo)):
            found.append(f"repo: expected `org/name`, got `{shown(repo)}`")
        if commit and not _COMMIT.fullmatch(commit):
            found.append(f"commit: expected 40 hex digits, got `{shown(commit)}`")
        if bool(repo) != bool(commit):
            found.append("`url`, `repo` and `commit` stand together")
        return found

    def publisher(self, pin: Mapping[str, str]) -> str:
        """Return the owner of the repository."""
        return pin.get("repo", "").partition("/")[0]

    def describe(self, address: str, pin: Mapping[str, str]) -> str:
        """`acme/legal-qa at 0123456789ab of https://…`."""
        return f"{pin['repo']} at {pin['commit'][:12]} of {address}" if pin else address


def hub_behind(source: Source | None) -> Hub | None:
    """Return the server of the Hub's protocol that a source is, or is a part of; None for another kind."""
    from adapterhub.distribution.hub import Hub  # imports the Hub's client, for which few wait

    hub = getattr(source, "hub", source)
    return hub if isinstance(hub, Hub) else None


def _server(source: Source) -> Hub:
    hub: Any = getattr(source, "hub", source)  # a namespace or a commit of a server, or the server
    return hub  # type: ignore[no-any-return]


KIND: Final = HubKind()
