"""A name in content gives no right: who may write `acme/sandbox` alone never supplies `acme/legal`."""

from __future__ import annotations

import threading
from collections.abc import Callable
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
from adapterhub.library.admission.repositories import Repositories
from adapterhub.library.bases.requested import requested_base
from adapterhub.library.library import Added, Library
from adapterhub.library.transfer import copy
from tests.attacks.test_released_names import server
from tests.registry.running import Running

__all__ = ["server"]

Push = Callable[..., Any]


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


def names(server: Running, namespace: str = "acme") -> list[tuple[str, str, bool]]:
    told = httpx.get(f"{server.url}/api/adapt/v1/namespaces/{namespace}/names").raise_for_status().json()["names"]
    return [(one["name"], one["repo"], one["granted"]) for one in told]


# ---------------------------------------------------------------- the registry
def test_a_strange_repository_never_releases_a_name_that_has_an_owner(
    server: Running, push: Push, tmp_path: Path
) -> None:
    mine = push("legal", "acme/legal")
    sandbox = token(server, "acme/sandbox")

    for version in ("1.0.0", "1.0.1", "9.0"):
        with pytest.raises(NotAllowed, match="belongs to repository `acme/legal`"):
            push("legal", "acme/sandbox", version=version, by=sandbox)

    empty = Library(tmp_path / "empty")
    assert {chosen(server, empty, text) for text in ("acme/legal", "acme/legal==1.0.0", "acme/legal>=1")} == {mine}
    assert names(server) == [("legal", "acme/legal", True)]
    got(server, empty, "acme/legal")
    assert [offer.has_newer for offer in offers(empty, [request_for(server, empty)])] == [False]
    following = push("legal", "acme/legal", version="1.0.1")  # a version that the stranger tried
    assert [offer.has_allowed for offer in offers(empty, [request_for(server, empty)])] == [True]
    assert got(server, empty, "acme/legal") == following


def test_who_was_only_first_loses_a_name_to_its_owner(server: Running, push: Push, tmp_path: Path) -> None:
    sandbox, empty = token(server, "acme/sandbox"), Library(tmp_path / "empty")
    strange = push("legal", "acme/sandbox", version="3.0", by=sandbox)
    first = chosen(server, empty, "acme/legal")

    mine = push("legal", "acme/legal")
    with pytest.raises(NotAllowed, match="belongs to"):
        push("legal", "acme/sandbox", version="4.0", by=sandbox)
    # the card of a repository without a manifest gives no name either
    put(server, sandbox, "README.md", b"---\ntags: ['adapter-name:legal', peft]\n---\n")

    assert (first, chosen(server, empty, "acme/legal")) == (strange, mine)
    assert names(server) == [("legal", "acme/legal", True)]
    assert chosen(server, empty, "acme/sandbox") == strange


def put(server: Running, by: str, path: str, data: bytes) -> None:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    changes = [CommitOperationAdd(path, data), CommitOperationDelete("adapterhub.json")]
    HfApi(endpoint=server.url, token=by).create_commit("acme/sandbox", changes, commit_message="x")


def test_a_repository_of_the_name_keeps_strangers_off_before_it_releases(server: Running, push: Push) -> None:
    httpx.post(
        f"{server.url}/api/repos/create",
        json={"organization": "acme", "name": "legal"},
        headers={"Authorization": f"Bearer {server.token}"},
    ).raise_for_status()

    with pytest.raises(NotAllowed, match="belongs to repository `acme/legal`"):
        push("legal", "acme/sandbox", by=token(server, "acme/sandbox"))


def test_a_removed_repository_leaves_its_name_to_its_owner(server: Running, push: Push, tmp_path: Path) -> None:
    push("legal", "acme/legal")
    httpx.request(
        "DELETE",
        f"{server.url}/api/repos/delete",
        json={"organization": "acme", "name": "legal"},
        headers={"Authorization": f"Bearer {server.token}"},
    ).raise_for_status()

    with pytest.raises(NotAllowed, match="belongs to another repository"):
        push("legal", "acme/sandbox", version="2.0", by=token(server, "acme/sandbox"))
    mine = push("legal", "acme/other", version="2.0", by=token(server, "acme/*"))

    assert chosen(server, Library(tmp_path / "empty"), "acme/legal") == mine


def test_the_owner_of_a_name_releases_it_in_several_repositories(server: Running, push: Push) -> None:
    push("legal", "acme/legal-7b", by=token(server, "acme/*"))
    push("legal", "acme/legal-13b", version="2.0", by=token(server, "acme/legal*"))

    assert names(server) == [("legal", "acme/legal-13b", True), ("legal", "acme/legal-7b", True)]
    push("legal", "acme/legal-13b", version="2.1", by=token(server, "acme/legal-13b"))


