"""What served names mean moves under llama.cpp: new engines take over, and every request is answered by one version."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from peft import LoraConfig

from adapterhub.core.digests import hex_of
from adapterhub.core.specs import BaseSpec, parse_name
from adapterhub.inference.serving import AdapterProvider, LeasedAdapter
from adapterhub.inference.serving.access.gate import Gate
from adapterhub.inference.serving.following import Renewals
from adapterhub.inference.serving.llama_cpp import swaps
from adapterhub.inference.serving.llama_cpp.engine import Address, command_of, environ_of
from adapterhub.inference.serving.llama_cpp.names import Names, Served
from adapterhub.inference.serving.llama_cpp.server import Front
from adapterhub.inference.serving.llama_cpp.swaps import Running, Swaps
from adapterhub.inference.serving.process import EngineProcess, free_port
from adapterhub.library.aliasing import point
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.directory import PublishedDirectory
from adapterhub.library.installed import Added
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import Installed
from tests.cli.test_serve_command import serving
from tests.inference.test_serve_llama import copy_of, wait_until
from tests.support import standin_llama
from tests.support.command_line import Adapt
from tests.support.run_library import make_library
from tests.support.standin_llama import HELD
from tests.support.tiny_models import llama, save_adapter

Add = Callable[..., Added]


@dataclass
class Engines:
    """Starts stand-ins in this process's name; `words` are their other options."""

    words: list[str] = field(default_factory=list)
    started: list[list[str]] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)
    waits: Callable[[], object] = bool

    def start(self, adapters: Sequence[LeasedAdapter], while_waiting: Callable[[], None] = lambda: None) -> Running:
        self.started.append([one.label for one in adapters])
        self.waits()
        where = Address(port=free_port("127.0.0.1"), key="the engine's key")
        files = [Path(f"{hex_of(one.digest)}.gguf") for one in adapters]
        command = command_of(standin_llama.__file__, Path("base.gguf"), files, where.words, 4, self.words)
        with contextlib.ExitStack() as stack:
            process = EngineProcess([sys.executable, *command], environ_of(os.environ, where), output=None)
            self.pids.append(process.pid)
            stack.enter_context(process).wait_until_ready(where.answers, within_s=120, while_waiting=while_waiting)
            return Running(where=[where], processes=[process], close=stack.pop_all().close)


@dataclass
class World:
    """A front that follows names, and what it told."""

    url: str
    library: Library
    engines: Engines
    swaps: Swaps
    audit: Path
    close: Callable[[], None]
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def ask(self, model: str, prompt: str = "a", **more: Any) -> tuple[str, dict[str, Any]]:
        """The version that the header names, and the answer, which is of the same one."""
        answer = httpx.post(
            f"{self.url}/v1/completions", json={"model": model, "prompt": prompt, **more}, timeout=60, trust_env=False
        )
        assert answer.status_code == 200, answer.text
        value = answer.json()
        assert [f"sha256:{one}" for one in value["by"]] == [answer.headers["x-adapter-digest"]]
        return answer.headers["x-adapter-name"].rpartition("==")[2], value

    def version(self, model: str) -> str:
        return self.ask(model)[0]

    def move(self, *builds: Installed, alias: str = "prod") -> None:
        point(self.library, alias, [(build, 1 / len(builds)) for build in builds])

    def events(self) -> list[dict[str, Any]]:
        wait_until(self.audit.exists)
        return [row for row in map(json.loads, self.audit.read_text().splitlines()) if "event" in row]


@pytest.fixture
def provider(library: Library, base: BaseRecord) -> Iterator[AdapterProvider]:
    made = AdapterProvider(library, base, engine="llama.cpp", alias_ttl_s=3600)
    with contextlib.closing(made):
        yield made


@pytest.fixture
def builds(add: Add) -> list[Installed]:
    return [add("legal-qa", version=f"1.{number}", seed=number).build for number in range(4)]


