"""`adapt serve --engine llama.cpp` proves that its GGUF file is the base of the adapters, before anything starts."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import AutoModelForCausalLM

from adapterhub.core.errors import BaseMismatch, CouldNotTell
from adapterhub.formats.base.fingerprint import BaseComparison, BaseVerdict
from adapterhub.library.bases.proof import Proof, proof_of
from tests.support.command_line import Adapt
from tests.support.llama_cpp import write_base
from tests.support.quantised_copies import float8_copy
from tests.support.run_library import make_library
from tests.support.standin_llama import program as standin

OLD = 1_700_000_000
COMPARED = "compare copy.gguf, numbers"


def gguf_of(source: Path, path: Path, kind: Kind | None = Kind.Q8_0, changed: float = 0.0) -> Path:
    """The model in a folder as a GGUF file, after a change of rank 4 of some part of each projection's norm."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if changed and name.endswith("_proj.weight"):
                left, right = (
                    torch.randn(size, generator=generator) for size in ((len(weight), 4), (4, weight[0].numel()))
                )
                weight.add_(left @ right, alpha=changed * float(weight.norm() / (left @ right).norm()))
    write_base(model, path, kind)
    os.utime(path, (OLD, OLD))  # a new file is not cached
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Adapt:
    """`make_library`, where `--llama-server ./llama-server` works; no test changes its library."""
    folder = make_library(tmp_path_factory.mktemp("served"))
    standin(folder)
    return Adapt(folder)


@pytest.fixture
def adapt(tmp_path: Path) -> Adapt:
    standin(make_library(tmp_path))
    return Adapt(tmp_path)


def llama(adapt: Adapt, gguf: Path | None, *more: object) -> tuple[object, ...]:
    server = next(adapt.folder.glob("*llama*"))
    file = () if gguf is None else ("--gguf", gguf)
    return ("serve", "a", "--engine", "llama.cpp", *file, "--llama-server", server, "--dry-run", "--json", *more)


@pytest.mark.parametrize(
    ("kind", "verdict", "form"),
    [
        (None, "SAME_WEIGHTS_OTHER_PRECISION", None),
        (Kind.F16, "SAME_WEIGHTS_OTHER_PRECISION", None),
        (Kind.Q8_0, "SAME_WEIGHTS_QUANTISED", "gguf-q8_0"),
        (Kind.Q4_0, "SAME_WEIGHTS_QUANTISED", "gguf-q4_0"),
    ],
)
def test_a_copy_of_the_base_is_proven_and_the_proof_is_in_the_document(
    made: Adapt, tmp_path: Path, kind: Kind | None, verdict: str, form: str | None
) -> None:
    file = gguf_of(made.folder / "base", tmp_path / "copy.gguf", kind)

    done = made(*llama(made, file, "--base", "base-7b"))

    proof = json.loads(done.stdout)["proof"]
    assert (done.exit_code, proof["verdict"], proof.get("form"), proof["file"]) == (0, verdict, form, str(file))
    assert f"`copy.gguf` {f'is a {form} copy of' if form else 'holds'} `base-7b`" in done.stderr


@pytest.mark.parametrize("kind", [None, Kind.Q8_0, Kind.Q4_0])
def test_a_fine_tune_and_another_model_are_refused(made: Adapt, tmp_path: Path, kind: Kind | None) -> None:
    tuned = gguf_of(made.folder / "base", tmp_path / "tuned.gguf", kind, changed=0.02)
    other = tmp_path / "other"
    make_library(other)
    seeded = AutoModelForCausalLM.from_config(AutoModelForCausalLM.from_pretrained(other / "base").config)
    write_base(seeded, tmp_path / "other.gguf", kind)

    for file in (tuned, tmp_path / "other.gguf"):
        said = made.fails(11, *llama(made, file, "--base", "base-7b"))
        assert f"`{file.name}` does not hold base `base-7b`" in said
        assert "leave the intervals" in said or "differ" in said


def test_a_registered_copy_needs_no_gguf_option_and_serves_the_adapters_of_its_source(adapt: Adapt) -> None:
    file = gguf_of(adapt.folder / "base", adapt.folder / "base-7b-q8.gguf")
    adapt.ok("base", "add", file, "--as", "base-7b-q8")

    served = json.loads(adapt.ok(*llama(adapt, None, "--base", "base-7b-q8")))

    assert (served["model"], served["base"], served["proof"]["file"]) == ("base-7b-q8", "base-7b", str(file))
    assert [one["adapter"] for one in served["adapters"]] == ["a==1.0.0"]
    assert str(file) in served["command"]
    assert json.loads(adapt.ok(*llama(adapt, file)))["base"] == "base-7b"  # the copy fits too, and is no second choice
    adapt.ok("base", "remove", "base-7b")
    assert "the base that it was made from is not here" in adapt.fails(10, *llama(adapt, None, "--base", "base-7b-q8"))


def test_the_base_of_the_adapters_may_be_a_copy_of_another_form(adapt: Adapt) -> None:
    file = gguf_of(adapt.folder / "base", adapt.folder / "copy.gguf")
    adapt.ok("base", "add", float8_copy(adapt.folder / "base", adapt.folder / "fp8"), "--as", "fp8")

    proof = json.loads(adapt.ok(*llama(adapt, file, "--base", "fp8")))["proof"]

    assert (proof["verdict"], proof["form"]) == ("SAME_WEIGHTS_QUANTISED", "gguf-q8_0")


