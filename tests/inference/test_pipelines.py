"""Adapters on pipelines of several models: attached, in a bank, and on their components alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from adapterhub.core.errors import BaseMismatch, UsageProblem
from adapterhub.core.specs import parse_name
from adapterhub.formats.base.fingerprint import BaseVerdict
from adapterhub.inference.bank import AdapterBank
from adapterhub.inference.loader import attach, base_digest
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from tests.support import pipelines
from tests.support.command_line import Adapt

BOUND = 1e-4  # of outputs of order 1 in float32, against updates fused in float64


@pytest.fixture(scope="module")
def sdxl() -> Any:
    return ready(pipelines.sdxl())


@pytest.fixture(scope="module")
def flux() -> Any:
    return ready(pipelines.flux())


def ready(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            component.eval()
    return pipeline


def modules_of(pipeline: Any, components: Mapping[str, tuple[str, ...]]) -> dict[str, nn.Module]:
    """The linear layers and convolutions in some components whose names end in one of the given words."""
    return {
        f"{component}.{name}": module
        for component, ends in components.items()
        for name, module in getattr(pipeline, component).named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and name.endswith(ends)
    }


def written(name: str) -> str:
    """The name in a file: CLIP's text model keeps the names of transformers 4 there."""
    component, _, rest = name.partition(".")
    is_bare = component.startswith("text_encoder") and rest.startswith("encoder.layers")
    return f"{component}.text_model.{rest}" if is_bare else name


def save(folder: Path, modules: Mapping[str, nn.Module], *, drop: str = "", seed: int = 0) -> dict[str, Tensor]:
    """A LoRA with mixed ranks and alphas on the modules, and its updates in float64; `drop` is cut off the names."""
    generator = torch.Generator().manual_seed(seed)
    tensors, updates, ranks, alphas = {}, {}, {}, {}
    for number, (name, module) in enumerate(modules.items()):
        shape, rank, alpha = tuple(module.weight.shape), (4, 2)[number % 2], (4.0, 3.0, 1.0)[number % 3]
        a = 0.3 * torch.randn((rank, *shape[1:]), generator=generator)
        b = 0.3 * torch.randn((shape[0], rank, *(1 for _ in shape[2:])), generator=generator)
        called = written(name).removeprefix(drop)
        tensors[f"base_model.model.{called}.lora_A.weight"], tensors[f"base_model.model.{called}.lora_B.weight"] = a, b
        ranks[called], alphas[called] = rank, alpha
        updates[name] = (alpha / rank * b.double().flatten(1) @ a.double().flatten(1)).reshape(shape)
    folder.mkdir()
    config = {
        "peft_type": "LORA", "r": 4, "lora_alpha": 4, "rank_pattern": ranks, "alpha_pattern": alphas,
        "target_modules": sorted(ranks),
    }  # fmt: skip
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return updates


SEVERAL = {
    "unet": ("to_q", "to_v", "proj_in", "conv1"),
    "text_encoder": ("q_proj", "fc1"),
    "text_encoder_2": ("v_proj",),
}


def latents(pipeline: Any) -> Tensor:
    """What the pipeline makes of a prompt in two steps, before the VAE."""
    settings: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent", "height": 16, "width": 16}
    return pipeline("a red cat", generator=torch.Generator().manual_seed(0), **settings).images


def fused(pipeline: Any, updates: Mapping[str, Tensor], weight: float = 1.0) -> Tensor:
    """The same with the updates added to the weights in float64."""
    kept = {}
    with torch.no_grad():
        for name, update in updates.items():
            parameter = pipeline.components[name.partition(".")[0]].get_submodule(name.partition(".")[2]).weight
            kept[name] = (parameter, parameter.clone())
            parameter.copy_(parameter.double() + weight * update)
        try:
            return latents(pipeline)
        finally:
            for parameter, before in kept.values():
                parameter.copy_(before)


def close(here: Tensor, there: Tensor) -> bool:
    print(f"difference {(here - there).abs().max():.2e}, outputs up to {there.abs().max():.2f}")  # noqa: T201 - shown with -s
    return float((here - there).abs().max()) <= BOUND * max(1.0, float(there.abs().max()))


@pytest.mark.parametrize(
    ("kind", "components"),
    [("sdxl", SEVERAL), ("flux", {"transformer": ("to_q", "proj_mlp", "linear"), "text_encoder_2": ("q", "wo")})],
)
def test_an_adapter_of_several_components_equals_the_fused_formula(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, components: Mapping[str, tuple[str, ...]]
) -> None:
    pipeline = request.getfixturevalue(kind)
    updates = save(tmp_path / "a", modules_of(pipeline, components))
    before, expected = latents(pipeline), fused(pipeline, updates)
    assert (before - expected).abs().max() > 10 * BOUND
    digests = [base_digest(getattr(pipeline, name)) for name in components]

    with attach(pipeline, tmp_path / "a", library=tmp_path / "library") as attached:
        assert attached.model is pipeline
        assert close(latents(pipeline), expected)
        attached.weigh([0.5])
        half = latents(pipeline)

    assert attached.detach() is pipeline
    assert close(half, fused(pipeline, updates, 0.5))
    assert [base_digest(getattr(pipeline, name)) for name in components] == digests
    assert torch.equal(latents(pipeline), before)


