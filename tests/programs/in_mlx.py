"""What runs inside MLX's environment: make a tiny model with adapters as mlx-lm writes them, or compute with given ones.

python in_mlx.py make FOLDER lora|dora      model/, mlx/ (adapters), logits.npy, bare.npy
python in_mlx.py run FOLDER ADAPTERS        logits of the model with those adapters -> again.npy
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

CONFIG = {
    "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 48, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": 64, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 64, "head_dim": 8, "rope_traditional": False,
}  # fmt: skip


def model_of(folder: Path) -> Any:
    """The model of a folder with `config.json` and `model.safetensors`."""
    import mlx.core as mx
    from mlx_lm.models.llama import Model, ModelArgs

    model = Model(ModelArgs.from_dict(json.loads((folder / "config.json").read_text())))
    model.load_weights(list(mx.load(str(folder / "model.safetensors")).items()))
    return model


def logits(model: Any, path: Path) -> None:
    """The logits of eight fixed tokens, to a file."""
    import mlx.core as mx
    import numpy as np

    np.save(path, np.array(model(mx.array([[1, 5, 9, 2, 33, 60, 7, 7]]))).astype("f4"))


def make(folder: Path, kind: str) -> None:
    """A random model, and adapters on it with random numbers, saved as mlx-lm's trainer saves them."""
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_unflatten
    from mlx_lm.models.llama import Model, ModelArgs
    from mlx_lm.tuner.utils import linear_to_lora_layers

    mx.random.seed(0)
    (folder / "model").mkdir(parents=True)
    (folder / "mlx").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(CONFIG))
    model = Model(ModelArgs.from_dict(CONFIG))
    whole = {name: 0.3 * mx.random.normal(value.shape) for name, value in tree_flatten(model.parameters())}
    mx.save_safetensors(str(folder / "model" / "model.safetensors"), whole, metadata={"format": "mlx"})
    model = model_of(folder / "model")
    logits(model, folder / "bare.npy")
    parameters = {
        "rank": 4,
        "scale": 3.0,
        "dropout": 0.0,
        "keys": ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"],
    }
    model.freeze()
    linear_to_lora_layers(model, 2, parameters, use_dora=kind == "dora")
    own = {
        n: v if n.endswith(".m") else 0.2 * mx.random.normal(v.shape)
        for n, v in tree_flatten(model.trainable_parameters())
    }
    model.update(tree_unflatten(list(own.items())))
    mx.save_safetensors(str(folder / "mlx" / "adapters.safetensors"), own)
    config = {"fine_tune_type": kind, "num_layers": 2, "lora_parameters": parameters, "model": "org/tiny"}
    (folder / "mlx" / "adapter_config.json").write_text(json.dumps(config))
    logits(model, folder / "logits.npy")


def run(folder: Path, adapters: Path) -> None:
    """The logits with adapters that mlx-lm itself loads."""
    from mlx_lm.tuner.utils import load_adapters

    model = model_of(folder / "model")
    model.freeze()
    logits(load_adapters(model, str(adapters)), folder / "again.npy")


if __name__ == "__main__":
    what, place, last = sys.argv[1:]
    make(Path(place), last) if what == "make" else run(Path(place), Path(last))
