"""Methods that PEFT builds from the settings of the file: what their files must not do, and what detach leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.boft import layer
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapterhub.inference.loader import attach, base_digest
from adapterhub.library.library import Library
from adapterhub.weights.extension import extension_where_possible
from tests.inference.test_attach_refusals import refusal_of
from tests.support.peft_bases import fresh, import_build_tools, llama, logits

pytestmark = pytest.mark.filterwarnings("ignore")

Edit = Callable[[dict[str, object], dict[str, Tensor]], object]


def saved(folder: Path, kind: str, edit: Edit = lambda _config, _tensors: None, **settings: object) -> Path:
    """An adapter of that method as PEFT saves it, then edited."""
    if kind == "BOFT":
        import_build_tools()
    torch.manual_seed(0)
    config = getattr(peft, f"{kind}Config")(**{"target_modules": ["q_proj", "v_proj"]} | settings)
    model = get_peft_model(fresh(llama), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    written = json.loads((folder / "adapter_config.json").read_text())
    edit(written, tensors)
    (folder / "adapter_config.json").write_text(json.dumps(written))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def set_all(end: str, value: Callable[[Tensor], Tensor]) -> Edit:
    def edit(_config: dict[str, object], tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if name.endswith(end):
                tensors[name] = value(tensor).contiguous()

    return edit


def without(end: str) -> Edit:
    def edit(_config: dict[str, object], tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(end)]:
            del tensors[name]

    return edit


def setting(**values: object) -> Edit:
    return lambda config, _tensors: config.update(values)


BANK = {"r": 2, "num_vectors": 8, "vector_length": 8}
BAD: Mapping[str, tuple[str, dict[str, object], Edit, str]] = {
    "indices above the weight": ("Shira", {"r": 1}, set_all("indices", lambda t: t + 1000), "points outside"),
    "indices below zero": ("Supertuning", {}, set_all("indices", lambda t: -1 - t), "points outside"),
    "another shape": ("Hira", {"r": 2}, set_all("hira_A", lambda t: t[:, :-1]), "needs hira_A of shape"),
    "a tensor less": ("Delora", {"r": 2}, without("delora_w_norm"), "has no tensor `delora_w_norm`"),
    "no bank of vectors": ("VBLoRA", BANK, without("vector_bank"), "does not have as many as"),
    "a bank that fills the memory": ("VBLoRA", BANK, setting(num_vectors=10**12), "far above the sizes"),
    "more layers than tensors": ("Peanut", {"r": 2}, setting(depth=4000), "`depth` is 4000, far above"),
    "a setting of another type": ("BOFT", {"boft_block_size": 4}, setting(boft_block_size="x"), "PEFT cannot attach"),
    "random numbers at each call": ("Pvera", {"r": 4}, setting(sample_at_inference=True), "sample_at_inference"),
    "places that are in no file": ("Supertuning", {}, setting(save_precomputed_indices=False), "lacks the places"),
    "a weight of the base": (
        "Miss",
        {"r": 2},
        lambda _, tensors: tensors.update({"base_model.model.lm_head.bias": torch.ones(32)}),
        "lm_head.bias",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused_and_the_base_stays(case: str, tmp_path: Path, library: Library) -> None:
    kind, settings, edit, text = BAD[case]

    folder = saved(tmp_path / "a", kind, edit, **settings)

    assert text in str(refusal_of(folder, library, lambda: fresh(llama)))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("OFT", {"oft_block_size": 4}),
        ("LNTuning", {"target_modules": ["input_layernorm"]}),
        ("FourierFT", {"n_frequency": 20}),
    ],
    ids=["OFT", "LN tuning", "FourierFT"],
)
def test_logits_are_pefts_and_detach_leaves_the_base(
    kind: str, settings: dict[str, object], tmp_path: Path, library: Library
) -> None:
    folder = saved(tmp_path / "a", kind, **settings)
    expected = logits(PeftModel.from_pretrained(fresh(llama), folder).eval())
    model = fresh(llama)
    before, digest = logits(model), base_digest(model)

    with attach(model, folder, library=library) as attached:
        assert float((logits(attached.model) - expected).abs().max()) < 1e-6
        assert ("generated from its random seed" in str(attached.adapters[0].warnings)) == (kind == "FourierFT")

    assert torch.equal(logits(model), before)
    assert base_digest(model) == digest
    assert float((expected - before).abs().max()) > 1e-2


AFTER_PIP = """
import importlib.util
import sys

importlib.util.find_spec("pip")

from pathlib import Path
import torch
from adapterhub.inference.loader import attach
from adapterhub.library.library import Library
from tests.support.peft_bases import fresh, llama, logits

folder, home, out = map(Path, sys.argv[1:])
with attach(fresh(llama), folder, library=Library(home)) as attached:
    torch.save(logits(attached.model), out)
"""


def test_boft_is_attached_in_a_process_that_looked_for_pip(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a", "BOFT", boft_block_size=4)
    expected = logits(PeftModel.from_pretrained(fresh(llama), folder).eval())

    done = subprocess.run(
        [sys.executable, "-c", AFTER_PIP, folder, tmp_path / "library", tmp_path / "logits.pt"],
        cwd=Path(__file__).parents[2], env=os.environ | {"PYTHONPATH": "."}, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert float((torch.load(tmp_path / "logits.pt") - expected).abs().max()) < 1e-6


def test_tools_that_cannot_be_imported_are_no_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "torch.utils.cpp_extension", None)
    looked_up = layer.get_fbd_cuda

    with extension_where_possible():
        assert layer.get_fbd_cuda() is None

    assert layer.get_fbd_cuda is looked_up
