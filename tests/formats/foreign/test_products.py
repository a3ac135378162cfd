"""LoHa and LoKr of LyCORIS: PEFT computes on the converted folder what LyCORIS' formula says, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import save_file
from torch import nn

from adapterhub.core.errors import MalformedTensorFile
from adapterhub.formats.foreign.conversion import foreign
from adapterhub.trust.verify import verify_folder

LINEAR = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "mid_block.resnets.0.conv1"
OUT, WIDTH = 32, 16
Factors = Mapping[str, tuple[int, ...]]


def core(t: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A convolution of a core and its two sides, `[r, r, h, w]`, `[r, out]` and `[r, in]`."""
    return np.einsum("pqhw,po,qi->oihw", t, a, b)


def formula(method: str, f: Mapping[str, np.ndarray]) -> np.ndarray:
    """LyCORIS' update at scale 1."""
    f = {name: tensor.astype("f8") for name, tensor in f.items()}
    if method == "hada":
        one, two = (
            core(f[f"t{n}"], f[f"w{n}_a"], f[f"w{n}_b"]) if f"t{n}" in f else f[f"w{n}_a"] @ f[f"w{n}_b"]
            for n in (1, 2)
        )
        return one * two
    one = f["w1"] if "w1" in f else f["w1_a"] @ f["w1_b"]
    two = f["w2"] if "w2" in f else core(f["t2"], f["w2_a"], f["w2_b"]) if "t2" in f else f["w2_a"] @ f["w2_b"]
    return np.kron(one.reshape(*one.shape, *([1] * (two.ndim - 2))), two)


LOHA = {"w1_a": (OUT, 2), "w1_b": (2, WIDTH), "w2_a": (OUT, 2), "w2_b": (2, WIDTH)}
FLAT = {**LOHA, "w1_b": (2, 9 * WIDTH), "w2_b": (2, 9 * WIDTH)}
CORES = {f"w{n}_{side}": (2, size) for n in (1, 2) for side, size in (("a", OUT), ("b", WIDTH))}
CORES |= {"t1": (2, 2, 3, 3), "t2": (2, 2, 3, 3)}
HALF = {"w1": (4, 4), "w2_a": (8, 1), "w2_b": (1, 4)}
CASES: Mapping[str, tuple[str, Mapping[str, tuple[Factors, float]]]] = {
    "LoHa": ("hada", {LINEAR: (LOHA, 1.0), CONV: (FLAT, 4.0)}),
    "LoHa with cores": ("hada", {LINEAR: (LOHA, 1.0), CONV: (CORES, 4.0)}),
    "LoKr": ("lokr", {LINEAR: (HALF, 3.0), CONV: ({**HALF, "w2_b": (1, 36)}, 1.0)}),
    "LoKr, both sides whole": ("lokr", {LINEAR: ({"w1": (4, 4), "w2": (8, 4)}, 0.5)}),
    "LoKr, both sides in factors": (
        "lokr",
        {LINEAR: ({"w1_a": (4, 1), "w1_b": (1, 4), "w2_a": (8, 1), "w2_b": (1, 4)}, 2.0)},
    ),
    "LoKr by a factor of 2": ("lokr", {LINEAR: ({"w1": (2, 2), "w2_a": (16, 3), "w2_b": (3, 8)}, 2.0)}),
    "LoKr with a core": (
        "lokr",
        {CONV: ({"w1": (4, 4), "w2_a": (1, 8), "w2_b": (1, 4), "t2": (1, 1, 3, 3)}, 2.0)},
    ),
}  # fmt: skip


def write(path: Path, method: str, modules: Mapping[str, tuple[Factors, float]]) -> dict[str, np.ndarray]:
    """A file in LyCORIS' names, and the update of each module."""
    rng, tensors, meant = np.random.default_rng(0), {}, {}
    for module, (shapes, alpha) in modules.items():
        factors = {name: rng.standard_normal(shape).astype("f4") for name, shape in shapes.items()}
        key = f"lora_unet_{module.replace('.', '_')}"
        tensors |= {f"{key}.{method}_{name}": tensor for name, tensor in factors.items()}
        tensors[f"{key}.alpha"] = np.array(alpha, "f4")
        ranks = {"hada": ("w1_b",), "lokr": ("w2_b", "w1_b")}[method]
        rank = next((factors[name].shape[0] for name in ranks if name in factors), None)
        meant[module] = formula(method, factors) * (1.0 if rank is None else alpha / rank)
    save_file(tensors, path)
    return meant


def model() -> nn.Module:
    """Those two modules of a UNet, under their names."""
    root = nn.Module()
    for name, layer in ((LINEAR, nn.Linear(WIDTH, OUT)), (CONV, nn.Conv2d(WIDTH, OUT, 3))):
        at = root
        *parents, last = name.split(".")
        for part in parents:
            if not hasattr(at, part):
                at.add_module(part, nn.Module())
            at = getattr(at, part)
        at.add_module(last, layer)
    return root


@pytest.mark.parametrize("case", CASES)
def test_peft_computes_the_formula_on_what_is_read(case, tmp_path):
    meant = write(tmp_path / "x.safetensors", *CASES[case])
    with foreign(tmp_path / "x.safetensors") as found:
        (tmp_path / "peft").mkdir()
        found.write(tmp_path / "peft")

    assert [f for f in verify_folder(tmp_path / "peft").findings if f.severity == "error"] == []
    attached = PeftModel.from_pretrained(model(), tmp_path / "peft").double()
    for name, update in meant.items():
        with torch.no_grad():
            made = attached.get_submodule(f"base_model.model.{name}").get_delta_weight("default").numpy()
        assert np.abs(made - update.reshape(made.shape)).max() < 1e-12, name


@pytest.mark.parametrize("case", CASES)
def test_a_base_of_other_sizes_is_refused(case, tmp_path):
    write(tmp_path / "x.safetensors", *CASES[case])
    base = {LINEAR: (OUT, WIDTH), CONV: (OUT, WIDTH, 3, 3)}

    with foreign(tmp_path / "x.safetensors", base) as found:
        assert found is not None
    for module in CASES[case][1]:
        out, *rest = base[module]
        for other in ((2 * out, *rest), (out, 2 * rest[0], *rest[1:])):
            with (
                pytest.raises(MalformedTensorFile, match="the base has") as refusal,
                foreign(tmp_path / "x.safetensors", base | {module: other}),
            ):
                pass
            assert refusal.value.code == "E_SHAPE"


def test_sides_that_peft_does_not_choose_are_refused_by_name(tmp_path):
    other = {"w1": (2, 4), "w2_a": (16, 1), "w2_b": (1, 4)}
    write(tmp_path / "x.safetensors", "lokr", {LINEAR: (HALF, 1.0), CONV: (other, 1.0)})

    with pytest.raises(MalformedTensorFile) as refusal, foreign(tmp_path / "x.safetensors"):
        pass
    assert refusal.value.code == "E_UNSUPPORTED"
    assert CONV in str(refusal.value)
