"""The folder of an adapter that most checks are given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from adapterhub.formats.manifest import (
    CONFIG_FILE,
    WEIGHTS_FILE,
)
from tests.trust.verifying import (
    RANK,
    Make,
    attention,
)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A folder from tensors and changed settings; `...` leaves a setting out."""

    def build(tensors: Mapping[str, np.ndarray] | None = None, **settings: Any) -> Path:
        folder = tmp_path / "adapter"
        folder.mkdir(exist_ok=True)
        save_file(dict(attention() if tensors is None else tensors), folder / WEIGHTS_FILE, metadata={"format": "pt"})
        value = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "test/tiny", "r": RANK}
        value |= {"lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]} | settings
        (folder / CONFIG_FILE).write_text(json.dumps({k: v for k, v in value.items() if v is not ...}))
        return folder

    return build
