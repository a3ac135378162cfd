"""Whether an adapter changes what a model in memory says: one prompt, with it and without it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from adapterhub.core.errors import AdapterHubError, shown

if TYPE_CHECKING:
    from torch import nn

TOKENS: Final = 16
"""Several: over one token, attention gives the same whatever the queries and keys are."""

MOST_ROWS: Final = 16
"""How many trained rows of an embedding a prompt has, as ids at its end."""

_ROUNDING: Final = 2.0**-21
"""Of the largest number, two steps of float32: what an update of zero may move by rounding."""

_NOISE: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """Whether an adapter changes an answer; None if that is not known. `reason` explains False and None."""

    changes: bool | None
    reason: str = ""


def numbers_of(model: nn.Module, tokens: Sequence[int] = ()) -> list[Tensor]:
    """Ask the model one prompt: `TOKENS` ids, spread over its vocabulary, and then `tokens`.

    Returns the floating-point tensors of its output, such as logits [1, tokens, vocabulary], in float32 on the CPU.
    Raises the model's own error if it needs more than ids.
    """
    config: Any = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    spread = [text.vocab_size * (2 * at + 1) // (2 * TOKENS) for at in range(TOKENS)]
    device = next(model.parameters()).device
    prompt = torch.tensor([[*spread, *tokens]], device=device)
    more = {"decoder_input_ids": prompt} if getattr(config, "is_encoder_decoder", False) else {}
    with torch.inference_mode():
        output = model(input_ids=prompt, **more)
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else (output,)
    return [one.float().cpu() for one in values if isinstance(one, Tensor) and one.is_floating_point()]


def compared(
    plain: Callable[[], list[Tensor]], adapted: Callable[[], list[Tensor]], *, reached: Collection[str] | None = None
) -> Effect:
    """Compare two answers of the base with one of the adapter, which went through the modules `reached`.

    `reached` None: it is not known through which. The effect on a model that cannot be asked so, or answers by chance,
    is unknown.
    """
    try:
        before, again, after = plain(), plain(), adapted()
    except AdapterHubError:
        raise
    except Exception as error:  # noqa: BLE001 - a model of any kind, asked in a way that it may not know
        return Effect(changes=None, reason=f"the model takes no prompt of ids alone: {shown(str(error), 200)}")
    if not before:
        return Effect(changes=None, reason="the model's answer to ids has no numbers")
    noise, moved = _apart(before, again), _apart(before, after)
    if moved > max(_NOISE * noise, _ROUNDING * max(float(one.abs().max()) for one in before if one.numel())):
        return Effect(changes=True)
    if noise:
        return Effect(changes=None, reason="the base answers one prompt differently each time")
    if reached is not None and not reached:
        return Effect(changes=None, reason="a prompt of ids goes through none of its modules")
    return Effect(changes=False, reason="the model says the same, number for number, with it and without it")


def _apart(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    if [part.shape for part in one] != [part.shape for part in other]:
        return float("inf")
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a.numel() and not torch.equal(a, b)]
    # NaN is never equal to itself, and is no proof of sameness: it counts as far apart
    return max((float((a - b).abs().nan_to_num(nan=float("inf")).max()) for a, b in pairs), default=0.0)
