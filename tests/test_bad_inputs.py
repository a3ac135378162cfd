"""The shared corpus of malformed and hostile adapters: every verdict, with the base that belongs to it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from adapterhub.tensorfacts import TensorFacts
from adapterhub.verify import Report, verify_folder
from tests.shared_data import SHARED_DATA

CASES = [f"S{n:02}" for n in range(1, 27)] + [f"C{n:02}" for n in range(1, 37) if n != 29]
CASES += [f"P{n:02}" for n in range(1, 15)] + [f"N{n:02}" for n in range(1, 6)] + [f"K{n:02}" for n in range(1, 7)]
CASES += [f"F{n:02}" for n in range(1, 8)] + [f"G{n:02}" for n in range(1, 8)]

OTHER_CODES = {
    "C16": "W_CONFIG_DEFAULT",  # PEFT's default rank, and the tensors agree with it
    "C21": "E_UNSUPPORTED",  # well-formed, but of no method there is
    "C23": "W_BASE_MISSING",
    "F04": "S_OTHER",  # not an adapter's file, so not followed either
    "F06": "S_OTHER",
}
"""Where the corpus proposes another code for the same verdict, or allows another verdict."""

MAX_S = 5.0


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    script = SHARED_DATA / "bad_inputs.py"
    if not script.exists():
        pytest.skip("the shared test data `../shared/data/bad_inputs.py` is not beside this project")
    out = tmp_path_factory.mktemp("corpus") / "cases"
    subprocess.run([sys.executable, str(script), str(out)], check=True, capture_output=True)
    expected: dict[str, Any] = json.loads((out / "expected.json").read_text())
    expected["out"] = out
    expected["by_id"] = {case["id"]: case for case in expected["cases"]}
    modules = json.loads((out / "base.json").read_text())["modules"]
    expected["base"] = [
        TensorFacts(
            name=f"{name}.weight",
            dtype="F32",
            shape=tuple(shape),
            sha256=hashlib.sha256(name.encode()).hexdigest(),
            samples=b"",
        )
        for name, shape in modules.items()
    ]
    return expected


def verdict(report: Report) -> str:
    if report.errors:
        return "refuse"
    if report.warnings:
        return "warn"
    return "skip_file" if any(f.code.startswith("S_") for f in report.notes) else "accept"


def test_the_corpus_is_the_one_expected(corpus: dict[str, Any]) -> None:
    assert sorted(corpus["by_id"]) == sorted(CASES)


@pytest.mark.parametrize("case_id", CASES)
def test_verdict(corpus: dict[str, Any], case_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, out = corpus["by_id"][case_id], corpus["out"]
    monkeypatch.chdir(out)
    before = sorted(str(p) for p in out.rglob("*"))
    started = time.process_time()

    report = verify_folder(out / case["path"], base_tensors=corpus["base"])

    found = {f.code for f in report.findings}
    assert verdict(report) in {case["expect"], *case.get("also", [])}, [str(f) for f in report.findings]
    assert OTHER_CODES.get(case_id, case["code"]) in found | {""}
    assert time.process_time() - started < MAX_S
    assert sorted(str(p) for p in out.rglob("*")) == before  # nothing made, no canary
    text = json.dumps(report.to_json())
    assert corpus["secret"] not in text
    assert all(f.message.isprintable() and f.where.isprintable() for f in report.findings)


@pytest.mark.parametrize("case_id", [c for c in CASES if c[0] in "SCNKFG"])
def test_verdict_is_the_same_without_a_base(corpus: dict[str, Any], case_id: str) -> None:
    case = corpus["by_id"][case_id]

    report = verify_folder(corpus["out"] / case["path"])

    assert verdict(report) in {case["expect"], *case.get("also", [])}, [str(f) for f in report.findings]


def test_skipped_files_are_named(corpus: dict[str, Any]) -> None:
    for case in corpus["cases"]:
        report = verify_folder(corpus["out"] / case["path"]) if case.get("skip") else None
        named = " ".join(f.where for f in report.notes) if report else ""

        assert all(f"`{name}`" in named for name in case.get("skip", []))


def test_nothing_named_by_an_input_is_imported(corpus: dict[str, Any]) -> None:
    """In a process of its own, where an import hook sees every module that is asked for."""
    code = """
import json, sys
from pathlib import Path
import numpy, regex
from adapterhub.verify import verify_folder
asked = []
class Hook:
    def find_spec(self, name, path=None, target=None):
        asked.append(name)
        return None
sys.meta_path.insert(0, Hook())
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else
                 sys.exit("unpickled") if event == "pickle.find_class" else None)
for path in json.loads(sys.argv[1]):
    verify_folder(Path(path))
print(json.dumps([asked, opened]))
"""
    paths = [str(corpus["out"] / case["path"]) for case in corpus["cases"]]

    done = subprocess.run([sys.executable, "-c", code, json.dumps(paths)], capture_output=True, text=True, check=True)

    asked, opened = json.loads(done.stdout)
    assert [name for name in asked if not name.startswith(("adapterhub.", "encodings."))] == []
    names = {Path(name).name for name in opened if "/cases/" in name}
    assert names <= {"adapter_config.json", "adapter_model.safetensors", "bomb.zip"}
