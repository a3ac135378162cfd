"""A server that follows its registry hears of a yank, a new version and a gap, and outlasts the registry's absence."""

from __future__ import annotations

import asyncio
import errno
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from adapterhub.core.errors import RemoteUnreachable
from adapterhub.core.specs import BaseSpec
from adapterhub.distribution.events import follow_events
from adapterhub.distribution.hub import Event, EventPage, Hub
from adapterhub.inference.serving import UnreachableRemotes, following
from adapterhub.inference.serving.access.denied import Denied
from adapterhub.inference.serving.access.gate import Gate
from adapterhub.inference.serving.following import Followers, Upkeep
from adapterhub.library.library import Library
from adapterhub.vllm_plugin import guard
from adapterhub.vllm_plugin.resolver import AdapterHubResolver
from tests.cli.test_cli_verbs_remote import World
from tests.inference.test_model_names import Engine
from tests.registry.running import Running, running
from tests.support.faulty_proxy import Answer, Proxy, Request, Steps, faulty, status, whole
from tests.support.standin_vllm import importable
from tests.support.tiny import make_adapter

pytestmark = pytest.mark.slow
PLACE = "http://127.0.0.1:1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture
def world(tmp_path: Path, server: Running, online: None, request: pytest.FixtureRequest) -> World:
    world = World(tmp_path, server, f"t{zlib.crc32(request.node.name.encode())}")
    world.publish("1.0.0")
    world.publish("1.1.0")
    return world


def hide(world: World, version: str) -> str:
    """Take the tag of a version away; the commit that `show` tags again."""
    repo = f"{world.team}/legal-qa"
    listed = world.server.get(f"/api/adapt/v1/adapters/{repo}/versions").json()["versions"]
    assert world.server.send("DELETE", f"/api/models/{repo}/tag/v{version}").is_success
    return str(next(one["commit"] for one in listed if one["version"] == version))


def show(world: World, version: str, commit: str) -> None:
    made = world.server.post(f"/api/models/{world.team}/legal-qa/tag/{commit}", {"tag": f"v{version}"})
    assert made.is_success, made.text


def unyank(world: World, version: str) -> None:
    path = f"/api/adapt/v1/adapters/{world.team}/legal-qa/unyank"
    assert world.server.post(path, {"version": version}).is_success


