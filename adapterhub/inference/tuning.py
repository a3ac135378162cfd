"""Finds the weights of a merge by trying them on a few examples, without gradients.

    examples = read_examples(Path("examples.jsonl"))
    tuned = tune(model, tokenizer, ["./legal-qa", "./tables"], examples)
    merge([…weight=tuned.weights[0]…])

The method is LoraHub's (Huang et al., 2023, arXiv:2307.13269), with its bounds of the weights and its penalty on their
size. A handful of examples is enough for a handful of numbers, where training would overfit. The search is CMA-ES
(Hansen, 2016, arXiv:1604.00772) from the package `cma`. Adapters are attached once and only their weights change
between trials, so a trial costs one pass of the model over the examples.
"""

from __future__ import annotations

import inspect
import math
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

from adapterhub.core.digests import strict_json
from adapterhub.core.disk.files import read_typed
from adapterhub.core.errors import CouldNotTell, Malformed, UsageProblem, problem_list, shown
from adapterhub.core.extras import extra_named
from adapterhub.formats.documented import Documented

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from adapterhub.core.specs import BaseSpec
    from adapterhub.inference.loader import AdapterLike, Attached
    from adapterhub.library.library import Library

__all__ = ["Encoded", "Example", "Losses", "TrainingTurn", "Tuned", "encode", "ensure_causal", "read_examples", "tune"]

FEWEST_ADAPTERS: Final = 2
LARGEST_WEIGHT: Final = 1.5
DEFAULT_BUDGET: Final = 60
DEFAULT_L1: Final = 0.05
_FIRST_STEP: Final = 0.3
_DECIMALS: Final = 4
"""Decimals of the trial weights: the reported weights are exactly the ones that ran, and are short in a recipe."""

ENOUGH_TO_HOLD_OUT: Final = 8
"""With at least this many different examples, the search does not use half of them."""