def test_an_owner_of_the_namespace_moves_a_name(server: Running, push: Push, tmp_path: Path) -> None:
    sandbox = token(server, "acme/sandbox")
    push("legal", "acme/sandbox", by=sandbox)
    push("other", "acme/next")

    def move(by: str, repo: str) -> int:
        return httpx.post(
            f"{server.url}/api/adapt/v1/namespaces/acme/names",
            json={"name": "legal", "repo": repo},
            headers={"Authorization": f"Bearer {by}"},
        ).status_code

    assert [move(sandbox, "acme/sandbox"), move(token(server, "acme/*"), "bob/x")] == [403, 404]
    assert move(token(server, "acme/*"), "acme/next") == 200

    with pytest.raises(NotAllowed):
        push("legal", "acme/sandbox", version="2.0", by=sandbox)
    mine = push("legal", "acme/next", version="2.0", by=token(server, "acme/next"))
    assert chosen(server, Library(tmp_path / "empty"), "acme/legal") == mine
    assert names(server) == [("legal", "acme/next", True), ("other", "acme/next", True)]


def test_a_moved_repository_brings_no_name_to_another_namespace(server: Running, push: Push) -> None:
    push("legal", "acme/legal")
    both = token(server, "mallory/*", "acme/sandbox")
    push("legal", "mallory/x", by=both)

    moved = httpx.post(
        f"{server.url}/api/repos/move",
        json={"fromRepo": "mallory/x", "toRepo": "acme/sandbox"},
        headers={"Authorization": f"Bearer {both}"},
    )

    assert moved.status_code == 403
    assert names(server, "mallory") == [("legal", "mallory/x", True)]


def test_an_alias_of_a_strange_repository_answers_for_no_name(server: Running, push: Push) -> None:
    sandbox = token(server, "acme/sandbox")
    push("legal", "acme/sandbox", version="3.0", by=sandbox)
    push("legal", "acme/legal-7b")
    httpx.post(
        f"{server.url}/api/adapt/v1/adapters/acme/sandbox/aliases/prod",
        json={"targets": [{"version": "3.0"}]},
        headers={"Authorization": f"Bearer {sandbox}"},
    ).raise_for_status()

    assert Hub(endpoint=server.url, token=None).alias(AdapterSpec.parse("acme/legal@prod")) is None


def test_of_two_repositories_that_release_a_name_at_one_moment_one_has_it(
    server: Running, add: Callable[..., Added], tmp_path: Path
) -> None:
    done: dict[str, str] = {}
    ready = threading.Barrier(2)

    def release(repo: str, home: Library, build: Added) -> None:
        hub = Hub(endpoint=server.url, token=token(server, repo))
        ready.wait()
        try:
            copy(Release(manifest=build.build.manifest, namespace=None, origin="home"), home, hub.to(repo))
            done[repo] = "released"
        except AdapterHubError as error:
            done[repo] = type(error).__name__

    homes = {repo: Library(tmp_path / f"from-{repo[-1]}") for repo in ("acme/a", "acme/b")}
    builds = {repo: add("legal", into=home, seed=ord(repo[-1]), known=False) for repo, home in homes.items()}
    threads = [threading.Thread(target=release, args=(repo, homes[repo], builds[repo])) for repo in homes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(done.values()) == ["NotAllowed", "released"]
    assert [(name, granted) for name, _, granted in names(server)] == [("legal", False)]


# ---------------------------------------------------------------- a hub that keeps no names
@pytest.fixture
def no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server as the Hugging Face Hub is: it keeps no names, so its listing holds whoever claims one."""
    from adapterhub_registry.access import adapter_names

    monkeypatch.setattr(Hub, "features", frozenset())
    monkeypatch.setattr(adapter_names, "check", lambda *_: None)
    monkeypatch.setattr(adapter_names, "free", lambda *_: None)


def got(server: Running, library: Library, text: str, *, accepted: tuple[str, ...] = ()) -> str:
    """Plan, install, and say the digest."""
    spec, hub = AdapterSpec.parse(text), Hub(endpoint=server.url, token=None)
    with library.accepting(accepted):
        wanted = requested_base(spec.base, library.bases)
        plan = plan_install(library, spec, [hub], wanted=wanted, library_first=False)
        run_install(library, plan)
    return plan.release.digest


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


@pytest.mark.usefixtures("no_names")
def test_on_a_hub_the_repository_of_the_name_comes_before_those_that_claim_it(
    server: Running, push: Push, tmp_path: Path
) -> None:
    strange, mine = push("legal", "acme/sandbox", version="9.0"), push("legal", "acme/legal")

    assert got(server, Library(tmp_path / "mine"), "acme/legal") == mine
    with pytest.raises(NoCompatibleRelease):
        got(server, Library(tmp_path / "other"), "acme/legal==9.0")
    assert got(server, Library(tmp_path / "exact"), f"acme/legal#{strange}") == strange


@pytest.mark.usefixtures("no_names")
def test_on_a_hub_the_repository_for_a_base_that_you_know_needs_no_consent(
    server: Running, push: Push, library: Library
) -> None:
    push("legal", "acme/legal")
    mine = push("legal", "acme/legal-base-7b", version="2.0", known=True)
    strange = push("legal", "acme/legal-other", version="3.0", known=True)

    assert got(server, library, "acme/legal@base-7b") == mine
    assert got(server, library, "acme/legal@base-7b", accepted=("acme/legal-other",)) == strange


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
