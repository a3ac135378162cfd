"""What is done to a running engine so that it has what the file says: against a stand-in of vLLM and of SGLang."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from adapterhub.core.errors import BaseMismatch, EngineFailed
from adapterhub.inference.serving import AdapterProvider, provider
from adapterhub.inference.serving.access.watched import WatchedFile
from adapterhub.inference.serving.metrics import ServingMetrics, SyncMetrics
from adapterhub.inference.serving.sync import reconciler
from adapterhub.inference.serving.sync.engines import KINDS, RunningEngine
from adapterhub.inference.serving.sync.reconciler import TRIAL, Reconciler, SyncChange
from adapterhub.inference.serving.sync.wanted import WantedAdapters
from adapterhub.library.aliasing import point
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.installed import Added
from adapterhub.library.library import Library
from tests.inference.test_metrics import samples
from tests.support.standin_running import StandinEngine, running
from tests.support.tiny import make_base

Add = Callable[..., Added]
_NUMBERS = itertools.count()


@dataclass
class World:
    """One engine, its file, and what keeps them equal."""

    engine: StandinEngine
    provider: AdapterProvider
    file: Path
    changes: list[SyncChange] = field(default_factory=list)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.say()
        self.begin()

    def begin(self) -> None:
        """Start the program, anew if it ran."""
        self.registry = CollectorRegistry()
        self.links = self.provider.library.root / f"links-{next(_NUMBERS)}"
        self.links.mkdir()
        self.reconciler = Reconciler(
            WatchedFile(self.file, WantedAdapters.parse),
            self.provider,
            self.links,
            lambda url: RunningEngine(KINDS[self.engine.kind], url),
            ServingMetrics(self.registry),
            SyncMetrics(self.registry),
            self.changes.append,
        )

    def say(self, *, unwanted: tuple[str, ...] = (), base: str = "", **wanted: str) -> None:
        lines = ["vLLMLoRAConfig:", "  host: 127.0.0.1", f"  port: {self.engine.port}", "  ensureExist:", "    models:"]
        for name, source in wanted.items():
            lines += [f"    - id: {name}", f"      source: '{source}'", f"      base-model: '{base}'"]
        lines[-1] += " []" if not wanted else ""
        if unwanted:
            lines += ["  ensureNotExist:", "    models:", *(f"    - id: {name}" for name in unwanted)]
        made = self.file.with_suffix(".new")
        made.write_text("\n".join(lines) + "\n")
        made.rename(self.file)

    def turn(self) -> dict[str, str]:
        """What is done, and then what the engine has: the digests, by name."""
        self.engine.asked.clear()
        self.reconciler.turn()
        return self.has()

    def has(self) -> dict[str, str]:
        return {name: Path(root).name.partition("-")[2].replace("-", ":") for name, root in self.engine.roots.items()}

    def refusals(self) -> list[tuple[str, str]]:
        return [(one.name, one.reason) for one in self.changes if one.action == "refuse"]

    def metrics(self) -> dict[tuple[str, str], float]:
        return samples(generate_latest(self.registry).decode())


@pytest.fixture(params=["vllm", "sglang"])
def world(request: pytest.FixtureRequest, library: Library, base: BaseRecord, tmp_path: Path) -> Iterator[World]:
    made = AdapterProvider(library, base, engine=f"{request.param}@0.32", alias_ttl_s=0)
    with running(request.param) as engine:
        yield World(engine, made, tmp_path / "adapters.yaml")
    made.close()


def digest(added: Added) -> str:
    return added.build.manifest.digest


# ---------------------------------------------------------------- load and refuse
def test_what_the_file_wants_is_tried_and_then_loaded_and_a_second_turn_does_nothing(world: World, add: Add) -> None:
    one, two = add("legal-qa"), add("summarize", seed=1)
    world.say(legal="legal-qa", sums="summarize>=1")

    assert world.turn() == {"legal": digest(one), "sums": digest(two)}
    trial = f"{TRIAL}{digest(one)[7:19]}"
    assert world.engine.asked[:3] == [f"load {trial}", f"unload {trial}", "load legal"]
    assert world.turn() == {"legal": digest(one), "sums": digest(two)}
    assert world.engine.asked == []
    assert [(one.action, one.name, one.adapter) for one in world.changes] == [
        ("load", "legal", "legal-qa==1.0.0"),
        ("load", "sums", "summarize==1.0.0"),
    ]
    assert world.changes[0].record().keys() == {
        "time", "action", "name", "source", "adapter", "digest", "base", "reason", "duration_s",
    }  # fmt: skip


def test_a_refused_entry_stops_no_other_one_and_is_told_once(world: World, add: Add) -> None:
    good = add("legal-qa")
    world.say(bad="nothing", other="legal-qa@nobody", legal="legal-qa")

    for _ in range(3):
        assert world.turn() == {"legal": digest(good)}
    assert [name for name, _ in world.refusals()] == ["bad", "other"]
    assert "no adapter `nothing`" in world.refusals()[0][1]
    assert world.metrics()["synced_adapters", "bad"] == 0
    assert world.metrics()["synced_adapters", "legal"] == 1
    assert world.metrics()["sync_changes_total", "refuse"] == 2


def test_an_adapter_without_effect_never_gets_its_name(world: World, add: Add) -> None:
    add("legal-qa")
    world.engine.ignores = True
    world.say(legal="legal-qa")

    assert world.turn() == {}
    assert "load legal" not in world.engine.asked
    [(name, reason)] = world.refusals()
    assert (name, "has no effect on the base" in reason) == ("legal", True)
    assert world.metrics()["probes_total", "nothing"] == 1


def test_what_the_engine_refuses_is_told_in_its_words_and_tried_again(
    world: World, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler, "FIRST_RETRY_S", 0.0)
    added = add("legal-qa")
    world.engine.refuses = {f"{TRIAL}{digest(added)[7:19]}": "rank 4 is too large"}
    world.say(legal="legal-qa")
    assert world.turn() == {}
    assert f"{world.engine.kind} did not load" in world.refusals()[0][1]
    assert "rank 4 is too large" in world.refusals()[0][1]

    world.engine.refuses = {}
    assert world.turn() == {"legal": digest(added)}


def test_a_refused_entry_waits_longer_each_time_and_a_changed_file_counts_at_once(world: World, add: Add) -> None:
    added = add("legal-qa")
    world.engine.refuses = {"legal": "busy"}
    world.say(legal="legal-qa")
    world.turn()
    world.engine.refuses = {}

    assert world.turn() == {}  # too early
    world.say(legal="legal-qa", again="legal-qa")
    assert world.turn() == {"legal": digest(added), "again": digest(added)}


def test_the_name_of_the_base_is_refused(world: World, add: Add) -> None:
    add("legal-qa")
    world.say(base_model="legal-qa", base="base")
    assert world.turn().keys() == {"base_model"}  # the engine's own name of its base

    world.say(base="base-7b", legal="legal-qa")
    assert world.turn().keys() == {"legal"}
    world.say(base="other-7b", wrong="legal-qa")
    assert world.turn() == {}
    assert "other-7b" in world.refusals()[-1][1]


def test_an_id_like_the_name_of_the_base_is_refused(world: World, add: Add) -> None:
    add("legal-qa")
    text = world.file.read_text().replace("models: []", "models: [{id: base, source: legal-qa}]")
    world.file.write_text(text)

    assert world.turn() == {}
    assert "has the name of the base" in world.refusals()[0][1]


# ---------------------------------------------------------------- move
def test_an_alias_that_moves_takes_its_name_along_and_the_old_folder_is_gone_first(
    world: World, library: Library, add: Add
) -> None:
    old, new = add("legal-qa"), add("legal-qa", version="2.0.0", seed=1)
    point(library, "prod", [(old.build, 1.0)])
    world.say(legal="legal-qa@prod")
    assert world.turn() == {"legal": digest(old)}
    folder = Path(world.engine.roots["legal"])

    point(library, "prod", [(new.build, 1.0)])
    assert world.turn() == {"legal": digest(new)}

    trial = f"{TRIAL}{digest(new)[7:19]}"
    assert world.engine.asked == [f"load {trial}", f"unload {trial}", "unload legal", "load legal"]
    assert not folder.exists()
    assert [one.adapter for one in world.changes] == ["legal-qa==1.0.0", "legal-qa==2.0.0"]


def test_an_alias_that_moves_to_what_cannot_be_loaded_keeps_its_build(
    world: World, library: Library, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler, "FIRST_RETRY_S", 0.0)
    old, new = add("legal-qa"), add("legal-qa", version="2.0.0", seed=1)
    point(library, "prod", [(old.build, 1.0)])
    world.say(legal="legal-qa@prod")
    world.turn()

    world.engine.refuses = {f"{TRIAL}{digest(new)[7:19]}": "no room"}
    point(library, "prod", [(new.build, 1.0)])
    for _ in range(2):
        assert world.turn() == {"legal": digest(old)}
    assert Path(world.engine.roots["legal"]).is_dir()
    assert world.metrics()["synced_adapters", "legal"] == 1
    point(library, "prod", [(old.build, 1.0)])
    assert world.turn() == {"legal": digest(old)}


def test_a_newer_version_in_the_library_moves_a_range_and_an_alias_with_two_targets_is_the_larger(
    world: World, library: Library, add: Add, caplog: pytest.LogCaptureFixture
) -> None:
    old = add("legal-qa")
    world.say(legal="legal-qa>=1,<3")
    assert world.turn() == {"legal": digest(old)}
    new = add("legal-qa", version="2.0.0", seed=1)
    assert world.turn() == {"legal": digest(new)}

    point(library, "prod", [(old.build, 0.7), (new.build, 0.3)])
    world.say(legal="legal-qa@prod")
    assert world.turn() == {"legal": digest(old)}


def test_two_names_of_one_build_keep_its_folder_until_both_are_gone(world: World, add: Add) -> None:
    added = add("legal-qa")
    world.say(one="legal-qa", two="legal-qa==1.0.0")
    world.turn()
    folder = Path(world.engine.roots["one"]).resolve()

    world.say(two="legal-qa")
    assert world.turn() == {"two": digest(added)}
    assert world.engine.complete("base:one" if world.engine.kind == "sglang" else "one")[0] in {400, 404}
    assert folder.is_dir()
    world.say()
    assert world.turn() == {}
    assert not folder.exists()


# ---------------------------------------------------------------- unload
def test_what_leaves_the_file_is_unloaded_and_what_others_loaded_stays(world: World, add: Add, tmp_path: Path) -> None:
    added = add("legal-qa")
    world.engine.adapters = {"theirs": ("/elsewhere", 1.0), "unwanted": ("/elsewhere", 1.0)}
    world.say(legal="legal-qa", unwanted=("unwanted",))
    assert world.turn().keys() == {"theirs", "legal"}

    world.say(theirs="legal-qa")
    assert world.turn() == {"theirs": digest(added)}  # the file says what the name is
    assert [one.reason for one in world.changes if one.action == "unload"] == ["in `ensureNotExist`", "not in the file"]
    assert ("synced_adapters", "legal") not in world.metrics()


def test_a_wrong_entry_leaves_what_its_name_had(world: World, add: Add) -> None:
    added = add("legal-qa")
    world.say(legal="legal-qa")
    world.turn()
    world.file.write_text(world.file.read_text().replace("source", "sorce"))

    assert world.turn() == {"legal": digest(added)}


def test_a_withdrawn_build_is_unloaded_at_once_and_a_client_cannot_bring_it_back(
    world: World, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider, "REFUSED_S", 0.0)
    added = add("legal-qa")
    world.say(legal="legal-qa")
    world.turn()

    world.provider.denied.deny(added.build.manifest.digest, "leaks names")
    assert world.turn() == {}
    assert ("legal", "leaks names") in [(one.name, one.reason.rpartition(": ")[2]) for one in world.changes]
    assert world.engine.complete("base:legal" if world.engine.kind == "sglang" else "legal")[0] in {400, 404}
    assert world.has() == {}

    world.provider.denied.allow(added.build.manifest.digest)
    assert world.turn() == {"legal": digest(added)}


def test_a_withdrawn_build_gives_way_to_another_that_fits(world: World, add: Add) -> None:
    old, new = add("legal-qa"), add("legal-qa", version="2.0.0", seed=1)
    world.say(legal="legal-qa")
    assert world.turn() == {"legal": digest(new)}

    world.provider.denied.deny(new.build.manifest.digest, "leaks")
    assert world.turn() == {"legal": digest(old)}


def test_a_name_that_another_program_gave_away_is_taken_back_or_emptied(world: World, add: Add) -> None:
    added = add("legal-qa")
    world.say(legal="legal-qa")
    world.turn()
    world.engine.adapters["legal"] = "/elsewhere", 9.0
    assert world.turn() == {"legal": digest(added)}

    world.engine.adapters["other"] = "/elsewhere", 9.0
    world.say(other="nothing")
    assert world.turn() == {}  # what the file calls `other` is not what the engine had there


# ---------------------------------------------------------------- the engine
def test_an_engine_that_starts_again_gets_its_adapters_and_is_asked_again(world: World, add: Add) -> None:
    added = add("legal-qa")
    world.say(legal="legal-qa")
    world.turn()
    folder = Path(world.engine.roots["legal"])

    world.engine.is_away = True
    world.turn()
    assert world.reconciler.is_away
    assert folder.is_dir()
    assert world.metrics()["synced_adapters", "legal"] == 0
    world.engine.is_away = False
    world.engine.restart()

    assert world.turn() == {"legal": digest(added)}
    assert not world.reconciler.is_away
    assert world.metrics()["probes_total", "changes"] == 2


def test_a_program_that_starts_again_takes_over_what_it_had_loaded(
    world: World, library: Library, base: BaseRecord, add: Add
) -> None:
    one, two = add("legal-qa"), add("summarize", seed=1)
    world.say(legal="legal-qa", sums="summarize")
    world.turn()
    world.engine.adapters[f"{TRIAL}abc"] = world.engine.adapters["legal"]  # it was killed in a trial
    world.provider.close()
    world.provider = AdapterProvider(library, base, engine=f"{world.engine.kind}@0.32")
    world.say(legal="legal-qa")
    world.begin()

    assert world.turn() == {"legal": digest(one)}
    assert Path(world.engine.roots["legal"]).is_dir()
    assert two.build.folder.is_dir()


def test_another_version_or_another_base_ends_the_program(world: World, add: Add, tmp_path: Path) -> None:
    add("legal-qa")
    world.say(legal="legal-qa")
    world.turn()
    version, world.engine.version = world.engine.version, "9.9.9"
    world.engine.restart()
    with pytest.raises(EngineFailed, match=r"the engine was .* and now is 9\.9\.9"):
        world.turn()

    world.engine.version, world.engine.model = version, str(make_base(tmp_path / "other", seed=9))
    with pytest.raises(BaseMismatch, match="whose weights are not those of base `base-7b`"):
        world.turn()


def test_a_base_that_is_a_folder_here_is_compared(world: World, base: BaseRecord, add: Add) -> None:
    added = add("legal-qa")
    world.engine.model = str(base.path)
    world.say(legal="legal-qa")

    assert world.turn() == {"legal": digest(added)}


def test_a_new_address_in_the_file_is_another_engine(world: World, add: Add) -> None:
    added = add("legal-qa")
    world.say(legal="legal-qa")
    world.turn()
    with running(world.engine.kind) as other:
        text = world.file.read_text().replace(str(world.engine.port), str(other.port))
        world.file.write_text(text)
        world.turn()

        assert Path(other.roots["legal"]).name.endswith(digest(added)[7:])
