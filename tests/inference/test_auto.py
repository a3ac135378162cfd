"""`adapt route`, and the model name `auto` in front of both engines."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

import adapterhub
from adapterhub.formats.route import read_route
from adapterhub.inference.serving.auto import Auto
from adapterhub.inference.serving.llama_cpp.engine import Address
from adapterhub.inference.serving.llama_cpp.names import Names, Served
from adapterhub.inference.serving.llama_cpp.server import Front
from adapterhub.inference.serving.process import free_port
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import Installed
from adapterhub.vllm_plugin import guard
from adapterhub.vllm_plugin.resolver import AdapterHubResolver
from tests.inference.test_model_names import Engine
from tests.support.command_line import Adapt
from tests.support.route_tasks import BUILT, prompts_by_task
from tests.support.routed_library import TASKS, add_task, fill
from tests.support.standin_llama import started
from tests.support.standin_vllm import importable, make_standin
from tests.support.tiny import make_base

ORDER, LAW = "Please send Pia 4 stools for 60 euros.", "May my landlord raise the rent twice a year?"
STRANGE = "Tell me a joke about penguins."


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with three tasks, and `route.json` over them; no test writes here."""
    folder = tmp_path_factory.mktemp("auto")
    library = Library(folder / "home")
    base = library.bases.add(make_base(folder / "base"), "base-7b")
    library.catalog.put_base(base)
    fill(library, base, folder / "made")
    Adapt(folder).ok("route", "--base", "base-7b", "-o", "route.json")
    return folder


@pytest.fixture
def adapt(made: Path, tmp_path: Path) -> Adapt:
    """A copy that a test may change."""
    shutil.copytree(made, tmp_path / "own", symlinks=True)
    return Adapt(tmp_path / "own")


@pytest.fixture
def auto(made: Path) -> Auto:
    route = read_route(made / "route.json")
    return Auto.open(Library(made / "home"), made / "route.json", route.base)


# ---------------------------------------------------------------- the command
def test_a_text_gets_its_adapter_or_the_base(made: Path) -> None:
    adapt = Adapt(made)
    routed = adapt.json("route", ORDER, "--file", "route.json")

    assert [adapt.ok("route", text, "--file", "route.json").strip() for text in (ORDER, LAW, STRANGE)] == [
        "order-json", "legal-qa", "base",
    ]  # fmt: skip
    assert routed["model"] == f"order-json==1.0.0#{routed['digest'][:19]}"
    assert routed["near"][0] == {"name": "order-json", "cosine": routed["cosine"]}
    assert "is for none" in adapt.fails(10, "route", STRANGE, "--file", "route.json", "--strict")
    assert adapterhub.Library(made / "home").route(LAW, file=made / "route.json").name == "legal-qa"


def test_a_file_holds_no_text_and_its_check_says_what_it_confuses(made: Path) -> None:
    checked = Adapt(made).json("route", "--file", "route.json", "--check")
    text = (made / "route.json").read_text()

    right = {one["name"]: one["right"] for one in checked["adapters"]}
    wrong = sum(one["prompts"] for one in checked["confused"])
    assert (list(right), checked["method"]) == (sorted(TASKS), "centroid")
    below = sum(one["to_base"] for one in checked["adapters"])
    assert sum(right.values()) + wrong + below == len(TASKS) * BUILT
    assert checked["accuracy"] == pytest.approx(sum(right.values()) / (len(TASKS) * BUILT), abs=1e-4)
    assert checked["accuracy"] >= 0.9
    assert not any(prompt in text for name in TASKS for prompt in prompts_by_task()[name])


def test_adapters_for_the_same_texts_are_refused_unless_that_is_accepted(adapt: Adapt) -> None:
    library = adapt.library
    base = library.bases.list()[0]
    more = list(prompts_by_task()["order-json"][BUILT:])
    add_task(library, base, adapt.folder / "made" / "orders-two", "orders-two", more)
    over = ("--over", "order-json", "--over", "orders-two")
    refused = adapt.fails(17, "route", "--base", "base-7b", *over, "-o", "same.json")
    adapt.ok("route", "--base", "base-7b", *over, "-o", "same.json", "--accept-routing")

    assert "look like" in refused
    assert "Nothing was written" in refused
    assert read_route(adapt.folder / "same.json").accepted


