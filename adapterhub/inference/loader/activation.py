"""Activated LoRA (aLoRA): an adapter that acts from the last occurrence of its invocation tokens on.

PEFT's layers take the number of tokens at the end of each row on which they act, which PEFT counts in the classes that
it wraps around whole tasks. Here the base counts it in each call, which comes from the model of `attach`, its
`generate`, or a bank inside its block. A call that hides the tokens before it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from adapterhub.core.errors import UnsupportedAdapter, UsageProblem, shown
from adapterhub.inference.loader.base import BaseModel, PipelineModules
from adapterhub.inference.loader.reading import LISTED, AdapterContents

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch.utils.hooks import RemovableHandle

__all__ = ["activate", "check_activated"]

_TOKENS = 1
"""The dimension of the tokens of a row."""
_WHOLE = "call the whole model with `input_ids`"


def check_activated(contents: AdapterContents, base: BaseModel) -> None:
    """Raise if PEFT cannot switch on some factors of an aLoRA by its tokens. Those that replace modules are always on.

    Raises:
        UnsupportedAdapter: with every reason.
    """
    from transformers.pytorch_utils import Conv1D

    tokens = contents.config.alora_invocation_tokens
    if tokens is None:
        return
    always = list(contents.parameters.values())
    always += [name for name in contents.modules if not isinstance(base.modules[name], (nn.Linear, Conv1D))]
    reasons = [f"`{shown(name)}` would act on every token: aLoRA is for linear layers" for name in always[:LISTED]]
    if not tokens:
        reasons.append("its list of invocation tokens (alora_invocation_tokens) is empty")
    if isinstance(base.model, PipelineModules):
        reasons.append("it is switched on by tokens in the prompt (aLoRA), which a pipeline does not pass on")
    if reasons:
        raise UnsupportedAdapter(f"`{shown(contents.label)}` cannot be attached here", reasons)


def activate(model: nn.Module, contents: AdapterContents, layers: Iterable[nn.Module]) -> list[RemovableHandle]:
    """Let the calls of `model` tell PEFT's `layers` where the adapter begins; the hooks to remove at the end."""
    counting = _Counting(contents.label, contents.config.alora_invocation_tokens or ())
    for layer in layers:
        layer.register_forward_pre_hook(counting.tell, with_kwargs=True)
    return [
        model.register_forward_pre_hook(counting.begin, with_kwargs=True),
        model.register_forward_hook(counting.end, with_kwargs=True, always_call=True),
    ]


class _Counting:
    """Counts the tokens at the end of each row on which the adapter acts, call by call.

    A cache keeps which of its rows are switched on, so that tokens generated after a prompt are switched on as well.
    """

    def __init__(self, label: str, tokens: Sequence[int]) -> None:
        self._label = label
        self._invocation = torch.tensor(tokens, dtype=torch.long)
        self._counts: list[int] | None = None
        self._problem = ""
        self._lengths: tuple[int, ...] = ()
        self._switched: WeakKeyDictionary[Any, list[bool]] = WeakKeyDictionary()

    def begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Count for one call of the model."""
        self._counts, self._problem = None, ""
        ids = kwargs.get("input_ids", args[0] if args else None)
        cache = _cache_in(kwargs)
        if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.ndim != 2:
            self._problem = "it needs the tokens (input_ids), not their embeddings"
            return
        length, kept = ids.shape[_TOKENS], kwargs.get("logits_to_keep")
        at_head = min(length, kept) if isinstance(kept, int) and kept > 0 else length  # the last tokens
        self._lengths = (length, at_head)
        switched = None if cache is None else self._switched.get(cache)
        held = _held(cache)
        if held is None or (held == 0 and switched is not None):
            self._problem = f"a {type(cache).__name__} does not say what it holds of earlier tokens"
        elif held == 0:
            self._counts = self._found(ids)
        elif length == 1 and switched is not None and len(switched) == len(ids):
            self._counts = [int(is_on) for is_on in switched]
        else:
            self._problem = "a cache hides the tokens before this call; give all tokens at once, or call `generate`"

    def end(self, _: nn.Module, _args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        """Keep with the cache which rows are switched on."""
        own = getattr(output, "__dict__", {})
        for cache in (_cache_in(kwargs), own.get("cache"), own.get("past_key_values")):
            if self._counts is not None and hasattr(cache, "get_seq_length"):
                self._switched[cache] = [count > 0 for count in self._counts]
        self._counts, self._problem = None, ""

    def tell(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """Give a layer the counts.

        Raises:
            UsageProblem: they are unknown, or the layer does not get the tokens row by row.
        """
        if layer.disable_adapters:
            return None
        inputs, problem = args[0], self._problem
        if not problem and self._counts is None:
            problem = "a part of the model was called, which does not have the tokens"
        elif not problem and inputs.shape[:-1] not in [(len(self._counts or ()), length) for length in self._lengths]:
            rows = f"{len(self._counts or ())} rows of {self._lengths[0]} tokens"
            problem = f"a layer gets {list(inputs.shape)}, not {rows}"
        if problem:
            raise UsageProblem(
                f"`{shown(self._label, 200)}` acts from its invocation tokens on (aLoRA): {problem}", hint=_WHOLE
            )
        return (inputs.contiguous(), *args[1:]), kwargs | {"alora_offsets": self._counts}

    def _found(self, ids: Tensor) -> list[int]:
        """Return the number of tokens from the last occurrence of the invocation to the end of each row.

        0 without one.
        """
        size = len(self._invocation)
        if ids.shape[_TOKENS] < size:
            return [0] * len(ids)
        is_here = (ids.unfold(_TOKENS, size, 1) == self._invocation.to(ids.device)).all(-1)
        places = torch.arange(1, is_here.shape[_TOKENS] + 1, device=ids.device)
        last = (is_here * places).amax(_TOKENS)  # counted from 1
        return [ids.shape[_TOKENS] - place + 1 if place else 0 for place in last.tolist()]


def _cache_in(kwargs: Mapping[str, Any]) -> Any:
    """Return the cache of earlier tokens in a call."""
    named = (value for key, value in kwargs.items() if "past_key" in key or "cache" in key)
    return next((one for one in named if one is not None and not isinstance(one, (bool, str, Tensor))), None)


def _held(cache: Any) -> int | None:
    """Return the number of tokens that a cache holds.

    None if it does not count them, as those of state-space models.
    """
    try:
        return 0 if cache is None else int(cache.get_seq_length())
    except (AttributeError, ValueError):
        return None