@pytest.fixture
def follow(library: Library, provider: AdapterProvider, tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Serves names, as `adapt serve` does."""
    with contextlib.ExitStack() as stack:

        def make(*names: str, provider: AdapterProvider = provider) -> World:
            means = {
                name: tuple(map(provider.find, provider.targets(name) or [name])) for name in names
            }  # an alias brings all of its targets
            engines, notes, warnings = Engines(), list[str](), list[str]()
            running = engines.start([*{one.digest: one for ones in means.values() for one in ones}.values()])
            port, audit = free_port("127.0.0.1"), tmp_path / "audit.jsonl"
            shown = Names(
                "base-7b",
                [served(name, one) for name, ones in means.items() for one in ones],
                denied=provider.denied,
                aliases=provider.aliases,
            )
            gate = Gate(audit_log=str(audit))
            front = Front("127.0.0.1", port, running.where, shown, gate)
            follows = Swaps(
                front=front,
                provider=provider,
                gate=gate,
                means=means,
                running=running,
                start=engines.start,
                served=served,
                program=standin_llama.__file__,
                note=notes.append,
                warn=warnings.append,
            )
            with contextlib.ExitStack() as own:
                own.callback(follows.close)
                own.enter_context(front)
                own.enter_context(follows.following())
                close = stack.enter_context(own.pop_all()).close
            return World(f"http://127.0.0.1:{port}", library, engines, follows, audit, close, notes, warnings)

        yield make


def served(name: str, one: LeasedAdapter) -> Served:
    return Served(name=one.model if "@" in name else name, label=one.label, digest=one.digest, asleep=one.asleep)


# ---------------------------------------------------------------- what moves
def test_a_moved_alias_gets_new_engines_and_what_runs_ends_with_the_version_that_it_began_with(
    follow: Callable[..., World], builds: list[Installed], library: Library, tmp_path: Path
) -> None:
    point(library, "prod", [(builds[0], 1.0)])
    world, held = follow("legal-qa@prod"), tmp_path / "held"
    with ThreadPoolExecutor() as threads:
        running = threads.submit(world.ask, "legal-qa@prod", f"{HELD}{held}")
        wait_until((tmp_path / "held.begun").exists)
        world.move(builds[1])
        assert world.swaps.refresh()
        after, new = world.ask("legal-qa@prod")
        held.touch()
        before, old = running.result()
    wait_until(lambda: not lives(old["pid"]))

    assert (before, after) == ("1.0", "1.1")
    assert new["pid"] != old["pid"]
    assert [one.pid for one in world.swaps.processes] == [new["pid"]]
    assert world.engines.started == [["legal-qa==1.0"], ["legal-qa==1.1"]]
    assert world.swaps.provider.leased().keys() == {builds[1].manifest.digest}
    wait_until(lambda: bool(world.events()))
    [told] = world.events()
    assert (told["event"], told["adapters"], told["before"]) == ("swap", ["legal-qa==1.1"], ["legal-qa==1.0"])


def test_moves_beside_requests_fail_none_and_mix_no_versions(
    follow: Callable[..., World], builds: list[Installed], library: Library
) -> None:
    point(library, "prod", [(builds[0], 1.0)])
    world, over = follow("legal-qa@prod"), threading.Event()

    def client(number: int) -> list[str]:
        found = []
        while not over.is_set():
            if number % 2:
                found.append(world.ask("legal-qa@prod", n=3)[0])
            else:
                found.append(streamed(world, "legal-qa@prod"))
        return found

    with ThreadPoolExecutor() as threads:
        clients = [threads.submit(client, number) for number in range(4)]
        for number in range(1, 7):
            world.move(builds[number % 4])
            assert world.swaps.refresh()
            assert world.version("legal-qa@prod") == builds[number % 4].manifest.version
        over.set()
        found = [one.result() for one in clients]

    assert len(world.engines.started) == 7
    assert {version for one in found for version in one} == {"1.0", "1.1", "1.2", "1.3"}


def streamed(world: World, model: str) -> str:
    """The version that the header of a stream and its first event name; its events are of one engine."""
    with httpx.stream(
        "POST", f"{world.url}/v1/completions", json={"model": model, "prompt": "a", "stream": True}, timeout=60,
        trust_env=False,
    ) as answer:  # fmt: skip
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert (answer.status_code, lines[-1], len(lines)) == (200, "[DONE]", 4)
    events = [json.loads(line) for line in lines[:-1]]
    assert events[0]["adapter"]["digest"] == answer.headers["x-adapter-digest"]
    assert {event["by"][0] for event in events} == {hex_of(answer.headers["x-adapter-digest"])}
    return answer.headers["x-adapter-name"].rpartition("==")[2]


def test_moves_that_come_faster_than_a_start_lead_to_the_newest_only(
    follow: Callable[..., World], builds: list[Installed], library: Library
) -> None:
    point(library, "prod", [(builds[0], 1.0)])
    world, starts, goes_on = follow("legal-qa@prod"), threading.Event(), threading.Event()

    def wait() -> None:
        starts.set()
        goes_on.wait(60)

    world.engines.waits = wait
    with ThreadPoolExecutor() as threads:
        world.move(builds[1])
        first = threads.submit(world.swaps.refresh)
        assert starts.wait(60)
        for build in (builds[2], builds[0], builds[3]):
            world.move(build)
        last = threads.submit(world.swaps.refresh)
        goes_on.set()
        assert (first.result(), last.result()) == (True, True)
    wait_until(lambda: world.version("legal-qa@prod") == "1.3")

    assert world.engines.started == [["legal-qa==1.0"], ["legal-qa==1.1"], ["legal-qa==1.3"]]


def test_at_most_three_generations_live_and_the_newest_follows_when_one_has_ended(
    follow: Callable[..., World], builds: list[Installed], library: Library, tmp_path: Path
) -> None:
    point(library, "prod", [(builds[0], 1.0)])
    world, held = follow("legal-qa@prod"), [tmp_path / str(number) for number in range(2)]
    with ThreadPoolExecutor() as threads:
        running = []
        for number, place in enumerate(held):
            running.append(threads.submit(world.ask, "legal-qa@prod", f"{HELD}{place}"))
            wait_until(place.with_suffix(".begun").exists)
            world.move(builds[number + 1])
            assert world.swaps.refresh()
        world.move(builds[3])
        assert world.swaps.refresh()
        waits, living = world.version("legal-qa@prod"), [*map(lives, world.engines.pids)]
        held[0].touch()
        wait_until(lambda: world.version("legal-qa@prod") == "1.3")
        held[1].touch()

    assert (waits, living) == ("1.2", [True] * 3)
    assert [one.result()[0] for one in running] == ["1.0", "1.1"]


def test_an_answer_that_does_not_end_keeps_its_engines_for_a_bounded_time(
    follow: Callable[..., World],
    builds: list[Installed],
    library: Library,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(swaps, "DRAIN_S", 0.1)
    point(library, "prod", [(builds[0], 1.0)])
    world, held = follow("legal-qa@prod"), tmp_path / "held"
    with ThreadPoolExecutor() as threads:
        body = {"model": "legal-qa@prod", "prompt": f"{HELD}{held}"}
        running = threads.submit(httpx.post, f"{world.url}/v1/completions", json=body, timeout=60)
        wait_until((tmp_path / "held.begun").exists)
        world.move(builds[1])
        assert world.swaps.refresh()
        cut = running.result()

    assert (cut.status_code, world.version("legal-qa@prod")) == (502, "1.1")
    assert "some answers of adapters that were replaced still ran" in world.warnings[0]


def test_a_range_moves_to_a_version_that_comes_and_an_exact_name_stays(
    follow: Callable[..., World], builds: list[Installed], add: Add
) -> None:
    world = follow("legal-qa<2", "legal-qa==1.0")
    assert (world.version("legal-qa<2"), world.version("legal-qa==1.0")) == ("1.3", "1.0")

    add("legal-qa", version="1.9", seed=9)
    add("legal-qa", version="2.0", seed=10)
    wait_until(lambda: world.version("legal-qa<2") == "1.9")

    assert world.version("legal-qa==1.0") == "1.0"
    assert httpx.post(f"{world.url}/v1/completions", json={"model": "legal-qa==2.0", "prompt": "a"}).status_code == 404


def test_a_version_that_is_denied_makes_room_for_the_one_before(
    follow: Callable[..., World], builds: list[Installed]
) -> None:
    world = follow("legal-qa")

    world.swaps.provider.denied.deny(builds[3].manifest.digest, "leaks names")
    refused = httpx.post(f"{world.url}/v1/completions", json={"model": "legal-qa==1.3", "prompt": "a"})
    assert world.swaps.refresh()

    assert (refused.status_code, world.version("legal-qa")) == (410, "1.2")


def test_an_alias_that_moves_in_the_library_is_seen_long_before_its_time(
    follow: Callable[..., World], builds: list[Installed], library: Library
) -> None:
    point(library, "prod", [(builds[0], 1.0)])
    world = follow("legal-qa@prod")

    for number in (1, 2):
        world.move(builds[number])
        wait_until(lambda number=number: world.version("legal-qa@prod") == f"1.{number}")  # type: ignore[misc]


def test_an_alias_among_loaded_adapters_moves_without_a_start(
    follow: Callable[..., World], builds: list[Installed], library: Library
) -> None:
    point(library, "prod", [(builds[0], 1.0)])
    world = follow("legal-qa@prod", "legal-qa")

    world.move(builds[3])
    assert world.swaps.refresh()

    assert (world.version("legal-qa@prod"), len(world.engines.started)) == ("1.3", 1)


def test_an_alias_that_only_requests_name_moves_with_the_others(
    follow: Callable[..., World], builds: list[Installed], library: Library
) -> None:
    point(library, "stage", [(builds[3], 1.0)])
    world = follow("legal-qa")
    assert world.version("legal-qa@stage") == "1.3"
    assert world.swaps.refresh()

    world.move(builds[1], alias="stage")
    assert world.swaps.refresh()

    assert (world.version("legal-qa@stage"), world.version("legal-qa")) == ("1.1", "1.3")


def test_a_canary_brings_both_targets(follow: Callable[..., World], builds: list[Installed], library: Library) -> None:
    point(library, "prod", [(builds[0], 1.0)])
    world = follow("legal-qa@prod")

    world.move(builds[0], builds[1])
    assert world.swaps.refresh()

    assert {world.ask("legal-qa@prod", user=f"user-{number}")[0] for number in range(40)} == {"1.0", "1.1"}


# ---------------------------------------------------------------- what fails
@pytest.mark.parametrize(
    ("option", "told"), [("--breaks", "exit code 1 before it was ready"), ("--drops", "has no effect on the base")]
)
def test_engines_that_fail_leave_those_before_and_are_tried_again_once_the_name_has_moved(
    follow: Callable[..., World], builds: list[Installed], library: Library, option: str, told: str
) -> None:
    point(library, "prod", [(builds[0], 1.0)])
    world = follow("legal-qa@prod")
    world.engines.words = [option, hex_of(builds[1].manifest.digest)]

    world.move(builds[1])
    for _ in range(3):
        assert world.swaps.refresh()
    kept, starts = world.version("legal-qa@prod"), len(world.engines.started)
    world.engines.words = []
    world.move(builds[0])
    assert world.swaps.refresh()
    world.move(builds[1])
    assert world.swaps.refresh()

    assert (kept, starts, world.version("legal-qa@prod")) == ("1.0", 2, "1.1")
    assert [told in line for line in world.warnings] == [True]
    wait_until(lambda: len(world.events()) == 2)
    assert [row["event"] for row in world.events()] == ["kept", "swap"]
    assert told in world.events()[0]["reason"]


def test_one_bad_adapter_does_not_keep_the_others_from_moving(
    follow: Callable[..., World], builds: list[Installed], library: Library
) -> None:
    point(library, "prod", [(builds[0], 1.0)])
    point(library, "stage", [(builds[1], 1.0)])
    world = follow("legal-qa@prod", "legal-qa@stage")
    world.engines.words = ["--breaks", hex_of(builds[2].manifest.digest)]

    world.move(builds[2])
    world.move(builds[3], alias="stage")
    assert world.swaps.refresh()
    wait_until(lambda: world.version("legal-qa@stage") == "1.3")

    assert world.version("legal-qa@prod") == "1.0"


def test_a_new_target_that_may_not_be_loaded_leaves_the_alias_where_it_is(
    follow: Callable[..., World], builds: list[Installed], library: Library, caplog: pytest.LogCaptureFixture
) -> None:
    point(library, "prod", [(builds[0], 1.0)])
    world = follow("legal-qa@prod")
    weights = builds[1].folder / "adapter_model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(b"broken")
    weights.chmod(0o444)

    world.move(builds[1])
    with caplog.at_level(logging.WARNING):
        assert world.swaps.refresh()

    assert (world.version("legal-qa@prod"), len(world.engines.started)) == ("1.0", 1)
    assert "legal-qa@prod keeps its target" in caplog.text
    assert "legal-qa@prod stays legal-qa==1.0" in world.warnings[0]


def test_a_server_that_stops_ends_the_engines_that_start(
    follow: Callable[..., World], builds: list[Installed], library: Library
) -> None:
    point(library, "prod", [(builds[0], 1.0)])
    world = follow("legal-qa@prod")
    world.engines.waits = world.swaps._ends.set  # as `following` does when its block ends

    world.move(builds[1])
    world.swaps.refresh()

    assert world.version("legal-qa@prod") == "1.0"
    assert [*map(lives, world.engines.pids)] == [True, False]


def test_a_server_that_stops_waits_for_no_engine_that_does_not_answer(
    follow: Callable[..., World], builds: list[Installed], library: Library
) -> None:
    point(library, "prod", [(builds[0], 1.0)])
    world = follow("legal-qa@prod")
    front, asked = world.swaps.front, threading.Event()

    def ask_one_that_is_stopped(*given: Any, **more: Any) -> Any:
        os.kill(world.engines.pids[-1], signal.SIGSTOP)
        asked.set()
        return Front.prepared(front, *given, **more)

    front.prepared = ask_one_that_is_stopped  # type: ignore[method-assign]
    world.move(builds[1])
    with ThreadPoolExecutor() as threads:
        threads.submit(world.swaps.refresh)
        assert asked.wait(60)
        world.close()

    assert world.warnings == []
    assert not any(map(lives, world.engines.pids))


def test_the_effect_of_each_adapter_is_known_before_the_first_request(
    follow: Callable[..., World], builds: list[Installed]
) -> None:
    world = follow("legal-qa==1.0", "legal-qa==1.1")

    told = httpx.get(f"{world.url}/metrics", trust_env=False).text
    world.version("legal-qa==1.0")

    assert 'adapterhub_probes_total{result="changes"} 2.0' in told
    assert 'adapterhub_probes_total{result="changes"} 2.0' in httpx.get(f"{world.url}/metrics", trust_env=False).text


def test_a_new_version_at_a_source_is_fetched_at_its_event_and_taken_over(
    library: Library, base: BaseRecord, add: Add, tmp_path: Path, follow: Callable[..., World]
) -> None:
    add("legal-qa", version="1.0", seed=1)
    newer = add("legal-qa", version="1.1", seed=2, into=Library(tmp_path / "elsewhere"))
    shutil.copytree(newer.build.folder, tmp_path / "published" / "legal-qa" / "1.1")
    sources = [PublishedDirectory(tmp_path / "published")]
    with contextlib.closing(AdapterProvider(library, base, engine="llama.cpp", sources=lambda _: sources)) as provider:
        world = follow("legal-qa", provider=provider)
        before = world.version("legal-qa")
        Renewals(lambda: provider).renew(None)
        wait_until(lambda: world.version("legal-qa") == "1.1")
        world.close()

    assert before == "1.0"


# ---------------------------------------------------------------- the command
@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a library, its base as GGUF, and a stand-in."""
    folder = make_library(tmp_path_factory.mktemp("made"))
    library = Adapt(folder).library
    record = library.bases.find(BaseSpec.parse("base-7b"))
    for number in range(2):
        config = LoraConfig(r=4, target_modules=["q_proj"])
        adapter = save_adapter(folder / f"moving-{number}", llama, config, seed=30 + number)
        library.add(adapter, Description(name=parse_name("moving"), version=f"1.{number}"), base=record)
    copy_of(folder / "base", folder / "base.gguf")
    standin_llama.program(folder)
    return folder


@pytest.mark.parametrize("ending", ["stop", "kill", "kill the engine"])
def test_the_command_follows_an_alias_and_leaves_nothing_behind_however_it_ends(made: Path, ending: str) -> None:
    adapt = Adapt(made)
    builds = sorted(adapt.library.builds_named("moving"), key=lambda build: build.manifest.version)
    point(adapt.library, "prod", [(builds[0], 1.0)])
    options = ["--engine", "llama.cpp", "--gguf", str(made / "base.gguf"), "--alias-ttl", "3600", "--engines", "2"]
    options += ["--llama-server", str(made / "llama-server")]
    with serving(adapt, Path(sys.executable), "moving@prod", "a", *options) as (document, process):
        before = told(document["url"])
        point(adapt.library, "prod", [(builds[1], 1.0)])
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: told(document["url"])[0] != before[0])
        after = told(document["url"])
        wait_until(lambda: not lives(before[1]["pid"]))
        files = [[Path(one) for one in each["argv"] if one.endswith(".gguf")][1:] for _, each in (before, after)]
        left = [[one.exists() for one in each] for each in files]
        engines = children(process.pid)
        if ending == "kill the engine":
            os.kill(after[1]["pid"], signal.SIGKILL)
        else:
            process.send_signal(signal.SIGTERM if ending == "stop" else signal.SIGKILL)
        said = process.communicate(timeout=60)[1]
    wait_until(lambda: not any(map(lives, engines)))

    assert (before[0], after[0]) == ("moving==1.0", "moving==1.1")
    assert (len(engines), after[1]["pid"] in engines) == (2, True)
    assert files[0][1] == files[1][1]  # of `a`, which was written once
    assert left == [[False, True], [True, True]]
    assert process.returncode == {"stop": 0, "kill": -signal.SIGKILL, "kill the engine": 18}[ending], said
    assert "new engines answer after" in said


def children(pid: int) -> list[int]:
    """The processes that a process started, and that live."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended
            number, _, rest = file.read_text().partition(" (")
            state, parent, *_ = rest.rpartition(") ")[2].split()
            found += [int(number)] if int(parent) == pid and state != "Z" else []
    return found


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def told(url: str) -> tuple[str, dict[str, Any]]:
    answer = httpx.post(f"{url}/v1/completions", json={"model": "moving@prod", "prompt": "a"}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-adapter-name"], answer.json()
