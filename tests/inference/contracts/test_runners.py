"""`adapt test --emit` and `--runner`: the goldens as a task of lm-eval, and tools that test in the program's place."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from adapterhub.core.digests import Digest
from adapterhub.core.errors import Incompatible
from adapterhub.formats.contract.contract import Contract
from adapterhub.formats.contract.reader import read_contract
from adapterhub.formats.manifest import CONTRACT_FILE
from adapterhub.formats.prompts.form import PromptForm
from adapterhub.inference.contracts.runners import lm_eval_task, run_tool
from adapterhub.library.library import Library
from adapterhub.library.results import KeptResults
from tests.support.command_line import Adapt, Done
from tests.support.contracts import RECORD, SOME, changed_line, recorded_library, small_contract
from tests.support.standin_lm_eval import called, make_lm_eval

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def adapt(tmp_path_factory: pytest.TempPathFactory) -> Adapt:
    """No test changes the builds `a` and `b`."""
    return recorded_library(tmp_path_factory.mktemp("runners"))


def contract_of(adapt: Adapt, spec: str = "a") -> Contract:
    return read_contract(Path(adapt.ok("info", spec, "--path").strip()) / CONTRACT_FILE)


def result_of(done: Done, exit_code: int) -> dict[str, object]:
    assert done.exit_code == exit_code, done.stdout + done.stderr
    (result,) = json.loads(done.stdout)
    return dict(result)


# ---------------------------------------------------------------- emit
def test_the_goldens_become_a_task(adapt: Adapt, tmp_path: Path) -> None:
    said = adapt.json("contract", "export", "a", tmp_path / "task")
    contract = contract_of(adapt)
    task = yaml.safe_load((tmp_path / "task" / "adapt_a.yaml").read_text())
    rows = [json.loads(line) for line in (tmp_path / "task" / "adapt_a.jsonl").read_text().splitlines()]

    assert said["files"] == [str(tmp_path / "task" / f"adapt_a.{ending}") for ending in ("yaml", "jsonl")]
    assert "add_bos_token" not in " ".join(said["command"])
    assert task == {
        "task": "adapt_a",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "adapt_a.jsonl"}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "num_fewshot": 0,
        "generation_kwargs": {"do_sample": False, "max_gen_toks": 5, "until": []},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1, "contract": contract.digest},
    }
    assert rows == [{"id": g.id, "prompt": g.asked, "answer": g.answer} for g in contract.distinct]
    assert len(rows) == said["goldens"] >= 4


def test_a_task_holds_every_text_as_it_is_and_cuts_answers_where_the_tool_does(tmp_path: Path) -> None:
    stops = ("\n", "}\u2028", "\U0001f600", '"\x85', "# no comment")
    form = PromptForm(form="template", template="Q: {input}\n{{A}}:", stop=stops, max_new_tokens=7)
    contract = small_contract(prompt=form)
    [golden] = contract.goldens
    contract = small_contract(prompt=form, goldens=(type(golden)(**{**_fields(golden), "answer": "  yes {{x}}\nno"}),))
    task = lm_eval_task(contract, [form.frame("{{ hi }}\n")], "acme/Legal QA")
    value = yaml.safe_load(task.files["adapt_acme_legal_qa.yaml"])

    assert value["generation_kwargs"] == {"do_sample": False, "max_gen_toks": 7, "until": list(stops)}
    assert json.loads(task.files["adapt_acme_legal_qa.jsonl"]) == {
        "id": "golden-1",
        "prompt": "Q: {{ hi }}\n\n{A}:",
        "answer": "  yes {{x}}",
    }


def _fields(thing: object) -> dict[str, object]:
    return {name: getattr(thing, name) for name in thing.__slots__}  # type: ignore[attr-defined]


def test_a_chat_is_rendered_with_the_base_s_template(adapt: Adapt, tmp_path: Path) -> None:
    adapt.ok(*RECORD, "--system", "be kind", "--detached", tmp_path)
    [path] = tmp_path.glob("*.tests.jsonl")
    said = adapt.json("contract", "export", "a", tmp_path / "task", "--tests", path)
    rows = [json.loads(line) for line in (tmp_path / "task" / "adapt_a.jsonl").read_text().splitlines()]

    assert rows[0]["prompt"] == f"<system>be kind|<user>{read_contract(path).distinct[0].asked}|<assistant>"
    assert "add_bos_token=False" in " ".join(said["command"])


def test_what_lm_eval_cannot_ask_is_refused(adapt: Adapt, tmp_path: Path) -> None:
    closed = contract_of(adapt).without_texts()
    (tmp_path / "closed.jsonl").write_bytes(closed.to_bytes())
    task, closed_file = tmp_path / "task", tmp_path / "closed.jsonl"

    assert "holds only digests" in adapt.fails(11, "contract", "export", "a", task, "--tests", closed_file)
    assert "has no contract" in adapt.fails(17, "contract", "export", "b", task)
    with pytest.raises(Incompatible, match="kind `embed`"):
        lm_eval_task(small_contract(kind="embed"), ["hi"], "x")
    assert not (tmp_path / "task").exists()


# ---------------------------------------------------------------- lm-eval
def with_tool(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr("sys.executable", str(folder / "python"))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setenv("HF_TOKEN", "secret")


def test_a_missing_tool_is_told_with_the_command_that_installs_it(
    adapt: Adapt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_tool(monkeypatch, tmp_path)
    said = adapt.fails(2, "test", "a", "--runner", "lm-eval")

    assert "`lm-eval` is not installed" in said
    assert "pip install 'lm_eval[hf]'" in said


def test_the_tool_s_exact_match_is_the_share_of_the_same_answers(
    adapt: Adapt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = make_lm_eval(tmp_path, wrong=1)
    with_tool(monkeypatch, tmp_path)
    result = result_of(adapt("test", "a", "--runner", "lm-eval", "--json"), 0)
    goldens = len(contract_of(adapt).distinct)
    call = called(log)

    assert result["same"] == result["metrics"]["adapt_a/exact_match"] == 1 - 1 / goldens  # type: ignore[index]
    assert (result["verdict"], result["goldens"], result["retention"]) == ("PASS", goldens, None)
    assert [case["same"] for case in result["cases"]][:2] == [False, True]  # type: ignore[attr-defined]
    assert result["engine"] == "lm-eval 0.0.1, transformers 5.0"
    assert (call["offline"], call["token"]) == ("1", None)
    assert "trust_remote_code=False" in " ".join(call["words"])  # type: ignore[arg-type]
    assert "adapter_model.safetensors" in call["files"][0]  # type: ignore[index]

    log.unlink()
    again = result_of(adapt("test", "a", "--runner", "lm-eval", "--json"), 0)
    assert (again["is_cached"], again["same"], log.exists()) == (True, result["same"], False)
    result_of(adapt("test", "a", "--runner", "lm-eval", "--json", "--again"), 0)
    assert log.exists()
    library = Library(adapt.folder / "home")
    assert not [*KeptResults(library.store).all(Digest(str(again["digest"])))]  # for a policy it is no verdict

    make_lm_eval(tmp_path, wrong=goldens // 2)
    changed = result_of(adapt("test", "a", "--runner", "lm-eval", "--json"), 3)
    assert changed["same"] == 1 - goldens // 2 / goldens
    assert "answers changed, at most 2 may" in str(changed["broken"])

    make_lm_eval(tmp_path, fails=True)
    assert "the stand-in fails" in adapt.fails(18, "test", "a", "--runner", "lm-eval")


def test_another_tokenizer_is_seen_before_the_tool_starts(
    adapt: Adapt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = make_lm_eval(tmp_path)
    with_tool(monkeypatch, tmp_path)
    other = tmp_path / "other.jsonl"
    other.write_bytes(changed_line(contract_of(adapt).to_bytes(), 2, prompt_sha256=SOME))
    result = result_of(adapt("test", "a", "--runner", "lm-eval", "--tests", other, "--json"), 17)

    assert (result["verdict"], result["reason"], log.exists()) == ("UNKNOWN", "other-tokenizer", False)


def test_a_task_of_the_user_s_is_judged_by_the_bounds_that_he_gives(
    adapt: Adapt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_lm_eval(tmp_path)
    with_tool(monkeypatch, tmp_path)
    (tmp_path / "own.yaml").write_text("task: own\n")
    call = ("test", "b", "--runner", "lm-eval", "--json", "--task")

    assert result_of(adapt(*call, tmp_path / "own.yaml"), 17)["reason"] == "no-bound"
    passed = result_of(adapt(*call, tmp_path / "own.yaml", "--bound", "exact_match=0.25"), 0)
    assert (passed["verdict"], passed["metrics"]) == ("PASS", {"own/exact_match": 0.25})
    broken = result_of(adapt(*call, tmp_path / "own.yaml", "--bound", "own/exact_match=0.5"), 3)
    assert broken["broken"] == ["own/exact_match is 0.250, at least 0.5 is required"]
    assert "expected one of own/exact_match" in adapt.fails(2, *call, tmp_path / "own.yaml", "--bound", "f1=0.5")
    assert "expected the `.yaml` file" in adapt.fails(2, *call, tmp_path / "absent.yaml")


@pytest.mark.slow
def test_a_tool_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nwhile :; do :; done\n")
    slow.chmod(0o755)
    ran = run_tool([str(slow)], folder=tmp_path, environ=os.environ, budget_s=1)

    assert ran.is_over
    assert ran.cpu_seconds < 5


# ---------------------------------------------------------------- pytest
PASSES = """
def test_it_answers_as_recorded(adapted):
    first = adapted.contract.distinct[0]
    assert (adapted.name, adapted.version, adapted.base) == ("a", "1.0.1", "base-7b")
    assert adapted(first.asked) == first.answer
    assert adapted.answers([g.asked for g in adapted.contract.distinct[1:3]]) == [
        g.answer for g in adapted.contract.distinct[1:3]
    ]
