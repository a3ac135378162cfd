"""A name in content gives no right: who may write `acme/sandbox` alone never supplies `acme/legal`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapterhub.core.errors import AdapterHubError, Malformed, NoCompatibleRelease, NotAllowed
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.hub import Hub
from adapterhub.distribution.install import plan_install, run_install
from adapterhub.distribution.outdated import UpgradeRequest, offers
from adapterhub.formats.release import Release
from adapterhub.library.admission import Repositories
from adapterhub.library.bases.requested import requested_base
from adapterhub.library.installed import Added
from adapterhub.library.library import Library
from adapterhub.library.transfer import copy
from tests.attacks.test_released_names import server_on
from tests.registry.running import Running

Push = Callable[..., Any]
ON_A_HUB = pytest.mark.parametrize("server", ["sqlite"], indirect=True)
"""For what the client decides: the database does not matter."""


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.exhaustive)])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Running]:
    """Run a registry; the rules are one code over both databases, so PostgreSQL takes part in an exhaustive run."""
    yield from server_on(request, tmp_path)


def token(server: Running, *namespaces: str) -> str:
    return server.registry.tokens.create("mallory", "write", namespaces=list(namespaces))


@pytest.fixture(autouse=True)
def _online(online: None) -> None:
    pass


@pytest.fixture
def push(server: Running, add: Callable[..., Added], tmp_path: Path) -> Push:
    """Push a build with other bytes each time, by the token of the administrator or another."""

    def send(name: str, repo: str, *, version: str = "1.0.0", by: str | None = None, **adapter: Any) -> str:
        number = len(list(tmp_path.glob("from-*")))
        home = Library(tmp_path / f"from-{number}")
        build = add(name, version=version, into=home, seed=number, **{"known": False, **adapter}).build
        hub = Hub(endpoint=server.url, token=by or server.token)
        copy(Release(manifest=build.manifest, namespace=None, origin="home"), home, hub.to(repo))
        return build.manifest.digest

    return send


def chosen(server: Running, library: Library, text: str) -> str:
    return plan_install(
        library, AdapterSpec.parse(text), [Hub(endpoint=server.url, token=None)], wanted=None
    ).release.digest


def names(server: Running, namespace: str = "acme") -> list[tuple[str, str]]:
    told = httpx.get(f"{server.url}/api/adapt/v1/namespaces/{namespace}/names").raise_for_status().json()["names"]
    return sorted((one["name"], one["repo"]) for one in told)


def move(server: Running, by: str, repo: str, name: str = "legal") -> int:
    """Give a name to a repository of acme; the status."""
    return httpx.post(
        f"{server.url}/api/adapt/v1/namespaces/acme/names",
        json={"name": name, "repo": repo},
        headers={"Authorization": f"Bearer {by}"},
    ).status_code


# ---------------------------------------------------------------- the registry
def test_a_strange_repository_never_releases_a_name_that_has_an_owner(
    server: Running, push: Push, tmp_path: Path
) -> None:
    mine = push("legal", "acme/legal")
    sandbox = token(server, "acme/sandbox")

    for version in ("1.0.0", "1.0.1", "9.0"):
        with pytest.raises(NotAllowed, match="belongs to those who may write `acme/legal`"):
            push("legal", "acme/sandbox", version=version, by=sandbox)

    empty = Library(tmp_path / "empty")
    assert {chosen(server, empty, text) for text in ("acme/legal", "acme/legal==1.0.0", "acme/legal>=1")} == {mine}
    assert names(server) == [("legal", "acme/legal")]
    got(server, empty, "acme/legal")
    assert [offer.has_newer for offer in offers(empty, [request_for(server, empty)])] == [False]
    following = push("legal", "acme/legal", version="1.0.1")  # a version that the stranger tried
    assert [offer.has_allowed for offer in offers(empty, [request_for(server, empty)])] == [True]
    assert got(server, empty, "acme/legal") == following


def test_who_has_lost_a_name_releases_it_no_more_and_installs_as_it_no_more(
    server: Running, push: Push, tmp_path: Path
) -> None:
    sandbox, empty = token(server, "acme/sandbox"), Library(tmp_path / "empty")
    lost = push("legal", "acme/sandbox", version="3.0")
    first = chosen(server, empty, "acme/sandbox")
    alias(server, "acme/sandbox", "3.0")

    mine = push("legal", "acme/legal")
    move(server, server.token, "acme/legal")
    with pytest.raises(NotAllowed, match="belongs to"):
        push("legal", "acme/sandbox", version="4.0", by=sandbox)
    # the card of a repository without a manifest gives no name either
    put(server, sandbox, "README.md", b"---\ntags: ['adapter-name:legal', peft]\n---\n")

    assert (first, chosen(server, empty, "acme/legal")) == (lost, mine)
    assert names(server) == [("legal", "acme/legal")]
    for text in ("acme/sandbox", "acme/sandbox==3.0", "acme/sandbox>=1"):
        with pytest.raises(
            NoCompatibleRelease, match=r"may not release `acme/legal`.*--accept-repository acme/sandbox"
        ):
            got(server, empty, text)
    with pytest.raises(NotAllowed, match="may not release `acme/legal`"):
        Hub(endpoint=server.url, token=None).alias(AdapterSpec.parse("acme/sandbox@prod"))
    assert list(empty.installed()) == []
    assert chosen(server, empty, f"acme/sandbox#{lost}") == lost
    assert got(server, empty, "acme/sandbox", accepted=("acme/sandbox",)) == lost


def alias(server: Running, repo: str, version: str) -> None:
    server.post(f"/api/adapt/v1/adapters/{repo}/aliases/prod", {"targets": [{"version": version}]}).raise_for_status()


def put(server: Running, by: str, path: str, data: bytes) -> None:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    changes = [CommitOperationAdd(path, data), CommitOperationDelete("adapterhub.json")]
    HfApi(endpoint=server.url, token=by).create_commit("acme/sandbox", changes, commit_message="x")


def test_a_stranger_learns_of_no_private_repository_by_a_name(server: Running, push: Push) -> None:
    sandbox, answers = token(server, "acme/sandbox"), []

    def attempt() -> None:
        with pytest.raises(NotAllowed) as refused:
            push("legal", "acme/sandbox", by=sandbox)
        answers.append((refused.value.message, refused.value.hint))

    attempt()
    made = {"organization": "acme", "name": "legal", "private": True}
    server.post("/api/repos/create", made).raise_for_status()
    attempt()  # beside a private repository of the name
    push("legal", "acme/legal")
    attempt()  # with a release
    push("legal", "acme/secret", version="2.0")
    server.send("PUT", "/api/models/acme/secret/settings", {"private": True}).raise_for_status()
    server.send("DELETE", "/api/repos/delete", {"organization": "acme", "name": "legal"}).raise_for_status()
    attempt()  # beside a private neighbour with the name, and the traces of a removed repository
    server.send("DELETE", "/api/repos/delete", {"organization": "acme", "name": "secret"}).raise_for_status()
    attempt()

    assert len(set(answers)) == 1
    assert names(server) == []


def test_a_holder_of_a_name_learns_the_name_of_no_removed_repository(server: Running, push: Push) -> None:
    push("legal", "acme/secret", version="2.0")
    server.send("DELETE", "/api/repos/delete", {"organization": "acme", "name": "secret"}).raise_for_status()
    push("legal", "acme/legal-7b")

    with pytest.raises(AdapterHubError, match=r"release 2\.0 of adapter `legal` in `acme` was removed") as refused:
        push("legal", "acme/legal-7b", version="2.0", by=token(server, "acme/legal-7b"))

    assert "secret" not in str(refused.value)


def test_the_owner_of_a_name_releases_it_in_several_repositories(server: Running, push: Push) -> None:
    push("legal", "acme/legal-7b", by=token(server, "acme/*"))
    push("legal", "acme/legal-13b", version="2.0", by=token(server, "acme/legal*"))

    assert names(server) == [("legal", "acme/legal-13b"), ("legal", "acme/legal-7b")]
    push("legal", "acme/legal-13b", version="2.1", by=token(server, "acme/legal-13b"))

    page = httpx.get(f"{server.url}/api/adapt/v1/namespaces/acme/names?limit=1").raise_for_status().json()
    assert sorted(one["repo"] for one in page["names"]) == ["acme/legal-13b", "acme/legal-7b"]
    assert page["next_after"] == "legal"


def test_an_owner_of_the_namespace_moves_a_name(server: Running, push: Push, tmp_path: Path) -> None:
    sandbox, owner = token(server, "acme/sandbox"), token(server, "acme/*")
    push("legal", "acme/sandbox", by=owner)
    push("other", "acme/next")

    assert [move(server, sandbox, "acme/sandbox"), move(server, owner, "bob/x")] == [403, 404]
    assert move(server, owner, "acme/next") == 200

    with pytest.raises(NotAllowed):
        push("legal", "acme/sandbox", version="2.0", by=sandbox)
    mine = push("legal", "acme/next", version="2.0", by=token(server, "acme/next"))
    assert chosen(server, Library(tmp_path / "empty"), "acme/legal") == mine
    assert names(server) == [("legal", "acme/next"), ("other", "acme/next")]


def test_a_moved_repository_brings_no_name_to_another_namespace(server: Running, push: Push) -> None:
    push("legal", "acme/legal")
    both = token(server, "mallory/*", "acme/sandbox")
    push("legal", "mallory/x")

    moved = httpx.post(
        f"{server.url}/api/repos/move",
        json={"fromRepo": "mallory/x", "toRepo": "acme/sandbox"},
        headers={"Authorization": f"Bearer {both}"},
    )

    assert moved.status_code == 403
    assert names(server, "mallory") == [("legal", "mallory/x")]


def test_an_alias_of_a_strange_repository_answers_for_no_name(server: Running, push: Push) -> None:
    push("legal", "acme/sandbox", version="3.0")
    push("legal", "acme/legal-7b")
    move(server, server.token, "acme/legal-7b")
    alias(server, "acme/sandbox", "3.0")

    assert Hub(endpoint=server.url, token=None).alias(AdapterSpec.parse("acme/legal@prod")) is None


def test_a_rewritten_history_gives_no_name(server: Running, push: Push) -> None:
    from huggingface_hub import HfApi

    lost = push("legal", "acme/sandbox")
    push("legal", "acme/legal", version="2.0")
    move(server, server.token, "acme/legal")

    HfApi(endpoint=server.url, token=token(server, "acme/sandbox")).super_squash_history("acme/sandbox")

    assert names(server) == [("legal", "acme/legal")]
    told = httpx.get(f"{server.url}/api/adapt/v1/adapters/acme/sandbox/versions").raise_for_status().json()
    assert [one["digest"] for one in told["versions"]] == [lost]


# ---------------------------------------------------------------- a hub that keeps no names
@pytest.fixture
def no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server as the Hugging Face Hub is: it keeps no names, so its listing holds whoever claims one."""
    from adapterhub_registry.access import rights

    monkeypatch.setattr(Hub, "features", frozenset())
    monkeypatch.setattr(rights, "check", lambda *_: None)


