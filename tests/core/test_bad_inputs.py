"""Every case of `tests.bad_inputs`: its verdict, with the base that belongs to it and without one."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from adapterhub.formats.safetensors.header import TensorFacts
from adapterhub.trust.verify import Report, verify_folder
from tests.bad_inputs import CASES, SECRET
from tests.support.hostile_corpus import Case, bad_inputs
from tests.support.hostile_kinds import MODULES

pytestmark = pytest.mark.slow

OTHER_CODES = {
    "C16": "W_CONFIG_DEFAULT",  # PEFT's default rank, and the tensors agree with it
    "C21": "E_UNSUPPORTED",  # well-formed, but of no method there is
    "C23": "W_BASE_MISSING",
    "F04": "S_OTHER",  # not an adapter's file, so not followed either
    "F06": "S_OTHER",
}
"""Where the corpus proposes another code for the same verdict, or allows another verdict."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return {case.id: case for case in bad_inputs(tmp_path_factory.mktemp("corpus") / "cases")}


@pytest.fixture(scope="module")
def base() -> list[TensorFacts]:
    """Two layers of width 64, with values 32 wide."""
    return [
        TensorFacts(
            name=f"model.layers.{layer}.self_attn.{module}.weight",
            dtype="F32",
            shape=(out, 64),
            sha256=hashlib.sha256(f"{module} {layer}".encode()).hexdigest(),
            samples=b"",
        )
        for layer in range(2)
        for module, out in MODULES
    ]


def verdict(report: Report) -> str:
    if report.errors:
        return "refuse"
    if report.warnings:
        return "warn"
    return "skip_file" if any(f.code.startswith("S_") for f in report.notes) else "accept"


@pytest.mark.parametrize("name", CASES)
def test_verdict(corpus: dict[str, Case], base: list[TensorFacts], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = corpus[name]
    out = case.path.parents[1 if case.path.is_dir() or case.path.is_symlink() else 2]
    monkeypatch.chdir(out)
    before = sorted(str(p) for p in out.rglob("*"))

    report = verify_folder(case.path, base_tensors=base)

    assert verdict(report) in case.verdicts, [str(f) for f in report.findings]
    assert OTHER_CODES.get(name, case.code) in {f.code for f in report.findings} | {""}
    assert sorted(str(p) for p in out.rglob("*")) == before  # nothing made, no canary
    assert SECRET not in json.dumps(report.to_json())
    assert all(f.message.isprintable() and f.where.isprintable() for f in report.findings)


@pytest.mark.parametrize("name", [name for name in CASES if name[0] != "P"])
def test_verdict_is_the_same_without_a_base(corpus: dict[str, Case], name: str) -> None:
    report = verify_folder(corpus[name].path)

    assert verdict(report) in corpus[name].verdicts, [str(f) for f in report.findings]


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].skip])
def test_skipped_files_are_named(corpus: dict[str, Case], name: str) -> None:
    report = verify_folder(corpus[name].path)

    named = " ".join(f.where for f in report.notes)
    assert [file for file in corpus[name].skip if f"`{file}`" not in named] == []


def test_nothing_named_by_an_input_is_imported(corpus: dict[str, Case]) -> None:
    """In a process of its own, where an import hook sees every module that is asked for."""
    code = """
import json, sys
from pathlib import Path
import difflib, numpy, regex, subprocess, tempfile
from adapterhub.trust.verify import verify_folder
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
    paths = [str(case.path) for case in corpus.values()]

    done = subprocess.run([sys.executable, "-c", code, json.dumps(paths)], capture_output=True, text=True, check=True)

    asked, opened = json.loads(done.stdout)
    assert [name for name in asked if not name.startswith(("adapterhub.", "encodings."))] == []
    names = {Path(name).name for name in opened if "/cases/" in name}
    pickles = {
        "adapter_model.bin",
        "optimizer.pt",
        "training_args.bin",
    }  # their first bytes: each may be an LFS pointer
    assert names <= {"adapter_config.json", "adapter_model.safetensors", "bomb.zip"} | pickles
