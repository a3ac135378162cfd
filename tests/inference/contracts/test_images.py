"""Contracts of pipelines: latents, held by how much of the adapter's effect is kept."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapterhub.formats.contract.reader import contract_in
from adapterhub.formats.manifest import CONTRACT_FILE, WEIGHTS_FILE
from tests.inference.test_pipelines import modules_of, save
from tests.support import pipelines
from tests.support.command_line import Adapt
from tests.support.tiny import make_base
from tests.test_docs import DOCS, appears, steps

pytestmark = pytest.mark.filterwarnings("ignore")
PLAN = """
[image]
width = 16
height = 16
steps = 2

[[golden]]
input = "a red cat"
[[golden]]
input = "photo of a dog"
[[golden]]
input = "a red cat"
seed = 7
[[golden]]
input = "red dog"
"""
RECORD = ("contract", "record", "--tests", "tests.toml")
CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "none": torch.zeros_like,
    "negated": torch.neg,
    "half": lambda factor: factor / 2,
    "other": lambda factor: factor.roll(1, 0),
}


@pytest.fixture(scope="module")
def adapt(tmp_path_factory: pytest.TempPathFactory) -> Adapt:
    """`watercolour` of a whole pipeline and `line` of its UNet, both with a contract."""
    folder = tmp_path_factory.mktemp("images")
    pipeline = pipelines.sd15()
    pipeline.save_pretrained(folder / "sdxl")
    (folder / "tests.toml").write_text(PLAN)
    save(
        folder / "watercolour",
        modules_of(pipeline, {"unet": ("to_q", "to_v"), "text_encoder": ("q_proj", "fc1")}),
        seed=1,
    )
    save(folder / "line", modules_of(pipeline, {"unet": ("to_q", "to_v", "conv1")}), drop="unet.", seed=2)
    adapt = Adapt(folder)
    adapt.ok("base", "add", "./sdxl", "--as", "sdxl")
    for name in ("watercolour", "line"):
        adapt.ok("add", f"./{name}", "--name", name, "--base", "sdxl")
        assert "recorded 4 goldens, 16 x 16 in 2 steps" in adapt.ok(*RECORD, name)
    return adapt


def results_of(adapt: Adapt, exit_code: int, *arguments: object) -> list[dict[str, Any]]:
    done = adapt("test", *arguments, "--json")
    assert done.exit_code == exit_code, done.stdout + done.stderr
    return [dict(result) for result in json.loads(done.stdout)]


def changed(adapt: Adapt, folder: Path, change: Callable[[Tensor], Tensor]) -> Path:
    """A copy of `watercolour` with its contract, its updates changed."""
    (build,) = (
        b for b in adapt.library.installed() if (b.manifest.name, b.manifest.version) == ("watercolour", "1.0.1")
    )
    shutil.copytree(build.folder, folder, ignore=shutil.ignore_patterns("adapterhub.json", WEIGHTS_FILE))
    tensors = load_file(build.folder / WEIGHTS_FILE)
    new = {name: change(tensor).contiguous() if "lora_B" in name else tensor for name, tensor in tensors.items()}
    save_file(new, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    return folder


def test_a_pipeline_draws_as_recorded_and_in_another_precision(adapt: Adapt) -> None:
    own, part = results_of(adapt, 0, "watercolour", "line", "--base-alone")
    assert [(one["same"], one["effect"]) for one in (own, part)] == [(1.0, pytest.approx(1, abs=0.01))] * 2
    assert (own["base"], part["base"], own["engine"].partition(" ")[0]) == ("sdxl", "sdxl/unet", "diffusers")
    (kept,) = results_of(adapt, 0, "line", "--base-alone", "--base", "sdxl")  # the adapter's part of it
    assert kept["is_cached"]
    project = '[project]\nbase = "sdxl"\n[adapters]\nline = "*"\n[policy]\ntests = "require"\n'
    (adapt.folder / "adapters.toml").write_text(project)
    adapt.ok("lock")
    assert "1 adapter in" in adapt.ok("sync")
    (adapt.folder / "adapters.toml").unlink()
    (coarse,) = results_of(adapt, 0, "watercolour", "--dtype", "bfloat16")
    assert (coarse["dtype"], 0.65 < coarse["effect"] < 1) == ("bfloat16", True)


def test_another_adapter_has_changed(adapt: Adapt, tmp_path: Path) -> None:
    folders = [changed(adapt, tmp_path / name, change) for name, change in CHANGES.items()]
    found = results_of(adapt, 3, *folders, "--base", "sdxl")
    assert [one["verdict"] for one in found] == ["CHANGED"] * len(CHANGES)
    for one in found:
        assert "of the adapter's effect is kept, at least 0.65 is required" in str(one["broken"])
    assert found[0]["effect"] == pytest.approx(0, abs=1e-2)
    assert max(one["effect"] for one in found) < 0.6


def test_the_page_is_true_and_the_same_recording_gives_the_same_bytes(adapt: Adapt) -> None:
    for step in steps(DOCS / "how-to" / "add.md", with_model=True):
        said = adapt.ok(*shlex.split(step.command)[1:])
        assert [line for line in step.shown if not appears(line, said.splitlines())] == []
        assert " record " not in step.command or "this build had it already" in said
    (build,) = (
        b for b in adapt.library.installed() if (b.manifest.name, b.manifest.version) == ("watercolour", "1.0.1")
    )
    contract = contract_in(build.folder)
    assert contract is not None
    assert [golden.seed for golden in contract.distinct] == [0, 1, 7, 3]
    assert (build.folder / CONTRACT_FILE).stat().st_size < 16 << 10


def test_another_scheduler_or_tokenizer_gives_no_verdict(adapt: Adapt, tmp_path: Path) -> None:
    shutil.copytree(adapt.folder / "sdxl", tmp_path / "sdxl")
    place = tmp_path / "sdxl" / "scheduler" / "scheduler_config.json"
    config = json.loads(place.read_text())
    place.write_text(json.dumps(config | {"prediction_type": "v_prediction"}))
    (other,) = results_of(adapt, 17, "watercolour", "--base", tmp_path / "sdxl")
    place.write_text(json.dumps({**config, "_diffusers_version": "9.0"}))
    words = tmp_path / "sdxl" / "tokenizer" / "tokenizer.json"
    value = json.loads(words.read_text())
    value["model"]["vocab"] |= {"cat": value["model"]["vocab"]["dog"], "dog": value["model"]["vocab"]["cat"]}
    words.write_text(json.dumps(value))
    (swapped,) = results_of(adapt, 17, "watercolour", "--base", tmp_path / "sdxl")
    assert [other["reason"], swapped["reason"]] == ["other-scheduler", "other-tokenizer"]


def test_a_merge_says_how_much_of_each_effect_is_left(adapt: Adapt) -> None:
    adapt.ok("merge", "watercolour", "--weights", "0.5", "-o", "half", "--test")
    (half,) = (build for build in adapt.library.installed() if build.manifest.name == "half")
    assert half.manifest.metrics["test_effect_watercolour"] == pytest.approx(0.47, abs=0.05)


def test_what_makes_no_sense_for_images_is_refused(adapt: Adapt, tmp_path: Path) -> None:
    (tmp_path / "never.toml").write_text('[[never]]\ninput = "a cat"\nnot_contains = ["x"]\n')
    record = ("contract", "record", "watercolour", "--tests")
    assert "a pipeline draws images" in adapt.fails(2, *record, tmp_path / "never.toml")
    assert "a pipeline takes its prompt unchanged" in adapt.fails(2, *record, "tests.toml", "--prompt", "chat")
    (tmp_path / "huge.toml").write_text(PLAN.replace("width = 16", "width = 1000000").replace("= 2", "= 1000000000"))
    said = adapt.fails(16, *record, tmp_path / "huge.toml")
    assert "image.width: expected 8 to 1024, got 1000000" in said
    assert "image.steps: expected 1 to 50, got 1000000000" in said
    assert "`--load-in` packs a model of texts" in adapt.fails(2, "test", "watercolour", "--load-in", "8bit")
    assert "lm-eval compares texts" in adapt.fails(11, "contract", "export", "watercolour", tmp_path / "task")
    assert "draws images" in adapt.fails(11, "merge", "line", "line", "--tune", "contracts", "-o", "tuned")
    adapt.ok("base", "add", make_base(tmp_path / "words"), "--as", "words")
    assert "`words` is one model, expected a pipeline" in adapt.fails(2, "test", "line", "--base", "words")
    assert "asks a whole pipeline" in adapt.fails(
        17, "fuse", "line", "--base", "sdxl/unet", "-o", tmp_path / "f", "--test"
    )
    empty = changed(adapt, tmp_path / "none", torch.zeros_like)
    (empty / CONTRACT_FILE).unlink()
    said = adapt.fails(11, *RECORD, empty, "--base", "sdxl")
    assert "is drawn alike without the adapter: 0.000 apart" in said
