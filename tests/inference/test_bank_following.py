"""A bank that follows an alias: which version a request gets, what is refused, and that nothing is ever mixed."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapterhub.core.errors import AdapterNotFound, Conflict, SpecError, UsageProblem
from adapterhub.core.specs import AdapterSpec, parse_name
from adapterhub.inference.bank import AdapterBank
from adapterhub.inference.bank.updates import LinearUpdate
from adapterhub.library.aliasing import point, roll_back
from adapterhub.library.following import Published
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import Installed
from adapterhub.live.stream import LiveStream
from tests.support.bank_adapters import hooks_of, make_folders
from tests.support.tiny_models import llama, logits

pytestmark = pytest.mark.filterwarnings("ignore")

LIVE = "agent@live"
WEIGHTS = "adapter_model.safetensors"
SWAPS = 30


class Steps:
    """Versions of one adapter for the small llama, in a library; the alias `live` is moved by hand."""

    def __init__(self, library: Library, folder: Path) -> None:
        self.library, self._folder = library, folder
        llama().save_pretrained(folder / "model")
        self.base = library.bases.add(folder / "model", "small")
        self._tensors = load_file(make_folders(folder, "a")["a"] / WEIGHTS)

    def add(self, number: int, kind: str = "a", scale: float | None = None) -> Installed:
        """Version 0.0.`number`; `kind` is one of those of `make_folders`, `scale` multiplies the numbers of B."""
        folder = make_folders(self._folder, kind)[kind]
        if kind == "a":
            by = number if scale is None else scale
            changed = {n: t * by if "lora_B" in n else t for n, t in self._tensors.items()}
            save_file(changed, folder / WEIGHTS, metadata={"format": "pt"})
        about = Description(name=parse_name("agent"), version=f"0.0.{number}")
        return self.library.add(folder, about, base=self.base).build

    def point(self, build: Installed) -> None:
        point(self.library, "live", [(build, 1.0)])


@pytest.fixture
def steps(library: Library, tmp_path: Path) -> Steps:
    return Steps(library, tmp_path)


@pytest.fixture
def bank(steps: Steps) -> Iterator[AdapterBank]:
    with AdapterBank(llama(), library=steps.library) as made:
        yield made


def told(bank: AdapterBank, name: str = LIVE) -> tuple[str, Tensor]:
    """Who answers a request, and the answer."""
    with bank.use(name):
        [label] = bank.chosen
        return label, logits(bank.model)


def alone(build: Installed, library: Library) -> Tensor:
    """What a model says with one build, in a bank of its own."""
    with AdapterBank(llama(), library=library) as bank, bank.use(build.spec):
        return logits(bank.model)


# ---------------------------------------------------------------- which version
def test_the_next_request_gets_what_the_alias_came_to_mean_and_one_that_runs_keeps_its_own(
    steps: Steps, bank: AdapterBank
) -> None:
    builds = [steps.add(number) for number in (1, 2, 3)]
    expected = [alone(build, steps.library) for build in builds]
    steps.point(builds[0])
    following = bank.follow(LIVE)

    assert told(bank)[0] == "agent==0.0.1"
    with bank.use(LIVE), bank.use({LIVE: 1.0}):
        steps.point(builds[1])
        assert following.wait(other_than="0.0.1", timeout_s=30) is not None
        assert bank.chosen == ("agent==0.0.1",)
        assert torch.equal(logits(bank.model), expected[0])
    label, answer = told(bank)
    assert (label, torch.equal(answer, expected[1])) == ("agent==0.0.2", True)
    steps.point(builds[2])
    assert following.wait(other_than=builds[1].manifest.digest, timeout_s=30) is not None
    roll_back(steps.library, "agent", "live")
    assert following.wait(other_than="0.0.3", timeout_s=30) == bank.following[LIVE].current
    assert torch.equal(told(bank)[1], expected[1])
    with bank.rows([LIVE, None]):
        assert bank.chosen == ("agent==0.0.2",)
        mixed = logits(bank.model)
    torch.testing.assert_close(mixed[0], expected[1][0], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(mixed[1], logits(bank.model)[1], rtol=1e-5, atol=2e-5)


def test_thirty_swaps_under_threads_give_every_answer_by_exactly_one_version(steps: Steps, bank: AdapterBank) -> None:
    builds = [steps.add(number) for number in range(1, SWAPS + 1)]
    expected = {f"agent=={build.manifest.version}": alone(build, steps.library) for build in builds}
    steps.point(builds[0])
    following, over = bank.follow(LIVE), threading.Event()

    def client(*, rows: bool) -> list[tuple[str, bool]]:
        answers = []
        while not over.is_set():
            with bank.rows([LIVE, LIVE]) if rows else bank.use(LIVE):
                [label] = bank.chosen
                first, second = logits(bank.model), logits(bank.model)  # a request of two passes
            same = torch.equal(first, second) and torch.allclose(first, expected[label], rtol=1e-5, atol=2e-5)
            others = [one for one, numbers in expected.items() if torch.allclose(first, numbers, rtol=1e-5, atol=2e-5)]
            answers.append((label, same and others == [label]))
        return answers

    with ThreadPoolExecutor(4) as threads:
        clients = [threads.submit(client, rows=rows) for rows in (False, True, False, True)]
        try:
            for build in builds[1:]:
                known = following.current
                steps.point(build)
                assert following.wait(other_than=known.digest if known else None, timeout_s=60) is not None
        finally:
            over.set()
        answers = [one.result() for one in clients]

    assert [answer for each in answers for answer in each if not answer[1]] == []
    numbers = [[int(label.rpartition(".")[2]) for label, _ in each] for each in answers]
    assert all(each == sorted(each) for each in numbers), "a client got an older version after a newer one"
    assert len({number for each in numbers for number in each}) > 2
    assert following.current is not None
    assert (following.current.version, bank.stats.resident) == (f"0.0.{SWAPS}", 1)


def test_an_old_version_leaves_memory_with_its_last_choice_and_its_lease_ends(steps: Steps, bank: AdapterBank) -> None:
    builds = [steps.add(number) for number in (1, 2)]
    steps.point(builds[0])
    following = bank.follow(LIVE)
    updates = bank._residency._adapters[LIVE].adapter.updates
    gone = weakref.ref(next(one.a for one in updates.values() if isinstance(one, LinearUpdate)))
    del updates
    using = bank.use(LIVE)

    steps.point(builds[1])
    following.wait(other_than="0.0.1", timeout_s=30)
    gc.collect()
    assert gone() is not None
    bank.use(None)
    del using
    gc.collect()

    assert gone() is None
    following.stop()
    steps.library.remove([builds[0]])  # refused while it is leased
    assert [build.manifest.version for build in steps.library.installed()] == ["0.0.2"]


def test_an_evicted_version_comes_back_as_the_one_that_is_current(steps: Steps) -> None:
    builds = [steps.add(number) for number in (1, 2)]
    other = make_folders(steps.library.root.parent / "more", "b")["b"]
    with AdapterBank(llama(), library=steps.library, max_resident=1) as bank:
        steps.point(builds[0])
        following = bank.follow(LIVE)
        bank.load(other)  # evicts it
        steps.point(builds[1])
        following.wait(other_than="0.0.1", timeout_s=30)
        bank.use("b")
        assert told(bank)[0] == "agent==0.0.2"


def test_a_kind_that_runs_on_pefts_layers_is_followed_too(steps: Steps, bank: AdapterBank) -> None:
    builds = [steps.add(1), steps.add(2, "ia3")]
    steps.point(builds[0])
    asked = list[tuple[str, tuple[str, ...]]]()
    following = bank.follow(LIVE, gate=lambda version: asked.append((version.label, bank.chosen)))

    steps.point(builds[1])
    following.wait(other_than="0.0.1", timeout_s=60)

    label, answer = told(bank)
    assert label == "agent==0.0.2"
    torch.testing.assert_close(answer, alone(builds[1], steps.library), rtol=1e-5, atol=2e-5)
    assert asked == [("agent==0.0.1", ("agent==0.0.1",)), ("agent==0.0.2", ("agent==0.0.2",))]
    assert "engine: peft" in bank.explain(LIVE)


def test_a_stream_is_followed_as_its_alias_is(steps: Steps, bank: AdapterBank) -> None:
    folder = steps.add(1).folder
    stream = LiveStream(steps.library, AdapterSpec.parse("agent"), steps.base)
    stream.publish(folder, step=1)
    following = bank.follow(stream)
    assert (following.name, told(bank)[0]) == (LIVE, "agent==0.0.2")
    stream.publish(folder, step=2, sync=False)
    assert following.wait(other_than="0.0.2", timeout_s=30) is not None
    assert told(bank)[0] == "agent==0.0.3"


# ---------------------------------------------------------------- what is refused
def refused(bank: AdapterBank) -> Published:
    """The version that is refused, once one is."""
    following = bank.following[LIVE]
    with following._changed:  # `wait` waits for a version that is used
        assert following._changed.wait_for(lambda: following.refused is not None, 30)
    assert following.refused is not None
    return following.refused


@pytest.mark.parametrize(
    ("gate", "reason"),
    [
        (lambda version: version.version != "0.0.2", "the gate refused it"),
        (lambda version: "worse by 3 %" if version.version == "0.0.2" else None, "worse by 3 %"),
        (lambda version: 1 / (version.version != "0.0.2") > 0, "ZeroDivisionError"),
    ],
)
def test_a_version_that_the_gate_refuses_is_not_used_and_the_next_one_is(
    gate: Callable[[Published], object], reason: str, steps: Steps, bank: AdapterBank
) -> None:
    builds = [steps.add(number) for number in (1, 2, 3)]
    steps.point(builds[0])
    following = bank.follow(LIVE, gate=gate)

    steps.point(builds[1])
    found = refused(bank)

    assert (found.version, found.digest) == ("0.0.2", builds[1].manifest.digest)
    assert reason in (found.refused or "")
    assert told(bank)[0] == "agent==0.0.1"
    steps.point(builds[2])
    assert following.wait(other_than="0.0.1", timeout_s=30) == following.current
    assert (told(bank)[0], following.refused) == ("agent==0.0.3", None)


def test_the_model_answers_with_the_version_that_the_gate_is_asked_about(steps: Steps, bank: AdapterBank) -> None:
    builds = [steps.add(number) for number in (1, 2)]
    expected = alone(builds[1], steps.library)
    steps.point(builds[0])
    said = dict[str, Tensor]()

    def gate(version: Published) -> None:
        said[version.version] = logits(bank.model)

    following = bank.follow(LIVE, gate=gate)
    steps.point(builds[1])
    following.wait(other_than="0.0.1", timeout_s=30)

    assert torch.equal(said["0.0.2"], expected)


def test_a_version_without_effect_or_with_damage_is_not_used(steps: Steps, bank: AdapterBank) -> None:
    builds = [steps.add(1), steps.add(2, scale=0.0), steps.add(3)]
    steps.point(builds[0])
    following = bank.follow(LIVE, check_effect=True)

    steps.point(builds[1])
    assert "no effect on this model" in refused(bank).refused
    following.stop()
    damaged = builds[2].folder / WEIGHTS
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 255
    damaged.unlink()
    damaged.write_bytes(data)
    steps.point(builds[2])
    again = bank.follow(LIVE)

    assert "does not match its digest" in refused(bank).refused
    assert again.current == following.current
    assert told(bank)[0] == "agent==0.0.1"


def test_without_a_version_a_use_is_refused_until_one_is_published(steps: Steps, bank: AdapterBank) -> None:
    build = steps.add(1)
    following = bank.follow(LIVE, gate=lambda _: "not today")
    with pytest.raises(AdapterNotFound, match="has no version yet"):
        bank.use(LIVE)
    steps.point(build)
    assert refused(bank).refused.endswith("not today")
    with pytest.raises(AdapterNotFound, match="has no version yet") as caught:
        bank.use(LIVE)  # never around the gate
    assert "not today" in (caught.value.hint or "")
    assert following.wait(timeout_s=0) is None


def test_what_names_no_alias_is_refused_and_an_alias_is_followed_once(steps: Steps, bank: AdapterBank) -> None:
    with pytest.raises(SpecError, match="names no alias"):
        bank.follow("agent==0.0.1")
    assert dict(bank.following) == {}
    with bank.follow(LIVE) as following:
        with pytest.raises(Conflict, match="follows `agent@live` already"):
            bank.follow(LIVE)
        assert following.is_running
    assert not following.is_running
    bank.follow(LIVE)  # again, after the end


# ---------------------------------------------------------------- the end
def test_a_stopped_bank_keeps_its_version_and_an_unloaded_name_is_followed_no_more(
    steps: Steps, bank: AdapterBank
) -> None:
    builds = [steps.add(number) for number in (1, 2)]
    steps.point(builds[0])
    following = bank.follow(LIVE)
    following.stop()
    steps.point(builds[1])
    assert following.wait(other_than="0.0.1") is None
    assert told(bank)[0] == "agent==0.0.1"

    bank.follow(LIVE)
    assert told(bank)[0] == "agent==0.0.2"
    bank.unload(LIVE)

    assert (dict(bank.following), bank.names) == ({}, ())
    steps.library.aliases.remove("agent", "live")
    steps.library.remove(builds)  # nothing leases them


def test_a_bank_that_is_closed_or_dropped_follows_no_more(steps: Steps) -> None:
    model = llama()
    hooks = hooks_of(model)
    steps.point(steps.add(1))
    bank = AdapterBank(model, library=steps.library)
    closed = bank.follow(LIVE)
    bank.close()
    with pytest.raises(UsageProblem, match="closed"):
        bank.follow(LIVE)
    bank = AdapterBank(model, library=steps.library)
    dropped = bank.follow(LIVE)
    del bank
    gc.collect()

    assert (closed.is_running, dropped.is_running) == (False, False)
    assert hooks_of(model) == hooks
    assert steps.library._leases.living() == []


def test_a_damaged_alias_is_told_and_outlasted(
    steps: Steps, bank: AdapterBank, caplog: pytest.LogCaptureFixture
) -> None:
    builds = [steps.add(number) for number in (1, 2)]
    steps.point(builds[0])
    following, seen = bank.follow(LIVE), threading.Event()
    path = steps.library.root / "aliases" / "agent@live.json"
    good = path.read_text()

    def heard(record: logging.LogRecord) -> bool:
        seen.set()
        return "agent@live stays agent==0.0.1 for now" in record.getMessage()

    with caplog.filtering(heard):
        path.write_text("{")
        assert seen.wait(30)
    assert told(bank)[0] == "agent==0.0.1"

    path.write_text(good)
    steps.point(builds[1])

    assert following.wait(other_than="0.0.1", timeout_s=30) is not None
    assert "is damaged" in caplog.text
