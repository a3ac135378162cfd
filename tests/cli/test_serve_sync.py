"""`adapt serve --sync` from argv to the last line, beside a stand-in for a running engine."""

from __future__ import annotations

import json
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from adapterhub.inference.serving.process import free_port
from adapterhub.library.aliasing import point
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.installed import Added
from tests.inference.test_metrics import samples
from tests.support.command_line import Adapt
from tests.support.serve_command import Serving, serve_command
from tests.support.standin_running import StandinEngine, running

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent.parent
Add = Callable[..., Added]


@pytest.fixture
def adapt(tmp_path: Path, base: BaseRecord, add: Add) -> Adapt:
    add("legal-qa")
    return Adapt(tmp_path)


@pytest.fixture
def engine() -> Iterator[StandinEngine]:
    with running("vllm") as made:
        yield made


@pytest.fixture
def file(tmp_path: Path, engine: StandinEngine) -> Path:
    path = tmp_path / "adapters.yaml"
    path.write_text(file_for(engine, legal="legal-qa"))
    return path


def file_for(engine: StandinEngine, **wanted: str) -> str:
    """JSON, which is YAML."""
    models = [{"id": name, "source": source} for name, source in wanted.items()]
    told = {"host": "127.0.0.1", "port": engine.port, "defaultBaseModel": "base-7b", "ensureExist": {"models": models}}
    return json.dumps({"vLLMLoRAConfig": told}, indent=1)


def beside(adapt: Adapt, file: Path, *arguments: str, **environ: str) -> AbstractContextManager[Serving]:
    return serve_command(adapt, "--sync", str(file), *arguments, **environ)


def until(is_so: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_it_follows_the_file_shows_its_metrics_and_stops_at_a_signal(
    adapt: Adapt, engine: StandinEngine, file: Path, add: Add, tmp_path: Path
) -> None:
    two = add("summarize", seed=1)
    denied, audit = tmp_path / "denied", tmp_path / "audit.jsonl"
    denied.write_text("")
    engine.key = "secret"
    with beside(adapt, file, "--deny-file", str(denied), "--audit-log", str(audit), VLLM_API_KEY="secret") as (
        document,
        process,
    ):
        assert [(one["model"], one["adapter"]) for one in document["adapters"]] == [("legal", "legal-qa==1.0.0")]
        assert (document["url"], document["engine"]) == (engine.url, "vllm 0.32.0")

        file.write_text(file_for(engine, legal="legal-qa", sums="summarize", bad="nothing"))
        until(lambda: engine.roots.keys() == {"legal", "sums"})
        health = document["metrics"].replace("/metrics", "/health")
        until(lambda: "bad" in get(health)[1])
        assert json.loads(get(health)[1]) == {
            "ok": True,
            "loaded": {"legal": "legal-qa==1.0.0", "sums": "summarize==1.0.0"},
            "missing": ["bad"],
        }
        until(lambda: ("synced_adapters", "bad") in samples(get(document["metrics"])[1]))  # the last entry of the turn
        counted = samples(get(document["metrics"])[1])
        assert (counted["synced_adapters", "sums"], counted["synced_adapters", "bad"]) == (1, 0)
        assert get(health + "/x")[0] == 404

        denied.write_text(f"{two.build.manifest.digest} leaks\n")
        until(lambda: engine.roots.keys() == {"legal"})
        engine.is_away = True
        until(lambda: get(health)[0] == 503)
        engine.is_away = False
        until(lambda: get(health)[0] == 200)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert engine.roots.keys() == {"legal"}
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert {(one["action"], one["name"]) for one in lines} >= {
        ("load", "legal"), ("load", "sums"), ("refuse", "bad"), ("unload", "sums"),
    }  # fmt: skip


def test_a_hangup_looks_aliases_up_at_once(adapt: Adapt, engine: StandinEngine, file: Path, add: Add) -> None:
    old, new = adapt.library.builds_named("legal-qa")[0], add("legal-qa", version="2.0.0", seed=1).build
    point(adapt.library, "prod", [(old, 1.0)])
    file.write_text(file_for(engine, legal="legal-qa@prod"))
    with beside(adapt, file, "--alias-ttl", "3600") as (_, process):
        point(adapt.library, "prod", [(new, 1.0)])
        process.send_signal(signal.SIGHUP)
        until(lambda: new.manifest.digest[7:] in engine.roots.get("legal", ""))


def test_a_dry_run_loads_nothing_and_names_what_is_wrong(adapt: Adapt, engine: StandinEngine, file: Path) -> None:
    file.write_text(file_for(engine, legal="legal-qa", bad="nothing", worse="http://x"))
    told = adapt.json("serve", "--sync", file, "--dry-run")

    assert [one["model"] for one in told["adapters"]] == ["legal"]
    assert [("nothing" in one, "models[2]" in one) for one in told["problems"]] == [(False, True), (True, False)]
    assert (engine.asked, engine.roots) == ([], {})
    assert "would load legal: legal-qa==1.0.0" in adapt.ok("serve", "--sync", file, "--dry-run")


def test_an_engine_that_is_not_there_is_waited_for(adapt: Adapt, file: Path, engine: StandinEngine) -> None:
    file.write_text(file.read_text().replace(str(engine.port), str(free_port("127.0.0.1"))))

    error = adapt.fails(18, "serve", "--sync", file, "--start-timeout", 1)

    assert "no engine answers at `http://127.0.0.1:" in error
    assert "`host` and `port` of the file name its address" in error


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": "0.31.2"}, "0.32 or later is needed"),
        ({"key": "secret"}, "VLLM_API_KEY has the engine's key"),
        ({"kind": "sglang"}, "does not tell the version of vllm"),
    ],
)
def test_an_engine_that_cannot_be_used_is_refused(
    adapt: Adapt, engine: StandinEngine, file: Path, change: dict[str, str], said: str
) -> None:
    for name, value in change.items():
        setattr(engine, name, value)

    assert said in adapt.fails(2 if "version" in change else 18, "serve", "--sync", file, "--dry-run")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("legal-qa",), "write each SPEC there"),
        (("--slots", "2"), "`--slots` is for an engine that this command starts"),
        (("--tenants", "x.toml"), "`--tenants` is for an engine"),
        (("--engine", "llama.cpp"), "`--sync` is for vLLM and SGLang"),
    ],
)
def test_what_does_not_go_with_it_is_refused(adapt: Adapt, file: Path, words: tuple[str, ...], said: str) -> None:
    assert said in adapt.fails(2, "serve", *words, "--sync", file)


def test_sglang_is_not_started_and_a_base_is_needed(adapt: Adapt, file: Path) -> None:
    assert "this command starts no SGLang" in adapt.fails(2, "serve", "legal-qa", "--engine", "sglang")
    file.write_text(file.read_text().replace('"defaultBaseModel": "base-7b",', ""))
    assert "names no `defaultBaseModel`" in adapt.fails(2, "serve", "--sync", file)
    assert "no such file" in adapt.fails(10, "serve", "--sync", file.with_name("other.yaml"))


def test_a_port_that_is_taken_is_refused(adapt: Adapt, engine: StandinEngine, file: Path) -> None:
    assert f"port {engine.port} of" in adapt.fails(15, "serve", "--sync", file, "--port", engine.port)
