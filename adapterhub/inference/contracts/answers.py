"""Prompts in tokens, greedy answers in tokens, and the scores of recorded answers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from adapterhub.formats.contract.contract import Asked
from adapterhub.formats.contract.reader import MAX_PROMPT_TOKENS
from adapterhub.formats.prompts.form import PromptForm
from adapterhub.formats.prompts.rendering import prompt_tokens
from adapterhub.inference.contracts.unknown import Tick, Unknown
from adapterhub.inference.generation import NEW_TOKENS, Writing, continued, padded

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from adapterhub.inference.generation import Model

ROWS: Final = 8
"""Prompts that are answered together."""

BATCH_TOKENS: Final = 1024
"""Tokens in one pass, padding included; a longer row runs alone."""

BATCH_LOGITS: Final = 16 << 20
"""Numbers that a pass may return: 64 MiB in float32. A vocabulary makes them many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The tokens of a prompt and of its recorded answer."""

    prompt: Sequence[int]
    answer: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How a model takes a recorded answer.

    `loss` is its mean cross entropy in nats per token, not finite if the model's numbers are not. `margin` is the
    least lead of a recorded token over the next best, in nats; the greedy answer is the recorded one if it is positive.
    """

    loss: float
    margin: float

    @property
    def same(self) -> bool:
        """Whether the greedy answer is the recorded one, token for token."""
        return self.margin > 0


def prompts_in_tokens(
    form: PromptForm, asked: Sequence[Asked], model: Model, tokenizer: PreTrainedTokenizerBase, *, new: int = 0
) -> list[list[int]]:
    """The tokens of each prompt; `new` more must have room behind them.

    Raises:
        Unknown: a prompt has too many tokens.
        UsageProblem, ChatTemplateRefused: as `formats.prompts.rendering`.
    """
    rows = prompt_tokens(form, asked, tokenizer)
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    room = getattr(config, "max_position_embeddings", None)
    most = MAX_PROMPT_TOKENS
    if isinstance(room, int) and room > 0 and not model.config.is_encoder_decoder:
        most = min(most, room - new)
    longest = max(map(len, rows), default=1)
    if longest > most:
        raise Unknown("too-long", f"a prompt has {longest:,} tokens, and there is room for {most:,}")
    if not all(rows):
        raise Unknown("other-tokenizer", "the tokenizer makes no token of a prompt")
    return rows


# ---------------------------------------------------------------- answers
def greedy(
    model: Model, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], form: PromptForm, tick: Tick
) -> list[list[int]]:
    """The greedy answer to each prompt, up to and including its end token or one of the form's stop texts."""
    found: list[list[int]] = []
    for at in range(0, len(prompts), ROWS):
        rows = prompts[at : at + ROWS]
        limits = [form.max_new_tokens or NEW_TOKENS] * len(rows)
        found += continued(model, tokenizer, rows, Writing(), stops=[form.stop] * len(rows), limits=limits)
        tick(len(rows))
    return found


def text_of(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The text of an answer, without special tokens."""
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True))


# ---------------------------------------------------------------- scores
def scores(model: Model, rows: Sequence[Row], tick: Tick) -> list[Score]:
    """The score of each row's answer, taken teacher-forced. Memory is bounded, whatever the vocabulary.

    Rows of similar length share a pass, padded on the right; a row's score does not depend on the others beyond the
    rounding of sums.
    """
    import torch

    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    keeps_some = "logits_to_keep" in inspect.signature(plain.forward).parameters
    vocabulary = plain.get_input_embeddings().weight.shape[0]
    found: dict[int, Score] = {}
    with torch.no_grad():
        for batch in _batches(rows, vocabulary):
            scored = _scored(model, [rows[at] for at in batch], keeps_some=keeps_some)
            found.update(zip(batch, scored, strict=True))
            tick(len(batch))
    return [found[at] for at in range(len(rows))]


def _batches(rows: Sequence[Row], vocabulary: int) -> Iterator[list[int]]:
    """The places of rows that run together, the longest first."""
    sizes = [(len(row.prompt) + len(row.answer), len(row.prompt)) for row in rows]
    batch: list[int] = []
    for at in sorted(range(len(rows)), key=lambda at: sizes[at], reverse=True):
        chosen = [*batch, at]
        longest = max(sizes[one][0] for one in chosen)
        columns = longest - min(sizes[one][1] for one in chosen) + 1
        count = len(chosen)
        if batch and (count * longest > BATCH_TOKENS or count * columns * vocabulary > BATCH_LOGITS):
            yield batch
            chosen = [at]
        batch = chosen
    if batch:
        yield batch


def _scored(model: Model, rows: Sequence[Row], *, keeps_some: bool) -> list[Score]:
    import torch

    if model.config.is_encoder_decoder:
        tokens, mask = padded([row.prompt for row in rows], 0, left=False)
        start = model.config.decoder_start_token_id
        given = [[start, *row.answer[:-1]] for row in rows]
        decoder, _ = padded(given, 0, left=False)
        places = [range(len(row.answer)) for row in rows]
        arguments: dict[str, Any] = {"decoder_input_ids": decoder.to(model.device)}
        keeps_some = False
    else:
        tokens, mask = padded([[*row.prompt, *row.answer] for row in rows], 0, left=False)
        places = [range(len(row.prompt) - 1, len(row.prompt) + len(row.answer) - 1) for row in rows]
        arguments = {"use_cache": False}
    first, last = min(place.start for place in places), max(place.stop for place in places)
    columns = torch.arange(first, last, device=model.device)
    arguments |= {"input_ids": tokens.to(model.device), "attention_mask": mask.to(model.device)}
    if keeps_some:
        logits = model(**arguments, logits_to_keep=columns).logits
    else:
        logits = model(**arguments).logits[:, first:last]
    found = []
    for at, (row, place) in enumerate(zip(rows, places, strict=True)):
        found.append(_score(logits[at, place.start - first : place.stop - first].float(), row.answer))
    return found


def _score(logits: Tensor, answer: Sequence[int]) -> Score:
    """`logits` are [tokens, vocabulary]."""
    import torch

    if max(answer) >= logits.shape[-1]:
        return Score(loss=math.inf, margin=-math.inf)
    wanted = torch.tensor(answer, device=logits.device)[:, None]
    own = logits.gather(1, wanted)[:, 0]
    loss = float((logits.logsumexp(-1) - own).double().mean())
    logits.scatter_(1, wanted, -math.inf)
    margin = float((own - logits.max(-1).values).min())
    if not math.isfinite(loss) or math.isnan(margin):
        return Score(loss=math.inf, margin=-math.inf)
    return Score(loss=max(loss, 0.0), margin=margin)