def test_an_adapter_without_enough_prompts_is_refused_by_name_and_else_left_out(adapt: Adapt) -> None:
    library = adapt.library
    add_task(library, library.bases.list()[0], adapt.folder / "made" / "few", "few", ["Hm?"] * 9)
    done = adapt("route", LAW, "--base", "base-7b")

    assert "`few` has 1 example prompts" in adapt.fails(2, "route", "x", "--base", "base-7b", "--over", "few")
    assert (done.stdout.strip(), "left out: `few`" in done.stderr) == ("legal-qa", True)


def test_routing_without_the_model_or_for_another_base_says_what_to_do(adapt: Adapt) -> None:
    (adapt.library.root / "cache" / "meaning").rename(adapt.folder / "away")
    assert "adapt search --setup" in adapt.fails(10, "route", "x", "--file", "route.json")
    make_base(adapt.folder / "other", seed=1)
    adapt.ok("base", "add", "./other", "--as", "other")
    assert "is not here" in adapt.fails(10, "serve", "--base", "base-7b", "--route", "route.json", "--dry-run")
    assert "with other weights" in adapt.fails(11, "serve", "--base", "other", "--route", "route.json", "--dry-run")


def test_the_export_is_what_the_semantic_router_reads(made: Path, tmp_path: Path) -> None:
    """Its form v0.3; `python -m tests.bench.find_route --router` asks its own validator."""
    adapt, out = Adapt(made), tmp_path / "config.yaml"
    adapt.ok("export", "./route.json", "--format", "semantic-router", "-o", out)
    value = yaml.safe_load(out.read_text())
    routing, route = value["routing"], read_route(made / "route.json")

    loras = {lora["name"] for card in routing["modelCards"] for lora in card["loras"]}
    assert (value["version"], value["providers"]["defaults"]["model"]) == ("v0.3", "base-7b")
    assert {ref["lora_name"] for one in routing["decisions"] for ref in one["modelRefs"]} == loras
    assert loras == {one.model for one in route.adapters}
    signals = {one["name"]: one["candidates"] for one in routing["signals"]["embeddings"]}
    assert signals == {name: list(prompts_by_task()[name][:BUILT]) for name in TASKS}
    assert {one["rules"]["conditions"][0]["name"] for one in routing["decisions"]} == set(signals)


def test_serve_checks_the_adapters_of_the_file_and_hands_it_to_the_engine(adapt: Adapt, tmp_path: Path) -> None:
    python = make_standin(tmp_path / "vllm")
    words = ("serve", "--base", "base-7b", "--python", python, "--route", "route.json")
    shown = adapt.json(*words, "--dry-run")
    adapt.ok("remove", "recipe", "--yes")

    assert sorted(one["adapter"] for one in shown["adapters"]) == [f"{name}==1.0.0" for name in sorted(TASKS)]
    assert "recipe" in adapt.fails(10, *words, "--dry-run")
    assert "which is taken" in adapt.fails(2, *words, "--name", "auto")


# ---------------------------------------------------------------- in front of llama.cpp
@pytest.fixture(scope="module")
def llama() -> Iterator[Address]:
    with started() as where:
        yield where


@pytest.fixture
def url(made: Path, auto: Auto, llama: Address) -> Iterator[tuple[str, Names]]:
    adapters = read_route(made / "route.json").adapters
    served = [Served(name=one.model, label=one.label, digest=one.digest) for one in adapters]
    names, port = Names("base-7b", served), free_port("127.0.0.1")
    with Front("127.0.0.1", port, [llama], names, auto=auto):
        yield f"http://127.0.0.1:{port}", names


