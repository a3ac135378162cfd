"""Any names in a file: it is read, or refused with a code; never another error."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapterhub.core.errors import MalformedTensorFile
from adapterhub.formats.foreign.conversion import foreign

WORDS = (
    "down", "blocks", "down_blocks", "up_blocks", "mid_block", "input_blocks", "middle_block", "output_blocks", "double_blocks",
    "single_blocks", "attentions", "resnets", "transformer_blocks", "attn1", "to_q", "to_out", "img_attn", "qkv", "processor",
    "text_model", "encoder", "layers", "self_attn", "q_proj", "0", "1", "9999", "-1", "\u0663", "", "_", "..", "/", "lora", "unet",
    "base_layer", "lora_A", "x" * 600, "\u202e", "\n",
)  # fmt: skip
PREFIXES = (
    "lora_unet_",
    "lora_te_",
    "lora_te3_",
    "lora_unet_unet_",
    "lycoris_",
    "unet.",
    "transformer.",
    "diffusion_model.",
    "",
)
PAIRS = (
    ("lora_down.weight", "lora_up.weight"), ("lora_A.weight", "lora_B.weight"), ("lora_a", "lora_b"),
    ("lora.down.weight", "lora.up.weight"), ("lokr_w1", "lokr_w2"), ("to_q_lora.down.weight", "to_q_lora.up.weight"),
    ("lora_down.weight", "alpha"), ("hada_w1_a", "hada_w1_b"),
)  # fmt: skip
MODULES = st.builds(
    lambda prefix, joint, words: prefix + joint.join(words),
    st.sampled_from(PREFIXES),
    st.sampled_from("._"),
    st.lists(st.sampled_from(WORDS) | st.text(max_size=3), max_size=8),
)


def write(path: Path, names: list[str]) -> None:
    """A file with a tensor of 2 x 2 zeros under each name."""
    header = {
        name: {"dtype": "F32", "shape": [2, 2], "data_offsets": [16 * at, 16 * (at + 1)]}
        for at, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(16 * len(names)))


def is_read(path: Path) -> bool:
    """Whether the file is taken; a refusal has a code and says something."""
    try:
        with foreign(path) as found:
            return found is not None
    except MalformedTensorFile as error:
        refusal = error
    assert refusal.code.startswith("E_")
    assert refusal.reason
    return False


@pytest.mark.slow
def test_any_name_is_read_or_refused(tmp_path, amount):
    @settings(max_examples=amount(60, 3000), deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(MODULES, min_size=1, max_size=3, unique=True), st.sampled_from(PAIRS))
    def run(modules: list[str], ends: tuple[str, str]) -> None:
        write(tmp_path / "x.safetensors", [f"{module}.{end}" for module, end in product(modules, ends)])
        is_read(tmp_path / "x.safetensors")

    run()


def test_a_name_that_is_right_is_read(tmp_path):
    names = [f"lora_unet_mid_block_attentions_0_proj_in.{end}" for end in PAIRS[0]]
    write(tmp_path / "x.safetensors", names)

    assert is_read(tmp_path / "x.safetensors")
