"""The family of image or video models that an adapter is for, in words: by names, widths, blocks and the header."""

from __future__ import annotations

from typing import Final

from adapterhub.formats.foreign.conversion import width_of
from adapterhub.formats.foreign.families import family_named, having, likeliest, titles
from adapterhub.formats.foreign.reading import Reading
from adapterhub.formats.foreign.tables import UNETS

_CONTEXTS: Final = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "SDXL"}
_ENCODERS: Final = ("text_encoder", "text_encoder_2", "text_encoder_3")
_MOST: Final = 3


def family_of_images(reading: Reading, architecture: str = "") -> str:
    """Return the families that have every module, at most three, as `FLUX.1 or Chroma`; "" if that is unknown.

    `architecture` is the model's name in the header. For a UNet, the width of the text that its attention reads
    decides.
    """
    modules = [module for module in reading.modules if module.part not in _ENCODERS]
    names = {module.name for module in modules}
    if not names:
        return "CLIP" if any(reading.parts) else ""
    if "unet" not in reading.parts:
        if not any(reading.parts):
            return ""
        known = [family for key in reading.families if (family := family_named(key))] or having(names)
        found = likeliest(known, names, map(width_of, modules), architecture)
        return titles(found) if len(found) <= _MOST else ""
    for module in modules:
        a = module.slots.get("lora_A.weight")
        width = a.shape[1] if a is not None else 0
        if module.name.endswith(("attn2.to_k", "attn2.to_v")) and width in _CONTEXTS:
            return _CONTEXTS[width]
    fitting = [unet for unet in UNETS if names <= unet.ldm.keys()]
    return fitting[0].title if len(fitting) == 1 else ""
