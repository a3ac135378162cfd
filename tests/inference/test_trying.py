"""`adapt search --try`: what leads by measured loss, what is fetched for it, and what is left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from adapterhub import Library
from adapterhub.api.steps import trying
from adapterhub.inference.generation import Question
from adapterhub.inference.loader.text import load_base
from tests.registry.running import Running
from tests.support.command_line import Adapt
from tests.support.run_library import alone, make_library

pytestmark = pytest.mark.filterwarnings("ignore")

PROMPTS = ("who", "fine", "we go", "ask me")
TRY = ("search", "--base", "base-7b", "--try", "examples.jsonl")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with `a`, `b` and `0sum`, which is nearly `a` and comes first in a list."""
    folder = make_library(tmp_path_factory.mktemp("try"))
    adapt = Adapt(folder)
    adapt.ok("remove", "ia3", "dora", "--yes")
    adapt.ok("merge", "a", "b", "--weights", "1,0.001", "-o", "0sum")
    model = load_base(folder / "base")
    for name, adapter in (("a", "a"), ("none", "")):
        answers = [alone(folder, model, adapter, Question(text=prompt)) for prompt in PROMPTS]
        write(folder / f"{name}.jsonl", answers)
    return folder


@pytest.fixture
def adapt(made: Path, tmp_path: Path) -> Adapt:
    """A copy, with the answers of `a` as examples."""
    shutil.copytree(made, tmp_path / "own", symlinks=True)
    shutil.copy(made / "a.jsonl", tmp_path / "own" / "examples.jsonl")
    return Adapt(tmp_path / "own")


def write(path: Path, answers: Sequence[str]) -> None:
    pairs = zip(PROMPTS, answers, strict=True)
    path.write_text("".join(json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in pairs))


def test_the_adapter_that_answers_so_leads_before_a_merge_that_is_as_good(adapt: Adapt) -> None:
    before = sorted(adapt.library.root.rglob("adapters/**/*"))
    found = adapt.json(*TRY)
    again = adapt.json(*TRY)

    names = [one["name"] for one in found["results"]]
    trials = {one["name"]: one["tried"] for one in found["results"]}
    assert names[:2] == ["a", "0sum"], names
    assert (found["best"], found["query"], found["base"], found["examples"]) == ("a", "", "base-7b", 4)
    assert [trials[name]["leads"] for name in names] == [True, True, *[False] * (len(names) - 2)]
    assert trials["a"]["loss"] < trials["a"]["base_loss"] == pytest.approx(found["base_loss"])
    assert max(trials[name]["share"] for name in names) == 1
    assert {one["tried"]["is_cached"] for one in again["results"]} == {True}
    assert [one["tried"]["loss"] for one in again["results"]] == [one["tried"]["loss"] for one in found["results"]]
    assert sorted(adapt.library.root.rglob("adapters/**/*")) == before  # nothing was merged or installed
    assert "the base alone" in adapt.ok(*TRY)


def test_a_kept_loss_counts_for_the_very_examples_only(adapt: Adapt) -> None:
    adapt.ok(*TRY)
    for path in adapt.library.root.glob("cache/tried/*/*.json"):
        path.write_text(path.read_text().replace('"loss":', '"loss":-'))  # no loss is below 0
    other = adapt.folder / "examples.jsonl"
    found = adapt.json(*TRY)
    write(other, [" ab"] * len(PROMPTS))
    new = adapt.json(*TRY)

    assert not any(one["tried"]["is_cached"] for one in (*found["results"], *new["results"]))


def test_that_none_beats_the_base_is_an_answer(adapt: Adapt) -> None:
    shutil.copy(adapt.folder / "none.jsonl", adapt.folder / "examples.jsonl")
    found = adapt.json(*TRY)

    assert found["best"] is None
    assert all(one["tried"]["loss"] > one["tried"]["base_loss"] for one in found["results"])
    assert {one["tried"]["share"] for one in found["results"]} == {None}
    assert "none beats the base alone" in adapt(*TRY).stderr


def test_only_the_best_of_the_first_round_are_asked_everything(adapt: Adapt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trying, "FINALISTS", 1)
    found = adapt.json(*TRY)["results"]
    empty = adapt.json("search", "nothing-like-this", *TRY[1:])

    assert [one["tried"]["examples"] for one in found] == [4, *[1] * (len(found) - 1)]
    assert found[0]["name"] in ("a", "0sum")
    assert (empty["results"], empty["base_loss"], empty["best"]) == ([], None, None)


def test_a_build_that_states_a_chat_form_is_tried_in_both(adapt: Adapt) -> None:
    adapt.ok("add", "./b", "--name", "chatty", "--base", "base-7b", "--prompt", "chat")
    asked = [f"<user>{prompt}|<assistant>" for prompt in PROMPTS]
    model = load_base(adapt.folder / "base")
    write(adapt.folder / "examples.jsonl", [alone(adapt.folder, model, "b", Question(text=text)) for text in asked])
    chatty = Library(adapt.library.root).search("chatty", base="base-7b", examples=adapt.folder / "examples.jsonl")

    assert [(one.name, one.tried.form) for one in chatty.results] == [("chatty", "chat")]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('{"prompt": "a"}\n', "line 1: has `prompt`, expected"),
        ('{"prompt": "a", "answer": ""}\n', "line 1: `answer` is empty"),
        ("\n" * 9, "contains no examples"),
        ('{"prompt": "a", "answer": "b"}\n' * 101, "101 examples, expected at most 100"),
        (None, "more than 1 MB"),
    ],
)
def test_examples_that_cannot_be_used_are_refused(adapt: Adapt, lines: str | None, said: str) -> None:
    path = adapt.folder / "examples.jsonl"
    if lines is None:
        with path.open("wb") as file:
            file.truncate(1 << 30)
    else:
        path.write_text(lines)

    assert said in adapt.fails(16, *TRY)


def test_options_that_make_no_sense_are_refused(adapt: Adapt) -> None:
    assert "`--try` needs a base" in adapt.fails(2, "search", "--try", "examples.jsonl")
    assert "`--top` is for `--try`" in adapt.fails(2, "search", "--top", "3")
    assert "`--yes` is for `--try`" in adapt.fails(2, "search", "--yes")


@pytest.mark.usefixtures("online")
def test_builds_of_a_server_are_tried_and_not_installed(
    adapt: Adapt, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = Adapt(adapt.folder, "owner")
    shutil.copytree(adapt.library.root, owner.library.root, symlinks=True)
    for one in (owner, adapt):
        one.ok("remote", "add", "ours", server.url, "--namespaces", "acme")
        one.ok("remote", "login", "ours", "--token", server.token)
    for name in ("a", "b"):
        owner.ok("push", name, "--to", f"acme/{name}", "--remote", "ours")
    adapt.ok("remove", "a", "b", "0sum", "--yes")
    ask = (*TRY, "--remote", "ours")
    adapt.ok("cache", "clean", "--grace", "0")

    with monkeypatch.context() as patch:
        patch.setattr(trying, "ASK_ABOVE_BYTES", 10)
        assert "would fetch" in adapt.fails(14, *ask)
    done = adapt(*ask, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)

    assert "fetches 2 builds" in done.stderr
    assert (found["best"], [one["name"] for one in found["results"]]) == ("acme/a", ["acme/a", "acme/b"])
    assert list(adapt.library.installed()) == []
    assert not any((adapt.library.root / "tmp").iterdir())
    assert "fetches" not in adapt(*ask).stderr  # its losses are kept

    adapt.ok("key", "policy", "require", "--namespace", "acme")
    assert "not one candidate" in adapt.fails(17, *ask)
