"""Which base the model in memory is: accepted, refused, recorded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers import BertForMaskedLM, BertForSequenceClassification, LlamaModel

import adapterhub
from adapterhub.core.errors import AdapterNotFound, AmbiguousSpec, BaseMismatch, DigestMismatch, SpecError
from adapterhub.core.specs import parse_name
from adapterhub.formats.base.fingerprint import BaseVerdict
from adapterhub.inference.loader import attach, base_digest
from adapterhub.inference.loader.base import BaseModel
from adapterhub.inference.loader.identity import compare_base, sample_base
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Installed, Library
from tests.support.tiny_models import IDS, bert, llama, logits, save_adapter

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT and transformers warn of much that is meant here

TARGETS = ["q_proj", "v_proj"]


@pytest.fixture
def base(tmp_path: Path, library: Library) -> BaseRecord:
    return register(library, tmp_path, llama(), "base-7b")


def register(library: Library, tmp_path: Path, model: Any, alias: str) -> BaseRecord:
    model.save_pretrained(tmp_path / alias)
    record = library.bases.add(tmp_path / alias, alias)
    library.catalog.put_base(record)
    return record


@pytest.fixture
def add(tmp_path: Path, library: Library) -> Callable[..., Installed]:
    def make(
        name: str = "legal-qa", base: BaseRecord | None = None, seed: int = 1, version: str = "1.0.0"
    ) -> Installed:
        config = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS)
        folder = save_adapter(tmp_path / f"{name}-{version}-{seed}", llama, config, seed=seed)
        return library.add(folder, Description(name=parse_name(name), version=version), base=base).build

    return make


def fine_tuned() -> nn.Module:
    """The base after one small step of training."""
    model = llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return model.eval()


# ---------------------------------------------------------------- accepted
def test_adapter_of_this_base_is_attached_by_its_name(library: Library, base: BaseRecord, add: Any) -> None:
    build = add(base=base)

    attached = attach(llama(), "legal-qa", library=library)

    (facts,) = attached.adapters
    assert facts.verdict is BaseVerdict.SAME_WEIGHTS
    assert facts.folder == build.folder
    assert facts.warnings == ()
    assert torch.equal(logits(attach(llama(), build.folder, library=library).model), logits(attached.model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_base_in_another_precision_is_accepted(
    dtype: torch.dtype, library: Library, base: BaseRecord, add: Any
) -> None:
    add(base=base)

    attached = attach(llama().to(dtype), "legal-qa@base-7b", library=library)

    assert attached.adapters[0].verdict is BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION


def test_base_fingerprinted_without_its_head_is_the_same_base(tmp_path: Path, library: Library, add: Any) -> None:
    record = register(library, tmp_path, llama().model, "headless")
    add(base=None)

    attached = attach(llama(), "legal-qa", library=library)

    assert isinstance(llama().model, LlamaModel)
    assert library.builds_named("legal-qa")[0].base.fingerprint == record.fingerprint
    assert attached.warnings


def test_model_with_a_new_head_is_its_base(tmp_path: Path, library: Library) -> None:
    pretrained = BertForMaskedLM(bert().config)
    record = register(library, tmp_path, pretrained, "bert")
    model = BertForSequenceClassification.from_pretrained(tmp_path / "bert", num_labels=3)

    verdict = compare_base(record.fingerprint, sample_base(BaseModel(model))).verdict

    assert verdict is BaseVerdict.SAME_WEIGHTS


# ---------------------------------------------------------------- refused
@pytest.mark.parametrize(
    ("make", "verdict", "said"),
    [
        (lambda: llama(seed=1), BaseVerdict.SAME_SHAPES, "sampled values differ"),
        (fine_tuned, BaseVerdict.SAME_SHAPES, "sampled values differ"),
        (lambda: llama(hidden_size=64), BaseVerdict.DIFFERENT, "not all have the same shape"),
        (lambda: llama(num_hidden_layers=1), BaseVerdict.DIFFERENT, "1 layers are in its base only"),
        (lambda: llama(num_hidden_layers=3), BaseVerdict.DIFFERENT, "1 layers are in this model only"),
    ],
    ids=["another seed", "one step of training", "wider", "fewer layers", "more layers"],
)
def test_another_base_is_refused_before_anything_is_wrapped(
    make: Any, verdict: BaseVerdict, said: str, library: Library, base: BaseRecord, add: Any
) -> None:
    add(base=base)
    model = make()
    before, modules = base_digest(model), [id(module) for module in model.modules()]

    assert verdict is compare_base(base.fingerprint, sample_base(BaseModel(model))).verdict
    with pytest.raises(BaseMismatch, match=said) as refusal:
        attach(model, "legal-qa", library=library)

    assert f"made for base `base-7b` ({base.fingerprint.weights[7:19]})" in refusal.value.message
    assert before == base_digest(model)
    assert modules == [id(module) for module in model.modules()]


def test_refusal_names_the_registered_base_that_the_model_is(
    tmp_path: Path, library: Library, base: BaseRecord, add: Any
) -> None:
    add(base=base)
    other = register(library, tmp_path, llama(seed=1), "other-7b")

    with pytest.raises(BaseMismatch) as refusal:
        attach(llama(seed=1), "legal-qa", library=library)

    assert f"this model is `other-7b` ({other.fingerprint.weights[7:19]})" in refusal.value.message


def test_mismatch_of_values_can_be_overridden_and_is_recorded(library: Library, base: BaseRecord, add: Any) -> None:
    add(base=base)

    attached = attach(fine_tuned(), "legal-qa", library=library, allow_base_mismatch=True)

    assert attached.adapters[0].verdict is BaseVerdict.SAME_SHAPES
    assert any("attached anyway" in warning for warning in attached.warnings)


@pytest.mark.parametrize("spec", ["legal-qa", "legal-qa@other-7b"])
def test_mismatch_that_was_allowed_at_install_is_allowed_here(
    spec: str, tmp_path: Path, library: Library, base: BaseRecord, add: Any
) -> None:
    build = add(base=base)
    other = register(library, tmp_path, llama(seed=1), "other-7b")
    library.allow_mismatch(build, other)

    attached = attach(llama(seed=1), spec, library=library)

    assert any("this model is `other-7b`" in warning for warning in attached.warnings)
    with pytest.raises(BaseMismatch):
        attach(llama(seed=2), "legal-qa", library=library)


def test_mismatch_of_structure_cannot_be_overridden(library: Library, base: BaseRecord, add: Any) -> None:
    add(base=base)

    with pytest.raises(BaseMismatch):
        attach(llama(num_hidden_layers=3), "legal-qa", library=library, allow_base_mismatch=True)


@pytest.mark.parametrize("how", ["in the spec", "beside it"])
def test_model_that_is_not_the_base_named_for_it_is_refused(
    how: str, tmp_path: Path, library: Library, base: BaseRecord, add: Any
) -> None:
    add(base=None)
    register(library, tmp_path, llama(seed=1), "other-7b")
    spec, named = ("legal-qa@other-7b", None) if how == "in the spec" else ("legal-qa", "other-7b")

    with pytest.raises(BaseMismatch, match=r"was requested for base `other-7b`.*this model is `base-7b`"):
        attach(llama(), spec, base=named, library=library)


def test_an_adapter_that_declares_nothing_still_needs_its_modules(tmp_path: Path, library: Library) -> None:
    folder = save_adapter(tmp_path / "a", lambda: llama(num_hidden_layers=6), LoraConfig(r=4, target_modules=TARGETS))
    model = llama()
    before, modules = base_digest(model), [id(module) for module in model.modules()]

    with pytest.raises(BaseMismatch, match=r"8 of 12 modules .* are not in this model"):
        attach(model, folder, library=library)

    assert (before, modules) == (base_digest(model), [id(module) for module in model.modules()])


def test_shapes_that_do_not_fit_are_listed_and_undone(tmp_path: Path, library: Library) -> None:
    folder = save_adapter(tmp_path / "a", lambda: llama(hidden_size=64), LoraConfig(r=4, target_modules=TARGETS))
    model = llama()
    before, modules = base_digest(model), [id(module) for module in model.modules()]

    with pytest.raises(
        BaseMismatch, match=r"q_proj` needs lora_A.weight of shape \[4, 32\], the adapter has \[4, 64\]"
    ):
        attach(model, folder, library=library)

    assert (before, modules) == (base_digest(model), [id(module) for module in model.modules()])
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert "peft_config" not in vars(model)


# ---------------------------------------------------------------- unknown, and pinned
def test_adapter_without_a_fingerprint_is_pinned_to_the_base_it_ran_on(
    library: Library, base: BaseRecord, add: Any
) -> None:
    add(base=None)

    first = attach(llama(), "legal-qa", library=library)
    second = attach(llama(), "legal-qa", library=library)

    assert any("declares no base fingerprint" in warning for warning in first.warnings)
    assert any("now pinned to base `base-7b`" in warning for warning in first.warnings)
    assert second.warnings == ()
    with pytest.raises(BaseMismatch):
        attach(llama(seed=1), "legal-qa", library=library)


def test_adapter_is_not_pinned_to_a_model_that_nobody_registered(library: Library, base: BaseRecord, add: Any) -> None:
    add(base=None)

    attached = attach(llama(seed=1), "legal-qa", library=library)

    assert any("not pinned" in warning for warning in attached.warnings)
    assert library.builds_named("legal-qa")[0].base.fingerprint is None


# ---------------------------------------------------------------- which adapter is meant
def test_the_model_chooses_among_builds_for_several_bases(
    tmp_path: Path, library: Library, base: BaseRecord, add: Any
) -> None:
    other = register(library, tmp_path, llama(seed=1), "other-7b")
    builds = [add(base=base, seed=1), add(base=other, seed=2)]

    chosen = [attach(llama(seed=seed), "legal-qa", library=library).adapters[0].folder for seed in (0, 1)]

    assert [build.folder for build in builds] == chosen
    with pytest.raises(AmbiguousSpec):
        attach(llama(seed=2), "legal-qa", library=library)


def test_versions_digests_and_installed_builds_can_be_asked_for(library: Library, base: BaseRecord, add: Any) -> None:
    old, new = add(base=base, version="1.0.0"), add(base=base, version="1.1.0", seed=2)

    asked = ["legal-qa", "legal-qa==1.0.0", f"legal-qa#{old.manifest.digest[:19]}", old]

    found = [attach(llama(), what, library=library).adapters[0].folder for what in asked]
    assert found == [new.folder, old.folder, old.folder, old.folder]


def test_what_is_not_there_is_told_with_what_would_help(
    tmp_path: Path, library: Library, base: BaseRecord, add: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(base=base)
    (tmp_path / "My Folder").mkdir()
    monkeypatch.chdir(tmp_path)

    with pytest.raises(AdapterNotFound) as misspelt:
        attach(llama(), "legal-qx", library=library)
    with pytest.raises(AdapterNotFound, match="no such folder"):
        attach(llama(), tmp_path / "nothing", library=library)
    with pytest.raises(SpecError) as folder:
        attach(llama(), "My Folder", library=library)

    assert "legal-qa" in misspelt.value.hint
    assert "./My Folder" in folder.value.hint


def test_damaged_file_is_refused(library: Library, base: BaseRecord, add: Any) -> None:
    build = add(base=base)
    weights = build.folder / "adapter_model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-3] ^= 1
    weights.unlink()  # a hard link into the store
    weights.write_bytes(raw)

    with pytest.raises(DigestMismatch):
        attach(llama(), "legal-qa", library=library)


def test_folder_that_declares_a_fingerprint_is_held_to_it(
    tmp_path: Path, library: Library, base: BaseRecord, add: Any
) -> None:
    folder = add(base=base).folder

    with pytest.raises(BaseMismatch, match="made for base"):
        attach(llama(seed=1), folder, library=Library(tmp_path / "elsewhere"))
    assert "fingerprint" not in json.loads((folder / "adapter_config.json").read_text())


def test_package_attaches_from_the_library_of_the_environment(
    library: Library, base: BaseRecord, add: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(base=base)
    monkeypatch.setenv("ADAPTERHUB_HOME", str(library.root))

    with adapterhub.attach(llama(), "legal-qa") as attached:
        assert attached.adapters[0].label == "legal-qa==1.0.0"


def test_importing_the_package_imports_nothing_else_and_keeps_every_promise() -> None:
    code = "import sys, adapterhub; print([m for m in sys.modules if m.startswith('adapterhub.') or m == 'torch'])"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert loaded.strip() == "[]"
    assert [name for name in adapterhub.__all__ if not hasattr(adapterhub, name)] == []
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = adapterhub.nothing_here
