"""Stacked experts mean what their writer meant: in attach, bank, merge, comparison and export, or they are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Qwen3MoeForCausalLM

import adapterhub
from adapterhub import AdapterBank, Library
from adapterhub.core.errors import RefusedAdapter, UsageProblem
from adapterhub.formats.dialects.experts import LAYOUTS, Layout
from tests.dialects.layouts import BASES, IDS, Trained, laid_out, outcome, read, trained, write

pytestmark = pytest.mark.slow

MARKS = {False: "0.21.2", True: "0.18.1"}
PACKED = {False: "rank_major", True: "grouped_by_expert"}


@pytest.fixture(scope="module", params=[False, True], ids=["A on inputs", "A on the first side"])
def square(request, tmp_path_factory) -> Trained:
    """An adapter on a gate_up_proj that is square, so that no shape tells the side of A."""
    place = tmp_path_factory.mktemp("square")
    return trained(place, "square", 4, seed=1, is_turned=request.param, targets=("gate_up_proj",))


def _error(logits: torch.Tensor, source: Trained) -> float:
    return float((logits - source.truth).norm() / (source.truth - source.plain).norm())


def _logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits.double()


def _library(place: Path, source: Trained) -> Library:
    library = Library(place)
    library.bases.add(source.folder / "base", alias="b")
    return library


def _model(source: Trained) -> torch.nn.Module:
    return Qwen3MoeForCausalLM.from_pretrained(source.folder / "base").eval()


@pytest.fixture
def is_turned(request) -> bool:
    return "first side" in request.node.callspec.id


@pytest.mark.parametrize("is_grouped", [False, True], ids=["rank by rank", "expert by expert"])
@pytest.mark.parametrize("is_marked", [False, True], ids=["version only", "marked"])
def test_each_layout_computes_what_was_trained(square, is_turned, is_grouped, is_marked, tmp_path) -> None:
    layout = Layout(is_turned=is_turned, is_grouped=is_grouped)
    marks = {"peft_version": MARKS[is_turned]} | ({"lora_B_layout": PACKED[is_grouped]} if is_marked else {})
    write(tmp_path / "adapter", square, layout, **marks)
    library = _library(tmp_path / "home", square)
    build = library.add(tmp_path / "adapter", name="x", base="b").build
    assert build.manifest.annotations["dialect"] == layout.name
    with adapterhub.attach(_model(square), "x@b", library=library) as attached:
        assert _error(_logits(attached.model), square) < 1e-6
    with AdapterBank(_model(square), library=library) as bank:
        bank.load("x@b")
        with bank.use("x@b"):
            assert _error(_logits(bank.model), square) < 1e-6


def test_layouts_of_one_adapter_are_one_adapter(square, is_turned, tmp_path) -> None:
    library = _library(tmp_path / "home", square)
    for name, is_grouped in (("plain", False), ("grouped", True)):
        layout = Layout(is_turned=is_turned, is_grouped=is_grouped)
        write(tmp_path / name, square, layout, peft_version=MARKS[is_turned])
        library.add(tmp_path / name, name=name, base="b")
    assert library.compare("plain@b", "grouped@b").pairs[0].cosine == pytest.approx(1, abs=1e-5)
    library.merge({"plain@b": 0.5, "grouped@b": 0.5}, output="both")
    with adapterhub.attach(_model(square), "both@b", library=library) as attached:
        assert _error(_logits(attached.model), square) < 1e-5


def test_a_file_that_tells_nothing_is_refused_until_its_dialect_is_named(square, is_turned, tmp_path) -> None:
    layout = Layout(is_turned=is_turned)
    write(tmp_path / "adapter", square, layout)
    library = _library(tmp_path / "home", square)
    with pytest.raises(RefusedAdapter, match=r"E_DIALECT.*`peft`.*`peft@0\.18`") as refused:
        library.add(tmp_path / "adapter", name="x", base="b")
    assert "--dialect" in refused.value.hint
    with pytest.raises(RefusedAdapter, match="E_DIALECT"):
        adapterhub.attach(_model(square), tmp_path / "adapter", library=library)
    library.add(tmp_path / "adapter", name="x", base="b", dialect=layout.name)
    with adapterhub.attach(_model(square), "x@b", library=library) as attached:
        assert _error(_logits(attached.model), square) < 1e-6
    with pytest.raises(UsageProblem, match="`nemo` is not a dialect"):
        library.add(tmp_path / "adapter", name="y", base="b", dialect="nemo")


@pytest.mark.parametrize(("base", "rank"), [("wide", 4), ("many", 8), ("few", 4), ("deep", 2)])
def test_trained_numbers_tell_the_packing_or_leave_it_open(base, rank, tmp_path) -> None:
    source = trained(tmp_path / "peft", base, rank, seed=7)
    found = []
    for layout in LAYOUTS[:2]:
        write(tmp_path / layout.name, source, layout, peft_version="0.19.0" if base == "deep" else "")
        found.append(outcome(read(tmp_path / layout.name, source.shapes), layout, rank=rank))
    assert "wrong" not in found
    assert "right" in found


@pytest.mark.parametrize("seed", [100, 103])
def test_an_adapter_of_few_steps_with_a_version_is_never_misread(seed, tmp_path) -> None:
    """Unsloth's files have PEFT's version too, so the version alone must not decide."""
    source = trained(tmp_path / "peft", "few", 2, seed=seed, steps=20, is_turned=True)
    for layout in LAYOUTS[2:]:
        write(tmp_path / layout.name, source, layout, peft_version="0.18.1")
        assert outcome(read(tmp_path / layout.name, source.shapes), layout, rank=2) != "wrong"


@pytest.mark.parametrize("seed", range(12))
def test_random_numbers_with_a_version_are_those_of_peft(seed, square, tmp_path) -> None:
    """Nobody trained them, so nothing in them speaks for another packing."""
    torch.manual_seed(seed)
    random = square._replace(tensors={name: torch.randn_like(tensor) for name, tensor in square.tensors.items()})
    write(tmp_path / "adapter", random, LAYOUTS[0], peft_version="0.21.2")
    assert read(tmp_path / "adapter", square.shapes).layout == LAYOUTS[0]


def test_every_layout_differs_from_the_others(square) -> None:
    """Without this, a test above could pass with layouts that are the same."""
    experts = BASES["square"]["num_experts"]
    first, second = (laid_out(square.tensors, Layout(is_grouped=grouped), experts) for grouped in (False, True))
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_verify_compares_experts_with_the_base(square, is_turned, tmp_path) -> None:
    """`verify` is ok where attach works, and names the experts where the base has others."""
    write(tmp_path / "adapter", square, Layout(is_turned=is_turned), peft_version=MARKS[is_turned])
    library = _library(tmp_path / "home", square)
    other = trained(tmp_path / "other", "few", 4, seed=2)
    library.bases.add(other.folder / "base", alias="other")

    (here,) = library.verify(tmp_path / "adapter", base="b").values()
    assert [finding for finding in here.findings if finding.code[0] in "EU"] == []
    (there,) = library.verify(tmp_path / "adapter", base="other").values()
    assert [finding.code for finding in there.errors] == ["E_BASE_MISMATCH"]
    assert "8 experts" in there.errors[0].message
