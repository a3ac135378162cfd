"""The tutorial from a workflow to a verified install, whole: its commands, its workflow, and an issuer in GitHub's place."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from adapterhub.inference.serving.process import free_port
from docs.notebook import parts
from tests.registry.issuer import REQUEST_TOKEN, issuing
from tests.support.programs import needs
from tests.support.tiny import make_adapter, make_base
from tests.test_docs import ROOT

PAGE = ROOT / "docs/tutorial/workflow-to-install.md"
GITHUB, REGISTRY = "https://token.actions.githubusercontent.com", "https://registry.example.org"
CLAIMS = {"repository": "acme/training", "ref": "refs/tags/v1.0.0", "environment": "release", "run_id": "77"}


class Machine:
    """A shell with the commands of the page, in a folder, that reaches stand-ins for GitHub and for the registry."""

    def __init__(self, folder: Path, names: dict[str, str]) -> None:
        self.folder, self.names = folder, names
        tools = folder / "bin"
        tools.mkdir()
        programs = {"adapt": f"{sys.executable} -m adapterhub.cli", "python": sys.executable, "pip": "true"}
        for name, words in programs.items():  # what `pip install adapterhub` brings is here
            (tools / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
            (tools / name).chmod(0o755)
        kept = {
            name: text for name, text in os.environ.items() if not name.startswith(("ADAPTERHUB", "ACTIONS_", "HF_"))
        }
        path = f"{tools}:{os.environ['PATH']}"
        self.variables = {**kept, "PATH": path, "PYTHONPATH": f"{ROOT}:{ROOT / 'registry'}", "HOME": str(folder)}
        for name in ("AUTHOR", "COMMITTER"):
            self.variables |= {f"GIT_{name}_NAME": "Ann", f"GIT_{name}_EMAIL": "ann@example.org"}

    def told(self, text: str) -> str:
        for name, here in self.names.items():
            text = text.replace(name, here)
        return text

    def run(self, script: str, folder: Path, **variables: str) -> str:
        words = [shutil.which("bash") or "bash", "-euo", "pipefail", "-c", self.told(script)]
        done = subprocess.run(
            words, cwd=folder, env=self.variables | variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{script}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    @contextmanager
    def serving(self, command: str, url: str) -> Iterator[None]:
        """Run the command of a server, until it answers at `url` and the block ends."""
        words = [shutil.which("bash") or "bash", "-c", f"exec {self.told(command)}"]
        with subprocess.Popen(
            words, cwd=self.folder, env=self.variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as server:
            try:
                while not _is_up(url):
                    assert server.poll() is None, server.stderr.read() if server.stderr else ""
                    time.sleep(0.05)
                yield
            finally:
                server.terminate()


def _is_up(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/livez").is_success
    return False


@pytest.mark.slow
def test_the_tutorial_on_workflows_runs_whole(tmp_path: Path) -> None:
    needs("git")
    port = str(free_port("127.0.0.1"))
    url, own, training = f"http://127.0.0.1:{port}", {"ADAPTERHUB_HOME": str(tmp_path / "own")}, tmp_path / "training"
    found = list(parts(PAGE))
    serve, trust, record, push, *read = [part.text for part in found if part.kind == "commands"]
    (workflow,) = [part.text.strip().strip("`") for part in found if part.kind == "shown" and "jobs:" in part.text]
    workflow = workflow.removeprefix("yaml")
    (check,) = [part for part in found if part.kind == "file"]
    with issuing() as issuer:
        issuer.claims = dict(CLAIMS)
        machine = Machine(tmp_path, {GITHUB: issuer.url, REGISTRY: url, "8000": port})
        make_adapter(training / "out" / "legal-qa", seed=1)
        make_base(tmp_path / "model")
        (tmp_path / check.name).write_text(check.text)
        machine.run("git init -q --bare origin && git init -q training", tmp_path)
        machine.run("git -C training remote add origin ../origin", tmp_path)
        machine.run("adapt base add model --as base-7b", tmp_path, **own)

        with machine.serving(serve.strip().removesuffix("&"), url):
            trusted = machine.run(trust, tmp_path)
            save = f"cat > .github/workflows/publish.yml <<'END'\n{workflow}END\n"
            machine.run(f"{record}{save}{push}", tmp_path, **own)
            machine.run("git clone -q --branch v1.0.0 origin runner", tmp_path)
            job = yaml.safe_load((tmp_path / "runner/.github/workflows/publish.yml").read_text())["jobs"]["publish"]
            github = {
                "ADAPTERHUB_HOME": str(tmp_path / "job"),
                "ACTIONS_ID_TOKEN_REQUEST_URL": f"{issuer.url}/job/id?api-version=2.0",
                "ACTIONS_ID_TOKEN_REQUEST_TOKEN": REQUEST_TOKEN,
            }
            for step in job["steps"]:
                if "run" in step:
                    machine.run(step["run"], tmp_path / "runner", **github)
            said = machine.run("".join(read), training)

    assert "repository=acme/training" in trusted
    assert issuer.asked.count("/job/id") == 1
    words = f"job of 127.0.0.1:{issuer.url.rpartition(':')[2]}, acme/training@refs/tags/v1.0.0, run 77"
    assert f"published by\t{words}" in said
    assert f"GitHub workflow {words.partition(', ')[2]}" in PAGE.read_text()
    assert {"N_PUBLISHER", "N_LOG"} <= set(re.findall(r"N_[A-Z]+", said))
    assert re.search(r"^[0-9a-f]{64} acme/training$", said, re.MULTILINE)
