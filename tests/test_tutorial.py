"""`docs/tutorial/train-and-serve.md`, whole: trains SmolLM2, tests, merges, publishes and answers. Some minutes of CPU."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from docs.notebook import notebook, parts
from tests.support.real_base import smollm2_base
from tests.test_docs import ROOT


def test_the_notebook_has_every_command_and_file_of_the_page() -> None:
    page = (ROOT / "docs/tutorial/train-and-serve.md").read_text()
    code = "\n".join(cell["source"] for cell in notebook()["cells"] if cell["cell_type"] == "code")

    assert [part.name for part in parts() if part.kind == "file"] == ["tickets.jsonl", "train.py", "answer.py"]
    for line in "".join(part.text for part in parts() if part.kind in {"file", "commands"}).splitlines():
        assert line.removesuffix(" &") in code or line.startswith("export "), line
    assert len(re.findall(r"^```", page, re.MULTILINE)) == 2 * sum(part.kind != "text" for part in parts())


@pytest.mark.exhaustive
def test_the_tutorial_runs_whole(tmp_path: Path) -> None:
    model = tmp_path / "home-demo" / "models"
    model.mkdir(parents=True)
    (model / "smollm2-135m-instruct").symlink_to(smollm2_base())
    for part in parts():
        if part.kind == "file":
            (tmp_path / part.name).write_text(part.text)
    script = "set -ex\n" + "\n".join(part.text for part in parts() if part.kind == "commands")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, words in {"adapt": f"{sys.executable} -m adapterhub.cli", "python": sys.executable}.items():
        (tools / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (tools / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": f"{ROOT}:{ROOT / 'registry'}"}

    done = subprocess.run(
        [shutil.which("bash") or "bash", "-c", script],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "tickets 1.0.2: PASS" in done.stdout
    assert re.search(r"^tickets ' high", done.stdout, re.MULTILINE)
    assert json.loads((tmp_path / "token.json").read_text())["token"].startswith("hf_")
