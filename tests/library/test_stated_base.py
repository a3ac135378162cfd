"""A LoRA file that fits several bases gets the one whose file has the hash in its header."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.support.command_line import Adapt

OURS = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
THEIRS = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
PAIR = {f"{OURS}.lora_down.weight": np.ones((2, 8), "f4"), f"{OURS}.lora_up.weight": np.ones((8, 2), "f4")}


@pytest.fixture
def adapt(tmp_path: Path) -> Adapt:
    """Two bases of the same shapes, each in one file."""
    here = Adapt(tmp_path)
    for number, name in enumerate(("plain", "tuned")):
        save_file({THEIRS: np.full((8, 8), number + 0.5, "f4")}, tmp_path / f"{name}.safetensors")
        here.ok("base", "add", f"{name}.safetensors", "--as", name)
    return here


@pytest.mark.parametrize("name", ["plain", "tuned"])
def test_the_stated_hash_chooses_among_bases_that_fit(adapt, name):
    stated = hashlib.sha256((adapt.folder / f"{name}.safetensors").read_bytes()).hexdigest()
    save_file(PAIR, adapt.folder / "style.safetensors", metadata={"ss_new_sd_model_hash": stated})

    done = adapt("add", "style.safetensors")

    assert f"took base `{name}/unet` for `style` (its header states the hash of that base's file)" in done.stderr
    (build,) = adapt.library.installed()
    assert build.base.fingerprint == adapt.library.bases.find(f"{name}/unet").fingerprint


@pytest.mark.parametrize("metadata", [{}, {"ss_new_sd_model_hash": "0" * 64}])
def test_without_such_a_file_the_base_stays_unknown(adapt, metadata):
    save_file(PAIR, adapt.folder / "style.safetensors", metadata=metadata)

    assert "may be for `plain/unet` and `tuned/unet`" in adapt("add", "style.safetensors").stderr