def got(server: Running, library: Library, text: str, *, accepted: tuple[str, ...] = ()) -> str:
    """Plan, install, and say the digest."""
    spec, hub = AdapterSpec.parse(text), Hub(endpoint=server.url, token=None)
    with library.accepting(accepted):
        wanted = requested_base(spec.base, library.bases)
        plan = plan_install(library, spec, [hub], wanted=wanted, library_first=False)
        run_install(library, plan)
    return plan.release.digest


@ON_A_HUB
@pytest.mark.usefixtures("no_names")
def test_on_a_hub_a_name_stays_with_the_repository_that_it_came_from(
    server: Running, push: Push, tmp_path: Path
) -> None:
    library = Library(tmp_path / "mine")
    mine = push("legal", "acme/legal-7b")
    first = got(server, library, "acme/legal")
    strange = push("legal", "acme/sandbox", version="9.0")

    again = got(server, library, "acme/legal")
    with pytest.raises(NoCompatibleRelease, match=r"--accept-repository acme/sandbox") as refused:
        got(server, library, "acme/legal==9.0")
    with pytest.raises(NoCompatibleRelease):
        got(server, library, "acme/sandbox")
    [offer] = offers(library, [request_for(server, library)])
    accepted = got(server, library, "acme/legal==9.0", accepted=("acme/sandbox",))

    assert (first, again, accepted) == (mine, mine, strange)
    assert "`acme/legal` comes from `acme/legal-7b`" in str(refused.value)
    assert (offer.has_allowed, offer.has_newer) == (False, False)
    assert got(server, library, "acme/legal") == strange


