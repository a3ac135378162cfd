"""`adapt serve` from argv to the last process, with a stand-in for vLLM (`tests/inference/engines` has the real one)."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from adapterhub.core.digests import digest_of
from adapterhub.core.display import size_text
from adapterhub.core.specs import parse_name
from adapterhub.inference.serving import ServeSettings
from adapterhub.inference.serving.process import free_port
from adapterhub.inference.serving.vllm import slot_bytes
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.installed import Added
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from tests.inference.test_serving import publish
from tests.support.command_line import Adapt
from tests.support.results import measured, with_contract
from tests.support.serve_command import Serving, serve_command
from tests.support.standin_vllm import make_standin
from tests.support.tiny import make_adapter, make_base

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent.parent
Add = Callable[..., Added]


@pytest.fixture
def adapt(tmp_path: Path, base: BaseRecord, add: Add) -> Adapt:
    """The library of the fixtures, with `legal-qa` for `base-7b`."""
    add("legal-qa")
    return Adapt(tmp_path)


@pytest.fixture
def python(tmp_path: Path) -> Path:
    return make_standin(tmp_path / "vllm")


def serving(adapt: Adapt, python: Path, *arguments: str, **environ: str) -> AbstractContextManager[Serving]:
    return serve_command(adapt, "--base", "base-7b", "--python", str(python), *arguments, **environ)


def ask(url: str, model: str) -> tuple[int, Any]:
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps({"model": model, "prompt": "a"}).encode())
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        value = json.load(error)["error"]
        return error.code, value["message"] if isinstance(value, dict) else value


def ends(group: int, within_s: float = 60.0) -> bool:
    """Whether nobody of the group lives when the time is up."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_adapters_are_served_by_name_and_everything_ends_with_the_command(
    adapt: Adapt, python: Path, tmp_path: Path, add: Add
) -> None:
    publish(tmp_path / "published", add("summarize", into=Library(tmp_path / "elsewhere")))

    with serving(adapt, python, "legal-qa==1.0", ADAPTERHUB_SOURCES=str(tmp_path / "published")) as (document, process):
        url = document["url"]
        named, later, base = (ask(url, name) for name in ("legal-qa==1.0", "summarize", "base-7b"))
        refused = ask(url, "nothing")
        denied = adapt("remove", "legal-qa", "--yes")
        process.terminate()
        process.communicate(timeout=60)

    assert (document["adapters"][0]["model"], document["max_rank"]) == ("legal-qa==1.0", 16)
    assert (named[0], later[0], base[0]) == (200, 200, 200)
    assert named[1]["path"].endswith(document["adapters"][0]["digest"].replace(":", "-"))
    assert refused == (404, "no adapter `nothing` is known to this server")
    assert denied.exit_code == 15
    assert process.returncode == 0
    assert ends(document["pid"])
    assert list((adapt.library.root / "leases").iterdir()) == []


def test_a_key_among_the_options_of_the_engine_loads_the_named_adapters(adapt: Adapt, python: Path) -> None:
    with serving(adapt, python, "legal-qa", "--engine-args", "--api-key secret") as (document, _):
        without = ask(document["url"], "legal-qa")[0]

    assert without == 401


@pytest.mark.parametrize("whom", ["engine", "serve"])
def test_a_kill_leaves_nobody_behind(adapt: Adapt, python: Path, whom: str) -> None:
    with serving(adapt, python) as (document, process):
        os.kill(document["pid"] if whom == "engine" else process.pid, signal.SIGKILL)
        said = process.communicate(timeout=60)[1]

    assert ends(document["pid"])
    if whom == "engine":
        assert process.returncode == 18
        assert "the engine was ended by signal SIGKILL by itself" in said


def test_an_engine_that_does_not_start_is_told_with_its_exit_code(adapt: Adapt, python: Path) -> None:
    arguments = [
        "serve",
        "--base",
        "base-7b",
        "--python",
        python,
        "--port",
        "0",
        "--engine-args=--fail",
        "--log",
        "log",
    ]

    said = adapt.fails(18, *arguments)

    assert "the engine ended with exit code 1 before it was ready" in said
    assert f"its last output, at the end of `{adapt.folder / 'log'}`, shows the reason" in said
    assert "no memory for this model" in (adapt.folder / "log").read_text()


def test_a_port_that_is_taken_is_refused_before_anything_starts(adapt: Adapt, python: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])

        said = adapt.fails(15, "serve", "--base", "base-7b", "--python", python, "--port", port)

    assert f"port {port} of `127.0.0.1` is taken" in said