def test_a_copy_of_a_fine_tune_is_served_on_the_fine_tune_where_the_user_declared_a_family(adapt: Adapt) -> None:
    tuned = adapt.folder / "tuned"
    shutil.copytree(adapt.folder / "base", tuned)
    model = AutoModelForCausalLM.from_pretrained(tuned, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight += 0.05
    model.save_pretrained(tuned)
    file = gguf_of(tuned, adapt.folder / "tuned.gguf")
    adapt.ok("base", "add", tuned, "--as", "tuned")

    assert "does not hold base `base-7b`" in adapt.fails(11, *llama(adapt, file, "--base", "base-7b"))
    adapt.fails(11, *llama(adapt, file, "--base", "tuned"))
    adapt.ok("base", "family", "sevens", "base-7b", "tuned")
    assert json.loads(adapt.ok(*llama(adapt, file, "--base", "tuned")))["proof"]["verdict"] == "SAME_WEIGHTS_QUANTISED"


def test_files_of_the_base_that_have_changed_prove_nothing(adapt: Adapt) -> None:
    file = gguf_of(adapt.folder / "base", adapt.folder / "copy.gguf")
    model = AutoModelForCausalLM.from_pretrained(adapt.folder / "base", dtype=torch.float32)
    model.lm_head.weight.data += 0.5
    model.save_pretrained(adapt.folder / "base")

    assert "`base-7b` was registered with" in adapt.fails(11, *llama(adapt, file, "--base", "base-7b"))


@pytest.mark.parametrize(
    "data", [b"GGUF", b"", bytes(100), b"GGUF\x03\x00\x00\x00" + b"\xff" * 64], ids=["cut", "empty", "zeros", "claims"]
)
def test_a_broken_file_is_refused_in_words(made: Adapt, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "broken.gguf").write_bytes(data)

    assert "broken.gguf" in made.fails(16, *llama(made, tmp_path / "broken.gguf", "--base", "base-7b"))


# ---------------------------------------------------------------- the proof itself
class Bars:
    """Says what was worked on."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    @contextlib.contextmanager
    def __call__(self, what: str, total: int | None, *, unit: str = "bytes") -> Iterator[object]:
        done = 0

        def more(count: int) -> None:
            nonlocal done
            done += count

        yield more
        if done:
            assert done == total
            self.shown.append(f"{what}, {unit}")


def test_a_proof_is_kept_for_exactly_these_bytes(adapt: Adapt) -> None:
    bases, bars = adapt.library.bases, Bars()
    file = gguf_of(adapt.folder / "base", adapt.folder / "copy.gguf")

    first = proof_of(bases, bases.get("base-7b"), file, bars)
    again = proof_of(bases, bases.get("base-7b"), file, bars)
    assert (again, bars.shown.count(COMPARED)) == (first, 1)
    again.ensure_unchanged()

    gguf_of(adapt.folder / "base", file, changed=0.02)  # of the same size and time
    with pytest.raises(CouldNotTell, match="changed while the engine loaded it"):
        again.ensure_unchanged()
    with pytest.raises(BaseMismatch, match="does not hold base"):
        proof_of(bases, bases.get("base-7b"), file, bars).ensure()
    assert bars.shown.count(COMPARED) == 2


def test_a_damaged_cache_is_compared_again(adapt: Adapt) -> None:
    bases = adapt.library.bases
    file = gguf_of(adapt.folder / "base", adapt.folder / "copy.gguf")
    first = proof_of(bases, bases.get("base-7b"), file, Bars())
    assert bases.cache_folder is not None
    [kept] = bases.cache_folder.glob("*-proof.json")
    value = json.loads(kept.read_text())

    for damaged in ("{", "[]", json.dumps(value | {"verdict": "fine"}), json.dumps({**value, "differences": 3})):
        kept.write_text(damaged)
        assert proof_of(bases, bases.get("base-7b"), file, Bars()) == first
        assert json.loads(kept.read_text()) == value


def test_without_the_files_of_the_base_its_fingerprint_is_compared(adapt: Adapt, tmp_path: Path) -> None:
    good, bad = (
        gguf_of(adapt.folder / "base", tmp_path / f"{at}.gguf", changed=changed) for at, changed in enumerate((0, 0.05))
    )
    record = tmp_path / "base.json"
    record.write_text(adapt.ok("base", "show", "base-7b", "--record"))
    elsewhere = Adapt(tmp_path / "elsewhere")
    elsewhere.folder.mkdir()
    elsewhere.ok("base", "add", record)
    bases, bars = elsewhere.library.bases, Bars()
    base = bases.get("base-7b")

    proof = proof_of(bases, base, good, bars)

    assert (proof.comparison.verdict, bars.shown) == (BaseVerdict.SAME_WEIGHTS_QUANTISED, ["fingerprint 0.gguf, bytes"])
    proof.ensure()
    with pytest.raises(BaseMismatch):
        proof_of(bases, base, bad, bars).ensure()


@pytest.mark.parametrize(
    ("verdict", "error", "told"),
    [
        (BaseVerdict.LIKELY_SAME_QUANTISED, BaseMismatch, "--accept likely"),
        (BaseVerdict.CANNOT_TELL, CouldNotTell, "Q8_0 or Q4_K_M"),
        (BaseVerdict.UNKNOWN, CouldNotTell, "Q8_0 or Q4_K_M"),
        (BaseVerdict.SAME_SHAPES, BaseMismatch, "--base"),
        (BaseVerdict.DIFFERENT, BaseMismatch, "--base"),
    ],
)
def test_every_refusal_says_what_to_do(
    made: Adapt, verdict: BaseVerdict, error: type[BaseMismatch | CouldNotTell], told: str
) -> None:
    found = BaseComparison(verdict=verdict, differences=("because of this",))
    proof = Proof(place=Path("x/copy.gguf"), base=made.library.bases.get("base-7b"), comparison=found, files={})

    with pytest.raises(error, match="because of this") as refused:
        proof.ensure()

    assert told in refused.value.hint
