"""A stranger yanks the same bytes in a repository of its own: only the repository that a build came from counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapterhub.core.digests import parse_digest
from adapterhub.core.errors import AdapterHubError
from adapterhub.distribution.hub import Hub
from adapterhub.distribution.withdrawal import why_withdrawn
from adapterhub.formats.release import Release
from adapterhub.library.installed import Added
from adapterhub.library.library import Library
from adapterhub.library.store.origins import Origin
from adapterhub.library.transfer import copy
from tests.attacks.test_claimed_names import ON_A_HUB, chosen, got, move, no_names, token
from tests.attacks.test_released_names import server
from tests.registry.running import Running

__all__ = ["no_names", "server"]
pytestmark = ON_A_HUB

MINE, STRANGE = "acme/legal-7b", "acme/sandbox"


@pytest.fixture(autouse=True)
def _online(online: None) -> None:
    pass


@pytest.fixture(params=["names", "no_names"])
def keeps_names(request: pytest.FixtureRequest) -> bool:
    """Whether the server keeps names, as a registry does, or not, as the Hub."""
    if request.param == "no_names":
        request.getfixturevalue("no_names")
    return bool(request.param == "names")


@pytest.fixture
def share(server: Running, add: Callable[..., Added], tmp_path: Path) -> Callable[[str], None]:
    """Push one and the same build to a repository."""
    home = Library(tmp_path / "from")
    manifest = add("legal", into=home, known=False).build.manifest

    def send(repo: str) -> None:
        hub = Hub(endpoint=server.url, token=server.token)
        copy(Release(manifest=manifest, namespace=None, origin="home"), home, hub.to(repo))

    return send


def yank(server: Running, repo: str, reason: str, **by: Any) -> None:
    Hub(endpoint=server.url, token=by.get("token", server.token)).withdrawal.yank(repo, "1.0.0", reason)


def why(server: Running, library: Library) -> str | None:
    """Why the one build is withdrawn, as `info`, `verify` and `serve` ask it, and as the library remembers it."""
    [build] = library.builds_named("legal", "acme")
    told = why_withdrawn(library, build, lambda _: Hub(endpoint=server.url, token=None))
    assert told == library.yanked(build)
    return told


def ask_strangers(server: Running, library: Library) -> None:
    """Look at the stranger's copy, whose yank the library then sees."""
    with pytest.raises(AdapterHubError):
        chosen(server, library, STRANGE)


@pytest.mark.usefixtures("keeps_names")
def test_the_yank_of_a_stranger_with_the_same_bytes_counts_for_nothing(
    server: Running, share: Callable[[str], None], tmp_path: Path
) -> None:
    library = Library(tmp_path / "mine")
    share(MINE)
    mine = got(server, library, "acme/legal")
    share(STRANGE)
    move(server, server.token, MINE)

    yank(server, STRANGE, "out of spite", token=token(server, STRANGE))

    ask_strangers(server, library)
    assert why(server, library) is None
    assert got(server, library, "acme/legal") == mine  # asks the server again, which lists both copies
    yank(server, MINE, "leaked labels")
    assert why(server, library) == "leaked labels"


@pytest.mark.usefixtures("keeps_names")
def test_no_copy_of_a_stranger_hides_a_yank(server: Running, share: Callable[[str], None], tmp_path: Path) -> None:
    library = Library(tmp_path / "mine")
    share(MINE)
    got(server, library, "acme/legal")
    share(STRANGE)
    move(server, server.token, MINE)

    yank(server, MINE, "leaked labels")

    assert why(server, library) == "leaked labels"
    with pytest.raises(AdapterHubError, match="leaked labels"):
        got(server, library, "acme/legal")


def test_a_repository_that_was_renamed_keeps_its_say(
    server: Running, share: Callable[[str], None], tmp_path: Path
) -> None:
    library = Library(tmp_path / "mine")
    share(MINE)
    got(server, library, "acme/legal")
    server.post("/api/repos/move", {"fromRepo": MINE, "toRepo": "acme/renamed"}).raise_for_status()

    yank(server, "acme/renamed", "leaked labels")

    assert why(server, library) == "leaked labels"


def test_of_a_build_whose_repository_was_not_noted_those_with_the_name_have_a_say(
    server: Running, share: Callable[[str], None], tmp_path: Path
) -> None:
    library = Library(tmp_path / "mine")
    share(MINE)
    digest = got(server, library, "acme/legal")
    share(STRANGE)
    move(server, server.token, MINE)
    library.origins.record(Origin(adapter=parse_digest(digest), name="acme/legal", place=server.url))

    yank(server, STRANGE, "out of spite")
    ask_strangers(server, library)
    assert why(server, library) is None
    yank(server, MINE, "leaked labels")

    assert why(server, library) == "leaked labels"