@ON_A_HUB
@pytest.mark.usefixtures("no_names")
def test_on_a_hub_the_repository_of_the_name_comes_before_those_that_claim_it(
    server: Running, push: Push, tmp_path: Path
) -> None:
    strange, mine = push("legal", "acme/sandbox", version="9.0"), push("legal", "acme/legal")

    assert got(server, Library(tmp_path / "mine"), "acme/legal") == mine
    with pytest.raises(NoCompatibleRelease):
        got(server, Library(tmp_path / "other"), "acme/legal==9.0")
    assert got(server, Library(tmp_path / "exact"), f"acme/legal#{strange}") == strange


@ON_A_HUB
@pytest.mark.usefixtures("no_names")
def test_on_a_hub_the_repository_for_a_base_that_you_know_needs_no_consent(
    server: Running, push: Push, library: Library
) -> None:
    push("legal", "acme/legal")
    mine = push("legal", "acme/legal-base-7b", version="2.0", known=True)
    strange = push("legal", "acme/legal-other", version="3.0", known=True)

    assert got(server, library, "acme/legal@base-7b") == mine
    assert got(server, library, "acme/legal@base-7b", accepted=("acme/legal-other",)) == strange


@ON_A_HUB
@pytest.mark.usefixtures("no_names")
def test_on_a_hub_a_repository_comes_before_a_name_though_its_adapter_is_called_otherwise(
    server: Running, push: Push, tmp_path: Path
) -> None:
    mine = push("contracts", "acme/legal")
    push("legal", "acme/sandbox", version="9.0")

    assert got(server, Library(tmp_path / "mine"), "acme/legal") == mine


def request_for(server: Running, library: Library) -> UpgradeRequest:
    [build] = library.builds_named("legal", "acme")
    return UpgradeRequest(
        key="acme/legal",
        spec=AdapterSpec.parse("acme/legal"),
        version=build.manifest.version,
        digest=build.manifest.digest,
        rank=build.manifest.rank,
        wanted=None,
        sources=lambda: [Hub(endpoint=server.url, token=None)],
    )


def test_a_damaged_record_of_repositories_makes_no_name_new(tmp_path: Path) -> None:
    library = Library(tmp_path)
    known = Repositories(library.root)
    known.bind("https://huggingface.co", "acme/legal", "acme/legal-7b")
    known.bind("https://huggingface.co", "acme/legal", "acme/legal-13b")

    assert known.of("https://huggingface.co", "acme/legal") == {"acme/legal-7b", "acme/legal-13b"}
    assert known.of("https://hub.example", "acme/legal") == frozenset()
    known.path.write_text('{"places": {"x": {"acme/legal": "acme/sandbox"}}}')
    with pytest.raises(Malformed):
        known.of("x", "acme/legal")
