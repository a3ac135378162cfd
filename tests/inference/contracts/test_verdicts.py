"""`adapt test`: an adapter as recorded passes, a changed one does not, and what cannot be told is not told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

import adapterhub
from adapterhub.core.digests import digest_of
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.choosing import find_installed
from adapterhub.formats.contract.reader import contract_in
from adapterhub.formats.manifest import CONTRACT_FILE, WEIGHTS_FILE
from adapterhub.library.store.catalog import Installed
from tests.support.command_line import Adapt
from tests.support.contracts import RECORD, changed_line, recorded_library, write_examples
from tests.support.run_library import write_base

pytestmark = pytest.mark.filterwarnings("ignore")

KNOWN_TO_OLDER_CLIENTS = {"adapter_config.json", "adapter_model.safetensors", "LICENSE", "evals.jsonl"}
"""Of the closed list of files in a build: any other makes a client that does not know it refuse the build."""


@pytest.fixture(scope="module")
def adapt(tmp_path_factory: pytest.TempPathFactory) -> Adapt:
    """No test changes the builds `a` and `b`."""
    return recorded_library(tmp_path_factory.mktemp("contracts"))


@pytest.fixture
def own(adapt: Adapt, tmp_path: Path) -> Adapt:
    """A copy to change."""
    shutil.copytree(adapt.folder, tmp_path / "own", symlinks=True)
    return Adapt(tmp_path / "own")


def build(adapt: Adapt, spec: str) -> Installed:
    return find_installed(adapt.library, AdapterSpec.parse(spec))[0]


def result_of(adapt: Adapt, exit_code: int, *arguments: object) -> dict[str, object]:
    done = adapt("test", *arguments, "--json")
    assert done.exit_code == exit_code, done.stdout + done.stderr
    (result,) = json.loads(done.stdout)
    return dict(result)


def test_a_recorded_adapter_passes_and_the_second_time_is_free(adapt: Adapt) -> None:
    first, second = result_of(adapt, 0, "a", "--again"), result_of(adapt, 0, "a")

    assert (first["verdict"], first["same"], first["is_cached"]) == ("PASS", 1.0, False)
    assert second == {**first, "is_cached": True}
    assert first["base"] == "base-7b"
    assert result_of(adapt, 0, "a", "--base-alone")["verdict"] == "PASS"
    assert result_of(adapt, 0, "b")["verdict"] == "NONE"
    assert result_of(adapt, 17, "b", "--require")["verdict"] == "NONE"


def test_recording_again_gives_the_same_build(adapt: Adapt) -> None:
    before = build(adapt, "a").manifest
    document = json.loads(adapt.ok(*RECORD, "--json"))

    assert (document["created"], document["digest"]) == (False, before.digest)
    assert before.version == "1.0.1"
    assert {file.path for file in before.files} <= KNOWN_TO_OLDER_CLIENTS
    assert before.prompt == contract_in(build(adapt, "a").folder).prompt  # type: ignore[union-attr]
    assert build(adapt, "a==1.0.0").manifest.file(CONTRACT_FILE) is None


def test_prompts_alone_are_recorded_with_what_the_adapter_answers(own: Adapt) -> None:
    before = contract_in(build(own, "a").folder)
    lines = [json.loads(line) for line in (own.folder / "examples.jsonl").read_text().splitlines()]
    (own.folder / "examples.jsonl").write_text("".join(json.dumps({"prompt": one["prompt"]}) + "\n" for one in lines))
    done = own(*RECORD)

    assert (done.exit_code, "your examples want" in done.stderr) == (0, False)
    assert contract_in(build(own, "a").folder) == before


def test_a_zeroed_adapter_has_changed(adapt: Adapt, tmp_path: Path) -> None:
    folder = tmp_path / "zeroed"
    shutil.copytree(build(adapt, "a").folder, folder)
    (folder / "adapterhub.json").unlink()
    tensors = {k: t * (0 if "lora_B" in k else 1) for k, t in load_file(folder / WEIGHTS_FILE).items()}
    (folder / WEIGHTS_FILE).unlink()  # a link into the store
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    found = result_of(adapt, 3, folder, "--base", "base-7b")

    assert (found["verdict"], found["same"]) == ("CHANGED", 0.0)
    assert found["retention"] == pytest.approx(0, abs=1e-3)
    assert "the contract was recorded from other weights" in str(found["warnings"])


def test_another_adapter_fails_the_contract_of_this_one(adapt: Adapt, tmp_path: Path) -> None:
    contract = build(adapt, "a").folder / CONTRACT_FILE
    done = adapt("test", "b", "--tests", contract, "--junit", tmp_path / "o.xml", "--statement", tmp_path / "s.json")
    suites = ET.parse(tmp_path / "o.xml").getroot()  # noqa: S314 - written a line before
    statement = json.loads((tmp_path / "s.json").read_text())
    cases = suites.findall("testsuite/testcase")

    assert done.exit_code == 3
    assert "answers changed, at most 2 may" in done.stdout
    assert " became " in done.stdout
    assert suites.get("failures") == str(len(cases)) == str(len(suites.findall(".//failure[@type='CHANGED']")))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    assert statement["subject"][0]["digest"]["sha256"] == build(adapt, "b").manifest.digest[7:]
    assert (statement["predicate"]["result"], statement["predicate"]["passedTests"]) == ("FAILED", [])
    assert statement["predicate"]["configuration"][0]["digest"]["sha256"] == digest_of(contract.read_bytes())[7:]


def test_a_base_of_another_shape_is_refused(own: Adapt) -> None:
    write_base(own.folder / "narrow", seed=5)
    own.ok("base", "add", "./narrow", "--as", "narrow")

    assert own("test", "a", "--base", "narrow").exit_code == 11
    assert own("test", "a", "--base", "nowhere").exit_code == 10


def test_the_hint_for_another_base_is_a_command_that_works(own: Adapt) -> None:
    write_base(own.folder / "near", seed=5)
    own.ok("base", "add", "./near", "--as", "near")
    hint = own.fails(11, "test", "a", "--base", "near").splitlines()[-1]
    command = hint.split("`")[1].split()
    own.ok(*command[1:])

    assert command == ["adapt", "install", "a==1.0.1", "--base", "near", "--allow-base-mismatch"]
    assert result_of(own, 3, "a", "--base", "near")["verdict"] == "CHANGED"


def with_begin_token(base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save_pretrained(base)


def other_letters(base: Path) -> None:
    text = (base / "tokenizer.json").read_text()
    (base / "tokenizer.json").write_text(
        text.replace('"e": ', '"#": ').replace('"o": ', '"e": ').replace('"#": ', '"o": ')
    )


@pytest.mark.parametrize("change", [with_begin_token, other_letters])
def test_another_tokenizer_is_unknown_before_any_loss(own: Adapt, change: Callable[[Path], None]) -> None:
    change(own.folder / "base")
    own.ok("base", "add", "./base", "--as", "own")
    found = result_of(own, 17, "a", "--base", "own")

    assert (found["verdict"], found["reason"], found["cases"]) == ("UNKNOWN", "other-tokenizer", [])


def test_a_base_without_the_chat_template_is_unknown(own: Adapt) -> None:
    own.ok(*RECORD, "--prompt", "chat")
    own.ok("base", "add", "./base", "--as", "own")
    path = own.folder / "base" / "chat_template.jinja"
    template = path.read_text()
    path.unlink()

    assert result_of(own, 17, "a", "--base", "own")["reason"] == "no-template"
    path.write_text(template + "\n")
    assert result_of(own, 17, "a", "--base", "own")["reason"] in ("other-template", "other-tokenizer")


def test_a_recording_in_a_worse_form_names_the_better_one(adapt: Adapt, tmp_path: Path) -> None:
    goldens = contract_in(build(adapt, "a").folder).goldens  # type: ignore[union-attr]
    examples = write_examples(
        tmp_path / "e.jsonl", [str(golden.asked) for golden in goldens], [golden.answer for golden in goldens]
    )
    record = ("contract", "record", "a==1.0.0", "--examples", examples, "--max-new-tokens", "5", "--detached", tmp_path)
    right, wrong = adapt(*record, "--prompt", "raw"), adapt(*record, "--prompt", "chat", "--margin", "0")

    assert "is `--prompt" not in right.stderr
    assert "is `--prompt raw` meant?" in wrong.stderr
    assert "are not what your examples want" in wrong.stderr
    assert (tmp_path / "a-1.0.0.tests.jsonl").exists()


def test_one_digit_of_a_golden_is_noticed_everywhere(own: Adapt, tmp_path: Path) -> None:
    own.ok("push", "a", "--to", "./published")
    (published,) = (own.folder / "published").rglob(CONTRACT_FILE)
    for path in (published, build(own, "a").folder / CONTRACT_FILE):
        raw = path.read_bytes()
        path.unlink()
        path.write_bytes(changed_line(raw, 2, margin=0.5))

    assert own("verify", "a").exit_code == 12
    assert own("test", "a").exit_code == 12
    fresh = Adapt(own.folder, "fresh")
    fresh.ok("base", "add", "./base", "--as", "base-7b")
    assert fresh("install", "a@base-7b", "--from", "./published").exit_code == 12


def test_what_proves_nothing_is_not_recorded(adapt: Adapt, tmp_path: Path) -> None:
    few = write_examples(tmp_path / "few.jsonl", ["who", "fine"])
    bounds = tmp_path / "loose.toml"
    bounds.write_text('[bounds]\nsame = 0.2\n[[golden]]\ninput = "who"\n')
    unlike = write_examples(tmp_path / "private.jsonl", [f"ann@example.org {n}" for n in "abcdefgh"])

    assert "expected at least 4" in adapt("contract", "record", "a", "--examples", few).stderr
    assert adapt("contract", "record", "a", "--examples", few).exit_code == 11
    assert adapt("contract", "record", "a", "--tests", bounds).exit_code == 2
    private = ("contract", "record", "a", "--examples", unlike, "--max-new-tokens", "2", "--margin", "0")
    assert adapt(*private).exit_code == 14
    assert adapt("contract", "record", "a").exit_code == 2


def test_demands_and_never_lines_are_checked_on_the_text(own: Adapt) -> None:
    (own.folder / "tests.toml").write_text(
        "".join(f'[[golden]]\ninput = "{text}"\n' for text in ("who", "fine", "we", "no", "go on", "ask me", "me too"))
        + '[[expect]]\nid = "short"\ninput = "who"\nmax_chars = 5\n'
        '[[never]]\nid = "no-zero"\ninput = "who"\nnot_contains = ["0"]\n'
        '[[leave_alone]]\nid = "own"\ninput = "we"\n'
    )
    own.ok("contract", "record", "b", "--tests", "tests.toml", "--max-new-tokens", "4", "--margin", "0.01")
    found = result_of(own, 3, "b")
    verdicts = {case["id"]: case["verdict"] for case in found["cases"]}  # type: ignore[attr-defined]

    assert {name: verdicts[name] for name in ("short", "no-zero", "own")} == {
        "short": "PASS",
        "no-zero": "PASS",
        "own": "CHANGED",
    }
    assert found["broken"] == [text for text in found["broken"] if "leave_alone" in text]  # type: ignore[attr-defined]


def test_a_contract_of_demands_alone_is_of_no_adapter_and_warns_of_no_number(adapt: Adapt, tmp_path: Path) -> None:
    (tmp_path / "keep.toml").write_text('[[expect]]\ninput = "who"\nmax_chars = 500\n')
    recorded = adapt(
        "contract", "record", "a", "--tests", tmp_path / "keep.toml", "--detached", tmp_path / "kept", "-q"
    )
    [contract] = (tmp_path / "kept").iterdir()
    found = result_of(adapt, 0, "b", "--tests", contract)

    assert (recorded.exit_code, recorded.stderr) == (0, "")
    assert (found["verdict"], found["warnings"]) == ("PASS", [])


def test_digests_are_checked_by_those_who_have_the_texts(own: Adapt) -> None:
    own.ok(*RECORD, "--digests")
    found = result_of(own, 17, "a")

    assert (found["verdict"], found["reason"]) == ("UNKNOWN", "no-texts")
    assert b"boat" not in (build(own, "a").folder / CONTRACT_FILE).read_bytes()


def test_a_folder_gets_its_contract_before_it_is_added(own: Adapt) -> None:
    own.ok("contract", "record", "./b", *RECORD[3:], "--base", "base-7b")
    own.ok("add", "./b", "--name", "c", "--base", "base-7b")
    (own.folder / "b" / CONTRACT_FILE).write_bytes(b'{"schema":"adapterhub/tests/1"}\n')
    broken = own("add", "./b", "--name", "d", "--base", "base-7b")

    assert result_of(own, 0, "c")["verdict"] == "PASS"
    assert build(own, "c").manifest.version == "1.0.0"
    assert (broken.exit_code, "E_CONTRACT" in broken.stderr) == (16, True)


def test_a_budget_ends_a_verdict(adapt: Adapt) -> None:
    found = result_of(adapt, 17, "a", "--again", "--budget", "1e-6")

    assert (found["verdict"], found["reason"]) == ("UNKNOWN", "budget")


def test_all_builds_with_a_contract_are_tested_from_python_too(adapt: Adapt) -> None:
    events: list[adapterhub.ProgressEvent] = []
    library = adapterhub.Library(adapt.library.root, on_progress=events.append)
    [result] = library.test("a", bounds={"same": 1.0}, again=True)

    assert (result.verdict, result.passed, result.bounds["same"]) == ("PASS", True, 1.0)
    assert events[-1].done == events[-1].total == result.goldens
    assert [one.name for one in library.test(everything=True)] == ["a"]
    assert json.loads(adapt.ok("test", "--all", "--json"))[0]["digest"] == result.digest


def test_a_verdict_is_signed_beside_the_build_and_shown(own: Adapt) -> None:
    own.ok("key", "new", "ann", "--unencrypted")
    own.ok("key", "trust", "ann")
    own.ok("test", "a", "--sign")

    [found] = own.json("contract", "results", "a")

    assert found["refusals"] == []
    [result] = found["results"]
    assert (result["verdict"], result["signer"], result["standing"]) == ("PASS", "ann", "trusted")
    assert (result["dtype"], result["contract"]) == ("float32", contract_in(build(own, "a").folder).digest)  # type: ignore[union-attr]
    assert "says nothing to state" in own("test", "b", "--sign").stderr


def test_no_test_in_a_project_has_looser_bounds_than_its_policy(own: Adapt) -> None:
    (own.folder / "adapters.toml").write_text("[policy]\ntests-bounds = { same = 1, retention = 0.5 }\n")
    result = result_of(own, 0, "a")

    assert (result["bounds"]["same"], result["bounds"]["retention"]) == (1.0, 0.95)  # type: ignore[index]


def test_the_rules_of_a_project_hold_for_every_adapter_and_every_merge(own: Adapt) -> None:
    answer = contract_in(build(own, "a").folder).goldens[0]  # type: ignore[union-attr]
    rule = {"never": answer.asked, "not_contains": [answer.answer.strip()[:1]]}
    (own.folder / "never.jsonl").write_text(json.dumps(rule) + "\n")
    assert result_of(own, 0, "a")["rules"] == ""
    (own.folder / "adapters.toml").write_text('[policy]\ntests-never = "never.jsonl"\n')

    found = result_of(own, 3, "a")

    assert found["rules"]
    assert [case["id"] for case in found["cases"] if case["verdict"] == "CHANGED"] == ["project/rule-1"]  # type: ignore[index,attr-defined]
    merged = own("merge", "a", "b", "--weights", "1,0.001", "-o", "both", "--test")
    assert (merged.exit_code, "`never` line `project/rule-1`" in merged.stderr) == (3, True), merged.stderr


def test_an_adapter_that_changes_nothing_is_told_from_one_that_changed(own: Adapt, tmp_path: Path) -> None:
    folder = tmp_path / "zero"
    shutil.copytree(build(own, "a").folder, folder)
    (folder / "adapterhub.json").unlink()
    tensors = load_file(folder / WEIGHTS_FILE)
    zero = {name: one * 0 if "lora_B" in name else one for name, one in tensors.items()}
    (folder / WEIGHTS_FILE).unlink()
    save_file(zero, folder / WEIGHTS_FILE, {"format": "pt"})

    result = result_of(own, 3, folder)

    assert any(one.startswith("no-effect: the model says the same") for one in result["broken"]), result
