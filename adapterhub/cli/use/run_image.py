"""`adapt run --image`: one image by a pipeline with adapters on it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.api.steps.finding import find_base
from adapterhub.core.disk.output_place import output_place
from adapterhub.core.errors import Conflict, NotAllowed, NotFound, UsageProblem, shown

if TYPE_CHECKING:
    from adapterhub.cli.options.params import Session
    from adapterhub.inference.answering import Choice, Loading
    from adapterhub.library.store.catalog import AdapterLike

_MOST_PIXELS = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """What the user typed for an image."""

    path: Path | None
    steps: int | None
    guidance: float | None
    size: str | None

    def ensure_image(self) -> None:
        """Raise if there is no image that the other options are for."""
        given = {"--steps": self.steps, "--guidance": self.guidance, "--size": self.size}
        named = next((name for name, value in given.items() if value is not None), None)
        if self.path is None and named:
            raise UsageProblem(f"`{named}` needs `--image`", hint="pass `--image out.png`")


def ensure_alone(image: ImageOptions, others: Mapping[str, object]) -> None:
    """Raise if an option for text is given with --image."""
    named = next((name for name, value in others.items() if value not in (None, False, ())), None)
    if named:
        raise UsageProblem(f"`{named}` is for text, and `--image` draws", hint=f"omit `{named}` or `--image`")


def draw_image(
    session: Session, choice: Choice, prompt: str, image: ImageOptions, loading: Loading, seed: int | None
) -> None:
    """Draw, and write the PNG.

    Raises:
        UsageProblem, Conflict, NotFound, NotAllowed: of the file or the options; nothing was drawn.
        BaseNotFound, MissingExtra, Incompatible, BaseMismatch: as `draw`.
    """
    assert image.path is not None  # the caller looked
    _check_output(image.path)
    size = None if image.size is None else _size(image.size)
    library = session.project_library
    record = find_base(library, [choice], loading.base)
    from adapterhub.inference.images import Drawing, draw, write_png

    drawing = Drawing(
        prompt=prompt,
        seed=secrets.randbelow(1 << 31) if seed is None else seed,
        steps=image.steps,
        guidance=image.guidance,
        size=size,
    )
    adapters: dict[AdapterLike, float] = dict(choice.items())
    with session.out.steps("draw", unit="steps") as progress:
        drawn = draw(
            library,
            record,
            adapters,
            drawing,
            dtype=loading.dtype,
            allow_base_mismatch=loading.allow_base_mismatch,
            on_step=progress,
        )
    for adapter in drawn.adapters:
        for warning in adapter.warnings:
            session.out.warn(f"`{shown(adapter.label, 200)}` {warning}")
    try:
        write_png(drawn.image, image.path)
    except OSError as error:
        raise NotAllowed(f"cannot write `{shown(str(image.path), 200)}`: {error.strerror}") from None
    width, height = drawn.image.size
    document = {
        "adapters": [{"adapter": a.label, "weight": a.weight, "base": a.verdict.name} for a in drawn.adapters],
        "base": record.label,
        "prompt": prompt,
        "image": str(image.path),
        "width": width,
        "height": height,
        "steps": image.steps,
        "seed": drawing.seed,
        "seconds": round(drawn.seconds, 3),
    }
    text = f"wrote {image.path}  {width} x {height}, seed {drawing.seed}"
    session.out.result(document, lambda: session.out.line(text))


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.lower().partition("x")
    digits = cross and width.isdecimal() and height.isdecimal() and len(text) <= len("8192x8192")
    found = (int(width), int(height)) if digits else (0, 0)
    if not all(0 < side <= _MOST_PIXELS and side % 8 == 0 for side in found):
        raise UsageProblem(
            f"--size `{shown(text)}`, expected width and height in pixels, multiples of 8 up to {_MOST_PIXELS}",
            hint="such as `--size 768x512`",
        )
    return found


def _check_output(out: Path) -> None:
    """Raise unless `out` is a new PNG file in an existing, writable folder."""
    where = shown(str(out), 200)
    if out.suffix.lower() != ".png":
        raise UsageProblem(f"--image `{where}`, expected a file that ends in `.png`")
    output_place(out)
    if out.exists() or out.is_symlink():
        raise Conflict(f"`{where}` exists. Nothing was drawn", hint="name a file that does not exist yet")
    if not out.absolute().parent.is_dir():
        raise NotFound(f"the folder of `{where}` does not exist", hint=f"`mkdir -p {out.parent}`")
    if not os.access(out.absolute().parent, os.W_OK):
        raise NotAllowed(f"cannot write `{where}`: its folder is not writable", hint="name a file in another folder")
