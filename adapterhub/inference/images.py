"""Images of a pipeline with adapters on it. Needs diffusers, the extra `diffusion`."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from adapterhub.core.choices import Choice
from adapterhub.core.errors import Incompatible, shown
from adapterhub.core.extras import require
from adapterhub.core.specs import BaseSpec
from adapterhub.formats.answers import DrawnImage
from adapterhub.formats.diffusion.components import PIPELINE_FILE, component_folders, ensure_no_code
from adapterhub.inference.answering import Says, used_of
from adapterhub.inference.loader.attachment import attach
from adapterhub.library.store.catalog import AdapterLike
from adapterhub.weights.dtypes import CHOSEN_DTYPES

if TYPE_CHECKING:
    from PIL.Image import Image

    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.library import Library

OnStep = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """What to draw. None: as the pipeline does by itself. `guidance`: how strongly the prompt leads."""

    prompt: str
    seed: int
    steps: int | None = None
    guidance: float | None = None
    size: tuple[int, int] | None = None

    def settings(self) -> dict[str, Any]:
        """Return the arguments of diffusers' pipelines."""
        found: dict[str, Any] = {"prompt": self.prompt, "generator": torch.Generator().manual_seed(self.seed)}
        if self.steps is not None:
            found["num_inference_steps"] = self.steps
        if self.guidance is not None:
            found["guidance_scale"] = self.guidance
        if self.size is not None:
            found["width"], found["height"] = self.size
        return found


def draw(
    library: Library,
    record: BaseRecord,
    choice: Choice,
    drawing: Drawing,
    *,
    dtype: str = "auto",
    allow_base_mismatch: bool = False,
    on_step: OnStep,
    says: Says,
) -> DrawnImage:
    """Load the pipeline of `record`, draw one image with the adapters of `choice` on it, and let go of both.

    `record` is a pipeline, or a component of one. `on_step` gets the steps done and their number after each step.

    Raises:
        Incompatible: the base is not a folder of diffusers, or diffusers cannot load or run it.
        MissingExtra: diffusers is not installed.
        BaseMismatch and the others of `attach`.
    """
    whole = library.bases.whole(record)
    assert whole.path is not None  # the caller found it
    pipeline = load_pipeline(whole.path, dtype=dtype)
    base = BaseSpec.parse(whole.alias or str(whole.path))
    pairs: dict[AdapterLike, float] = dict(choice.items())
    attaching = (
        attach(
            pipeline,
            pairs,
            library=library,
            base=base,
            allow_base_mismatch=allow_base_mismatch,
        )
        if pairs
        else contextlib.nullcontext()
    )
    with attaching as attached:
        start = time.perf_counter()
        image = _image(pipeline, drawing, on_step)
        seconds = time.perf_counter() - start
    used = attached.adapters if attached is not None else ()
    for adapter in used:
        for warning in adapter.warnings:
            says.warn(f"`{shown(adapter.label, 200)}` {warning}")
    return DrawnImage(
        image=image,
        adapters=used_of(used),
        base=record.label,
        prompt=drawing.prompt,
        width=image.width,
        height=image.height,
        steps=drawing.steps,
        seed=drawing.seed,
        seconds=round(seconds, 3),
    )


def load_pipeline(folder: Path, *, dtype: str = "auto") -> Any:
    """Return the pipeline in a folder of diffusers, frozen, on the first GPU if there is one.

    Reads only safetensors weights, runs no code that comes with the pipeline, and downloads nothing.

    Raises:
        Incompatible: it cannot be loaded.
        MissingExtra: diffusers is not installed.
        Malformed: it is incomplete, or brings code.
    """
    if not (folder / PIPELINE_FILE).is_file():
        raise Incompatible(
            f"`{folder}` is not a pipeline in a folder, expected one with a `{PIPELINE_FILE}`",
            hint="save it with diffusers' `save_pretrained`; `adapt base add FOLDER --as NAME` registers it",
        )
    require("diffusion", "drawing an image")
    component_folders(folder)
    ensure_no_code(folder)
    import diffusers
    import transformers

    for library in (transformers, diffusers):  # after their import, which sets the level of their logs
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "trust_remote_code": False}
    if dtype in CHOSEN_DTYPES:
        options["torch_dtype"] = CHOSEN_DTYPES[dtype]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load: Callable[..., Any] = diffusers.DiffusionPipeline.from_pretrained
            pipeline = load(folder, **options)
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
        raise Incompatible(
            f"`{folder}` cannot be loaded as a pipeline: {shown(str(error).strip(), 200)}",
            hint="load it yourself; `adapterhub.attach(pipeline, …)` accepts a pipeline of any kind",
        ) from None
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            component.requires_grad_(requires_grad=False).eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def _image(pipeline: Any, drawing: Drawing, on_step: OnStep) -> Image:
    try:
        found = drawn_by(pipeline, drawing.settings(), on_step)
    except (ValueError, TypeError, RuntimeError) as error:
        raise Incompatible(
            f"the pipeline cannot draw this: {shown(str(error).strip(), 200)}",
            hint="try another --size, or draw with diffusers: `adapterhub.attach(pipeline, …)`",
        ) from None
    if not found:
        raise Incompatible("the pipeline gave no image", hint="draw with diffusers: `adapterhub.attach(pipeline, …)`")
    image: Image = found[0]
    return image


def drawn_by(pipeline: Any, settings: Mapping[str, Any], on_step: OnStep | None = None) -> Any:
    """Draw images with a pipeline: a list of images, or a tensor of latents as its `output_type`.

    Raises whatever the pipeline raises.
    """
    arguments = dict(settings)
    if on_step is not None:

        def after(running: Any, step: int, _time: object, kept: dict[str, Any]) -> dict[str, Any]:
            on_step(step + 1, max(step + 1, int(getattr(running, "num_timesteps", 0))))
            return kept

        arguments["callback_on_step_end"] = after
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pipeline(**arguments).images
