"""MLX's layers of all experts, read and written again, on stacked experts and on single ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import adapterhub
from adapterhub import Library
from adapterhub.core.errors import RefusedAdapter, UnsupportedAdapter
from adapterhub.inference.export import export
from tests.dialects.mixtures import EXPERTS, FAMILIES, IDS, RANK, SCALE, Mixture, mixture, named, write
from tests.dialects.test_programs import megatron_fused

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=FAMILIES)
def source(request, tmp_path_factory) -> Mixture:
    return mixture(tmp_path_factory.mktemp("base"), request.param, has_head=False)


def switches(source: Mixture) -> dict[str, Tensor]:
    """The tensors of mlx-lm: plain pairs transposed, those of experts stacked."""
    tensors = {}
    for name, (a, b) in source.plain.items():
        tensors |= {f"{name}.lora_a": a.T, f"{name}.lora_b": b.T}
    for layer in range(2):
        for name in ("gate", "up", "down"):
            place = source.holder(layer).removesuffix("experts") + f"switch_mlp.{name}_proj"
            a, b = source.stacked(layer, name)
            tensors |= {f"{place}.lora_a": a, f"{place}.lora_b": b}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def write_mlx(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "adapters.safetensors")
    parameters = {"rank": RANK, "scale": SCALE, "dropout": 0.0}
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("is_old", [False, True], ids=["0.28.3", "before"])
def test_switch_layers_compute_the_dense_sum_and_come_back(is_old, source, tmp_path) -> None:
    tensors = switches(source)
    given = {
        n: t.reshape(-1, t.shape[-1]) if is_old and n.endswith("_proj.lora_a") and t.ndim > 2 else t
        for n, t in tensors.items()
    }
    library = Library(tmp_path / "home")
    library.bases.add(source.folder, alias="b")
    library.add(write_mlx(tmp_path / "mlx", given), name="x", base="b")
    with adapterhub.attach(source.load(), "x@b", library=library) as attached, torch.no_grad():
        assert source.error(attached.model(input_ids=IDS).logits) < 1e-6

    export("x@b", tmp_path / "out", form="mlx", library=library)

    again = load_file(tmp_path / "out" / "adapters.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["lora_parameters"]["scale"] == SCALE


def test_stacked_experts_are_written_as_switch_layers(source, tmp_path) -> None:
    library = Library(tmp_path / "home")
    library.bases.add(source.folder, alias="b")
    library.add(write(tmp_path / "fused", megatron_fused(source)), name="x", base="b")

    export("x@b", tmp_path / "out", form="mlx", library=library)

    again, tensors = load_file(tmp_path / "out" / "adapters.safetensors"), switches(source)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


def test_what_mlx_cannot_say_of_experts_is_refused(source, tmp_path) -> None:
    library = Library(tmp_path / "home")
    library.bases.add(source.folder, alias="b")
    called = dict(zip(("gate", "up", "down"), FAMILIES[source.family][3], strict=True))
    pairs = {
        f"{source.holder(layer)}.{expert}.{called[name]}": pair
        for (layer, expert, name), pair in source.pairs.items()
        if expert != EXPERTS - 2
    }
    library.add(write(tmp_path / "some", named(pairs)), name="x", base="b")
    with pytest.raises(UnsupportedAdapter, match="are not all there"):
        export("x@b", tmp_path / "out", form="mlx", library=library)

    broken = switches(source)
    place = next(name for name in broken if "switch_mlp" in name and name.endswith("lora_a"))
    broken[place] = torch.zeros(EXPERTS, RANK + 1, 16)
    with pytest.raises(RefusedAdapter, match="has experts of shapes"):
        library.add(write_mlx(tmp_path / "broken", broken), name="y", base="b")
