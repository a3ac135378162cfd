"""Contracts of pipelines: the latents that an adapter draws, and how far the plain base is from them.

A latent is what a pipeline draws before its VAE, which is not part of a base. Its noise comes from a seed on the CPU,
so every machine starts from the same. Distances are shares of the recorded latent's length: 0.02 is what bfloat16
moves.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from adapterhub.core.digests import Digest, canonical_json, digest_of
from adapterhub.core.errors import Incompatible, UsageProblem, shown
from adapterhub.formats.contract.contract import (
    DEFAULT_GOLDENS,
    IMAGE,
    MAX_LATENT,
    Asked,
    Contract,
    Golden,
    ImageSettings,
    Recorded,
    ids_digest,
    packed_latent,
    rounded,
    unpacked_latent,
)
from adapterhub.formats.contract.reader import MAX_IMAGES, MAX_PROMPT_TOKENS, Plan, Wanted, WantedImages
from adapterhub.formats.prompts.form import RAW
from adapterhub.inference.contracts.answers import (
    OTHER_INPUTS,
    Measured,
    Tick,
    Unknown,
    distance,
    lacks_memory,
    memory_as_unknown,
    ticking,
)
from adapterhub.inference.contracts.recording import (
    ENOUGH_GOLDENS,
    Recording,
    ensure_enough,
    ensure_sound,
    ensure_tight,
)
from adapterhub.inference.images import Drawing, drawn_by

if TYPE_CHECKING:
    from adapterhub.inference.loader.attachment import Attached

DEFAULT_STEPS: Final = 4
MOST_BY_DEFAULT: Final = 256
"""Pixels of a side where the plan names none: the pipeline's own, halved until it is within."""

_STRIDE: Final = 1009
"""A prime above every side of a latent, so that the numbers that are kept come from all of its channels and places."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptedPipeline:
    """A pipeline of diffusers with an adapter on it."""

    pipeline: Any
    attached: Attached

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the component that draws."""
        found: torch.dtype = self.pipeline.dtype
        return found

    def base_alone(self) -> contextlib.AbstractContextManager[None]:
        """Within, the pipeline draws without the adapter."""
        return self.attached.base_alone()

    @property
    def tokenizers(self) -> list[Any]:
        """Its tokenizers, by name."""
        held = self.pipeline.components
        return [held[name] for name in sorted(held) if name.startswith("tokenizer") and held[name] is not None]

    @property
    def tokenizers_digest(self) -> Digest:
        """Of the vocabularies of all its tokenizers."""
        return digest_of(canonical_json([sorted(one.get_vocab().items()) for one in self.tokenizers]))

    @property
    def vocabulary(self) -> int:
        """The size of its largest vocabulary."""
        return max((len(one) for one in self.tokenizers), default=1)

    @property
    def scheduler_digest(self) -> Digest:
        """Of the scheduler's class, and of its settings that are not the class's own: newer ones may have more.

        Raises:
            Incompatible: the pipeline has none.
        """
        scheduler = getattr(self.pipeline, "scheduler", None)
        if scheduler is None:
            raise Incompatible(
                "the pipeline has no scheduler, so nothing fixes how it draws",
                hint="load the whole pipeline, as diffusers' `save_pretrained` wrote it",
            )
        defaults = {name: one.default for name, one in inspect.signature(type(scheduler).__init__).parameters.items()}
        held = {name: repr(value) for name, value in scheduler.config.items() if name in defaults}
        own = {name: text for name, text in held.items() if text != repr(defaults[name])}
        return digest_of(canonical_json({"class": type(scheduler).__name__, "settings": own}))

    def tokens(self, prompt: str) -> list[int]:
        """Return the tokens that its tokenizers make of a prompt, one after the other.

        Raises:
            Unknown: they are too many.
        """
        found = [int(token) for one in self.tokenizers for token in one(prompt)["input_ids"]]
        if not 1 <= len(found) <= MAX_PROMPT_TOKENS:
            raise Unknown("too-long", f"a prompt has {len(found):,} tokens, expected 1 to {MAX_PROMPT_TOKENS:,}")
        return found

    def latent(self, prompt: str, seed: int, settings: ImageSettings, tick: Tick) -> list[float]:
        """Numbers of the latent that it draws; of more than 1024, so many that lie evenly.

        Raises:
            Incompatible: the pipeline cannot draw so, or gives no latent.
            Unknown: the time is over.
        """
        size = (settings.width, settings.height)
        drawing = Drawing(prompt=prompt, seed=seed, steps=settings.steps, guidance=settings.guidance, size=size)
        arguments = drawing.settings() | {"output_type": "latent"}
        try:
            found = drawn_by(self.pipeline, arguments, lambda _done, _total: tick(0))
        except (ValueError, TypeError, RuntimeError, AttributeError) as error:
            if lacks_memory(error):
                raise
            raise Incompatible(
                f"the pipeline cannot draw {settings.width} x {settings.height} in {settings.steps} steps: "
                f"{shown(str(error).strip(), 200)}",
                hint="record with another size: `[image]` in a `tests.toml`",
            ) from None
        if not isinstance(found, torch.Tensor):
            raise Incompatible(
                "the pipeline gives no latent, which a contract of images holds",
                hint='record with a pipeline that returns latents for `output_type="latent"`',
            )
        flat = found.detach().float().flatten().cpu()
        if (count := flat.numel()) > MAX_LATENT:
            flat = flat[torch.arange(MAX_LATENT) * _STRIDE % count]
        tick(1)
        return list(map(float, flat))


