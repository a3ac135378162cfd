"""Where an answer ends besides its end token: before a stop text, and at its own number of tokens in a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


def before_stop(text: str, stops: Sequence[str]) -> str:
    """`text` before the first of the stop texts in it."""
    places = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


class Stops:
    """A stopping criterion of `generate` that ends each row by itself. `ended` holds the new tokens of ended rows.

    `stops` and `limits` are one for each row, `skipped` the tokens of the prompt; `is_over` ends all rows. A step
    decodes what the row has written, so its cost grows with the answer, which is short where a form has stops.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stops: Sequence[Sequence[str]],
        limits: Sequence[int],
        skipped: int,
        is_over: Callable[[], bool] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        self._limits = limits
        self._skipped = skipped
        self._is_over = is_over or (lambda: False)
        self.ended: dict[int, int] = {}

    def __call__(self, tokens: Tensor, *_scores: object, **_rest: object) -> Tensor:
        """Which rows are done; `tokens` is [rows, tokens so far]."""
        import torch

        new, is_over = tokens.shape[1] - self._skipped, self._is_over()
        for at, row in enumerate(tokens[:, self._skipped :].tolist()):
            if at not in self.ended and (is_over or new >= self._limits[at] or self._has_stop(row, self._stops[at])):
                self.ended[at] = new
        return torch.tensor([at in self.ended for at in range(tokens.shape[0])], device=tokens.device)

    def _has_stop(self, row: list[int], stops: Sequence[str]) -> bool:
        if not stops:
            return False
        text = str(self._tokenizer.decode(row, skip_special_tokens=True))
        return any(stop in text for stop in stops)


class StopGate:
    """Passes on the pieces of a stream before the first stop text; holds back what may be the beginning of one."""

    def __init__(self, on_text: Callable[[str], None], stops: Sequence[str]) -> None:
        self._on_text = on_text
        self._stops = stops
        self._held = ""
        self._is_over = False

    def send(self, piece: str) -> None:
        """Take the next piece."""
        if self._is_over:
            return
        text = self._held + piece
        before = before_stop(text, self._stops)
        self._is_over = len(before) < len(text)
        kept = 0 if self._is_over else max((_overlap(before, stop) for stop in self._stops), default=0)
        self._held = before[len(before) - kept :]
        if len(before) > kept:
            self._on_text(before[: len(before) - kept])

    def end(self) -> None:
        """Pass on what was held back, as no stop followed."""
        if self._held and not self._is_over:
            self._on_text(self._held)
        self._held = ""


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
