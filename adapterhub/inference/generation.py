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
        """What a classifier's answer adds to a JSON document; nothing for a text."""
        if self.label is None:
            return {}
        rounded = {name: round(probability, 6) for name, probability in self.probabilities.items()}
        return {"label": self.label, "probability": rounded[self.label], "probabilities": rounded}


def all_tokens_of(
    model: Model, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], writing: Writing
) -> list[list[int]]:
    """The tokens of each prompt. Questions of one form are rendered together.

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


def tokens_of(model: Model, tokenizer: PreTrainedTokenizerBase, question: Question, writing: Writing) -> list[int]:
    """The tokens of one prompt; see `all_tokens_of`."""
    return all_tokens_of(model, tokenizer, [question], writing)[0]


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
    """The answers to all `questions`, generated in one batch.

    `on_text` streams a single answer in pieces, and `on_piece` those of all rows. `is_over` ends all of them early.

    Shorter prompts are padded on the left (on the right for an encoder), so each row gets the same answer as alone, up
    to the rounding of sums. An answer ends before the first of its form's stop texts. Sampling is repeatable for the
    same batch and seed, and does not advance torch's generator.

    Raises:
        UsageProblem: a prompt has no valid tokens; see `tokens_of`.
    """
    rows = all_tokens_of(model, tokenizer, questions, writing)
    stops = [question.form.stop for question in questions]
    if on_text is not None and len(questions) == 1:
        on_piece = _of_one(on_text)
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
    """The new tokens of each row of prompt tokens, as `write` generates them; `stops` and `limits` are one a row.

    A row ends with its end token, with the token that completes a stop text, after its limit, or when `is_over`.
    """
    import torch

    tokens, mask = padded(rows, filler(tokenizer), left=not model.config.is_encoder_decoder)
    settings: dict[str, Any] = {"do_sample": False}
    if writing.temperature > 0:
        settings = {"do_sample": True, "temperature": writing.temperature, "top_p": writing.top_p, "top_k": 0}
    skipped = 1 if model.config.is_encoder_decoder else tokens.shape[1]
    watch = None
    if any(stops) or len(set(limits)) > 1 or is_over is not None:
        watch = Stops(tokenizer, stops, limits, skipped, is_over)
    ends = _ends(model)
    listeners = [
        _Listener(tokenizer, partial(on_piece, at), stop, limit, ends) if on_piece else None
        for at, (stop, limit) in enumerate(zip(stops, limits, strict=True))
    ]
    with torch.no_grad(), _seeded(writing.seed, model.device), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about sampling settings in the base's generation config, unused here
        made = model.generate(
            input_ids=tokens.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max(limits),
            stopping_criteria=None if watch is None else [watch],
            pad_token_id=filler(tokenizer),
            streamer=_Streamer([one for one in listeners if one is not None]) if on_piece else None,
            **settings,
        )
    found = []
    for at, new in enumerate(made[:, skipped:].tolist()):
        kept = _until_end(new[: limits[at]], ends)
        found.append(kept if watch is None else kept[: watch.ended.get(at, len(kept))])
    return found


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
    """The padding token. It is masked, so any token will do if the tokenizer has none."""
    found = [tokenizer.pad_token_id, tokenizer.eos_token_id]
    return next((number for number in found if number is not None), 0)


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators for the block, and restore them at its end."""
    import torch

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _ends(model: Model) -> frozenset[int]:
    ends = model.generation_config.eos_token_id
    return frozenset(ends if isinstance(ends, list | tuple) else () if ends is None else (ends,))


def _until_end(tokens: list[int], ends: frozenset[int]) -> list[int]:
    """The tokens up to and including the first end mark; the rest of a batch row is padding."""
    return next((tokens[: at + 1] for at, token in enumerate(tokens) if token in ends), tokens)


def _of_one(on_text: OnText) -> OnPiece:
    return lambda _row, piece: on_text(piece)


class _Streamer:
    """A streamer for `generate`: the next token of each row goes to the row's listener."""

    def __init__(self, listeners: Sequence[_Listener]) -> None:
        self.listeners = listeners
        self.is_prompt = True

    def put(self, value: Tensor) -> None:
        """Add the next tokens; the first call has the prompts."""
        if self.is_prompt:
            self.is_prompt = False
            return
        for listener, token in zip(self.listeners, value.reshape(-1).tolist(), strict=True):
            listener.put(token)

    def end(self) -> None:
        """Send the rest."""
        for listener in self.listeners:
            listener.end()


class _Listener:
    """Decodes the tokens of one row to text, and holds back text that may still change.

    It decodes only the tokens since the last piece, together with those of the piece before, for the space between.
    Text that may begin one of the `stops` is held back, and nothing is sent from a stop on, after the `limit` or after
    one of the `ends`: what other rows still write is padding here.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        on_text: OnText,
        stops: Sequence[str],
        limit: int,
        ends: frozenset[int],
    ) -> None:
        self.tokenizer = tokenizer
        self.gate = StopGate(on_text, stops)
        self.limit = limit
        self.ends = ends
        self.tokens: list[int] = []
        self.context = self.sent = 0  # where the context begins, and how many tokens were sent as text
        self.is_over = False

    def put(self, token: int) -> None:
        """Add the next token."""
        if self.is_over:
            return
        self.tokens.append(token)
        self.is_over = token in self.ends or len(self.tokens) >= self.limit
        self._send(is_end=False)

    def end(self) -> None:
        """Send the rest."""
        self._send(is_end=True)
        self.gate.end()

    def _send(self, *, is_end: bool) -> None:
        before = self._text(self.tokens[self.context : self.sent])
        now = self._text(self.tokens[self.context :])
        if len(now) <= len(before) or (now.endswith(_INCOMPLETE) and not is_end):
            return
        self.gate.send(now[len(before) :])
        self.context, self.sent = self.sent, len(self.tokens)

    def _text(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))