def test_a_bank_keeps_several_adapters_of_one_pipeline(sdxl: Any, tmp_path: Path) -> None:
    first = save(tmp_path / "first", modules_of(sdxl, SEVERAL), seed=1)
    second = save(tmp_path / "second", modules_of(sdxl, {"unet": ("to_k",)}), drop="unet.", seed=2)
    before = latents(sdxl)
    expected = {"first": fused(sdxl, first), "second": fused(sdxl, second)}
    half = fused(sdxl, {name: 0.5 * update for name, update in (first | second).items()})

    with AdapterBank(sdxl, library=tmp_path / "library") as bank:
        assert bank.model is sdxl
        for name in expected:
            bank.load(tmp_path / name)
        for name in ("first", "second", "first"):
            with bank.use(name):
                assert close(latents(sdxl), expected[name])
        with bank.use({"first": 0.5, "second": 0.5}):
            assert close(latents(sdxl), half)
        assert torch.equal(latents(sdxl), before)
        with pytest.raises(UsageProblem, match="a pipeline has no rows"):
            bank.rows(["first", None])
        bank.assert_frozen()


def test_an_adapter_of_one_component_finds_it_by_its_base(sdxl: Any, tmp_path: Path) -> None:
    sdxl.save_pretrained(tmp_path / "sdxl")
    library = Library(tmp_path / "library")
    library.bases.add(tmp_path / "sdxl", "x")
    for name, component in (("unet", "unet"), ("first", "text_encoder"), ("second", "text_encoder_2")):
        save(tmp_path / name, modules_of(sdxl, {component: ("to_q", "q_proj")}), drop=f"{component}.")
        about = Description(name=parse_name(name), version="1.0.0")
        library.add(tmp_path / name, about, base=library.bases.find("x" if name == "unet" else f"x/{component}"))

    assert [b.base_name for b in library.installed()] == ["x/text_encoder", "x/text_encoder_2", "x/unet"]
    for name in ("unet", "first", "second"):
        with attach(sdxl, name, library=library) as attached:
            assert [a.verdict for a in attached.adapters] == [BaseVerdict.SAME_WEIGHTS]
    with attach(sdxl, "unet@x", library=library), pytest.raises(UsageProblem, match="has an adapter already"):
        attach(sdxl.unet, "unet", library=library)
    with attach(sdxl.unet, "unet@x", library=library) as attached:
        assert attached.adapters[0].verdict is BaseVerdict.SAME_WEIGHTS
    with pytest.raises(UsageProblem, match="fits `text_encoder` and `text_encoder_2` of this pipeline alike"):
        attach(sdxl, tmp_path / "first", library=library)


def test_a_component_that_fails_leaves_the_others_bare(sdxl: Any, tmp_path: Path) -> None:
    save(tmp_path / "a", modules_of(sdxl, SEVERAL))
    text = (tmp_path / "a" / "adapter_config.json").read_text()
    sd15 = ready(pipelines.sd15())  # has no second text encoder
    digest = base_digest(sd15.unet)

    with pytest.raises(BaseMismatch, match="changes `text_encoder_2`, which this pipeline does not have"):
        attach(sd15, tmp_path / "a", library=tmp_path / "library")

    assert base_digest(sd15.unet) == digest
    assert (tmp_path / "a" / "adapter_config.json").read_text() == text


class Empty:
    def __init__(self) -> None:
        self.components = {"unet": None, "vae": nn.Linear(2, 2)}


def test_a_pipeline_without_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="has no model in memory"):
        attach(Empty(), tmp_path, library=tmp_path / "library")  # type: ignore[arg-type] # what a user may pass


def test_an_image_is_drawn_with_an_adapter(sdxl: Any, tmp_path: Path) -> None:
    from PIL import Image

    adapt = Adapt(tmp_path)
    sdxl.save_pretrained(tmp_path / "sdxl")
    save(tmp_path / "a", modules_of(sdxl, SEVERAL))
    parts = adapt.json("base", "add", "./sdxl", "--as", "x")["parts"]
    assert [part["alias"] for part in parts.values()] == ["x/unet", "x/text_encoder", "x/text_encoder_2"]
    adapt.ok("add", "./a", "--name", "style", "--base", "x")
    options = ("--steps", "2", "--size", "16x16", "--seed", "3")

    for number, words in enumerate((("style@x",), ("none", "--base", "x"), ("style",))):
        drawn = adapt.json("run", words[0], "a red cat", "--image", f"{number}.png", *options, *words[1:])
        assert (drawn["base"], drawn["width"], drawn["seed"]) == ("x", 16, 3)

    first, bare, again = (Image.open(tmp_path / f"{n}.png").tobytes() for n in range(3))
    assert first == again != bare
    asked = ("run", "style@x", "a red cat")
    assert "`0.png` exists. Nothing was drawn" in adapt.fails(15, *asked, "--image", "0.png")
    assert "expected a file that ends in `.png`" in adapt.fails(2, *asked, "--image", "x.jpg")
    assert "expected width and height" in adapt.fails(2, *asked, "--image", "n.png", "--size", "16")
    assert "for text; drop --top-p" in adapt.fails(2, *asked, "--image", "n.png", "--top-p", 0.5)
    assert "for `--image FILE.png`; drop --steps" in adapt.fails(2, *asked, "--steps", 2)
    (tmp_path / "sdxl" / "unet" / "code.py").write_text("")
    assert "holds code, which is never run: `code.py`" in adapt.fails(16, *asked, "--image", "n.png")
    assert not (tmp_path / "n.png").exists()
