"""Hostile contracts: each is refused or told for what it is, within a second of CPU and 200 MB.

The cases of the format run in one child whose limits end it; the others need a model and run on a tiny one.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

import adapterhub
from adapterhub.api.steps.contracts.gating import MergeTest
from adapterhub.api.steps.contracts.testing import TestQuestion
from adapterhub.core.digests import canonical_json
from adapterhub.core.errors import CouldNotTell
from adapterhub.core.specs import BaseSpec
from adapterhub.formats.contract.contract import Contract, Demand, Expect, Golden, packed_odds
from adapterhub.formats.contract.reader import contract_in, parse_contract
from adapterhub.formats.contract.results import Tested, TestedCase, junit
from adapterhub.formats.manifest import CONTRACT_FILE
from adapterhub.weights.recipes.combination import Ingredient
from tests.support.command_line import Adapt
from tests.support.contracts import SOME, changed_line, image_contract, recorded_library, small_contract
from tests.support.tiny import make_adapter, make_base

ROOT = Path(__file__).resolve().parent.parent.parent
SOUND = small_contract().to_bytes()
HEAD, GOLDEN, EXPECT, NEVER, LEAVE = SOUND.splitlines(keepends=True)
IMAGES = image_contract().to_bytes()
SECONDS, MEMORY_BYTES = 1, 200 << 20


def line(number: int, **changed: object) -> bytes:
    return changed_line(SOUND, number, **changed)


def numbered(count: int) -> bytes:
    lines = [json.loads(NEVER) | {"id": f"n-{n}"} for n in range(count)]
    return HEAD + b"".join(canonical_json(one) + b"\n" for one in lines)


def prompt(**form: object) -> bytes:
    return line(1, prompt=form)


def schema(value: object) -> bytes:
    return line(3, json=value)


def latent(raw: bytes) -> bytes:
    return changed_line(IMAGES, 2, latent=base64.b64encode(raw).decode())


def drawn(**changed: object) -> bytes:
    return changed_line(IMAGES, 1, image=json.loads(IMAGES.split(b"\n")[0])["image"] | changed)


def odds(raw: bytes, version: int = 3, **changed: Any) -> bytes:
    held = {"odds": base64.b64encode(raw).decode(), "base_odds": base64.b64encode(bytes(6)).decode()}
    return changed_line(line(2, **held | changed), 1, schema=f"adapterhub/tests/{version}")


CASES: dict[str, tuple[bytes, str]] = {
    "1 too many bytes": (SOUND + b" " * (256 << 10), "more than 256 KiB"),
    "2 a long line": (line(2, answer="x" * (64 << 10)), "line 2: "),
    "3 too many lines": (numbered(256), "257 lines"),
    "4 not UTF-8": (SOUND.replace(b" yo", b"\xff"), "line 2: not UTF-8"),
    "4 UTF-16": (SOUND.decode().encode("utf-16"), "does not end"),
    "4 half a character": (SOUND.replace(b" yo", b"\\ud800"), "line 2: has no canonical form"),
    "5 NUL": (SOUND.replace(b" yo", b"\0"), "line 2: not JSON"),
    "5 CR LF": (SOUND.replace(b"\n", b"\r\n"), "not canonical"),
    "5 no last line end": (SOUND[:-1], "does not end"),
    "6 a key twice": (SOUND.replace(b'{"answer":" yo"', b'{"answer":"","answer":" yo"'), "given twice"),
    "7 NaN": (SOUND.replace(b'"loss":0.25', b'"loss":NaN'), "not JSON"),
    "7 infinity": (SOUND.replace(b'"loss":0.25', b'"loss":1e999'), "out of range"),
    "7 minus zero": (SOUND.replace(b'"prompt_tokens":2', b'"prompt_tokens":-0.0'), "not canonical"),
    "8 deep": (SOUND.replace(b'"answer":" yo"', b'"answer":' + b"[" * 10_000 + b"]" * 10_000), "nested"),
    "8 deeper than eight": (line(3, json={"items": {"items": {"items": {"items": {"items": {"items": {"items": {}}}}}}}}),
                            "nested deeper than 8"),
    "9 spaces": (SOUND.replace(b'{"answer"', b'{ "answer"'), "not canonical"),
    "9 seven digits": (line(2, loss=0.2512345), "six significant digits"),
    "10 an unknown key": (line(2, anwser="x"), "did you mean `answer`"),
    "10 an unknown kind of line": (line(2, golden=..., silver="x"), "expected one of the keys"),
    "11 the first line twice": (HEAD + HEAD + GOLDEN, "the first line again"),
    "11 the first line last": (GOLDEN + HEAD, "line 1.schema"),
    "12 a token below zero": (line(2, tokens=[-1]), "tokens[0]"),
    "12 a token of 2^31": (line(2, tokens=[2**31]), "tokens[0]"),
    "12 a token outside of the vocabulary": (line(2, tokens=[64]), "from 0 to 63"),
    "12 a token that is true": (line(2, tokens=[True]), "tokens[0]"),
    "14 no token": (line(2, tokens=[]), "expected 1 to 512"),
    "14 too many tokens": (line(2, tokens=[1] * 513), "513 tokens"),
    "17 a bound below zero": (line(1, bounds={"same": -1}), "from 0 to 1"),
    "17 a bound above one": (line(1, bounds={"same": 2}), "from 0 to 1"),
    "17 a bound as text": (line(1, bounds={"same": "0.8"}), "expected finite number"),
    "21 no place for the input": (prompt(form="template", template="x"), "exactly one `{input}`"),
    "21 two places": (prompt(form="template", template="{input}{input}"), "exactly one `{input}`"),
    "21 a place by number": (prompt(form="template", template="{0} {input}"), "stands alone"),
    "21 an attribute": (prompt(form="template", template="{input.__class__}"), "stands alone"),
    "21 doubled braces": (prompt(form="template", template="{{input}}"), "got none"),
    "23 the digest of another template": (
        prompt(form="chat", chat_template="x", chat_template_sha256=SOME), "does not match its digest"),
    "24 a reference": (schema({"$ref": "#"}), "no such key"),
    "24 a pattern": (schema({"pattern": "(a+)+$"}), "no such key"),
    "24 a million values": (schema({"enum": list(range(9000))}), "1 to 256 values"),
    "26 an id of XML": (line(2, id="]]><x>"), "expected 1 to 64"),
    "32 a long prompt": (line(2, golden="\u2603" * (16 << 10) + "x"), "at most 16384 characters"),
    "33 a billion steps": (drawn(steps=10**9), "line 1.image.steps: expected 1 to 50"),
    "33 no step": (drawn(steps=0), "line 1.image.steps: expected 1 to 50"),
    "33 a side of a million": (drawn(width=10**6), "line 1.image.width: expected 8 to 1024"),
    "33 an odd side": (drawn(height=63), "line 1.image.height: expected a multiple of 8"),
    "33 a side as text": (drawn(height="64"), "line 1.image.height: expected"),
    "33 guidance": (drawn(guidance=1e9), "line 1.image.guidance: expected 0 to 100"),
    "33 a scheduler by name": (drawn(scheduler="DDIM"), "line 1.image.scheduler"),
    "33 no settings": (changed_line(IMAGES, 1, image=...), "line 1.image: missing"),
    "33 settings of a text": (line(1, image={}), "does not belong to the kind causal"),
    "34 a negative seed": (changed_line(IMAGES, 2, seed=-1), "line 2.seed: expected 0 to"),
    "34 a seed of true": (changed_line(IMAGES, 2, seed=True), "line 2.seed"),
    "34 a gap of nothing": (changed_line(IMAGES, 2, gap=0), "line 2.gap: expected more than 0"),
    "34 a gap of a million": (changed_line(IMAGES, 2, gap=10**6), "line 2.gap: expected more than 0"),
    "34 a latent of NaN": (latent(b"\x00\x7e" * 3), "line 2.latent: expected finite numbers"),
    "34 a latent of zeros": (latent(bytes(6)), "line 2.latent: expected finite numbers"),
    "34 half a number": (latent(b"\x00\x3c\x00"), "line 2.latent: no latent of 1 to 1024 numbers"),
    "34 too many numbers": (latent(b"\x00\x3c" * 1025), "line 2.latent: no latent of 1 to 1024 numbers"),
    "34 a latent of a megabyte": (latent(b"\x00\x3c" * 3000), "line 2.latent: 8000 characters"),
    "34 a text in an image": (changed_line(IMAGES, 2, tokens=[1]), "line 2.tokens: does not belong here"),
    "34 a latent in a text": (line(2, seed=1), "line 2.seed: does not belong here"),
    "35 a chat": (changed_line(IMAGES, 1, prompt={"form": "chat"}), "a pipeline takes its prompt unchanged"),
    "35 a demand on an image": (IMAGES + NEVER, "line 4: expected one of the keys golden"),
    "35 an image in the first version": (
        changed_line(IMAGES, 1, schema="adapterhub/tests/1"), "line 1.kind: expected one of causal"),
    "35 a text in the second version": (line(1, schema="adapterhub/tests/2"), "line 1.kind: expected one of image"),
    "36 odds of another count": (odds(b"\0\0" * 2), "line 2.odds: expected 3 numbers"),
    "36 odds of NaN": (odds(b"\0\x7e" * 3), "line 2.odds: expected numbers from -1000 to 1000"),
    "36 odds without end": (odds(b"\0\x7c" * 3), "line 2.odds: expected numbers from -1000 to 1000"),
    "36 odds of a megabyte": (odds(bytes(6 << 10)), "line 2.odds: 8192 characters"),
    "36 odds of the adapter alone": (odds(bytes(6), base_odds=...), "line 2.base_odds: missing; odds and base_odds"),
    "36 odds in the first version": (odds(bytes(6), version=1), "written otherwise"),
    "36 a sensitivity below 0.1": (line(1, sensitivity=0.05), "line 1.sensitivity: expected 0.1 or more"),
    "36 a sensitivity of a million": (line(1, sensitivity=10**6), "line 1.sensitivity: expected 0 to 100"),
    "36 odds of an image": (changed_line(IMAGES, 2, odds="AAA="), "line 2.odds: does not belong here"),
    "35 33 images": (
        IMAGES.split(b"\n")[0] + b"\n" + b"".join(
            canonical_json(json.loads(IMAGES.split(b"\n")[1]) | {"id": f"i-{n}", "seed": n}) + b"\n" for n in range(33)
        ), "33 images, expected at most 32"),
}  # fmt: skip
SCHEMA_9 = line(1, schema="adapterhub/tests/9")

CHILD = """
import json, resource, signal, sys
from adapterhub.core.errors import AdapterHubError
from adapterhub.formats.contract.reader import claims_contract, parse_contract
parse_contract(open(sys.argv[1] + "/sound", "rb").read())
seconds, memory = int(sys.argv[3]), int(sys.argv[4])
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + memory, held + memory))
said = {}
for number in range(int(sys.argv[2])):
    signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal ends the process
    raw = open(f"{sys.argv[1]}/{number}", "rb").read()
    try:
        assert claims_contract(raw)
        parse_contract(raw)
        said[number] = [0, ""]
    except AdapterHubError as error:
        said[number] = [error.exit_code, error.message]
