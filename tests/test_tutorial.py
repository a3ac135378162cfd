"""Two tutorials, whole: SmolLM2 is trained, tested, merged, published and answers. Some minutes of CPU.

That of GRPO needs `pip install trl`.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from adapterhub import Library
from adapterhub.cli.start.demo_run.base import WHEEL
from adapterhub.formats.contract.reader import read_plan
from docs.notebook import PAGE, notebook, parts
from tests.support.real_base import smollm2_base, wheel_folder
from tests.test_docs import ROOT


def test_the_notebook_has_every_command_and_file_of_the_page() -> None:
    page = (ROOT / "docs/tutorial/train-and-serve.md").read_text()
    code = "\n".join(cell["source"] for cell in notebook()["cells"] if cell["cell_type"] == "code")

    assert [part.name for part in parts() if part.kind == "file"] == ["tickets.jsonl", "train.py", "answer.py"]
    for line in "".join(part.text for part in parts() if part.kind in {"file", "commands"}).splitlines():
        assert line.removesuffix(" &") in code or line.startswith("export "), line
    assert len(re.findall(r"^```", page, re.MULTILINE)) == 2 * sum(part.kind != "text" for part in parts())


GRPO = ROOT / "docs/tutorial/publish-every-step.md"


def test_the_files_of_the_page_on_grpo_can_be_read(tmp_path: Path) -> None:
    files = {part.name: part.text for part in parts(GRPO) if part.kind == "file"}
    (tmp_path / "keep.toml").write_text(files["keep.toml"])
    plan = read_plan(tmp_path / "keep.toml")

    assert sorted(files) == ["answer.py", "keep.toml", "train.py"]
    assert [one.demand.contains for one in plan.expects] == [("Paris",), ("London",), ("January",)]
    for name in ("answer.py", "train.py"):
        ast.parse(files[name])


def run(page: Path, folder: Path) -> str:
    """What the commands of a page print, in a folder with the files that it says to save."""
    model = folder / "home-demo" / "models"
    model.mkdir(parents=True)
    (model / "smollm2-135m-instruct").symlink_to(smollm2_base())
    for part in parts(page):
        if part.kind == "file":
            (folder / part.name).write_text(part.text)
    script = "set -ex\ntrap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n" + "\n".join(
        part.text for part in parts(page) if part.kind == "commands"
    )
    tools = folder / "bin"
    tools.mkdir()
    for name, words in {"adapt": f"{sys.executable} -m adapterhub.cli", "python": sys.executable}.items():
        (tools / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (tools / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": f"{ROOT}:{ROOT / 'registry'}"}
    WHEEL.find(wheel_folder(), offline=False)
    environment |= {"PIP_FIND_LINKS": str(wheel_folder()), "PIP_NO_INDEX": "1"}

    done = subprocess.run(
        [shutil.which("bash") or "bash", "-c", script],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.exhaustive
def test_the_tutorial_runs_whole(tmp_path: Path) -> None:
    said = run(PAGE, tmp_path)

    assert "tickets 1.0.2: PASS" in said
    assert "copy of: smollm2-135m (SAME_WEIGHTS_QUANTISED (gguf-q4_1))" in said
    assert re.search(r"^tickets ' high", said, re.MULTILINE)
    assert json.loads((tmp_path / "token.json").read_text())["token"].startswith("hf_")


@pytest.mark.exhaustive
def test_the_tutorial_on_grpo_runs_whole(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    said = run(GRPO, tmp_path)
    history = Library(tmp_path / "home-demo").alias_history("agent@live")
    answered = (tmp_path / "answers.txt").read_text().splitlines()

    assert re.search(r"^agent 0\.0\.20: CHANGED", said, re.MULTILINE)  # the reward is cheated
    assert re.findall(r"^agent 0\.0\.\d+: (\w+)", said, re.MULTILINE)[-1] == "PASS"
    assert [move.targets[0].version for move in history[:20]] == [f"0.0.{step}" for step in range(1, 21)]
    assert len({line.split()[0] for line in answered}) >= 15
    assert "is not current" in (tmp_path / "gated.log").read_text()