"""
FAILS = """
import os
import pytest

def test_one():
    assert os.environ["ADAPTERHUB_TEST_SPEC"].startswith("a")
    assert os.path.isdir(os.environ["ADAPTERHUB_TEST_FOLDER"])
    assert os.environ["ADAPTERHUB_TEST_BASE"] == "base-7b"

def test_two():
    assert 1 == 2, "too rude"

@pytest.mark.skip(reason="later")
def test_three(): ...
"""


def test_pytest_runs_a_user_s_tests_of_the_adapter(adapt: Adapt, tmp_path: Path) -> None:
    for name, text in (("passes", PASSES), ("fails", FAILS), ("broken", "import nowhere_at_all\n")):
        (tmp_path / f"test_{name}.py").write_text(text)
    call = ("test", "a", "--runner", "pytest", "--json", "--task")
    passed = result_of(adapt(*call, tmp_path / "test_passes.py"), 0)
    (tmp_path / "reports").mkdir()
    failed = result_of(adapt(*call, tmp_path / "test_fails.py", "--junit", tmp_path / "reports" / "out.xml"), 3)
    again = result_of(adapt(*call, tmp_path / "test_fails.py"), 3)

    assert (failed["is_cached"], again["is_cached"], again["cases"]) == (False, True, failed["cases"])
    assert (passed["verdict"], passed["engine"]) == ("PASS", f"pytest {pytest.__version__}")
    assert [case["verdict"] for case in failed["cases"]] == ["PASS", "CHANGED", "UNKNOWN"]  # type: ignore[attr-defined]
    assert "1 of 3 tests failed; `test_fails::test_two`: AssertionError: too rude" in str(failed["broken"])
    assert 'failures="1"' in (tmp_path / "reports" / "out.xml").read_text()
    assert "nowhere_at_all" in adapt.fails(18, *call, tmp_path / "test_broken.py")
    assert "no such file" in adapt.fails(2, *call, tmp_path / "test_absent.py")
    assert not (tmp_path / ".pytest_cache").exists()