json.dump(said, sys.stdout)
"""


def test_every_hostile_file_is_refused_within_a_second_and_200_mb(tmp_path: Path) -> None:
    (tmp_path / "sound").write_bytes(SOUND)
    for number, (raw, _) in enumerate(CASES.values()):
        (tmp_path / str(number)).write_bytes(raw)
    words = [sys.executable, "-c", CHILD, str(tmp_path), str(len(CASES)), str(SECONDS), str(MEMORY_BYTES)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    said = dict(zip(CASES, json.loads(done.stdout).values(), strict=True))
    wrong = [
        (name, said[name])
        for name, (_, text) in CASES.items()
        if said[name][0] not in (12, 16) or text not in said[name][1]
    ]
    assert wrong == []


def test_texts_of_strangers_are_shown_without_control_characters(tmp_path: Path) -> None:
    text = "\x1b]8;;http://evil\x1b\\\u202egnp\u200b<&]]>\x00"
    case = TestedCase(id="golden-1", kind="golden", verdict="CHANGED", text=text, recorded_text=text, problem=text)
    result = Tested(name="a", version="1.0", verdict="CHANGED", cases=(case,), broken=(text,))
    written = junit([result])
    failure = ET.fromstring(written).find(".//failure")  # noqa: S314 - ours

    assert all(c.isprintable() or c == "\n" for c in written)
    assert failure is not None
    assert "<&]]>" in str(failure.get("message"))


@pytest.fixture
def adapt(tmp_path: Path) -> Adapt:
    make_base(tmp_path / "base")
    make_adapter(tmp_path / "made")
    (tmp_path / "made" / CONTRACT_FILE).write_bytes(SOUND)
    adapt = Adapt(tmp_path)
    adapt.ok("base", "add", "./base", "--as", "b")
    return adapt


def as_link(path: Path) -> None:
    path.rename(path.parent.parent / "outside")
    path.symlink_to("../outside")


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("change", [as_link, as_pipe, as_folder])
def test_a_contract_is_a_plain_file(adapt: Adapt, change: Callable[[Path], None]) -> None:
    change(adapt.folder / "made" / CONTRACT_FILE)

    assert adapt("add", "./made", "--name", "n", "--base", "b").exit_code == 16
    assert adapt("verify", "./made", "--base", "b").exit_code != 0
    assert list(adapt.library.installed()) == []


def test_a_build_asks_as_its_contract_or_not_at_all(adapt: Adapt) -> None:
    done = adapt("add", "./made", "--name", "n", "--base", "b", "--template", "Q {input}")

    assert (done.exit_code, "another prompt form" in done.stderr) == (16, True)
    assert list(adapt.library.installed()) == []


def test_a_newer_contract_comes_in_and_is_not_judged(adapt: Adapt) -> None:
    (adapt.folder / "made" / CONTRACT_FILE).write_bytes(SCHEMA_9)
    adapt.ok("add", "./made", "--name", "n", "--base", "b")
    done = adapt("test", "n", "--json")

    assert (done.exit_code, json.loads(done.stdout)[0]["reason"]) == (17, "kind")
    assert "newer version" in json.loads(done.stdout)[0]["detail"]


def test_another_evals_file_stays_what_it_is(adapt: Adapt) -> None:
    (adapt.folder / "made" / CONTRACT_FILE).write_text('{"prompt": "mine"}\n')
    adapt.ok("add", "./made", "--name", "n", "--base", "b")

    assert json.loads(adapt.ok("test", "n", "--json"))[0]["verdict"] == "NONE"


# ---------------------------------------------------------------- contracts that lie
@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Adapt:
    """A library whose `a` has a contract; `./zeroed` holds an adapter that changes nothing. No test writes here."""
    from safetensors.torch import load_file, save_file

    from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE

    adapt = recorded_library(tmp_path_factory.mktemp("lies"))
    zeroed, own = adapt.folder / "zeroed", folder_of(adapt)
    zeroed.mkdir()
    (zeroed / CONFIG_FILE).write_bytes((own / CONFIG_FILE).read_bytes())
    tensors = {name: tensor * ("lora_B" not in name) for name, tensor in load_file(own / WEIGHTS_FILE).items()}
    save_file(tensors, zeroed / WEIGHTS_FILE, metadata={"format": "pt"})
    return adapt


def folder_of(adapt: Adapt) -> Path:
    (build,) = (one for one in adapt.library.installed() if (one.manifest.name, one.manifest.version) == ("a", "1.0.1"))
    return build.folder


def contract_of(adapt: Adapt) -> Contract:
    contract = contract_in(folder_of(adapt))
    assert contract is not None
    return contract


def verdict(adapt: Adapt, what: object, contract: Contract, folder: Path, *options: str) -> dict[str, Any]:
    (folder / "forged.jsonl").write_bytes(contract.to_bytes())
    done = adapt("test", what, "--tests", folder / "forged.jsonl", "--base", "base-7b", "--json", *options)
    assert done.exit_code == {"PASS": 0, "CHANGED": 3, "UNKNOWN": 17}[json.loads(done.stdout)[0]["verdict"]], (
        done.stderr
    )
    return dict(json.loads(done.stdout)[0])


def with_base_loss(contract: Contract, more: float) -> Contract:
    goldens = [replace(golden, base_loss=(golden.loss or 0.0) + more) for golden in contract.goldens]
    return replace(contract, goldens=tuple(goldens))


def test_a_contract_without_a_gap_says_nothing(recorded: Adapt, tmp_path: Path) -> None:
    for more in (0.01, -0.1):
        found = verdict(recorded, "a", with_base_loss(contract_of(recorded), more), tmp_path)
        assert (found["verdict"], found["reason"], found["retention"]) == ("UNKNOWN", "no-gap", None)


def test_losses_of_the_base_that_are_not_so_are_found(recorded: Adapt, tmp_path: Path) -> None:
    forged = with_base_loss(contract_of(recorded), 1000)
    blind, seen = (verdict(recorded, "b", forged, tmp_path, *options) for options in ((), ("--base-alone",)))

    assert blind["retention"] > 0.95
    assert (blind["verdict"], len(blind["broken"])) == ("CHANGED", 1)  # the answers
    assert "base-loss-is-not-so" in str(seen["broken"])
    assert "base-loss-is-not-so" in str(verdict(recorded, "a", forged, tmp_path, "--base-alone")["broken"])


def test_odds_of_the_base_that_make_a_drift_small_are_found(recorded: Adapt, tmp_path: Path) -> None:
    own = contract_of(recorded)
    goldens = [replace(one, base_odds=packed_odds([-900] * len(one.tokens))) for one in own.goldens]
    forged = replace(own, goldens=tuple(goldens))
    blind, seen = (verdict(recorded, "a", forged, tmp_path, *options) for options in ((), ("--base-alone",)))

    assert (blind["verdict"], blind["noise"] > 0.9) == ("PASS", True)
    assert (seen["verdict"], "base-odds-are-not-so" in str(seen["broken"])) == ("CHANGED", True)


def test_a_text_that_is_not_that_of_its_tokens_is_never_hidden(recorded: Adapt, tmp_path: Path) -> None:
    first, *others = contract_of(recorded).goldens
    forged = replace(contract_of(recorded), goldens=(replace(first, answer=" ok"), *others))
    found = verdict(recorded, "a", forged, tmp_path)

    assert (found["verdict"], found["same"]) == ("CHANGED", 1.0)
    assert "answer-is-not-tokens" in str(found["broken"])


def test_tokens_that_the_base_does_not_have_are_those_of_another_tokenizer(recorded: Adapt, tmp_path: Path) -> None:
    own = contract_of(recorded)
    forged = replace(own, recorded=replace(own.recorded, vocabulary=1000))
    first = replace(own.goldens[0], tokens=(999,), odds=None, base_odds=None)
    forged = replace(forged, goldens=(first, *own.goldens[1:]))
    found = verdict(recorded, "a", forged, tmp_path)

    assert (found["verdict"], found["reason"]) == ("UNKNOWN", "other-tokenizer")
    assert "token 999, and the base has" in found["detail"]


def test_answers_that_the_base_gives_prove_nothing(recorded: Adapt, tmp_path: Path) -> None:
    zeroed = recorded.folder / "zeroed"
    record = ("contract", "record", zeroed, "--examples", recorded.folder / "examples.jsonl", "--base", "base-7b")
    refused = recorded(*record, "--max-new-tokens", "3", "--margin", "0")
    assert (refused.exit_code, "adapter and base answer alike" in refused.stderr) == (11, True)

    plan = "".join(f"[[leave_alone]]\ninput = {json.dumps(one.asked)}\n" for one in contract_of(recorded).goldens)
    (tmp_path / "tests.toml").write_text(plan)
    recorded.ok("contract", "record", "a", "--tests", tmp_path / "tests.toml", "--detached", tmp_path)
    own = parse_contract((tmp_path / "a-1.0.1.tests.jsonl").read_bytes())
    goldens = [as_golden(golden, own) for golden in contract_of(recorded).goldens]
    forged = replace(contract_of(recorded), goldens=tuple(goldens))
    plain, found = (
        verdict(recorded, zeroed, forged, tmp_path),
        verdict(recorded, zeroed, forged, tmp_path, "--base-alone"),
    )

    assert (plain["verdict"], found["verdict"]) == ("CHANGED", "CHANGED")
    assert [one.partition(":")[0] for one in plain["broken"]] == ["no-effect"]  # every line of the contract holds
    assert "proves-nothing: the base alone gives 100% of the recorded answers" in str(found["broken"])


def as_golden(golden: Golden, own: Contract) -> Golden:
    """The golden with the base's own answer, and a lie about the base's loss."""
    (line,) = (one for one in own.leave_alone if one.asked == golden.asked)
    return replace(golden, answer=line.answer, tokens=line.tokens, loss=line.loss, base_loss=line.loss + 5)


def test_a_golden_that_comes_again_counts_once(recorded: Adapt, tmp_path: Path) -> None:
    contract = contract_of(recorded)
    goldens = [replace(contract.goldens[0], id=f"golden-{n}") for n in range(32)]
    forged = replace(contract, goldens=(*goldens, *contract.goldens[1:3]))
    found = verdict(recorded, "a", forged, tmp_path)

    assert (found["goldens"], len(found["cases"]), found["verdict"]) == (3, 3, "PASS")
    assert "it has 3 different goldens, of which 1 may change: a PASS proves little" in found["warnings"]


def test_all_parents_of_a_merge_share_one_budget(recorded: Adapt, tmp_path: Path) -> None:
    demand = Demand(not_contains=("~",))
    nevers = [Expect(id=f"n-{n}", asked=f"who {n}", demand=demand, binds_merges=True) for n in range(255)]
    (tmp_path / CONTRACT_FILE).write_bytes(replace(contract_of(recorded), goldens=(), expects=tuple(nevers)).to_bytes())
    parents = [Ingredient(folder=tmp_path, label=f"p{n}", weight=1.0) for n in range(32)]
    library = adapterhub.Library(recorded.library.root)
    question = TestQuestion(on=BaseSpec.parse("base-7b"), budget_s=0.2)
    test = MergeTest(library, library.session, parents, question)

    with pytest.raises(CouldNotTell, match="Nothing was written"):
        test(folder_of(recorded))
    assert [result.reason for result in test.results] == ["budget"] * 32
    assert "the CPU budget ran out before this test" in test.results[-1].detail
