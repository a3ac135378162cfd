"""Generates text with a language model: for one or many prompts at a time, whole or streamed.

Independent of adapters: those on the model take effect. Cheap to import; `write` imports torch.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from adapterhub.core.errors import UsageProblem
from adapterhub.formats.prompts.form import RAW, PromptForm, prompt_tokens

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Model: TypeAlias = PreTrainedModel | PeftModel

OnText = Callable[[str], None]
"""Called with each new piece of an answer."""

OnPiece = Callable[[int, str], None]
"""Called with the number of a row and the next piece of its answer."""

IsOver = Callable[[], bool]
"""Asked after each token; every row ends where it is true."""

NEW_TOKENS: Final = 64
"""How many new tokens an answer takes at most by default."""
_INCOMPLETE: Final = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked, and the form that makes a prompt of it; a form's own number of new tokens is `max_new_tokens`."""

    text: str
    form: PromptForm = RAW
    max_new_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """The settings of generation: greedy unless `temperature` is above 0; `top_p` and `seed` apply to sampling only.

    `max_new_tokens` is for questions that have no number of their own.
    """

    max_new_tokens: int = NEW_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer. `tokens` is the number of new tokens, including the end mark; `seconds` is the time of its batch.

    A classifier's answer has a `label` and the `probabilities` of all labels, which sum to 1, and `text` says both.
    """

    text: str
    tokens: int
    prompt_tokens: int
    seconds: float
    label: str | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)

    def label_json(self) -> dict[str, Any]:
        """Return a classifier's members of a JSON document; none for a text."""
        if self.label is None:
            return {}
        rounded = {name: round(probability, 6) for name, probability in self.probabilities.items()}
        return {"label": self.label, "probability": rounded[self.label], "probabilities": rounded}


def all_tokens_of(
    model: Model, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], writing: Writing
) -> list[list[int]]:
    """Return the tokens of each prompt. Questions of one form are rendered together.

    Raises:
        UsageProblem: a prompt has no tokens, or too many for the model with the requested new ones, or its form does
            not suit it or the base.
        ChatTemplateRefused: an adapter's own chat template cannot be used.
    """
    rows: dict[int, list[int]] = {}
    for form in dict.fromkeys(question.form for question in questions):
        places = [at for at, question in enumerate(questions) if question.form == form]
        made = prompt_tokens(form, [questions[at].text for at in places], tokenizer)
        rows |= zip(places, made, strict=True)
    for at, question in enumerate(questions):
        _ensure_room(model, rows[at], _limit(question, writing))
    return [rows[at] for at in range(len(questions))]


def _limit(question: Question, writing: Writing) -> int:
    return writing.max_new_tokens if question.max_new_tokens is None else question.max_new_tokens


def _ensure_room(model: Model, found: list[int], new: int) -> None:
    if not found:
        raise UsageProblem("the prompt is empty", hint="put it in quotes, or send it on stdin")
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    room = getattr(config, "max_position_embeddings", None)
    if model.config.is_encoder_decoder or not isinstance(room, int):
        return
    if len(found) + new > room:
        raise UsageProblem(
            f"the prompt has {len(found):,} tokens, and {new:,} new ones are requested;"
            f" this base has room for {room:,} in all",
            hint="shorten the prompt, or lower --max-new-tokens",
        )


def write(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    writing: Writing,
    *,
    on_text: OnText | None = None,
    on_piece: OnPiece | None = None,
    is_over: IsOver | None = None,
) -> list[Answer]:
    """Return the answers to all `questions`, generated in one batch.

    `on_text` streams a single answer in pieces, and `on_piece` those of all rows. `is_over` ends all of them early.

    Shorter prompts are padded on the left (on the right for an encoder), so each row gets the same answer as in a batch
    of one, up to the rounding of sums. An answer ends before the first of its form's stop texts. Sampling is repeatable
    for the same batch and seed, and does not advance torch's generator.

    Raises:
        UsageProblem: a prompt has no valid tokens; see `all_tokens_of`.
    """
    rows = all_tokens_of(model, tokenizer, questions, writing)
    stops = [question.form.stop for question in questions]
    if on_text is not None and len(questions) == 1:
        on_piece = lambda _row, piece: on_text(piece)  # noqa: E731
    start = time.perf_counter()
    made = continued(
        model,
        tokenizer,
        rows,
        writing,
        stops=stops,
        limits=[_limit(question, writing) for question in questions],
        on_piece=on_piece,
        is_over=is_over,
    )
    seconds = time.perf_counter() - start
    answers = []
    for row, kept, ends in zip(rows, made, stops, strict=True):
        text = before_stop(str(tokenizer.decode(kept, skip_special_tokens=True)), ends)
        answers.append(Answer(text=text, tokens=len(kept), prompt_tokens=len(row), seconds=seconds))
    return answers