# ---------------------------------------------------------------- checking
def drawn_again(model: AdaptedPipeline, contract: Contract, tick: Tick, *, base_alone: bool) -> Measured:
    """Draw every golden of a contract again.

    Raises:
        Unknown: the tokenizers or the scheduler are others than at the recording, or the time is over.
        Incompatible: the pipeline cannot draw so.
    """
    settings = contract.image
    assert settings is not None  # the reader looked
    if model.scheduler_digest != settings.scheduler:
        raise Unknown("other-scheduler")
    asked = {golden: _text(golden.asked) for golden in contract.distinct}
    for golden, prompt in asked.items():
        if ids_digest(model.tokens(prompt)) != golden.prompt_sha256:
            raise Unknown("other-tokenizer", f"the tokenizers make other tokens of `{golden.id}` than at the recording")

    def draw() -> dict[str, Sequence[float]]:
        return {golden.id: model.latent(text, golden.seed or 0, settings, tick) for golden, text in asked.items()}

    own = draw()
    with model.base_alone() if base_alone else contextlib.nullcontext():
        return Measured(latents=own, base_latents=draw() if base_alone else {})


# ---------------------------------------------------------------- recording
def record_images(
    model: AdaptedPipeline,
    plan: Plan,
    recorded: Recorded,
    *,
    count: int = DEFAULT_GOLDENS,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Recording:
    """Let a pipeline with an adapter draw, and without it, and record at most `count` latents.

    Raises:
        Incompatible: adapter and base draw alike, too few images are left, or the pipeline cannot draw so.
        UsageProblem: the plan demands what only texts can meet, or its bounds are too loose.
    """
    if plan.expects or plan.leave_alone:
        raise UsageProblem(
            "`expect`, `never` and `leave_alone` are about texts, and a pipeline draws images",
            hint="leave them out of a contract of images",
        )
    ensure_tight(plan)
    wanted = plan.goldens[: min(count, MAX_IMAGES)]
    settings, tick = _settings(model, plan.image or WantedImages()), ticking(None, progress, 2 * len(wanted))
    asked = [(one, _text(one.asked), number if one.seed is None else one.seed) for number, one in enumerate(wanted)]
    try:
        with memory_as_unknown():
            tokens = [model.tokens(text) for _, text, _ in asked]
            own = [model.latent(text, seed, settings, tick) for _, text, seed in asked]
            with model.base_alone():
                base = [model.latent(text, seed, settings, tick) for _, text, seed in asked]
    except Unknown as unknown:
        raise Incompatible(f"cannot record: {unknown.detail}", hint=OTHER_INPUTS) from None
    found: list[Golden] = []
    left_out: list[tuple[str, str]] = []
    for (one, _, seed), prompt, latent, alone in zip(asked, tokens, own, base, strict=True):
        golden = _golden(one, seed, prompt, latent, alone)
        if (golden.gap or 0.0) < plan.bounds.min_gap:
            left_out.append((one.id, f"is drawn alike without the adapter: {golden.gap:.3f} apart"))
        else:
            found.append(golden)
    hint = "give more inputs, that the adapter was trained for; more `steps` in `[image]` also set both apart"
    ensure_enough(found, left_out, "images", hint)
    contract = Contract(
        kind=IMAGE, prompt=RAW, recorded=recorded, goldens=tuple(found), bounds=plan.bounds, image=settings
    )
    ensure_sound(contract)
    few = f"{len(found)} goldens: one of them may change; {ENOUGH_GOLDENS} see more"
    return Recording(
        contract=contract, left_out=tuple(left_out), warnings=(few,) if len(found) < ENOUGH_GOLDENS else ()
    )


def _golden(one: Wanted, seed: int, prompt: Sequence[int], latent: Sequence[float], base: Sequence[float]) -> Golden:
    if not all(map(math.isfinite, latent)) or not any(latent):
        raise Incompatible(
            "what the adapter draws is not finite", hint="`adapt verify` finds numbers that are not finite"
        )
    try:
        packed = packed_latent(latent)
    except OverflowError:
        raise Incompatible(
            "what the adapter draws has numbers beyond half precision, expected at most 65,504"
        ) from None
    gap = distance(unpacked_latent(packed), base)
    if not math.isfinite(gap):
        raise Incompatible("what the base draws is not finite", hint="load the base in float32")
    return Golden(
        id=one.id,
        asked=one.asked,
        prompt_tokens=len(prompt),
        prompt_sha256=ids_digest(prompt),
        seed=seed,
        latent=packed,
        gap=rounded(gap),
    )


def _text(asked: Asked | None) -> str:
    if not isinstance(asked, str):
        raise UsageProblem(
            "image pipelines take one text prompt, not a conversation", hint="pass the text as one prompt"
        )
    return asked


def _settings(model: AdaptedPipeline, wanted: WantedImages) -> ImageSettings:
    side, guidance = _own_side(model.pipeline), wanted.guidance
    parameter = inspect.signature(type(model.pipeline).__call__).parameters.get("guidance_scale")
    if guidance is None and parameter is not None and isinstance(parameter.default, int | float):
        guidance = float(parameter.default)
    return ImageSettings(
        width=wanted.width or side,
        height=wanted.height or side,
        steps=wanted.steps or DEFAULT_STEPS,
        guidance=rounded(guidance),
        scheduler=model.scheduler_digest,
    )


def _own_side(pipeline: Any) -> int:
    """Return the pipeline's own size, halved until it is small; 256 where it does not say."""
    cells = getattr(pipeline, "default_sample_size", None)
    if cells is None:
        denoiser = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
        cells = getattr(getattr(denoiser, "config", None), "sample_size", None)
    side = cells * getattr(pipeline, "vae_scale_factor", 8) if isinstance(cells, int) and cells > 0 else MOST_BY_DEFAULT
    while side > MOST_BY_DEFAULT:
        side //= 2
    return max(8, side // 8 * 8)
