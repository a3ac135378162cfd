"""The drivers of running engines: what they send, and what they make of refusals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapterhub.core.errors import EngineFailed, UsageProblem
from adapterhub.inference.serving.process import free_port
from adapterhub.inference.serving.sync.engines import KINDS, EngineAway, RunningEngine
from tests.support.standin_running import StandinEngine, running
from tests.support.tiny import make_adapter


@pytest.fixture(params=["vllm", "sglang"])
def standin(request: pytest.FixtureRequest) -> Iterator[StandinEngine]:
    with running(request.param) as made:
        yield made


def driver(standin: StandinEngine, key: str = "") -> RunningEngine:
    return RunningEngine(KINDS[standin.kind], standin.url, key)


def test_it_loads_lists_asks_and_unloads(standin: StandinEngine, tmp_path: Path) -> None:
    folder, engine = make_adapter(tmp_path / "legal"), driver(standin)
    engine.load("legal", folder)
    listed = engine.models()
    told = [engine.ask("base", None), engine.ask("base", "legal")]
    engine.unload("legal")

    assert (listed.base, listed.adapters) == ("base", {"legal": str(folder)})
    assert (engine.about().version, engine.about().model) == (standin.version, standin.model)
    assert None not in told
    assert told[0] != told[1]
    assert engine.models().adapters == {}
    assert engine.ask("base", "nothing") is None


def test_a_refusal_has_the_words_of_the_engine(standin: StandinEngine, tmp_path: Path) -> None:
    standin.refuses = {"legal": "rank 64 is above \x1b[31m16"}
    with pytest.raises(EngineFailed) as refused:
        driver(standin).load("legal", tmp_path)
    with pytest.raises(EngineFailed, match="did not unload `nothing`: the adapter nothing is not here") as missing:
        driver(standin).unload("nothing")

    assert refused.value.message == rf"{standin.kind} did not load `legal`: rank 64 is above \x1b[31m16"
    assert (refused.value.hint, missing.value.hint) == ("", "")


@pytest.mark.parametrize(("status", "said"), [(404, "--enable-lora"), (403, "`adapt serve` started"), (401, "API_KEY")])
def test_a_route_that_is_closed_is_explained(standin: StandinEngine, tmp_path: Path, status: int, said: str) -> None:
    engine = driver(standin)
    standin.statuses = {engine.kind.load: status}

    with pytest.raises(EngineFailed) as refused:
        engine.load("legal", tmp_path)

    assert said in refused.value.hint


def test_the_key_is_sent_and_no_redirect_is_followed(standin: StandinEngine) -> None:
    standin.key = "secret"
    assert driver(standin, "secret").about().version == standin.version
    with pytest.raises(EngineFailed, match=r"HTTP 401"):
        driver(standin).models()

    with running(standin.kind) as other:
        standin.elsewhere = other.url
        with pytest.raises(EngineFailed, match=r"HTTP 302"):
            driver(standin, "secret").models()


def test_an_engine_that_is_away_or_not_ready_is_told_from_one_that_refuses(standin: StandinEngine) -> None:
    standin.is_away = True
    with pytest.raises(EngineAway, match=r"is not ready \(HTTP 503\)"):
        driver(standin).models()
    with pytest.raises(EngineAway, match="no engine answers at"):
        RunningEngine(KINDS[standin.kind], f"http://127.0.0.1:{free_port('127.0.0.1')}").about()


@pytest.mark.parametrize(("version", "is_refused"), [("0.31.9", True), ("0.32.0", False), ("0.1.dev3+g1", False)])
def test_vllm_that_may_mix_up_cached_prompts_is_refused(version: str, *, is_refused: bool) -> None:
    with running("vllm") as standin:
        standin.version = version
        if not is_refused:
            assert driver(standin).about().version == version
            return
        with pytest.raises(UsageProblem, match=r"0\.32 or later is needed"):
            driver(standin).about()
