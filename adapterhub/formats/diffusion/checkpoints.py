"""A pipeline in one file, as its authors publish it: which tensor belongs to which component, under which name.

The names become those of a diffusers folder, so that a component in one file and the same one in a folder have one
fingerprint. VAE, exponential averages of weights (`model_ema.`) and constants of the noise schedule are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adapterhub.core.errors import Malformed, shown
from adapterhub.formats.diffusion.bfl import flux_views
from adapterhub.formats.diffusion.components import TensorView
from adapterhub.formats.diffusion.ldm import LdmUNet
from adapterhub.formats.diffusion.open_clip import open_clip_views
from adapterhub.formats.safetensors.file import TensorFile
from adapterhub.formats.safetensors.header import TensorSpec

_LEFT_OUT: Final = re.compile(
    r"(?:first_stage_model|vae|model_ema|text_encoders\.\w+\.logit_scale|denoiser)(?:\..*)?"
    r"|betas|alphas_cumprod(?:_prev)?|sqrt_.+|log_one_minus_alphas_cumprod|posterior_.+|logvar|lvlb_weights"
    r"|model_sampling\..+|cond_stage_model\.logit_scale"
)
_DENOISER: Final = "model.diffusion_model."
_FLUX: Final = re.compile(
    r"(?:double|single)_blocks\.|img_in\.|txt_in\.|time_in\.|vector_in\.|guidance_in\.|final_layer\."
)
_PREFIXES: Final = {
    "cond_stage_model.transformer.": ("text_encoder", "clip"),
    "cond_stage_model.model.": ("text_encoder", "open_clip cut"),
    "conditioner.embedders.0.transformer.": ("text_encoder", "clip"),
    "conditioner.embedders.0.model.": ("text_encoder_2", "open_clip"),
    "conditioner.embedders.1.model.": ("text_encoder_2", "open_clip"),
    "text_encoders.clip_l.transformer.": ("text_encoder", "clip"),
    "text_encoders.t5xxl.transformer.": ("text_encoder_2", "clip"),
}
"""The prefix of each text encoder: its component, and the program whose names its tensors have."""

KINDS: Final[Mapping[str, str]] = {"unet": "UNet2DConditionModel", "transformer": "FluxTransformer2DModel"}
"""The class of a denoiser in diffusers, as its config would name it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The components in one file: for each, its tensors under the names of diffusers."""

    views: Mapping[str, Sequence[TensorView]]


def is_checkpoint(file: TensorFile) -> bool:
    """Return whether the names are those of a whole pipeline, or of a denoiser in the names of its authors."""
    return any(spec.name.startswith((_DENOISER, *_PREFIXES)) or _FLUX.match(spec.name) for spec in file.tensors)


def split_checkpoint(file: TensorFile, place: Path) -> Checkpoint:
    """Return the components in the header of a file; reads no tensor. `place` names it in errors.

    Raises:
        Malformed: a tensor has no place in a component, or the denoiser is of a kind without a table.
    """
    groups: dict[tuple[str, str], list[TensorSpec]] = {}
    for spec in file.tensors:
        group = _group_of(spec.name)
        if group is not None:
            (component, kind), prefix = group
            groups.setdefault((component, kind), []).append(spec._replace(name=spec.name[len(prefix) :]))
        elif not _LEFT_OUT.fullmatch(spec.name):
            raise _refused(place, f"`{shown(spec.name)}` belongs to no component of a pipeline that has a table")
    views: dict[str, Sequence[TensorView]] = {}
    for (component, kind), specs in groups.items():
        try:
            found, named = _KINDS[kind](specs), _component(component, kind, specs)
        except ValueError as error:
            raise _refused(place, str(error)) from None
        names = [view.name for view in found]
        if named in views or len(set(names)) != len(names):
            raise _refused(place, f"holds `{named}` in two spellings")
        views[named] = found
    if not views:
        raise _refused(place, "holds no component that adapters are made for")
    return Checkpoint(views=views)


def _refused(place: Path, reason: str) -> Malformed:
    return Malformed(
        f"`{shown(str(place), 200)}`: {reason}. Nothing was registered",
        hint="give the folder of the pipeline that diffusers' `save_pretrained` wrote",
    )


def _group_of(name: str) -> tuple[tuple[str, str], str] | None:
    if name.startswith(_DENOISER):
        return ("denoiser", "denoiser"), _DENOISER
    for prefix, group in _PREFIXES.items():
        if name.startswith(prefix):
            return group, prefix
    return (("denoiser", "denoiser"), "") if _FLUX.match(name) else None


def _component(component: str, kind: str, specs: Sequence[TensorSpec]) -> str:
    if kind != "denoiser":
        return component
    return "transformer" if any(_FLUX.match(spec.name) for spec in specs) else "unet"


def _denoiser(specs: Sequence[TensorSpec]) -> list[TensorView]:
    if any(_FLUX.match(spec.name) for spec in specs):
        width = next((s.shape[0] for s in specs if s.name == "img_in.weight" and s.shape), None)
        if width is None:
            raise ValueError("its Flux transformer has no `img_in.weight`")
        return [view for spec in specs for view in flux_views(spec, width)]
    split = {spec.name: spec.name.rpartition(".") for spec in specs}
    unet = LdmUNet(module for module, _, _ in split.values())
    views = []
    for spec in specs:
        module, _, last = split[spec.name]
        named = unet.renamed(module)
        if named is None:
            raise ValueError(f"`{shown(spec.name)}` is not a tensor of a UNet or of Flux, for which there are tables")
        views.append(TensorView.of(spec, f"{named}.{last}"))
    return views


def _as_they_are(specs: Sequence[TensorSpec]) -> list[TensorView]:
    return [TensorView.of(spec) for spec in specs]


_KINDS: Final[Mapping[str, Callable[[Sequence[TensorSpec]], list[TensorView]]]] = {
    "denoiser": _denoiser,
    "clip": _as_they_are,
    "open_clip": lambda specs: open_clip_views(specs, is_cut=False),
    "open_clip cut": lambda specs: open_clip_views(specs, is_cut=True),
}
