"""`adapt test --on`: what works on another base, for a whole library, without letting anything else use that base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
from peft import LoraConfig
from safetensors.torch import load_file, save_file

import adapterhub
from adapterhub.api.steps.contracts import testing
from adapterhub.core.errors import BaseMismatch
from adapterhub.core.specs import parse_name
from adapterhub.formats.contract.results import Attested
from adapterhub.formats.manifest import WEIGHTS_FILE
from adapterhub.inference.loader.text import load_base
from adapterhub.library.intake.description import Description
from adapterhub.library.results import KeptResults
from adapterhub.projects.reporting import ProgressEvent
from tests.support.command_line import Adapt
from tests.support.contracts import recorded_library
from tests.support.moved_bases import moved_copy
from tests.support.quantised_copies import float8_copy
from tests.support.run_library import write_base
from tests.support.tiny_models import llama, save_adapter

pytestmark = pytest.mark.filterwarnings("ignore")

RECORD = ("--examples", "examples.jsonl", "--max-new-tokens", "5")


def related(adapt: Adapt, name: str, share: float, *, tokens: int | None = None) -> None:
    """A base whose weights moved by a share of their spread, registered; with so many tokens, if given."""
    moved_copy(adapt.folder / "base", adapt.folder / name, share, tokens=tokens)
    adapt.ok("base", "add", adapt.folder / name, "--as", name)


@pytest.fixture(scope="module")
def adapt(tmp_path_factory: pytest.TempPathFactory) -> Adapt:
    """`a`, `b` and `words` have contracts of the base `base-7b`; `words` adapts the embedding. No test adds builds."""
    adapt = recorded_library(tmp_path_factory.mktemp("bases"))
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "embed_tokens"])
    folder, record = save_adapter(adapt.folder / "words", llama, config, seed=9), adapt.library.bases.get("base-7b")
    tensors = load_file(folder / WEIGHTS_FILE)  # without the copy of the embedding that PEFT saves
    save_file(
        {k: v for k, v in tensors.items() if "base_layer" not in k}, folder / WEIGHTS_FILE, metadata={"format": "pt"}
    )
    adapt.library.add(folder, Description(name=parse_name("words"), version="1.0.0"), base=record)
    for name in ("b", "words"):
        adapt.ok("contract", "record", name, *RECORD)
    related(adapt, "next", 0.002)
    related(adapt, "far", 0.5)
    related(adapt, "grown", 0.002, tokens=80)
    write_base(adapt.folder / "narrow", seed=5)
    llama(5, hidden_size=16, max_position_embeddings=256).save_pretrained(adapt.folder / "narrow")
    adapt.ok("base", "add", "./narrow", "--as", "narrow")
    return adapt


@pytest.fixture
def own(adapt: Adapt, tmp_path: Path) -> Adapt:
    """A copy to change."""
    shutil.copytree(adapt.folder, tmp_path / "own", symlinks=True)
    return Adapt(tmp_path / "own")


def asked(adapt: Adapt, exit_code: int, *arguments: object) -> list[dict[str, Any]]:
    done = adapt("test", *arguments, "--json")
    assert done.exit_code == exit_code, done.stdout + done.stderr
    return list(json.loads(done.stdout))


def outcomes(results: list[dict[str, Any]]) -> dict[str, str]:
    return {one["name"]: one["outcome"] for one in results}


# ------------------------------------------------------------ the table
def test_a_library_is_answered_for_in_one_table_the_worst_first(adapt: Adapt) -> None:
    done = adapt("test", "--all", "--on", "grown", "--again")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    found = asked(adapt, 17, "--all", "--on", "grown")

    assert done.exit_code == 17
    assert rows[0] == ["adapter", "version", "outcome", "same", "left", "drift", "base moved", "why"]
    assert [row[:3] for row in rows[1:2]] == [["words", "1.0.1", "cannot run"]]
    assert sorted(row[0] for row in rows[2:]) == ["a", "b"]
    assert {row[2] for row in rows[2:]} == {"works"}
    assert "on grown: 1 cannot run, 2 works" in done.stderr
    assert "the newest version has no contract: `dora`, `ia3`" in done.stderr
    assert [one["name"] for one in found] == [row[0] for row in rows[1:]]
    assert (found[0]["verdict"], found[0]["reason"], found[0]["base"]) == ("UNKNOWN", "refused", "grown")
    assert "embed_tokens" in found[0]["detail"]


def test_another_base_breaks_what_a_near_one_keeps(adapt: Adapt) -> None:
    near, far = asked(adapt, 0, "a", "b", "--on", "next"), asked(adapt, 3, "a", "b", "--on", "far")

    assert outcomes(near) == {"a": "works", "b": "works"}
    assert outcomes(far) == {"a": "broken", "b": "broken"}
    assert {one["base_verdict"] for one in near} == {"SAME_SHAPES"}
    assert max(one["drift"] for one in near) < 0.2
    assert min(one["drift"] for one in far) > 0.5
    assert {one["has_drifted"] for one in near} == {True}  # the base moved, which is no noise here
    assert outcomes(asked(adapt, 17, "a", "--on", "narrow")) == {"a": "cannot_run"}
    assert asked(adapt, 3, "a", "--on", "next", "--bound", "drift=0.001")[0]["outcome"] == "drifts"


def test_the_newest_version_of_the_names_that_match_is_asked(own: Adapt) -> None:
    own.ok("contract", "record", "a", "--examples", "examples.jsonl", "--max-new-tokens", "4")
    found = asked(own, 0, "--all", "--on", "next", "a*", "no-such")

    assert [(one["name"], one["version"]) for one in found] == [("a", "1.0.2")]
    assert asked(own, 0, "--all", "--on", "next", "no-such") == []
    assert [one["version"] for one in asked(own, 0, "a==1.0.1", "--on", "next")] == ["1.0.1"]


def test_other_prompts_than_at_the_recording_cannot_be_asked(own: Adapt) -> None:
    shutil.copytree(own.folder / "next", own.folder / "letters")
    text = (own.folder / "letters" / "tokenizer.json").read_text()
    swapped = text.replace('"e": ', '"#": ').replace('"o": ', '"e": ').replace('"#": ', '"o": ')
    (own.folder / "letters" / "tokenizer.json").write_text(swapped)
    own.ok("base", "add", "./letters", "--as", "letters")
    [found] = asked(own, 17, "a", "--on", "./letters")

    assert (found["outcome"], found["reason"]) == ("cannot_run", "other-tokenizer")


# ------------------------------------------------------------ a run that is cut
def test_a_run_that_is_cut_goes_on_where_it_stopped(own: Adapt, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[object] = []

    def load(*arguments: Any, **how: Any) -> Any:
        loaded.append(arguments)
        return load_base(*arguments, **how)

    def cut(event: ProgressEvent) -> None:
        if event.unit == "adapters" and event.done == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr("adapterhub.inference.loader.text.load_base", load)
    shutil.rmtree(own.library.root / "cache" / "tests", ignore_errors=True)
    with pytest.raises(KeyboardInterrupt):
        adapterhub.Library(own.library.root, on_progress=cut).test("a", "b", everything=True, on="next")
    found = adapterhub.Library(own.library.root).test("a", "b", everything=True, on="next")
    cached = {one.name: one.is_cached for one in found}
    again = adapterhub.Library(own.library.root).test("a", "b", everything=True, on="next")

    assert cached == {"a": True, "b": False}
    assert (found.outcome, found.verdict) == ("works", "PASS")
    assert [one.is_cached for one in again] == [True, True]
    assert len(loaded) == 2  # one in each run that had something to ask


def test_one_base_in_memory_answers_for_all(adapt: Adapt, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[object] = []

    def load(*arguments: Any, **how: Any) -> Any:
        loaded.append(arguments)
        return load_base(*arguments, **how)

    monkeypatch.setattr("adapterhub.inference.loader.text.load_base", load)
    assert len(asked(adapt, 0, "a", "b", "--on", "next", "--again")) == 2
    assert len(loaded) == 1


# ------------------------------------------------------------ what a test does not permit
def test_what_was_tested_on_another_base_is_still_refused_there(adapt: Adapt) -> None:
    asked(adapt, 0, "a", "--on", "next")
    model, _ = load_base(adapt.folder / "next", dtype="auto")

    assert "was made for base `base-7b`" in adapt.fails(11, "test", "a", "--base", "next")
    assert adapt("install", "a", "--base", "next").exit_code == 11
    with pytest.raises(BaseMismatch, match="was made for base"):
        adapterhub.attach(model, "a", library=adapt.library)


def test_a_kept_result_is_shown_once_the_base_is_allowed(own: Adapt) -> None:
    asked(own, 0, "a", "--on", "next")
    own.ok("install", "a==1.0.1", "--base", "next", "--allow-base-mismatch")

    assert [one["is_cached"] for one in asked(own, 0, "a", "--base", "next")] == [True]


def test_info_shows_the_latest_result_on_each_base_the_asked_one_first(own: Adapt) -> None:
    shutil.rmtree(own.library.root / "cache" / "tests", ignore_errors=True)  # results of other tests
    own.ok("base", "add", float8_copy(own.folder / "base", own.folder / "fp8", block=16), "--as", "fp8")
    for name in ("base-7b", "next", "far", "fp8", "base-7b"):
        own("test", "a", "--on", name)
    lines = [own.ok("info", spec).splitlines() for spec in ("a", "a@fp8")]
    plain, on_copy = (next(one for one in shown if one.startswith("contract\t")) for shown in lines)

    first, *more = plain.split("tested today: ")[1].split("; ")
    assert first.startswith("PASS on base-7b, drift 0.0")
    assert "(" in first  # the interval, of the first base only
    assert [one.split(",")[0].split()[-1] for one in more] == ["fp8", "far", "next"]
    assert "CHANGED on far, drift " in plain
    assert not any("(" in one for one in more)
    assert on_copy.split("tested today: ")[1].split(",")[0].split()[-1] == "fp8"


def test_info_names_three_further_bases_and_counts_the_rest(own: Adapt) -> None:
    shutil.rmtree(own.library.root / "cache" / "tests", ignore_errors=True)
    own.ok("test", "a")
    for number in range(1, 6):
        related(own, f"more-{number}", 0.001 * number)
        own("test", "a", "--on", f"more-{number}")
    (line,) = (one for one in own.ok("info", "a").splitlines() if one.startswith("contract\t"))

    assert "PASS on base-7b" in line.split("; ")[0]
    assert [part.split(",")[0].split()[-1] for part in line.split("; ")[1:4]] == ["more-5", "more-4", "more-3"]
    assert line.endswith("; 2 more bases")


def test_an_adapter_without_a_base_is_not_pinned_to_the_one_it_is_tested_on(own: Adapt) -> None:
    contract = testing.subject_of(own.library, "a").folder / "evals.jsonl"
    folder = own.library.add(own.folder / "b", Description(name=parse_name("stray"), version="1.0.0")).build.folder
    asked(own, 3, "stray", "--on", "next", "--tests", contract)
    [build] = [one for one in own.library.installed() if one.folder == folder]

    assert build.base.fingerprint is None


def test_the_registered_base_is_not_found_before_anything_is_asked(adapt: Adapt) -> None:
    assert adapt("test", "--all", "--on", "nowhere").exit_code == 10


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("a", "--on", "next", "--base", "base-7b"), "both name the base"),
        (("a", "--on", "next", "--base-alone"), "`--base-alone` holds a base"),
        (("a", "--on", "next", "--runner", "pytest"), "on their own base"),
        (("--all", "a"), "give adapters or folders, or `--all`"),
        (("--on", "next"), "give adapters or folders, or `--all`"),
        (("--all", "--sign"), "for adapters that are named"),
        (("--all", "a", "--on", "next", "--statement", "s.json"), "about one build"),
    ],
)
def test_what_excludes_each_other_is_refused(adapt: Adapt, arguments: tuple[str, ...], problem: str) -> None:
    assert problem in adapt.fails(2, "test", *arguments)


# ------------------------------------------------------------ signed, and shown
def test_the_outcome_is_signed_and_shown_on_the_page_of_the_base(own: Adapt) -> None:
    own.ok("key", "new", "ann", "--unencrypted")
    done = own("test", "--all", "--on", "grown", "--sign")
    [signed] = own.json("contract", "results", "a")[0]["results"]
    kept = KeptResults(own.library.store).all(testing.subject_of(own.library, "a").manifest.digest)  # type: ignore[union-attr]

    assert done.exit_code == 17, done.stderr
    assert "nothing was signed: UNKNOWN says nothing to state" in done.stderr
    assert signed["verdict"] == "PASS"
    assert [one.result.outcome for one in kept if one.result.base == "grown"] == ["works"]
    base = own.library.bases.get("base-7b").fingerprint.weights[7:]
    with (
        adapterhub.Library(own.library.root).ui() as ui,
        httpx.Client(base_url=f"http://127.0.0.1:{ui.port}") as client,
    ):
        client.get(ui.url)
        page = client.get(f"/base/{base}?format=json").json()["outcomes"]
    columns = {base["text"]: at for at, base in enumerate(page["bases"])}
    shown = {(row["name"], row["version"]): row["cells"][columns["grown"]]["outcome"] for row in page["rows"]}
    assert shown == {("a", "1.0.1"): "works", ("b", "1.0.1"): "works"}


def test_a_statement_says_the_outcome(adapt: Adapt, tmp_path: Path) -> None:
    adapt("test", "a", "--on", "far", "--statement", tmp_path / "s.json")
    raw = (tmp_path / "s.json").read_bytes()
    said = json.loads(raw)

    def without(word: str | None) -> bytes:
        said["predicate"]["adapterhub"].pop("outcome", None)
        said["predicate"]["adapterhub"] |= {"outcome": word} if word else {}
        return json.dumps(said).encode()

    assert Attested.parse(raw).outcome == "broken"
    assert Attested.parse(without(None)).outcome == "broken"  # of an older program
    assert Attested.parse(without("drifts")).outcome == "drifts"
    with pytest.raises(ValueError, match="contradicts the verdict"):
        Attested.parse(without("works"))
