"""Factors of 8 bits give what the same numbers in float32 give, everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import adapterhub
from adapterhub import Library
from adapterhub.formats.derived.reading import floats
from tests.support.peft_bases import fresh, llama, logits, save

pytestmark = pytest.mark.filterwarnings("ignore")

KINDS = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
OPTIONS: dict[str, object] = {"r": 4, "target_modules": ["q_proj", "v_proj"]}


@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_is_the_number_that_torch_reads(kind: str) -> None:
    raw = bytes(range(256))

    expected = torch.frombuffer(bytearray(raw), dtype=KINDS[kind]).float()

    torch.testing.assert_close(torch.from_numpy(floats(raw, kind)), expected, rtol=0, atol=0, equal_nan=True)


def both(folder: Path, dtype: torch.dtype, seed: int) -> tuple[Path, Path]:
    """An adapter with factors of that dtype, and one with the same numbers in float32."""
    found = []
    for name, wide in (("small", False), ("wide", True)):
        file = save(folder / f"{name}{seed}", llama, OPTIONS, seed=seed) / "adapter_model.safetensors"
        tensors = {key: tensor.to(dtype) for key, tensor in load_file(file).items()}
        kept = {key: tensor.float() if wide else tensor for key, tensor in tensors.items()}
        save_file(kept, file, metadata={"format": "pt"})
        found.append(file.parent)
    return found[0], found[1]


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_those_of_the_same_numbers_in_float32(kind: str, tmp_path: Path) -> None:
    library = Library(tmp_path / "home")
    fresh(llama).save_pretrained(tmp_path / "base")
    library.bases.add(tmp_path / "base", alias="b")
    (small, wide), (other, wide_other) = (both(tmp_path, KINDS[kind], seed) for seed in (1, 2))

    def made(name: str, first: Path, second: Path) -> list[bytes]:
        library.merge([first, second], weights=[0.7, -0.3], output=tmp_path / f"{name}-merged")
        library.resize(first, rank=2, output=tmp_path / f"{name}-resized")
        library.fuse(first, base="b", output=tmp_path / f"{name}-fused")
        files = ("merged/adapter_model", "resized/adapter_model", "fused/model")
        return [(tmp_path / f"{name}-{file}.safetensors").read_bytes() for file in files]

    def answer(folder: Path) -> torch.Tensor:
        with adapterhub.attach(fresh(llama), folder, library=library) as attached:
            return logits(attached.model)

    assert made("small", small, other) == made("wide", wide, wide_other)
    assert torch.equal(answer(small), answer(wide))
    assert library.compare(small, wide).pairs[0].cosine == pytest.approx(1)
    assert library.compare(small, other).pairs[0].cosine == library.compare(wide, wide_other).pairs[0].cosine
    apart = library.compare(small, wide, diff=True)
    assert apart.weights is not None
    assert apart.weights.is_same
    for name, folder in (("one", small), ("two", wide)):
        library.add(folder, name=name, base="b")
    assert [found.cosine for found in library.compare("one@b").similar] == [pytest.approx(1)]
