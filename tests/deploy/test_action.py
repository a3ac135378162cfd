"""`action.yml` and `.pre-commit-hooks.yaml`: their commands run as a runner and as pre-commit would run them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from adapterhub_registry.operations.far import FarPublishers

from adapterhub import Library
from adapterhub.inference.serving.process import free_port
from tests.registry.issuer import REQUEST_TOKEN, issuing
from tests.registry.running import running
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base

ROOT = Path(__file__).resolve().parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
HOOKS = {hook["id"]: hook for hook in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with one locked adapter, which its library has, and the record of its base."""
    library = Library(tmp_path / "home")
    library.add_base(make_base(tmp_path / "model"), "base-7b")
    library.add(make_adapter(tmp_path / "out"), name="legal-qa", base="base-7b")
    adapt = Adapt(tmp_path)
    adapt.ok("init", "project", "--base", "base-7b")
    adapt.ok("install", "legal-qa@base-7b", "--save", "--project", "project")
    (tmp_path / "project" / "base.json").write_text(adapt.ok("base", "show", "base-7b", "--record"))
    return tmp_path / "project"


def environment(project: Path) -> dict[str, str]:
    tools = project.parent / "bin"
    tools.mkdir(exist_ok=True)
    program = tools / "adapt"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m adapterhub.cli "$@"\n')
    program.chmod(0o755)
    home = str(project.parent / "home")
    return {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "ADAPTERHUB_HOME": home, "PYTHONPATH": f"{ROOT}"}


def run_action(
    project: Path, job: dict[str, str] | None = None, **inputs: str
) -> tuple[subprocess.CompletedProcess[str], dict[str, str], str]:
    """Run the second step with its defaults and `inputs`, as a job with these variables; the outputs and the summary."""
    step = ACTION["runs"]["steps"][1]
    values = {name: one["default"] for name, one in ACTION["inputs"].items()} | {"project": str(project)} | inputs
    given = {
        name: str(ROOT) if "github.action_path" in text else values[text.split("inputs.")[1].rstrip(" }")]
        for name, text in step["env"].items()
    }
    files = {name: project.parent / name for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    runner = {name: str(path) for name, path in files.items()} | {"RUNNER_TEMP": str(project.parent / "temp")}
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        env=environment(project) | given | runner | (job or {}), capture_output=True, text=True, check=False,
    )  # fmt: skip
    outputs = dict(line.split("=", 1) for line in files["GITHUB_OUTPUT"].read_text().splitlines())
    return done, outputs, files["GITHUB_STEP_SUMMARY"].read_text()


def test_the_action_checks_and_reports(project: Path) -> None:
    done, outputs, summary = run_action(project, **{"audit-options": "--offline", "test": "true"})

    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(Path(outputs["sarif"]).read_text())["version"] == "2.1.0"
    assert "<testsuites" in Path(outputs["junit"]).read_text()
    assert summary.count("| ok |") == 5


def test_the_action_goes_on_after_a_failure_and_ends_with_its_code(project: Path) -> None:
    with (project / "adapters.toml").open("a") as file:
        file.write('summarize = ">=1"\n')

    done, outputs, summary = run_action(project, **{"audit-options": "--strict --offline; touch never"})

    assert done.returncode == 15
    assert "::error title=adapt sync::`adapt sync --frozen` ended with exit code 15" in done.stdout
    assert "| `adapt verify --all` | ok |" in summary
    assert "exit code 2 |" in summary  # `;` and what follows are words to `adapt audit`
    assert not (project / "never").exists()
    assert set(outputs) == {"sarif"}


@pytest.mark.slow
def test_the_action_publishes_what_passed_without_a_secret(project: Path, tmp_path: Path) -> None:
    port = free_port("127.0.0.1")
    url = f"http://127.0.0.1:{port}"
    with issuing() as issuer, running(tmp_path / "registry", port=port, public_url=url) as server:
        issuer.claims = {"repository": "acme/training", "ref": "refs/tags/v1.0.0"}
        FarPublishers(url, server.token).add("acme/legal-qa", issuer.url, {"repository": "acme/training"})
        job = {
            "HF_HUB_OFFLINE": "0",
            "ACTIONS_ID_TOKEN_REQUEST_URL": f"{issuer.url}/job/id?api-version=2.0",
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": REQUEST_TOKEN,
        }
        pushes = (
            f"legal-qa@base-7b --to acme/legal-qa --remote {url}\n\nlegal-qa@base-7b --to acme/other --remote {url}\n"
        )
        asked = {"audit-options": "--offline", "push": pushes}

        failed, _, _ = run_action(project, job, **asked | {"sync-options": "--no-such-option"})
        before = server.get("/api/adapt/v1/adapters/acme/legal-qa/versions").status_code
        done, _, summary = run_action(project, job, **asked)
        (made,) = server.get("/api/adapt/v1/adapters/acme/legal-qa/versions").json()["versions"]

    assert (failed.returncode, before) == (2, 404)
    assert made["publisher"]["claims"]["repository"] == "acme/training"
    assert f"| `adapt push legal-qa@base-7b --to acme/legal-qa --remote {url}` | ok |" in summary
    assert "--to acme/other" in done.stdout  # the job may publish to one repository only
    assert done.returncode not in {0, 1}
    assert "Nothing was sent" in done.stderr


def test_the_action_installs_the_version_and_extras_that_it_is_given(tmp_path: Path) -> None:
    step = ACTION["runs"]["steps"][0]
    (tmp_path / "python3").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "python3").chmod(0o755)
    said = [
        subprocess.check_output(
            ["bash", "-c", step["run"]],
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "VERSION": version, "EXTRAS": extras}, text=True,
        )
        for version, extras in (("", ""), ("==0.1.0", "weights,export"))
    ]  # fmt: skip

    assert [line.split()[-1] for line in said] == ["adapterhub", "adapterhub[weights,export]==0.1.0"]


@pytest.mark.parametrize("name", ["adapt-lock", "adapt-sync", "adapt-audit"])
def test_a_hook_passes_on_a_sound_project_and_fails_on_a_broken_one(project: Path, name: str) -> None:
    def run() -> int:
        words = shlex.split(HOOKS[name]["entry"])
        return subprocess.run(words, cwd=project, env=environment(project), capture_output=True, check=False).returncode

    sound = run()
    if name == "adapt-audit":
        next((project.parent / "home" / "adapters").rglob("adapterhub.json")).with_name("run.pkl").write_bytes(
            b"\x80\x04."
        )
    else:
        (project / "adapters.toml").write_text('[project]\nbase = "base-7b"\n[adapters]\nother = "*"\n')

    assert (sound, run()) == (0, 3 if name == "adapt-audit" else 15)