@pytest.fixture
def engine(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """vLLM's routes over bob's library, following the registry."""
    with importable(world.folder / "standin", monkeypatch):
        library = Library(world.bob.library.root)
        resolver = AdapterHubResolver({"ADAPTERHUB_HOME": str(library.root), "ADAPTERHUB_SERVE_FOLLOW": "1"}, ["vllm"])
        monkeypatch.setattr(guard, "registered_resolver", lambda: resolver)
        yield Engine(library.bases.find(BaseSpec.parse("base-7b")), resolver)


async def answer(engine: Engine, name: str) -> tuple[int, str]:
    status, headers, _ = await engine.send("POST", "/v1/completions", {"model": name, "prompt": "a"})
    return status, headers.get("x-adapter-name", "").rpartition("/")[2]


async def until(is_so: Callable[[], Any], within_s: float = 60.0) -> float:
    """The seconds until an awaited answer is true."""
    began = time.monotonic()
    while not await is_so():
        assert time.monotonic() - began < within_s
        await asyncio.sleep(0.01)
    return time.monotonic() - began


def follows(engine: Engine, place: str) -> bool:
    """Whether the server has asked the registry where to begin."""
    return any(one.name == f"adapterhub-follow {place} since" for one in threading.enumerate())


def test_events_stop_an_adapter_bring_it_back_and_move_ranges_but_no_exact_name(world: World, engine: Engine) -> None:
    large = make_adapter(world.folder / "out" / "large", seed=9, rank=64)
    world.ann.ok("add", large, "--name", "legal-qa", "--version", "1.9.0", "--base", "base-7b")
    world.ann.ok("push", "legal-qa==1.9.0", "--to", f"{world.team}/legal-qa")
    world.publish("1.2.0")
    commits = {version: hide(world, version) for version in ("1.9.0", "1.2.0")}
    engine.resolver.argv = ["vllm", "--enable-lora", "--max-lora-rank", "16"]
    anything, low, exact = (f"{world.team}/legal-qa{part}" for part in ("", "<1.2", "==1.1"))

    async def run() -> list[object]:
        async with engine.life():
            for name in (anything, low, exact):
                assert await answer(engine, name) == (200, "legal-qa==1.1.0")
            await until(lambda: _true(follows(engine, world.server.url)))
            await asyncio.to_thread(world.yank, "1.1.0", "leaks names")
            seconds = await until(lambda: _is(engine, exact, (410, "")))
            others = [await answer(engine, name) for name in (anything, low)]
            await asyncio.to_thread(unyank, world, "1.1.0")
            await until(lambda: _is(engine, exact, (200, "legal-qa==1.1.0")))
            await answer(engine, anything)
            await answer(engine, low)
            for version, commit in commits.items():  # the first has a rank that this server cannot take
                await asyncio.to_thread(show, world, version, commit)
            await until(lambda: _is(engine, anything, (200, "legal-qa==1.2.0")))
            return [seconds, others, await answer(engine, low), await answer(engine, exact)]

    seconds, *told = asyncio.run(run())

    assert told == [[(410, "")] * 2, (200, "legal-qa==1.1.0"), (200, "legal-qa==1.1.0")]
    assert not [build for build in world.bob.library.builds_named("legal-qa") if build.manifest.version == "1.9.0"]
    sys.stderr.write(f"seconds from the yank to the refusal: {seconds:.2f}\n")


def test_a_registry_that_fails_at_an_event_is_asked_again(
    world: World, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "REST_S", 0.0)
    monkeypatch.setattr(following, "LOOK_S", 0.1)
    world.publish("1.2.0")
    commit = hide(world, "1.2.0")
    name = f"{world.team}/legal-qa"
    failing = [status(500), status(500)]

    def fault(request: Request, told: Answer) -> Steps:
        return (failing.pop() if failing else whole)(request, told)

    async def run(proxy: Proxy) -> None:
        async with engine.life():
            assert await answer(engine, name) == (200, "legal-qa==1.1.0")
            await until(lambda: _true(follows(engine, proxy.url)))
            proxy.faults[f"{name}/versions"] = fault
            await asyncio.to_thread(show, world, "1.2.0", commit)
            await until(lambda: _is(engine, name, (200, "legal-qa==1.2.0")))

    with faulty(world.server.url) as proxy:
        world.bob.ok("remote", "remove", "ours")
        world.bob.ok("remote", "add", "ours", proxy.url, "--namespaces", world.team)
        asyncio.run(run(proxy))

    assert failing == []


async def _true(value: bool) -> bool:  # noqa: FBT001
    return value


async def _is(engine: Engine, name: str, wanted: tuple[int, str]) -> bool:
    return await answer(engine, name) == wanted


# ---------------------------------------------------------------- the thread
class Feed:
    """Answers as the test says, one page or error after the other; then it waits."""

    def __init__(self, *pages: EventPage | Exception) -> None:
        self.pages = list(pages)
        self.asked: list[int | None] = []

    def events(self, since: int | None, wait_s: int) -> EventPage:  # noqa: ARG002
        self.asked.append(since)
        if not self.pages:
            time.sleep(0.05)
            return EventPage(events=(), next=since or 0, missed=False)
        page = self.pages.pop(0)
        if isinstance(page, Exception):
            raise page
        return page


def event(number: int, kind: str = "version.yanked") -> Event:
    return Event(id=f"evt_{number}", type=kind, number=number, repo="acme/x", digest=None, data={"repo": "acme/x"})


def page(*events: Event, at: int, missed: bool = False) -> EventPage:
    return EventPage(events=events, next=at, missed=missed)


def heard_from(feed: Feed, count: int, remotes: UnreachableRemotes | None = None) -> list[list[int] | None]:
    heard: list[list[int] | None] = []
    changed = threading.Condition()

    def hear(_place: str, events: Sequence[Event] | None) -> None:
        with changed:
            heard.append(None if events is None else [one.number for one in events])
            changed.notify_all()

    with Followers(lambda: [PLACE], lambda _: feed, hear, remotes or UnreachableRemotes()), changed:
        assert changed.wait_for(lambda: len(heard) >= count, 60)
    return heard


def test_a_follower_resumes_where_it_was_after_a_failure_and_looks_at_everything_after_a_gap() -> None:
    feed = Feed(
        page(at=10),
        page(event(11), event(12), at=12),
        RemoteUnreachable("gone"),
        ValueError("a fault"),
        page(event(13), at=13),
        page(at=99, missed=True),
        page(event(100), at=100),
    )

    assert heard_from(feed, 5) == [None, [11, 12], [13], None, [100]]
    assert feed.asked[:7] == [None, 10, 12, 12, 12, 13, 99]


def test_after_a_failure_a_follower_opens_the_feed_anew_and_goes_on_where_it_was() -> None:
    broken, sound = Feed(page(at=10), OSError(errno.EBADF, "Bad file descriptor")), Feed(page(event(11), at=11))
    feeds, heard, ends = [broken, sound], [], threading.Event()

    def hear(events: Sequence[Event] | None) -> None:
        heard.append(events if events is None else [one.number for one in events])
        if events:
            ends.set()

    assert follow_events(lambda: feeds.pop(0), hear, ends)
    assert (heard, broken.asked, sound.asked) == ([None, [11]], [None, 10], [10])


def test_a_follower_leaves_a_resting_remote_alone() -> None:
    now = [0.0]
    remotes = UnreachableRemotes(clock=lambda: now[0])

    def fail() -> None:
        raise RemoteUnreachable("gone")

    with pytest.raises(RemoteUnreachable):
        remotes.call(PLACE, fail)
    feed = Feed(page(at=1))
    opened = threading.Event()

    def open_feed(_place: str) -> Feed:
        opened.set()
        return feed

    with Followers(lambda: [PLACE], open_feed, lambda *_: None, remotes):
        assert not opened.wait(0.7)
        now[0] = 1000.0
        assert opened.wait(60)


def test_an_event_is_a_reason_to_look_and_is_trusted_for_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[object] = []
    monkeypatch.setattr(Upkeep, "look_for_yanks", lambda _: done.append("yanks"))
    upkeep = Upkeep(
        library=Library(tmp_path),
        denied=Denied(),
        gate=Gate(),
        served=dict,
        find_source=None,
        remotes=UnreachableRemotes(),
        refresh_aliases=lambda: done.append("aliases"),
    )
    react = partial(upkeep.hear, renew=lambda adapters: done.append(sorted(adapters or ())))

    react(PLACE, [event(1), event(2, "repository.deleted"), event(3, "nonsense")])
    assert done == []
    react(PLACE, [event(4, "alias.moved"), event(5, "version.published"), event(6, "version.published")])
    assert done == ["aliases", [("acme", "x")]]
    done.clear()
    react(PLACE, None)
    assert done == ["yanks", "aliases", []]


def test_a_registry_that_sends_nonsense_is_refused(
    server: Running, online: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adapterhub.distribution.hub import _withdrawal

    hub = Hub(endpoint=server.url, token=None)
    assert hub.events(None).events == ()
    for told in ({}, [], {"events": [{}], "next": 1, "missed": False}, {"events": [], "next": "1", "missed": False}):
        monkeypatch.setattr(_withdrawal.Wire, "json", lambda *_, told=told, **__: told)
        with pytest.raises(RemoteUnreachable, match="cannot read"):
            hub.events(0)
