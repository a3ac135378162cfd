"""What the command line says of adapters that it stores and cannot use, and of files that only stand for others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter


@pytest.fixture
def adapt(tmp_path: Path) -> Adapt:
    return Adapt(tmp_path)


def prefix_tuning(folder: Path) -> Path:
    folder.mkdir()
    save_file({"prompt_embeddings": np.ones((4, 8), "f4")}, folder / "adapter_model.safetensors")
    config = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4, "base_model_name_or_path": "org/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_what_can_never_be_attached_is_said_by_add_and_shown_by_list(adapt: Adapt, tmp_path: Path) -> None:
    make_adapter(tmp_path / "lora")
    added = adapt("add", prefix_tuning(tmp_path / "prefix"), "--name", "prefix")
    plain = adapt("add", tmp_path / "lora", "--name", "lora")

    assert added.exit_code == 0
    assert "warning: [W_METHOD] cannot be attached or run here: its method is PREFIX_TUNING" in added.stderr
    assert "W_METHOD" not in plain.stderr
    assert "prefix_tuning (cannot be attached)" in adapt.ok("list")
    assert {row["name"]: row["attaches"] for row in adapt.json("list")} == {"lora": True, "prefix": False}
