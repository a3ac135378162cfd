"""The real lm-eval: its `exact_match` is the share of the answers that are the same.

python -m venv /tmp/lm-eval && /tmp/lm-eval/bin/pip install 'lm_eval[hf]'
ADAPTERHUB_LM_EVAL=/tmp/lm-eval/bin/lm-eval python -m pytest tests/inference/contracts/test_lm_eval.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from adapterhub.formats.manifest import CONTRACT_FILE
from tests.support.command_line import Adapt
from tests.support.contracts import RECORD, recorded_library

TOOL = os.environ.get("ADAPTERHUB_LM_EVAL", "")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not TOOL, reason="ADAPTERHUB_LM_EVAL names no lm-eval"),
]


@pytest.fixture
def adapt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Adapt:
    monkeypatch.setattr("sys.executable", str(Path(TOOL).with_name("python")))
    return recorded_library(tmp_path)


@pytest.mark.parametrize("form", [(), ("--template", "Ask: {input}\n"), ("--system", "be kind")], ids=str)
def test_exact_match_is_same(adapt: Adapt, tmp_path: Path, form: tuple[str, ...]) -> None:
    adapt.ok(*RECORD, *form, "--detached", tmp_path / "beside")
    [contract] = (tmp_path / "beside").glob("*.tests.jsonl")
    for spec, code in (("a==1.0.0", 0), ("b", 3)):
        own = json.loads(adapt("test", spec, "--tests", contract, "--json").stdout)[0]
        done = adapt("test", spec, "--tests", contract, "--json", "--runner", "lm-eval")
        assert done.exit_code == code, done.stderr
        [theirs] = json.loads(done.stdout)

        assert theirs["metrics"] == {f"adapt_{spec[0]}/exact_match": theirs["same"]}
        assert theirs["same"] == own["same"]
        assert [case["same"] for case in theirs["cases"]] == [case["same"] for case in own["cases"]]


def test_the_emitted_task_runs_by_its_own_command_and_with_task(adapt: Adapt, tmp_path: Path) -> None:
    adapt.ok("contract", "export", "a", tmp_path / "task")
    assert (Path(adapt.ok("info", "a", "--path").strip()) / CONTRACT_FILE).is_file()
    call = ("test", "a", "--runner", "lm-eval", "--task", tmp_path / "task" / "adapt_a.yaml", "--json")
    [found] = json.loads(adapt.ok(*call, "--bound", "exact_match=1"))

    assert found["metrics"] == {"adapt_a/exact_match": 1.0}
