"""Contracts of encoders: labels by their divergence, vectors by their cosine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig, BertModel

from adapterhub.core.specs import parse_name
from adapterhub.formats.contract.reader import contract_in
from adapterhub.formats.manifest import CONTRACT_FILE, WEIGHTS_FILE
from adapterhub.inference.contracts.answers import mean_divergence
from adapterhub.inference.loader.text import load_base
from adapterhub.library.intake.description import Description
from tests.support.command_line import Adapt
from tests.support.contracts import write_examples
from tests.support.moved_bases import moved_copy
from tests.support.run_library import write_tokenizer
from tests.support.tiny_models import VOCABULARY, save_adapter

pytestmark = pytest.mark.filterwarnings("ignore")
RECORD = ("--examples", "examples.jsonl")


def with_head(base: Path) -> Any:
    torch.manual_seed(3)
    return AutoModelForSequenceClassification.from_pretrained(base, num_labels=3).eval()


def without_head(base: Path) -> Any:
    return AutoModel.from_pretrained(base).eval()


@pytest.fixture(scope="module")
def adapt(tmp_path_factory: pytest.TempPathFactory) -> Adapt:
    """`mood` gives one of three labels, `near` gives vectors; both have a contract."""
    folder = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    BertModel(config).save_pretrained(folder / "bert")
    write_tokenizer(folder / "bert", template=None)
    adapt = Adapt(folder)
    adapt.ok("base", "add", "./bert", "--as", "bert")
    record = adapt.library.bases.list()[0]
    write_examples(folder / "examples.jsonl")
    lora = {"r": 4, "lora_alpha": 16, "target_modules": ["query", "value"]}
    kinds = {"mood": ("SEQ_CLS", with_head), "near": ("FEATURE_EXTRACTION", without_head)}
    base = folder / "bert"
    for seed, (name, (task, make)) in enumerate(kinds.items(), 1):
        save_adapter(folder / name, lambda make=make: make(base), LoraConfig(task_type=task, **lora), seed=seed)
        adapt.library.add(folder / name, Description(name=parse_name(name), version="1.0.0"), base=record)
        adapt.ok("contract", "record", name, *RECORD)
    return adapt


def result_of(adapt: Adapt, exit_code: int, *arguments: object) -> dict[str, Any]:
    done = adapt("test", *arguments, "--json")
    assert done.exit_code == exit_code, done.stdout + done.stderr
    return dict(json.loads(done.stdout)[0])


def changed(adapt: Adapt, folder: Path, name: str, part: str, change: Any) -> Path:
    """A copy of an adapter with its contract, some of its tensors changed."""
    (build,) = (b for b in adapt.library.installed() if (b.manifest.name, b.manifest.version) == (name, "1.0.1"))
    shutil.copytree(build.folder, folder, ignore=shutil.ignore_patterns("adapterhub.json", WEIGHTS_FILE))
    tensors = load_file(build.folder / WEIGHTS_FILE)
    save_file({k: change(t).contiguous() if part in k else t for k, t in tensors.items()}, folder / WEIGHTS_FILE)
    return folder


def test_encoders_are_asked_on_another_base(adapt: Adapt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[object] = []

    def load(*arguments: Any, **how: Any) -> Any:
        loaded.append(how["labels"])
        return load_base(*arguments, **how)

    monkeypatch.setattr("adapterhub.inference.loader.text.load_base", load)
    shutil.copytree(adapt.folder, tmp_path / "own", symlinks=True)
    own = Adapt(tmp_path / "own")
    moved_copy(own.folder / "bert", own.folder / "next", 0.001, model_class=AutoModel)
    own.ok("base", "add", "./next", "--as", "next")
    found = json.loads(own.ok("test", "--all", "--on", "next", "--json"))

    assert {one["name"]: (one["outcome"], one["base_verdict"]) for one in found} == {
        "mood": ("works", "SAME_SHAPES"), "near": ("works", "SAME_SHAPES")
    }  # fmt: skip
    assert sorted(loaded, key=str) == [3, None]  # once for each kind
    assert own("test", "mood", "--base", "next").exit_code == 11


def test_an_encoder_as_recorded_passes(adapt: Adapt) -> None:
    mood, near = result_of(adapt, 0, "mood"), result_of(adapt, 0, "near")

    assert (mood["same"], mood["kl"], mood["cosine"]) == (1.0, pytest.approx(0, abs=1e-5), None)
    assert (near["same"], near["kl"], near["cosine"]) == (None, None, pytest.approx(1, abs=1e-3))
    assert result_of(adapt, 0, "mood", "--dtype", "bfloat16")["verdict"] == "PASS"


def test_a_rolled_head_and_a_lost_update_have_changed(adapt: Adapt, tmp_path: Path) -> None:
    rolled = changed(adapt, tmp_path / "rolled", "mood", "classifier", lambda t: t.roll(1, 0))
    lost = changed(adapt, tmp_path / "lost", "near", "lora_B", torch.zeros_like)

    assert "the mean KL divergence is" in str(result_of(adapt, 3, rolled, "--base", "bert")["broken"])
    assert "the least cosine is" in str(result_of(adapt, 3, lost, "--base", "bert")["broken"])


def test_one_golden_in_twenty_on_the_edge_of_a_label_does_not_decide_alone() -> None:
    calm = [0.001] * 19

    assert mean_divergence([*calm, 4.0]) == pytest.approx(0.001)
    assert mean_divergence([*calm, 4.0, 4.0]) > 0.1
    assert mean_divergence([0.001, 4.0]) == pytest.approx(2.0005)


def test_vectors_of_a_classifier_are_held_where_they_were_asked_for(adapt: Adapt, tmp_path: Path) -> None:
    shutil.copytree(adapt.folder / "mood", tmp_path / "mood")
    record = ("contract", "record", tmp_path / "mood", *RECORD, "--base", "bert", "--count", "4", "--vectors")
    adapt.ok(*record)
    contract = contract_in(tmp_path / "mood")

    assert contract is not None
    assert [golden.vector is not None for golden in contract.goldens] == [True] * 4
    assert result_of(adapt, 0, tmp_path / "mood", "--base", "bert")["cosine"] == pytest.approx(1, abs=1e-3)
    assert (tmp_path / "mood" / CONTRACT_FILE).stat().st_size < 32 << 10
