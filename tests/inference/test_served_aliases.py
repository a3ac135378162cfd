"""Aliases in requests, behind the middleware and without an engine: `tests/inference/engines` has the real one."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from adapterhub.core.errors import AdapterHubError, AdapterNotFound, StoreLocked
from adapterhub.inference.serving.aliases import ServedAliases
from adapterhub.inference.serving.provider import AdapterProvider, LeasedAdapter
from adapterhub.library.aliasing import point
from adapterhub.library.installed import Added
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import Installed, folder_below
from tests.inference.test_model_names import Engine, engine

__all__ = ["engine"]

Add = Callable[..., Added]
PROD = "legal-qa@prod"


@pytest.fixture
def builds(add: Add) -> list[Installed]:
    return [add("legal-qa", version=f"1.{number}", seed=number).build for number in (1, 2, 3)]


async def ask(engine: Engine, name: str = PROD, *, user: str | None = None, **headers: str) -> tuple[int, str, Any]:
    """The status, the adapter that answered, and the body of the answer."""
    value = {"model": name, "prompt": "a", **({"user": user} if user else {})}
    status, told, body = await engine.send("POST", "/v1/completions", value, **headers)
    return status, told.get("x-adapter-name", ""), body


async def refresh(engine: Engine, key: str = "control") -> tuple[int, Any]:
    status, _, body = await engine.send("POST", "/adapterhub/aliases", x_control_key=key)
    return status, body


def test_a_request_gets_the_target_under_its_one_name(
    engine: Engine, library: Library, builds: list[Installed]
) -> None:
    point(library, "prod", [(builds[0], 1.0)])

    status, who, body = asyncio.run(ask(engine))

    digest = builds[0].manifest.digest
    assert (status, who, body["model"]) == (200, "legal-qa==1.1", f"legal-qa==1.1#{digest[:19]}")
    assert list(engine.lora_requests) == [body["model"]]
    card = asyncio.run(engine.send("GET", f"/v1/models/{PROD}"))
    assert (card[0], card[2]["id"]) == (200, body["model"])


def test_a_moved_alias_counts_after_a_refresh_and_a_request_that_runs_keeps_its_target(
    engine: Engine, library: Library, builds: list[Installed]
) -> None:
    point(library, "prod", [(builds[0], 1.0)])

    async def run() -> list[Any]:
        engine.may_answer.clear()
        running = asyncio.create_task(ask(engine))
        await engine.has_loaded.wait()
        point(library, "prod", [(builds[1], 1.0)])
        refused, told = await refresh(engine, "wrong"), await refresh(engine)
        engine.may_answer.set()
        return [refused, told, (await ask(engine))[1], (await running)[1]]

    refused, told, after, during = asyncio.run(run())

    assert (refused[0], told) == (403, (200, {"aliases": [PROD]}))
    assert (during, after) == ("legal-qa==1.1", "legal-qa==1.2")


def test_a_move_in_the_library_is_seen_without_a_word_and_the_build_before_is_let_go(
    engine: Engine, library: Library, builds: list[Installed]
) -> None:
    point(library, "prod", [(builds[0], 1.0)])

    def held() -> set[str]:
        return {version for version in ("1.1", "1.2", "1.3") if is_leased(library, builds, version)}

    async def until(is_so: Callable[[], bool]) -> None:
        while not is_so():  # noqa: ASYNC110 - a thread looks
            await asyncio.sleep(0.01)

    async def run() -> list[Any]:
        async with engine.life():
            engine.may_answer.clear()
            running = asyncio.create_task(ask(engine))
            await engine.has_loaded.wait()
            point(library, "prod", [(builds[1], 1.0)])
            await until(lambda: held() == {"1.1", "1.2"})
            found: list[Any] = [engine.removed[:]]
            engine.may_answer.set()
            found.append((await running)[1])
            await until(lambda: held() == {"1.2"})
            found += [engine.removed[:], (await ask(engine))[1]]
            point(library, "prod", [(builds[2], 1.0)])  # the build before was asked for, the next one is not
            await until(lambda: held() == {"1.3"})
            point(library, "prod", [(builds[1], 1.0)])
            await until(lambda: held() == {"1.2"})
            return [*found, (await ask(engine))[1]]

    before, during, removed, after, again = asyncio.run(asyncio.wait_for(run(), 60))

    assert (before, during, removed) == ([], "legal-qa==1.1", [1])
    assert (after, again) == ("legal-qa==1.2", "legal-qa==1.2")


def is_leased(library: Library, builds: list[Installed], version: str) -> bool:
    [build] = [one for one in builds if one.manifest.version == version]
    return any(lease.what == folder_below(library.root, build) for lease in library._leases.living())


def test_an_exact_name_goes_on_after_its_build_was_let_go(
    engine: Engine, library: Library, builds: list[Installed]
) -> None:
    point(library, "prod", [(builds[0], 1.0)])

    async def run() -> list[str]:
        async with engine.life():
            await ask(engine)
            point(library, "prod", [(builds[1], 1.0)])
            while is_leased(library, builds, "1.1"):  # noqa: ASYNC110 - a thread looks
                await asyncio.sleep(0.01)
            return [(await ask(engine, "legal-qa==1.1"))[1], (await ask(engine))[1]]

    assert asyncio.run(asyncio.wait_for(run(), 60)) == ["legal-qa==1.1", "legal-qa==1.2"]


@pytest.mark.parametrize("is_first", [True, False])
def test_a_request_follows_an_alias_that_moves_between_its_look_up_and_the_lease(
    engine: Engine, library: Library, builds: list[Installed], monkeypatch: pytest.MonkeyPatch, *, is_first: bool
) -> None:
    point(library, "prod", [(builds[0], 1.0)])
    find, moves = AdapterProvider.find_installed, iter(builds[1:])

    def moved_before(provider: AdapterProvider, name: str) -> LeasedAdapter | None:
        new = next(moves, None)
        if new is not None:
            old = [one for one in library.builds_named("legal-qa") if one.manifest.version < new.manifest.version]
            point(library, "prod", [(new, 1.0)])
            for build in old:
                with contextlib.suppress(StoreLocked):
                    library.remove([build])
        return find(provider, name)

    async def run() -> tuple[int, str, Any]:
        if not is_first:
            await ask(engine)
            point(library, "prod", [(next(moves), 1.0)])
        monkeypatch.setattr(AdapterProvider, "find_installed", moved_before)
        await refresh(engine)
        return await ask(engine)

    assert asyncio.run(run())[:2] == (200, "legal-qa==1.3")


def test_no_request_fails_and_none_is_mixed_while_an_alias_moves_and_what_it_left_is_removed(
    engine: Engine, library: Library, builds: list[Installed], add: Add
) -> None:
    point(library, "prod", [(builds[0], 1.0)])
    moves = 20

    async def client(over: asyncio.Event) -> list[tuple[int, str, Any]]:
        found = []
        while not over.is_set():
            found.append(await ask(engine))
        return found

    def move(number: int) -> None:
        made = add("legal-qa", version=f"2.{number}", seed=10 + number).build
        before = [one for one in library.builds_named("legal-qa") if one.manifest.digest != made.manifest.digest]
        point(library, "prod", [(made, 1.0)])
        for build in before:  # as a stream does with old versions
            with contextlib.suppress(StoreLocked, AdapterNotFound):
                library.remove([build])

    async def run() -> list[tuple[int, str, Any]]:
        over = asyncio.Event()
        async with engine.life():
            clients = [asyncio.create_task(client(over)) for _ in range(3)]
            for number in range(moves):
                await asyncio.to_thread(move, number)
            while (await ask(engine))[1] != f"legal-qa==2.{moves - 1}":  # noqa: ASYNC110 - a thread looks
                await asyncio.sleep(0.01)
            over.set()
            return [answer for one in clients for answer in await one]

    answers = asyncio.run(asyncio.wait_for(run(), 120))

    assert {status for status, _, _ in answers} == {200}
    assert all(body["model"].startswith(who + "#") for _, who, body in answers)
    assert len({who for _, who, _ in answers}) > 2


def test_an_alias_is_looked_up_again_after_a_time_and_no_request_waits_for_that(
    engine: Engine, library: Library, builds: list[Installed], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(ServedAliases.__init__, "__kwdefaults__", {"ttl_s": 10.0, "clock": lambda: now})
    point(library, "prod", [(builds[0], 1.0)])

    async def run() -> list[str]:
        nonlocal now
        found = [(await ask(engine))[1]]
        point(library, "prod", [(builds[1], 1.0)])
        found.append((await ask(engine))[1])
        now = 11.0
        found.append((await ask(engine))[1])
        while (await ask(engine))[1] != "legal-qa==1.2":  # noqa: ASYNC110 - the look-up goes on meanwhile
            await asyncio.sleep(0)
        return found

    assert asyncio.run(asyncio.wait_for(run(), 30)) == ["legal-qa==1.1"] * 3


def test_a_key_always_has_the_same_target_and_the_shares_are_those_of_the_weights(
    engine: Engine, library: Library, builds: list[Installed]
) -> None:
    point(library, "prod", [(builds[0], 0.7), (builds[1], 0.3)])

    async def run() -> tuple[list[str], list[str], list[str]]:
        by_user = [(await ask(engine, user=f"user-{n}"))[1] for n in range(100)]
        by_header = [(await ask(engine, x_request_key=f"user-{n}"))[1] for n in range(100)]
        without = [(await ask(engine))[1] for n in range(100)]
        return by_user, by_header, without

    by_user, by_header, without = asyncio.run(run())

    assert by_user == by_header
    assert 15 < Counter(by_user)["legal-qa==1.2"] < 45
    assert set(without) == {"legal-qa==1.1", "legal-qa==1.2"}


def test_an_alias_stays_while_its_new_target_cannot_be_served(
    engine: Engine, library: Library, builds: list[Installed], caplog: pytest.LogCaptureFixture
) -> None:
    point(library, "prod", [(builds[0], 1.0)])

    async def run() -> list[str]:
        found = [(await ask(engine))[1]]
        point(library, "prod", [(builds[1], 1.0)])
        shutil.rmtree(builds[1].folder)
        await refresh(engine)
        return [*found, (await ask(engine))[1]]

    assert asyncio.run(run()) == ["legal-qa==1.1"] * 2
    assert "legal-qa@prod keeps its target" in caplog.text


def test_a_removed_alias_is_refused_and_one_that_never_was(
    engine: Engine, library: Library, builds: list[Installed]
) -> None:
    point(library, "prod", [(builds[0], 1.0)])

    async def run() -> list[tuple[int, str, Any]]:
        await ask(engine)
        library.aliases.remove("legal-qa", "prod")
        await refresh(engine)
        return [await ask(engine), await ask(engine, "legal-qa@proud")]

    removed, never = asyncio.run(run())

    assert (removed[0], never[0]) == (404, 404)
    assert "`legal-qa@prod` names no alias" in removed[2]["error"]


def test_without_the_middleware_an_alias_is_refused_as_it_would_never_move(
    engine: Engine, library: Library, builds: list[Installed], base: Any
) -> None:
    from vllm.exceptions import GracefulHTTPError  # the stand-in of the fixture

    point(library, "prod", [(builds[0], 1.0)])

    with pytest.raises(GracefulHTTPError) as caught:
        asyncio.run(engine.resolver.resolve_lora(str(base.path), PROD))

    assert "without adapterhub's middleware" in caught.value.message


# ---------------------------------------------------------------- what is known
def test_a_base_is_never_asked_of_a_server(library: Library, builds: list[Installed]) -> None:
    def never(_: object) -> list[Any]:
        raise AssertionError("asked")

    aliases = ServedAliases(library, never)

    aliases.look_up("legal-qa@base-7b")
    aliases.look_up("legal-qa@acme/base")
    aliases.look_up("legal-qa")

    assert aliases.names() == []


def test_a_forgotten_alias_keeps_its_meaning_until_it_is_looked_up(library: Library, builds: list[Installed]) -> None:
    aliases = ServedAliases(library)
    point(library, "prod", [(builds[0], 1.0)])
    aliases.look_up(PROD)
    point(library, "prod", [(builds[1], 1.0)])

    aliases.forget(PROD)

    assert aliases.is_due(PROD)
    assert aliases.chosen(PROD) == f"legal-qa==1.1#{builds[0].manifest.digest}"
    aliases.look_up(PROD)
    assert aliases.specs(PROD) == [f"legal-qa==1.2#{builds[1].manifest.digest}"]


def test_a_damaged_alias_is_an_error_of_that_name_alone(library: Library, builds: list[Installed]) -> None:
    point(library, "prod", [(builds[0], 1.0)])
    (library.root / "aliases" / "legal-qa@prod.json").write_text("{")

    with pytest.raises(AdapterHubError, match="is damaged"):
        ServedAliases(library).look_up(PROD)
