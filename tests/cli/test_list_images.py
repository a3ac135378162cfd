"""What lists, searches and details say of adapters of image models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.support.command_line import Adapt


@pytest.fixture
def adapt(tmp_path: Path) -> Adapt:
    adapt = Adapt(tmp_path)
    said = {"modelspec.trigger_phrase": "水墨, ink wash", "modelspec.architecture": "wan2.1"}
    key = "diffusion_model.blocks.0.self_attn.q"
    tensors = {f"{key}.lora_A.weight": np.ones((2, 8), "f4"), f"{key}.lora_B.weight": np.ones((8, 2), "f4")}
    save_file(tensors, tmp_path / "水墨画 Ink.safetensors", metadata=said)
    adapt.ok("add", tmp_path / "水墨画 Ink.safetensors")
    return adapt


def test_family_and_triggers_are_shown(adapt):
    for said in (adapt.ok("list"), adapt.ok("search", "wash")):
        assert "family\ttriggers" in said
        assert "Wan\t水墨, ink wash" in said
    assert adapt.json("list")[0]["family"] == "Wan"
    assert adapt.json("list")[0]["triggers"] == ["水墨", "ink wash"]


def test_a_name_in_another_script_is_kept_beside_one_of_ascii(adapt):
    [row] = adapt.json("list")

    assert row["name"] == "ink-2ost86besg"
    said = adapt.ok("info", row["name"])
    assert "title\t水墨画 Ink" in said
    assert "triggers\t水墨, ink wash" in said
    assert adapt.json("search", "水墨画")[0]["name"] == row["name"]
