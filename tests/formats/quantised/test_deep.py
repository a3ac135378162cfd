"""Two models compared by their files: windows of numbers, or every number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapterhub import Library
from adapterhub.core.errors import BaseNotFound
from adapterhub.formats.base.comparison import compare
from adapterhub.formats.base.fingerprint import BaseVerdict
from adapterhub.formats.base.folders import fingerprint_folder
from adapterhub.formats.base.quantised.deep import WINDOW, compare_models
from adapterhub.formats.base.quantised.model import places
from adapterhub.formats.base.quantised.opening import opened
from tests.support.copies import in_float8, model, saved


def test_windows_and_every_number_prove_a_copy(tmp_path: Path) -> None:
    source, copy = opened(saved(tmp_path / "a", model())), opened(saved(tmp_path / "b", in_float8(model())))

    for full in (False, True):
        for one, other in ((source, copy), (copy, source)):
            found = compare_models(one, other, full=full)
            assert found.label == "SAME_WEIGHTS_QUANTISED (fp8-channel)"
    assert compare_models(source, copy, full=True).differences[0] == (
        "4 tensors are quantised in the second; all 61,440 values of the first lie in the intervals of their codes"
    )


def test_only_every_number_shows_one_changed_number(tmp_path: Path) -> None:
    changed = model(width=4096)
    name = "model.layers.1.up_proj.weight"
    seen = {int(place) // WINDOW for place in places(changed[name].shape)}
    place = next(k for k in range(changed[name].numel()) if k // WINDOW not in seen)
    changed[name].view(-1)[place] += 1.0
    source = opened(saved(tmp_path / "a", model(width=4096)))
    copy = opened(saved(tmp_path / "b", in_float8(changed)))

    assert compare_models(source, copy).verdict is BaseVerdict.SAME_WEIGHTS_QUANTISED
    found = compare_models(source, copy, full=True)
    assert found.verdict is BaseVerdict.SAME_SHAPES
    assert f"in 1 tensors leave the intervals of their codes, for example in `{name}`" in found.differences[0]


def test_every_number_of_two_precisions_is_compared(tmp_path: Path) -> None:
    exact = {name: tensor.float() for name, tensor in model().items()}
    rounded = opened(saved(tmp_path / "a", model()))
    widened = opened(saved(tmp_path / "b", exact))

    assert compare_models(rounded, widened, full=True).verdict is BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION

    exact["model.layers.0.norm.weight"][7] *= 1.01
    changed = opened(saved(tmp_path / "c", exact))
    assert compare_models(rounded, changed, full=True).verdict is BaseVerdict.SAME_SHAPES


def test_neighbours_in_one_dtype_are_not_equal(tmp_path: Path) -> None:
    other = model()
    other["model.layers.0.norm.weight"].view(torch.int16)[3] += 1
    one, two = opened(saved(tmp_path / "a", model())), opened(saved(tmp_path / "b", other))

    found = compare_models(one, two, full=True)

    assert found.verdict is BaseVerdict.SAME_SHAPES
    assert found.differences[0].startswith("1 of 69,760 values kept as floats differ")


def test_the_library_compares_files_that_it_does_not_register(tmp_path: Path) -> None:
    library = Library(tmp_path / "home")
    source, copy = saved(tmp_path / "a", model()), saved(tmp_path / "b", in_float8(model()))

    assert library.compare_bases(str(source), str(copy)).label == "SAME_WEIGHTS_QUANTISED (fp8-channel)"
    assert not (tmp_path / "home" / "bases").exists()

    library.add_base(source, "tiny")
    assert library.compare_bases("tiny", str(copy), full=True).label == "SAME_WEIGHTS_QUANTISED (fp8-channel)"
    (source / "model.safetensors").unlink()
    source.joinpath("config.json").unlink()
    source.rmdir()
    assert library.compare_bases("tiny", str(copy)).label == "SAME_WEIGHTS_QUANTISED (fp8-channel)"
    with pytest.raises(BaseNotFound, match="files of one base are not here"):
        library.compare_bases("tiny", str(copy), full=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_source_in_float32_may_be_rounded_before_it_is_quantised(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    exact = {name: torch.randn(tensor.shape) for name, tensor in model(width=1024).items()}
    copied = in_float8({name: tensor.to(dtype) for name, tensor in exact.items()})
    folders = saved(tmp_path / "a", exact), saved(tmp_path / "b", copied)

    name = str(dtype).removeprefix("torch.")
    for found in (
        compare_models(*map(opened, folders), full=True),
        compare(*(fingerprint_folder(folder, cache_folder=None)[0] for folder in folders)),
    ):
        assert found.verdict is BaseVerdict.SAME_WEIGHTS_QUANTISED, found
    assert (
        f"the source was rounded to {name} before it was quantised"
        in compare_models(*map(opened, folders), full=True).differences
    )

    exact["model.layers.0.q_proj.weight"] *= 1.01
    changed = saved(tmp_path / "c", exact)
    assert compare_models(opened(changed), opened(folders[1]), full=True).verdict is BaseVerdict.SAME_SHAPES


def test_norms_to_which_one_was_added_in_bfloat16_are_the_same(tmp_path: Path) -> None:
    copied = in_float8(model())
    for name in (name for name in copied if "norm" in name):
        copied[name] = (copied[name] + 1) - 1
    folders = saved(tmp_path / "a", model()), saved(tmp_path / "b", copied)

    for found in (
        compare_models(*map(opened, folders)),
        compare(*(fingerprint_folder(folder, cache_folder=None)[0] for folder in folders)),
    ):
        assert found.verdict is BaseVerdict.SAME_WEIGHTS_QUANTISED
        assert found.differences[-1] == "2 norms differ as after one was added, rounded and taken off again"


def test_rotated_weights_are_not_judged(tmp_path: Path) -> None:
    rotated = {"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"v": {"type": "hadamard"}}}}
    copy = opened(saved(tmp_path / "b", in_float8(model()), quantization_config=rotated))

    found = compare_models(opened(saved(tmp_path / "a", model())), copy)

    assert found.verdict is BaseVerdict.CANNOT_TELL
    assert "compressed-tensors of rotated weights" in found.differences[0]
