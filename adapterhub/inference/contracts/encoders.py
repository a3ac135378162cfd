"""What an encoder says of a text: the log-probabilities of its labels, and its vector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from adapterhub.formats.contract.vectors import MAX_VECTOR
from adapterhub.inference.contracts.unknown import Tick

if TYPE_CHECKING:
    from torch import Tensor

    from adapterhub.inference.generation import Model

_ROWS: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """The log-softmax over the labels (empty without a head), and the mean-pooled last hidden state."""

    logits: tuple[float, ...]
    vector: tuple[float, ...]

    @property
    def is_finite(self) -> bool:
        """Whether all numbers are finite."""
        return all(map(math.isfinite, (*self.logits, *self.vector)))


def encode(model: Model, rows: Sequence[Sequence[int]], tick: Tick, *, vectors: bool) -> list[Encoding]:
    """What the model says of each row of tokens. Rows of one length share a pass, so that none is padded."""
    import torch

    found: dict[int, Encoding] = {}
    for length in sorted({len(row) for row in rows}):
        places = [at for at, row in enumerate(rows) if len(row) == length]
        for start in range(0, len(places), _ROWS):
            chosen = places[start : start + _ROWS]
            ids = torch.tensor([list(rows[at]) for at in chosen], device=model.device)
            with torch.no_grad():
                out = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=vectors)
            heads = getattr(out, "logits", None)
            logits = [[]] * len(chosen) if heads is None else heads.float().log_softmax(-1).tolist()
            pooled = _pooled(out.hidden_states[-1]) if vectors else [[]] * len(chosen)
            for at, scores, vector in zip(chosen, logits, pooled, strict=True):
                found[at] = Encoding(logits=tuple(scores), vector=tuple(vector))
            tick(len(chosen))
    return [found[at] for at in range(len(rows))]


def _pooled(states: Tensor) -> list[list[float]]:
    """The means over the tokens of [rows, tokens, numbers]."""
    means: list[list[float]] = states.float().mean(1)[:, :MAX_VECTOR].tolist()
    return means


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """The cosine of two vectors; 0 where their lengths differ or one is zero."""
    if len(one) != len(other):
        return 0.0
    dot = math.fsum(a * b for a, b in zip(one, other, strict=True))
    sizes = math.sqrt(math.fsum(a * a for a in one) * math.fsum(b * b for b in other))
    return dot / sizes if sizes else 0.0


def divergence(recorded: Sequence[float], now: Sequence[float]) -> float:
    """KL(recorded ‖ now) of two log-softmaxes, in nats; infinite where their lengths differ."""
    if len(recorded) != len(now):
        return math.inf
    return max(0.0, math.fsum(math.exp(a) * (a - b) for a, b in zip(recorded, now, strict=True) if a > -math.inf))
