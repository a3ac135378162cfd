"""The loss of a model on examples: mean cross entropy, in nats, of the tokens that were wanted."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from adapterhub.core.errors import CouldNotTell, Malformed, UsageProblem, problem_list, shown
from adapterhub.inference.tuning._examples import PROBLEMS_SHOWN, Example

if TYPE_CHECKING:
    from torch import Tensor

MAX_TOKENS: Final = 4096
"""Of one example, where the base does not set a lower limit."""

BATCH_TOKENS: Final = 1024
"""Tokens run at once, padding included; a longer example runs alone."""

_IGNORED: Final = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """An example in tokens; those from `first` on are wanted."""

    tokens: tuple[int, ...]
    first: int

    @property
    def wanted(self) -> int:
        """How many tokens are wanted."""
        return len(self.tokens) - self.first


def encode(tokenizer: Any, model: Any, examples: Sequence[Example]) -> list[Encoded]:  # noqa: ANN401 - transformers
    """The examples in tokens of the model.

    Plain text is tokenized as one, and what differs from the prompt alone is wanted, an end mark included; a
    conversation is written by the base's chat template.

    Raises:
        UsageProblem: conversations for a base without a chat template.
        Malformed: examples that are too long or leave nothing to be wanted, or that the template refuses.
        CouldNotTell: the tokenizer makes tokens that the model does not have.
    """
    if any(isinstance(e.prompt, tuple) for e in examples) and not tokenizer.chat_template:
        raise UsageProblem("the examples are conversations, and the base has no chat template for them")
    limit = min(getattr(model.config, "max_position_embeddings", None) or MAX_TOKENS, MAX_TOKENS)
    known = model.get_input_embeddings().weight.shape[0]
    encoded, problems = [], []
    for number, example in enumerate(examples, 1):
        try:
            one = _encoded(tokenizer, example)
        except ValueError as error:
            problems.append(f"{_place(example, number)}: {error}")
            continue
        if len(one.tokens) > limit:
            problems.append(f"{_place(example, number)}: {len(one.tokens)} tokens, at most {limit} are run")
        elif one.wanted < 1:
            problems.append(f"{_place(example, number)}: leaves no token to be wanted")
        elif max(one.tokens) >= known:
            raise CouldNotTell(f"the tokenizer makes token {max(one.tokens)}, the model has {known}")
        encoded.append(one)
    if problems:
        raise Malformed(problem_list("these examples cannot be used with this base", problems, PROBLEMS_SHOWN))
    return encoded


class Losses:
    """Examples in batches, ready to be run by a causal language model again and again."""

    def __init__(self, encoded: Sequence[Encoded], model: Any) -> None:  # noqa: ANN401 - transformers
        self._batches = [_batch(rows, model.device) for rows in _grouped(encoded)]
        self._wanted = sum(e.wanted for e in encoded)
        self._keeps_some_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def mean(self, model: Callable[..., Any]) -> float:
        """Mean cross entropy over the wanted tokens of all examples, in nats; infinite where it is no number."""
        import torch

        total = 0.0
        with torch.no_grad():
            for batch in self._batches:
                arguments = {"input_ids": batch.tokens, "attention_mask": batch.mask, "use_cache": False}
                if self._keeps_some_logits:  # the vocabulary is most of the work of a small model
                    logits = model(**arguments, logits_to_keep=batch.columns).logits
                else:
                    logits = model(**arguments).logits[:, batch.columns]
                total += float(
                    torch.nn.functional.cross_entropy(
                        logits.float().flatten(0, 1), batch.labels.flatten(), ignore_index=_IGNORED, reduction="sum"
                    )
                )
        return total / self._wanted if math.isfinite(total) else math.inf


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Batch:
    """Rows padded on the right: positions begin at 0 in each of them, as in training.

    `columns` are the positions that predict a wanted token in some row, `labels` [rows, columns] those tokens.
    """

    tokens: Tensor
    mask: Tensor
    columns: Tensor
    labels: Tensor


def _grouped(encoded: Sequence[Encoded]) -> list[list[Encoded]]:
    """The examples by length, so that little is padded."""
    groups: list[list[Encoded]] = []
    for one in sorted(encoded, key=lambda e: len(e.tokens), reverse=True):
        if groups and (len(groups[-1]) + 1) * len(groups[-1][0].tokens) <= BATCH_TOKENS:
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def _batch(rows: Sequence[Encoded], device: Any) -> _Batch:  # noqa: ANN401 - a torch device
    import torch

    longest = len(rows[0].tokens)
    tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    labels = torch.full_like(tokens, _IGNORED)
    for row, one in enumerate(rows):
        tokens[row, : len(one.tokens)] = torch.tensor(one.tokens)
        mask[row, : len(one.tokens)] = 1
        labels[row, one.first - 1 : len(one.tokens) - 1] = tokens[row, one.first : len(one.tokens)]
    columns = torch.nonzero((labels != _IGNORED).any(0))[:, 0]
    parts = {"tokens": tokens, "mask": mask, "columns": columns, "labels": labels[:, columns]}
    return _Batch(**{name: part.to(device) for name, part in parts.items()})


def _encoded(tokenizer: Any, example: Example) -> Encoded:  # noqa: ANN401 - transformers
    if isinstance(example.prompt, tuple):
        before, whole = _conversation(tokenizer, example)
        start, tokens = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, whole))
    elif example.prompt is None:
        start, tokens = [], tokenizer(example.completion)["input_ids"]
    else:
        start = tokenizer(example.prompt)["input_ids"]
        tokens = tokenizer(example.prompt + example.completion)["input_ids"]
        end = tokenizer.eos_token_id
        if end is not None and tokens[-1:] != [end]:
            tokens = [*tokens, end]
    same = next((i for i, (one, other) in enumerate(zip(start, tokens, strict=False)) if one != other), None)
    shared = min(len(start), len(tokens)) if same is None else same
    return Encoded(tokens=tuple(tokens), first=max(shared, 1))  # nothing predicts the first token


def _conversation(tokenizer: Any, example: Example) -> tuple[str, str]:  # noqa: ANN401 - transformers
    """The conversation up to the answer, and with it.

    Raises:
        ValueError: the template refuses it, or writes what comes before the answer otherwise once it is there.
    """
    from jinja2 import TemplateError

    assert isinstance(example.prompt, tuple)
    turns = [turn._asdict() for turn in example.prompt]
    answer = {"role": "assistant", "content": example.completion}
    try:
        before = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template([*turns, answer], tokenize=False)
    except TemplateError as error:
        raise ValueError(f"the base's chat template refuses it: {shown(str(error), 100)}") from None
    if not whole.startswith(before):
        raise ValueError("the base's chat template rewrites what comes before the answer")
    return before, whole


def _place(example: Example, number: int) -> str:
    return f"line {example.line}" if example.line else f"example {number}"