TuneProgress = Callable[[int, int], None]
"""Called with the number of finished trials and the number of all trials."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned(
    Documented,
    keys="weights base_loss single_losses loss_before loss_after drift_before drift_after evaluations searched reported"
    " is_held_out is_better",
    title="Tuning",
):
    """The best weights, and losses (mean cross entropy of a target token, in nats) on the reported examples.

    `loss_before` is the loss with equal weights that sum to 1, `loss_after` the loss with `weights`. `single_losses`
    are those of each single adapter with weight 1, `base_loss` is that of the base. With `is_held_out`, the `reported`
    examples differ from the `searched` ones; without it, there were too few examples to split, and all losses are on
    the examples of the search. `evaluations` is the number of trials. `is_better` is True if `weights` have a lower
    loss than equal ones; if the search found nothing better, they are equal ones. The drifts are there where contracts
    were asked; then `is_better` is about them.
    """

    weights: tuple[float, ...]
    loss_before: Annotated[float, "loss with equal weights"]
    loss_after: Annotated[float, "loss with `weights`"]
    single_losses: Annotated[tuple[float, ...], "loss of each adapter alone"]
    base_loss: Annotated[float, "loss of the plain base"]
    evaluations: Annotated[int, "number of weights that were tried"]
    searched: Annotated[int, "number of examples used in the search"]
    reported: Annotated[int, "number of examples that the losses are measured on"]
    is_held_out: Annotated[bool, "whether the losses are on examples that the search did not use"]
    is_better: Annotated[bool, "whether the loss, or the drift, with `weights` is lower than with equal weights"]
    drift_before: Annotated[float | None, "from the parents' contracts with equal weights, root mean square"] = None
    drift_after: Annotated[float | None, "the same with `weights`"] = None


def tune(  # noqa: PLR0913 - the last three are those of `attach` and the bar
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adapters: Sequence[AdapterLike],
    examples: Sequence[Example | Encoded],
    *,
    budget: int = DEFAULT_BUDGET,
    seed: int = 0,
    l1: float = DEFAULT_L1,
    library: Library | str | Path | None = None,
    base: BaseSpec | str | None = None,
    progress: TuneProgress | None = None,
) -> Tuned:
    """Return the weights, each within ±1.5, with which the sum of the adapters answers the examples best.

    `model` is a causal language model without adapter, in evaluation mode; it is unchanged afterwards. The search
    minimises the loss plus `l1` times the mean size of a weight, with at most `budget` trials. It tries equal weights
    and each single adapter first, and continues from the best of these. Unless what it found has a lower such value
    than equal weights on the reported examples, the result is equal weights. The same seed gives the same weights on
    the same machine. `library` and `base` are as for `attach`.

    Raises:
        UsageProblem: there are fewer than two adapters, an option is out of range, or the model is of another kind.
        MissingExtra: the package `cma` is not installed.
        Malformed: this base cannot run some examples; names each of them.
        CouldNotTell: the loss is not a finite number.
        BaseMismatch, MergeRefused: as for `attach`, with all its other errors.
    """
    ensure_tunable(model, adapters, budget=budget, l1=l1)
    if seed < 0:
        raise UsageProblem(f"seed {seed}, expected at least 0")
    if not examples:
        raise UsageProblem("tuning needs at least one example")
    ensure_causal(model, "weights can be tuned")
    search = _optimiser()
    searched, reported = _split(encode(tokenizer, model, examples), seed)
    from adapterhub.inference.loader import attach

    count = len(adapters)
    equal = equal_weights(count)
    singles = [tuple(float(i == j) for j in range(count)) for i in range(count)]
    with attach(model, list(adapters), weights=equal, library=library, base=base) as attached:
        trials = _Trials(attached, Losses(searched, model), l1=l1, budget=budget, progress=progress)
        for weights in (equal, *singles):
            trials.run(weights)
        if not math.isfinite(trials.least):
            raise CouldNotTell(
                "the loss on the examples is not a finite number with any of the adapters",
                hint="`adapt verify` finds numbers that are not finite",
            )
        search(trials, seed)
        held_out = Losses(reported or searched, model)

        def loss(weights: Sequence[float]) -> float:
            attached.weigh(weights)
            return held_out.mean(attached.model)

        with attached.model.disable_adapter():
            base_loss = held_out.mean(attached.model)
        before, after = loss(equal), loss(trials.best)
        keeps = after + penalty(trials.best, l1) < before + penalty(equal, l1)
        return Tuned(
            weights=trials.best if keeps else equal,
            loss_before=before,
            loss_after=after if keeps else before,
            single_losses=tuple(loss(weights) for weights in singles),
            base_loss=base_loss,
            evaluations=trials.done,
            searched=len(searched),
            reported=len(reported or searched),
            is_held_out=bool(reported),
            is_better=keeps and after < before,
        )


class _Trials:
    """The trials so far, and the best weights among them."""

    def __init__(
        self, attached: Attached, losses: Losses, *, l1: float, budget: int, progress: TuneProgress | None
    ) -> None:
        self.best: tuple[float, ...] = ()
        self.least = math.inf
        self.done = 0
        self.budget = budget
        self._attached = attached
        self._losses = losses
        self._l1 = l1
        self._progress = progress or (lambda _done, _all: None)

    def run(self, weights: Sequence[float]) -> float:
        """Return the value to minimise, at these weights after rounding."""
        tried = rounded_weights(weights)
        self._attached.weigh(tried)
        value = self._losses.mean(self._attached.model) + penalty(tried, self._l1)
        if not self.best or value < self.least:
            self.best, self.least = tried, value
        self.done += 1
        self._progress(self.done, self.budget)
        return value


def penalty(weights: Sequence[float], l1: float) -> float:
    """Return the cost of the weights' size, which a search adds to its target."""
    return l1 * sum(map(abs, weights)) / len(weights)


def equal_weights(count: int) -> tuple[float, ...]:
    """Weights that sum to 1."""
    return (round(1 / count, _DECIMALS),) * count


def rounded_weights(weights: Sequence[float]) -> tuple[float, ...]:
    """Weights as they are tried and reported."""
    return tuple(round(float(w), _DECIMALS) + 0.0 for w in weights)  # no -0.0


