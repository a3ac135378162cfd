"""When a release was published, as a client learns it: from a registry, and from a hub that only dates its commits."""

from __future__ import annotations

import time
from itertools import count
from typing import Any

import pytest

from adapterhub.core.dates import parse_time
from adapterhub.core.errors import NoCompatibleRelease, RemoteUnreachable
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.hub import Hub
from adapterhub.distribution.install import plan_install
from adapterhub.formats.release import Release
from adapterhub.library.library import Library
from adapterhub.library.transfer import copy
from adapterhub.projects.file import objection_of
from adapterhub.projects.values import Policy
from tests.registry.proxy import Proxy
from tests.registry.running import Running
from tests.support.tiny import make_adapter

pytestmark = pytest.mark.usefixtures("online")
numbers = count(1)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server as a hub that has no calls of ours."""
    monkeypatch.setattr(Hub, "features", frozenset())


@pytest.fixture
def push(server: Running, library: Library, add: Any) -> Any:
    """Push one release, and say between which times that was."""
    name = f"team{next(numbers)}/legal-qa"

    def pushed(version: str, seed: int = 0) -> tuple[str, float, float]:
        manifest = add("legal-qa", version=version, seed=seed).build.manifest
        before = int(time.time() * 1000) / 1000  # the registry counts in milliseconds
        hub = Hub(endpoint=server.url, token=server.token)
        copy(Release(manifest=manifest, namespace=None, origin="home"), library, hub.to(name))
        return name, before, time.time()

    return pushed


def dates(place: Running | Proxy, name: str) -> dict[str, float | None]:
    found = Hub(endpoint=place.url, token=None).releases(AdapterSpec.parse(name))
    return {release.manifest.version: release.published_at for release in found}


def test_a_registry_says_when_each_version_was_released(server, push):
    name, before, after = push("1.0.0")
    _, later, latest = push("1.1.0", seed=1)

    told = dates(server, name)

    assert before <= told["1.0.0"] <= after
    assert later <= told["1.1.0"] <= latest


def test_a_version_that_is_tagged_again_keeps_the_date_of_its_release(server, push):
    name, _, after = push("1.0.0")
    api = server.api
    api.delete_tag(name, tag="v1.0.0")
    api.create_tag(name, tag="v1.0.0")

    assert dates(server, name)["1.0.0"] <= after


def test_a_plain_hub_dates_a_version_by_its_commit_in_one_question_for_all(proxy, push, plain):
    name, before, after = push("1.0.0")
    _, later, latest = push("1.1.0", seed=1)

    told = dates(proxy, name)

    assert before <= told["1.0.0"] <= after
    assert later <= told["1.1.0"] <= latest
    assert len(proxy.paths("/commits/")) == 1


def test_a_peft_repository_without_a_manifest_has_the_date_of_its_commit(server, plain, tmp_path):
    name = f"team{next(numbers)}/plain"
    api = server.api
    before = int(time.time() * 1000) / 1000
    api.create_repo(name)
    api.upload_folder(repo_id=name, folder_path=make_adapter(tmp_path / "plain"))

    (at,) = dates(server, name).values()

    assert at is not None
    assert before <= at <= time.time()


@pytest.mark.parametrize(
    "fault",
    [
        lambda body: b"[]".ljust(len(body)),
        lambda body: b"{}".ljust(len(body)),
        lambda body: b"no JSON".ljust(len(body)),
        lambda body: body.replace(b'"date"', b'"when"'),
        lambda body: body.replace(b"T", b"?"),
        "drop",
    ],
)
def test_a_hub_that_tells_no_date_leaves_it_unknown_and_the_release_is_found(proxy, push, plain, library, fault):
    name, _, _ = push("1.0.0")
    proxy.fault = lambda request: fault if "/commits/" in request.path else None
    far, spec = Library(library.root.parent / "far"), AdapterSpec.parse(name)
    hub = Hub(endpoint=proxy.url, token=None)

    assert dates(proxy, name) == {"1.0.0": None}
    with pytest.raises(NoCompatibleRelease, match="its date is not known"):
        plan_install(far, spec, [hub], wanted=None, objection=objection_of(Policy(exclude_newer="7d"), time.time()))


def test_a_registry_that_tells_a_date_that_is_none_is_not_believed(proxy, push):
    name, _, _ = push("1.0.0")
    proxy.fault = lambda r: (lambda body: body.replace(b'Z"', b'?"')) if "/versions?" in r.path else None

    with pytest.raises(RemoteUnreachable, match="sent no list of versions"):
        dates(proxy, name)


def test_a_cooldown_takes_the_older_of_two_releases_until_the_newer_is_old_enough(server, push, library):
    name, _, after = push("1.0.0")
    time.sleep(0.05)  # the two have to have different dates
    _, later, _ = push("1.1.0", seed=1)
    far, hub, spec = Library(library.root.parent / "far"), Hub(endpoint=server.url, token=None), AdapterSpec.parse(name)
    cooldown = Policy(exclude_newer="7d")

    def chosen(now: float) -> str:
        plan = plan_install(far, spec, [hub], wanted=None, objection=objection_of(cooldown, now))
        return plan.release.manifest.version

    week = parse_time("2026-01-08T00:00:00Z") - parse_time("2026-01-01T00:00:00Z")
    assert chosen((after + later) / 2 + week) == "1.0.0"
    assert chosen(time.time() + week) == "1.1.0"
    with pytest.raises(NoCompatibleRelease, match="`exclude-newer` 7d takes none after"):
        chosen(time.time())