def ask(url: str, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{url}{path}", json={"model": "auto", **body}, timeout=300, trust_env=False)


def test_auto_answers_with_the_adapter_of_the_text_and_says_so(url: tuple[str, Names]) -> None:
    where, names = url
    chat = [{"role": "user", "content": ORDER}, {"role": "assistant", "content": "{}"}]
    answers = [
        ask(where, "/v1/completions", prompt=ORDER),
        ask(
            where,
            "/v1/chat/completions",
            messages=[*chat, {"role": "user", "content": [{"type": "text", "text": LAW}]}],
        ),
        ask(where, "/v1/completions", prompt=STRANGE),
        ask(where, "/v1/completions", prompt=[1, 2, 3]),
        ask(where, "/v1/completions", prompt=f"{ORDER} " * 25_000),  # 1 MB
    ]

    told = [(answer.status_code, answer.headers["x-adapterhub-adapter"]) for answer in answers]
    order, law = "order-json==1.0.0", "legal-qa==1.0.0"
    assert told == [(200, order), (200, law), (200, "base"), (200, "base"), (200, order)]
    assert [answer.json()["model"].partition("#")[0] for answer in answers] == [order, law, "base-7b", "base-7b", order]
    assert answers[0].headers["x-adapter-digest"] == names.find(answers[0].json()["model"]).digest
    scales = [sum(one["scale"] for one in answer.json()["lora"]) for answer in answers]
    assert scales == [1, 1, 0, 0, 1]
    assert ask(where, "/v1/embeddings", input="x").status_code == 400
    assert "auto" in [one["id"] for one in httpx.get(f"{where}/v1/models", trust_env=False).json()["data"]]


def test_auto_leaves_out_what_is_denied(url: tuple[str, Names]) -> None:
    where, names = url
    digest = next(one.digest for one in names.served.values() if one.label.startswith("order-json"))
    names.denied.deny(digest, "leaks names")

    answer = ask(where, "/v1/completions", prompt=ORDER)

    assert (answer.status_code, answer.headers["x-adapterhub-adapter"]) == (200, "base")


# ---------------------------------------------------------------- in front of vLLM
@pytest.fixture
def engine(adapt: Adapt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    environ = {
        "ADAPTERHUB_HOME": str(adapt.library.root),
        "ADAPTERHUB_SERVE_OFFLINE": "1",
        "ADAPTERHUB_SERVE_ROUTE": str(adapt.folder / "route.json"),
        "ADAPTERHUB_SERVE_DENY": "recipe spoils dinner",
    }
    resolver = AdapterHubResolver(environ, ["vllm", "--served-model-name", "base-7b"])
    monkeypatch.setattr(guard, "registered_resolver", lambda: resolver)
    base: BaseRecord = adapt.library.bases.list()[0]
    with importable(tmp_path / "standin", monkeypatch):
        yield Engine(base, resolver)


def test_vllm_gets_the_name_of_the_adapter_that_a_text_is_for(adapt: Adapt, engine: Engine) -> None:
    builds: dict[str, Installed] = {build.full_name: build for build in adapt.library.installed()}

    async def all_of() -> list[Any]:
        texts = (ORDER, STRANGE, "How long do I boil an egg?")
        return [await engine.send("POST", "/v1/completions", {"model": "auto", "prompt": text}) for text in texts]

    order, strange, denied = asyncio.run(all_of())

    name = f"order-json==1.0.0#{builds['order-json'].manifest.digest[:19]}"
    assert (order[0], order[2]["model"], order[1]["x-adapterhub-adapter"]) == (200, name, "order-json==1.0.0")
    assert order[1]["x-adapter-digest"] == builds["order-json"].manifest.digest
    for status, told, body in (strange, denied):
        assert (status, body["model"], told["x-adapterhub-adapter"]) == (200, "base-7b", "base")


def test_vllm_says_no_more_than_that_a_bad_routing_file_cannot_be_used(adapt: Adapt, engine: Engine) -> None:
    path = adapt.folder / "route.json"
    path.write_text(json.dumps({"schema": "x"}))

    status, _, body = engine.ask("auto")

    assert status == 424
    assert str(path) not in json.dumps(body)
    assert engine.ask("base-7b")[0] == 200