def _optimiser() -> Callable[[_Trials, int], None]:
    """Return the search, which continues from the best trial until the budget is spent or the weights converge.

    Raises:
        MissingExtra: the package `cma` is not installed.
    """
    with extra_named("tuning"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cma warns where matplotlib is missing, which only its plots need
        import cma
    import numpy as np

    def search(trials: _Trials, seed: int) -> None:
        generator = np.random.default_rng(seed)
        options = {
            "bounds": [-LARGEST_WEIGHT, LARGEST_WEIGHT],
            # An own generator: by default cma seeds the one that the whole program shares.
            "randn": lambda *shape: generator.standard_normal(shape),
            "seed": math.nan,
            "verbose": -9,
            "verb_log": 0,
        }
        evolution = cma.CMAEvolutionStrategy(list(trials.best), _FIRST_STEP, options)
        while trials.done < trials.budget and not evolution.stop():
            candidates = evolution.ask()[: trials.budget - trials.done]
            values = [min(trials.run(weights), _WORST) for weights in candidates]
            if len(candidates) == evolution.popsize:
                evolution.tell(candidates, values)

    return search


_WORST: Final = 1e9
"""Replaces a loss that is not finite: the search uses only the order of the losses."""


def _split(encoded: Sequence[Encoded], seed: int) -> tuple[list[Encoded], list[Encoded]]:
    """Examples for the search and for the report; all and none if there are too few. Equal ones stay together."""
    different = list(dict.fromkeys(encoded))
    if len(different) < ENOUGH_TO_HOLD_OUT:
        return list(encoded), []
    random.Random(seed).shuffle(different)  # noqa: S311 - a repeatable choice, no secret
    chosen = set(different[: (len(different) + 1) // 2])
    return [e for e in encoded if e in chosen], [e for e in encoded if e not in chosen]


def ensure_tunable(model: PreTrainedModel, adapters: Sequence[AdapterLike], *, budget: int, l1: float) -> None:
    """Raise unless weights of the adapters can be searched with these arguments.

    Raises:
        UsageProblem: one is out of range, or the model is in training mode.
    """
    fewest = len(adapters) + 2
    if len(adapters) < FEWEST_ADAPTERS:
        raise UsageProblem("tuning needs at least two adapters")
    if budget < fewest:
        why = "one trial with equal weights, one for each adapter, and one more"
        raise UsageProblem(f"budget {budget}, expected at least {fewest}: {why}")
    if not (math.isfinite(l1) and l1 >= 0):
        raise UsageProblem(f"l1 {l1}, expected a number of at least 0")
    if model.training:
        raise UsageProblem("the model is in training mode, in which losses are random", hint="call `model.eval()`")


def ensure_causal(model: PreTrainedModel, what: str) -> None:
    """Raise unless the model continues a text, as `Losses` needs it.

    Raises:
        UsageProblem: it has an encoder; `what` names the purpose.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise UsageProblem(
            f"the base has an encoder, but {what} on causal language models only", hint="name another base"
        )


MAX_FILE_BYTES: Final = 16 << 20
MAX_LINE_BYTES: Final = 1 << 20
MAX_EXAMPLES: Final = 1000
"""A search runs the model over its examples dozens of times; LoraHub uses five."""

PROBLEMS_SHOWN: Final = 20
_ROLES: Final = ("system", "user", "assistant")
_ANSWERS: Final = ("completion", "answer")
"""Names of the wanted answer: that of TRL, and the plain one."""
_FORMS: Final = '{"prompt": …, "completion": …}, {"messages": [{"role": …, "content": …}, …]} or {"text": …}'


class TrainingTurn(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A prompt and its wanted completion; the loss is that of the completion.

    `prompt` is plain text, or the turns before the answer of an assistant, or None if the whole text is the completion,
    which is empty for a bare prompt. `line` is its line in the file, 0 if there is no file.
    """

    prompt: str | tuple[TrainingTurn, ...] | None
    completion: str
    line: int = 0


def read_examples(
    path: Path, *, limit_bytes: int = MAX_FILE_BYTES, most: int = MAX_EXAMPLES, takes_prompts: bool = False
) -> tuple[Example, ...]:
    """Return the examples in a file of JSON Lines; skips empty lines. `answer` is another name of `completion`.

    With `takes_prompts`, a line may have only a `prompt`, or `messages` that end with the user's.

    Raises:
        NotFound: there is no such file.
        Malformed: it is too large, has no examples, or has invalid lines; names each line.
    """
    where = shown(str(path), 200)
    raw = read_typed(path, limit_bytes, hint=f"examples are one JSON object per line: {_FORMS}")
    if len(raw) > limit_bytes:
        raise Malformed(
            f"{where}: more than {limit_bytes >> 20} MB of examples; a few dozen examples are enough",
            hint="keep a few dozen of them",
        )
    examples, problems = [], []
    for number, line in enumerate(raw.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            value = strict_json(line, limit_bytes=MAX_LINE_BYTES)
            examples.append(_example(value, number, takes_prompts=takes_prompts))
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    if problems:
        text = problem_list(f"{where}: some lines are not examples", problems, PROBLEMS_SHOWN)
        raise Malformed(text, hint=f"one JSON object per line: {_FORMS}")
    if not examples:
        raise Malformed(f"{where}: contains no examples", hint=f"one JSON object per line: {_FORMS}")
    if len(examples) > most:
        raise Malformed(f"{where}: {len(examples)} examples, expected at most {most}; a few dozen are enough")
    return tuple(examples)


def _example(value: object, line: int, *, takes_prompts: bool) -> Example:
    """Return the example on one line.

    Raises:
        ValueError: it is not an example.
    """
    if not isinstance(value, dict):
        raise ValueError(f"contains {shown(value, 40)}, expected an object")
    keys = frozenset(value)
    for answer in _ANSWERS:
        if keys == {"prompt", answer}:
            return Example(prompt=_text(value, "prompt"), completion=_filled(value, answer), line=line)
    if takes_prompts and keys == {"prompt"}:
        return Example(prompt=_text(value, "prompt"), completion="", line=line)
    if keys == {"text"}:
        return Example(prompt=None, completion=_filled(value, "text"), line=line)
    if keys == {"messages"}:
        turns = _turns(value["messages"], fewest=2 - takes_prompts)
        if takes_prompts and turns[-1].role == "user":
            return Example(prompt=turns, completion="", line=line)
        if len(turns) < 2 or turns[-1].role != "assistant" or not turns[-1].content:
            raise ValueError("`messages` does not end with the assistant's answer")
        return Example(prompt=turns[:-1], completion=turns[-1].content, line=line)
    named = ", ".join(f"`{shown(key, 40)}`" for key in value) or "nothing"
    raise ValueError(f"has {shown(named, 200)}, expected `prompt` and `completion`, or `messages`, or `text`")


def _turns(value: object, *, fewest: int) -> tuple[TrainingTurn, ...]:
    if not isinstance(value, list) or len(value) < fewest:  # a question and its answer
        raise ValueError(f"`messages` is not a list of at least {'two turns' if fewest > 1 else 'one turn'}")
    turns = []
    for position, turn in enumerate(value):
        if not isinstance(turn, dict) or frozenset(turn) != {"role", "content"} or turn["role"] not in _ROLES:
            raise ValueError(
                f"`messages[{position}]` is {shown(turn, 60)}, expected a `role` of {', '.join(_ROLES)} and a `content`"
            )
        turns.append(TrainingTurn(turn["role"], _text(turn, "content")))
    return tuple(turns)


def _text(value: dict[str, Any], key: str) -> str:
    text = value[key]
    if not isinstance(text, str):
        raise ValueError(f"`{key}` is {shown(text, 40)}, expected text")
    return text


def _filled(value: dict[str, Any], key: str) -> str:
    text = _text(value, key)
    if not text:
        raise ValueError(f"`{key}` is empty")
    return text


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
    """Return the examples in tokens of the model; those that are in tokens already stay unchanged.

    Prompt and completion are tokenised together; the tokens that differ from those of the bare prompt are the targets,
    an end mark included. The base's chat template formats a conversation.

    Raises:
        UsageProblem: an example is a conversation, and the base has no chat template.
        Malformed: examples are too long or have no target token, or the template refuses them.
        CouldNotTell: the tokenizer produces tokens that the model does not have.
    """
    if any(isinstance(e, Example) and isinstance(e.prompt, tuple) for e in examples) and not tokenizer.chat_template:
        raise UsageProblem(
            "the examples are conversations, but the base has no chat template",
            hint="write the examples as `prompt` and `completion`",
        )
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
            raise CouldNotTell(
                f"the tokenizer produces token {max(one.tokens)}, but the model has only {known}",
                hint="use the tokenizer that was saved with the model",
            )
        encoded.append(one)
    if problems:
        raise Malformed(
            problem_list("this base cannot use some of the examples", problems, PROBLEMS_SHOWN),
            hint="correct or remove these examples",
        )
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
    """Return the examples grouped by length, to keep padding short."""
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
    """Return the conversation without and with the answer.

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
