"""A folder with a manifest is checked against the base that the manifest declares, as an installed build is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base


@pytest.fixture
def adapt(tmp_path: Path) -> Adapt:
    """A library with two bases of the same shapes."""
    adapt = Adapt(tmp_path)
    for seed, name in enumerate(("base-7b", "other")):
        base = make_base(tmp_path / name, seed=seed)
        config = json.loads((base / "config.json").read_text()) | {"architectures": ["LlamaForCausalLM"]}
        (base / "config.json").write_text(json.dumps(config))
        adapt.ok("base", "add", base, "--as", name)
    return adapt


@pytest.fixture
def folder(adapt: Adapt, tmp_path: Path) -> Path:
    """A release as a directory of others gives it."""
    adapt.ok("add", make_adapter(tmp_path / "trained"), "--name", "legal-qa", "--base", "base-7b")
    path = Path(adapt.ok("info", "legal-qa", "--path").strip())
    (copied := tmp_path / "copied").mkdir()
    for file in path.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    adapt.ok("remove", "legal-qa", "--yes")
    return copied


def verified(adapt: Adapt, folder: Path, *more: str) -> tuple[int, str, list[str]]:
    [report], code = read(adapt, folder, *more)
    return code, report["status"], [one["code"] for one in report["findings"] if one["severity"] != "note"]


def read(adapt: Adapt, folder: Path, *more: str) -> tuple[Any, int]:
    done = adapt("verify", folder, "--json", *more)
    return json.loads(done.stdout), done.exit_code


def test_the_base_of_the_manifest_is_looked_up_by_content(adapt: Adapt, folder: Path) -> None:
    assert verified(adapt, folder) == (0, "ok", [])
    assert verified(adapt, folder, "--base", "other") == (3, "failed", ["E_BASE_MISMATCH"])


def test_a_base_that_is_not_registered_stays_unknown(adapt: Adapt, folder: Path) -> None:
    adapt.ok("base", "remove", "base-7b")

    assert verified(adapt, folder) == (17, "unknown", ["U_BASE"])


def test_shapes_that_the_declared_base_does_not_have_are_errors(adapt: Adapt, folder: Path, tmp_path: Path) -> None:
    wide = make_adapter(tmp_path / "wide", width=96)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (folder / name).write_bytes((wide / name).read_bytes())

    code, status, found = verified(adapt, folder)

    assert (code, status) == (12, "failed")
    assert {"E_DIGEST", "E_BASE_MISMATCH"} <= set(found)


def test_an_engine_is_asked_beside_the_declared_base(adapt: Adapt, folder: Path) -> None:
    [told], _ = read(adapt, folder, "--engine", "vllm")
    [named], _ = read(adapt, folder, "--engine", "vllm", "--base", "base-7b")

    assert told == named
    assert told["verdicts"][0]["pairs"]["bound"] == 4