def continued(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[int]],
    writing: Writing,
    *,
    stops: Sequence[Sequence[str]],
    limits: Sequence[int],
    on_piece: OnPiece | None = None,
    is_over: IsOver | None = None,
) -> list[list[int]]:
    """Return the new tokens of each row of prompt tokens, as `write` generates them.

    `stops` and `limits` have one item per row.

    A row ends with its end token, with the token that completes a stop text, after its limit, or when `is_over`.
    """
    import torch

    tokens, mask = padded(rows, filler(tokenizer), left=not model.config.is_encoder_decoder)
    settings: dict[str, Any] = {"do_sample": False}
    if writing.temperature > 0:
        settings = {"do_sample": True, "temperature": writing.temperature, "top_p": writing.top_p, "top_k": 0}
    ends = model.generation_config.eos_token_id
    answers = [
        _Row(
            tokenizer,
            stop,
            limit,
            frozenset(ends if isinstance(ends, list | tuple) else () if ends is None else (ends,)),
            None if on_piece is None else partial(on_piece, at),
        )
        for at, (stop, limit) in enumerate(zip(stops, limits, strict=True))
    ]
    with torch.no_grad(), _seeded(writing.seed, model.device), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about sampling settings in the base's generation config, unused here
        model.generate(
            input_ids=tokens.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max(limits),
            stopping_criteria=[_watch(answers, is_over or (lambda: False))],
            pad_token_id=filler(tokenizer),
            **settings,
        )
    for answer in answers:
        answer.end()
    return [answer.tokens for answer in answers]


def padded(rows: Sequence[Sequence[int]], fill: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """Token ids and mask, both [rows, longest]."""
    import torch

    longest = max(len(row) for row in rows)
    tokens = torch.full((len(rows), longest), fill, dtype=torch.int64)
    mask = torch.zeros((len(rows), longest), dtype=torch.int64)
    for at, row in enumerate(rows):
        place = slice(longest - len(row), longest) if left else slice(0, len(row))
        tokens[at, place] = torch.tensor(list(row))
        mask[at, place] = 1
    return tokens, mask


def filler(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the padding token. It is masked, so any token will do if the tokenizer has none."""
    found = [tokenizer.pad_token_id, tokenizer.eos_token_id]
    return next((number for number in found if number is not None), 0)


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators for the block, and restore them at its end."""
    import torch

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def before_stop(text: str, stops: Sequence[str]) -> str:
    """`text` before the first of the stop texts in it."""
    places = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


def _watch(rows: Sequence[_Row], is_over: IsOver) -> Callable[..., Tensor]:
    """Return a stopping criterion of `generate`, which calls it after each token: gives each row its token."""
    import torch

    def watch(tokens: Tensor, *_scores: object, **_rest: object) -> Tensor:
        for row, token in zip(rows, tokens[:, -1].tolist(), strict=True):
            row.put(token)
        ends_all = is_over()
        return torch.tensor([ends_all or row.is_over for row in rows], device=tokens.device)

    return watch


class _Row:
    """The answer of one row, token by token. It ends by itself; what follows is padding.

    `on_text` gets its text in pieces, without what may still change: half a character, and what may begin one of the
    `stops`. Only the tokens since the last piece are decoded, with those of the piece before, for the space between.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stops: Sequence[str],
        limit: int,
        ends: frozenset[int],
        on_text: OnText | None,
    ) -> None:
        self.tokens: list[int] = []
        self.is_over = False
        self._tokenizer, self._stops, self._limit, self._ends = tokenizer, stops, limit, ends
        self._on_text = on_text
        self._context = self._read = 0  # where the context begins, and how many tokens were read as text
        self._held = ""

    def put(self, token: int) -> None:
        """Add the next token, unless the row is over."""
        if self.is_over:
            return
        self.tokens.append(token)
        self.is_over = token in self._ends or len(self.tokens) >= self._limit
        if self._on_text is not None or self._stops:
            self._send(is_end=self.is_over)

    def end(self) -> None:
        """Send the rest of a row that something else ended."""
        if not self.is_over and self._on_text is not None:
            self._send(is_end=True)

    def _send(self, *, is_end: bool) -> None:
        before = self._text(self.tokens[self._context : self._read])
        now = self._text(self.tokens[self._context :])
        text = self._held + now[len(before) :]
        told = before_stop(text, self._stops)
        has_stop = len(told) < len(text)
        self.is_over = self.is_over or has_stop
        if not (is_end or has_stop) and (len(now) <= len(before) or now.endswith(_INCOMPLETE)):
            return
        self._context, self._read = self._read, len(self.tokens)
        kept = 0 if is_end or has_stop else max((_overlap(told, stop) for stop in self._stops), default=0)
        self._held = told[len(told) - kept :]
        if self._on_text is not None and len(told) > kept:
            self._on_text(told[: len(told) - kept])

    def _text(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` begin `stop`."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
