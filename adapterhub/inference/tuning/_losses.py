"""The loss of a model on examples: mean cross entropy, in nats, of the target tokens."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from adapterhub.core.errors import CouldNotTell, Malformed, UsageProblem, problem_list, shown
from adapterhub.inference.tuning._examples import PROBLEMS_SHOWN, Example

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_TOKENS: Final = 4096
"""The limit for one example, unless that of the base is lower."""

BATCH_TOKENS: Final = 1024
"""Tokens in one batch, padding included; a longer example runs alone."""

_IGNORED: Final = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """An example in tokens; those from `first` on are the targets."""

    tokens: tuple[int, ...]
    first: int

    @property
    def targets(self) -> int:
        """The number of target tokens."""
        return len(self.tokens) - self.first


def encode(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, examples: Sequence[Example | Encoded]
) -> list[Encoded]:
    """The examples in tokens of the model; those that are in tokens already stay unchanged.

    Prompt and completion are tokenised together; the tokens that differ from those of the prompt alone are the targets,
    an end mark included. The base's chat template formats a conversation.

    Raises:
        UsageProblem: an example is a conversation, and the base has no chat template.
        Malformed: examples are too long or have no target token, or the template refuses them.
        CouldNotTell: the tokenizer produces tokens that the model does not have.
    """
    if any(isinstance(e, Example) and isinstance(e.prompt, tuple) for e in examples) and not tokenizer.chat_template:
        raise UsageProblem("the examples are conversations, but the base has no chat template")
    limit = min(getattr(model.config, "max_position_embeddings", None) or MAX_TOKENS, MAX_TOKENS)
    known = model.get_input_embeddings().weight.shape[0]
    encoded, problems = [], []
    for number, example in enumerate(examples, 1):
        try:
            one = example if isinstance(example, Encoded) else _encoded(tokenizer, example)
        except ValueError as error:
            problems.append(f"{_place(example, number)}: {error}")
            continue
        if len(one.tokens) > limit:
            problems.append(f"{_place(example, number)}: {len(one.tokens)} tokens, expected at most {limit}")
        elif one.targets < 1:
            problems.append(f"{_place(example, number)}: has no target token")
        elif max(one.tokens) >= known:
            raise CouldNotTell(f"the tokenizer produces token {max(one.tokens)}, but the model has only {known}")
        encoded.append(one)
    if problems:
        raise Malformed(problem_list("this base cannot use some of the examples", problems, PROBLEMS_SHOWN))
    return encoded


class Losses:
    """Examples in batches, for repeated runs of a causal language model."""

    def __init__(self, encoded: Sequence[Encoded], model: PreTrainedModel) -> None:
        self._batches = [_batch(rows, model.device) for rows in _grouped(encoded)]
        self._targets = sum(e.targets for e in encoded)
        self._keeps_some_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def mean(self, model: Callable[..., Any]) -> float:
        """Mean cross entropy over the target tokens of all examples, in nats; infinite if it is not a number."""
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
        return total / self._targets if math.isfinite(total) else math.inf


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Batch:
    """Rows padded on the right, so positions begin at 0 in each of them, as in training.

    `columns` are the positions that predict a target token in some row, `labels` [rows, columns] these tokens.
    """

    tokens: Tensor
    mask: Tensor
    columns: Tensor
    labels: Tensor


def _grouped(encoded: Sequence[Encoded]) -> list[list[Encoded]]:
    """The examples grouped by length, to keep padding short."""
    groups: list[list[Encoded]] = []
    for one in sorted(encoded, key=lambda e: len(e.tokens), reverse=True):
        if groups and (len(groups[-1]) + 1) * len(groups[-1][0].tokens) <= BATCH_TOKENS:
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def _batch(rows: Sequence[Encoded], device: torch.device) -> _Batch:
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


def _encoded(tokenizer: PreTrainedTokenizerBase, example: Example) -> Encoded:
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


def _conversation(tokenizer: PreTrainedTokenizerBase, example: Example) -> tuple[str, str]:
    """The conversation without and with the answer.

    Raises:
        ValueError: the template refuses it, or changes the text before the answer when the answer is there.
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
        raise ValueError("the base's chat template changes the text before the answer")
    return before, whole


def _place(example: Example | Encoded, number: int) -> str:
    return f"line {example.line}" if isinstance(example, Example) and example.line else f"example {number}"