@pytest.mark.skipif(sys.platform != "linux", reason="other systems let no second socket have the port")
def test_a_free_port_is_for_the_engine_that_names_it_and_for_no_other_program() -> None:
    port = free_port("127.0.0.1")

    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    with ThreadingHTTPServer(("127.0.0.1", port), BaseHTTPRequestHandler) as engine:
        assert engine.server_port == port


def test_an_address_of_another_machine_is_refused(adapt: Adapt, python: Path) -> None:
    said = adapt.fails(2, "serve", "--base", "base-7b", "--python", python, "--host", "192.0.2.1")

    assert "cannot listen on `192.0.2.1`" in said


def test_a_dry_run_shows_what_would_be_started_and_starts_nothing(adapt: Adapt, python: Path) -> None:
    shown = adapt.json("serve", "legal-qa", "--base", "base-7b", "--python", python, "--dry-run", "--cpu-slots", "2")

    assert shown["command"][1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    assert (shown["slots"], shown["cpu_slots"], shown["max_rank"]) == (1, 2, 16)
    assert "pid" not in shown


def test_under_a_policy_of_tests_only_what_has_a_pass_on_the_served_base_is_served(adapt: Adapt, python: Path) -> None:
    build = with_contract(adapt.library, adapt.library.builds_named("legal-qa")[0])
    command = ["serve", "legal-qa==1.0.1", "--base", "base-7b", "--python", python, "--dry-run"]
    adapt.ok(*command)
    adapt.ok("contract", "policy", "require")
    measured(adapt.library, build, base_weights=digest_of(b"another base"))

    assert "`legal-qa==1.0.1` is not served: has no PASS on this base" in adapt.fails(14, *command)
    adapt.ok("contract", "policy", "warn")
    assert "has no PASS on this base" in adapt(*command).stderr
    adapt.ok("contract", "policy", "require")
    measured(adapt.library, build)
    assert adapt.ok(*command)
    without = adapt.fails(14, *[one.replace("==1.0.1", "==1.0.0") if isinstance(one, str) else one for one in command])
    assert "is not served: has no contract" in without


def test_the_base_is_inferred_where_only_one_fits(adapt: Adapt, python: Path) -> None:
    dry = ("--python", python, "--dry-run")
    library = adapt.library
    library.bases.add(library.bases.get("base-7b").path, "again")  # type: ignore[arg-type]  # another name of one base
    assert "base: again, the only one that fits" in adapt("serve", "legal-qa", *dry).stderr
    library.bases.remove("again")
    library.catalog.put_base(library.bases.add(make_base(adapt.folder / "other", seed=5), "other"))
    adapt.json("serve", "legal-qa", *dry)
    adapt.json("serve", "legal-qa@base-7b", *dry)
    adapt.ok("alias", "set", "prod", "legal-qa==1.0.0")
    adapt.json("serve", "legal-qa@prod", *dry)

    assert "2 bases are registered: `base-7b`, `other`" in adapt.fails(2, "serve", *dry)
    assert "`nothing` fits 2 bases: `base-7b`, `other`" in adapt.fails(2, "serve", "nothing", *dry)
    assert "`legal-qa`, `legal-qa@other` fits none" in adapt.fails(2, "serve", "legal-qa", "legal-qa@other", *dry)
    folder = make_adapter(adapt.folder / "made" / "second", seed=9)
    library.add(folder, Description(name=parse_name("legal-qa"), version="1.0.0"), base=library.bases.get("other"))
    assert "`legal-qa` fits 2 bases: `base-7b`, `other`" in adapt.fails(2, "serve", "legal-qa", *dry)
    adapt.json("serve", "legal-qa@base-7b", *dry)


def test_the_rank_is_that_of_what_is_installed(adapt: Adapt, python: Path, add: Add) -> None:
    add("wide", rank=20)
    command = ["serve", "--base", "base-7b", "--python", python, "--dry-run"]

    result = adapt(*command)
    assert result.exit_code == 0
    said = [line for line in result.stderr.splitlines() if "wide==1.0.0" in line]
    small, large = (slot_bytes(adapt.library.bases.list()[0].tensors, rank, 2) for rank in (16, 32))
    assert len(said) == 1
    assert f"rank 32, so every slot takes {size_text(large)}" in said[0]
    assert f"rank 16 ({size_text(small)}) is enough" in said[0]
    assert "wide" not in adapt(*command, "--max-rank", "32").stderr
    assert adapt.json(*command)["max_rank"] == 32
    assert adapt.json(*command[:1], "legal-qa", *command[1:])["max_rank"] == 16
    assert adapt.json(*command, "--max-rank", "100")["max_rank"] == 128


def test_every_adapter_that_cannot_be_served_is_named_and_nothing_is_started(
    adapt: Adapt, python: Path, add: Add
) -> None:
    add("pissa", init_lora_weights="pissa")

    said = adapt.fails(11, "serve", "legal-qa", "pissa", "nothing", "--base", "base-7b", "--python", python)

    assert "2 of 3 adapters cannot be served" in said
    assert "`init_lora_weights" in said
    assert "no adapter `nothing`" in said


def test_a_machine_without_vllm_is_told_how_to_get_it(adapt: Adapt) -> None:
    said = adapt.fails(10, "serve", "--base", "base-7b", "--python", sys.executable)

    assert "has no vLLM" in said
    assert "pip install vllm" in said


def test_a_base_whose_folder_is_gone_is_refused(adapt: Adapt, python: Path) -> None:
    (adapt.folder / "base").rename(adapt.folder / "moved")

    assert "without an existing folder" in adapt.fails(2, "serve", "--base", "base-7b", "--python", python)


# ---------------------------------------------------------------- aliases
def test_an_alias_is_served_with_all_its_targets_and_looked_up_again_on_a_signal(
    adapt: Adapt, python: Path, add: Add
) -> None:
    add("legal-qa", version="1.1.0", seed=1)
    add("legal-qa", version="1.2.0", seed=2, rank=32)
    adapt.ok("alias", "set", "prod", "legal-qa==1.0=0.9", "legal-qa==1.2=0.1")

    with serving(adapt, python, "legal-qa@prod", "--alias-ttl", "3600") as (document, process):
        url = document["url"]
        adapt.ok("alias", "set", "prod", "legal-qa==1.1")
        before = ask(url, "legal-qa@prod")[1]["model"]
        process.send_signal(signal.SIGHUP)
        end = time.monotonic() + 60
        while not (after := ask(url, "legal-qa@prod")[1]["model"]).startswith("legal-qa==1.1.0#"):
            assert time.monotonic() < end, after
        process.terminate()
        said = process.communicate(timeout=60)[1]

    assert before.startswith(("legal-qa==1.0.0#", "legal-qa==1.2.0#"))
    first, second = document["adapters"]
    assert (first["model"], first["adapter"], second["adapter"]) == (
        "legal-qa@prod", "legal-qa==1.0.0", "legal-qa==1.2.0"
    )  # fmt: skip
    assert document["max_rank"] == 32
    assert "looked every alias up again" in said
    assert process.returncode == 0


# ---------------------------------------------------------------- tenants
def test_a_new_key_comes_with_its_line_for_the_file(adapt: Adapt, python: Path) -> None:
    said = adapt.ok("serve", "--new-key")
    key, line = said.split("the tenant:")[1].split()[0], said.split("tenants:")[1].strip()
    (adapt.folder / "tenants.toml").write_text(f'[tenants.acme]\n{line}\nadapters = ["*"]\nmax-loaded = 40\n')
    command = ["serve", "--base", "base-7b", "--python", python, "--dry-run", "--tenants", "tenants.toml"]

    assert line == f'keys = ["{digest_of(key.encode())}"]'
    assert adapt.json(*command)["cpu_slots"] == 40
    assert adapt.json(*command, "--pin", "legal-qa")["cpu_slots"] == 41
    assert "vLLM keeps 39" in adapt.fails(2, *command, "--cpu-slots", "39")


def test_a_server_has_its_keys_in_one_place(adapt: Adapt, python: Path) -> None:
    (adapt.folder / "tenants.toml").write_text("[tenants.acme]\nkeys = []\nadapters = []\n")
    command = ["serve", "--base", "base-7b", "--python", python, "--dry-run", "--tenants", "tenants.toml"]

    assert "unset VLLM_API_KEY" in adapt.fails(2, *command, "--engine-args", "--api-key secret")


def test_settings_pass_through_the_environment_unchanged(tmp_path: Path) -> None:
    settings = ServeSettings(
        root=tmp_path, deny=("legal-qa==1.0 leaks names", "sha256:aaaaaaaa"), deny_file=tmp_path / "denied",
        tenants=tmp_path / "tenants.toml", audit_log="-", preload=("a", "b>=1,<2"), pins=("c",), tested=True,
    )  # fmt: skip

    assert ServeSettings.from_environ(settings.to_environ()) == settings
