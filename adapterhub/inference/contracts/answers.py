"""Prompts in tokens, greedy answers in tokens, and the scores of recorded answers."""

from __future__ import annotations

import contextlib
import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapterhub.core.errors import CouldNotTell, Malformed, problem_list, shown
from adapterhub.formats.contract.contract import (
    ENCODERS,
    IMAGE,
    MAX_VECTOR,
    WRITERS,
    Asked,
    Contract,
    Expect,
    Golden,
    LeaveAlone,
    ids_digest,
    unpacked,
    unpacked_latent,
)
from adapterhub.formats.contract.reader import MAX_PROMPT_TOKENS, Plan, Wanted
from adapterhub.formats.contract.results import REASONS, Tested, TestedCase, Verdict
from adapterhub.formats.contract.standards import DEFAULT_BOUNDS, Bounds
from adapterhub.formats.prompts.form import PromptForm, Turn, prompt_tokens
from adapterhub.inference.contracts.drift import ROUNDING, Drift
from adapterhub.inference.contracts.drift import drift as drift_of
from adapterhub.inference.generation import NEW_TOKENS, Writing, continued, padded
from adapterhub.inference.tuning import Encoded, read_examples

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from adapterhub.inference.generation import Model

Tick = Callable[[int], None]
"""Called with how many prompts were done since the last call; raises when the budget is spent."""


class Unknown(Exception):
    """No verdict is possible, for one of the reasons of the results."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or REASONS[reason])
        self.reason = reason
        self.detail = detail or REASONS[reason]


def ticking(budget_s: float | None, progress: Callable[[int, int], None], total: int) -> Tick:
    """Return a tick that reports prompts done and in all to `progress`, and ends a check after `budget_s` CPU s."""
    start, done = time.process_time(), 0

    def tick(more: int) -> None:
        nonlocal done
        done += more
        progress(min(done, total), total)
        if budget_s is not None and time.process_time() - start > budget_s:
            if budget_s == 0:
                raise Unknown("budget", "the CPU budget ran out before this test; raise `--budget`")
            raise Unknown("budget", f"it took more than {budget_s:g} CPU seconds; `--budget` allows more")

    return tick


@contextlib.contextmanager
def memory_as_unknown() -> Iterator[None]:
    """Turn a lack of memory into a verdict."""
    try:
        yield
    except MemoryError:
        raise Unknown("memory") from None
    except RuntimeError as error:
        if lacks_memory(error):
            raise Unknown("memory") from None
        raise


def lacks_memory(error: Exception) -> bool:
    """Return whether torch could not get memory; it has a class of its own for that only on GPUs."""
    return "out of memory" in str(error) or "can't allocate memory" in str(error)


TUNE: Final = "tune on examples: `--tune FILE`"
OTHER_INPUTS: Final = "give fewer, shorter or other inputs with `--examples`"
ROWS: Final = 8
"""Prompts that are answered together."""

BATCH_TOKENS: Final = 1024
"""Tokens in one pass, padding included; a longer row runs alone."""

BATCH_LOGITS: Final = 16 << 20
"""Numbers that a pass may return: 64 MiB in float32. A vocabulary makes them many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRow:
    """The tokens of a prompt and of its recorded answer."""

    prompt: Sequence[int]
    answer: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How a model takes a recorded answer.

    `loss` is its mean cross entropy in nats per token, not finite if the model's numbers are not. `margin` is the
    least lead of a recorded token over the next best, in nats; the greedy answer is the recorded one if it is positive.
    `odds` has the log-odds of each token, log p - log(1 - p), in nats; it is empty if the numbers are not finite.
    """

    loss: float
    margin: float
    odds: tuple[float, ...] = ()

    @property
    def same(self) -> bool:
        """Whether the greedy answer is the recorded one, token for token."""
        return self.margin > 0


def prompts_in_tokens(
    form: PromptForm, asked: Sequence[Asked], model: Model, tokenizer: PreTrainedTokenizerBase, *, new: int = 0
) -> list[list[int]]:
    """Return the tokens of each prompt; `new` more must have room behind them.

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
    """Return the greedy answer to each prompt, up to and including its end token or one of the form's stop texts."""
    found: list[list[int]] = []
    for at in range(0, len(prompts), ROWS):
        rows = prompts[at : at + ROWS]
        limits = [form.max_new_tokens or NEW_TOKENS] * len(rows)
        found += continued(model, tokenizer, rows, Writing(), stops=[form.stop] * len(rows), limits=limits)
        tick(len(rows))
    return found


def text_of(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """Return the text of an answer, without special tokens."""
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True))


# ---------------------------------------------------------------- scores
def scores(model: Model, rows: Sequence[AnswerRow], tick: Tick) -> list[Score]:
    """Return the score of each row's answer, taken teacher-forced. Memory is bounded, whatever the vocabulary.

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


def _batches(rows: Sequence[AnswerRow], vocabulary: int) -> Iterator[list[int]]:
    """Yield the places of rows that run together, the longest first."""
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


def _scored(model: Model, rows: Sequence[AnswerRow], *, keeps_some: bool) -> list[Score]:
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
    logits.scatter_(1, wanted, -math.inf)
    margin = float((own - logits.max(-1).values).min())
    odds = (own - logits.logsumexp(-1)).double()  # against all others: a likely token keeps its digits
    if not bool(odds.isfinite().all()):
        return Score(loss=math.inf, margin=-math.inf)
    return Score(loss=float(torch.nn.functional.softplus(-odds).mean()), margin=margin, odds=tuple(odds.tolist()))


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
    """Return the model's output for each row of tokens. Rows of one length share a pass, so that none is padded."""
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
    """Return the means over the tokens of [rows, tokens, numbers]."""
    means: list[list[float]] = states.float().mean(1)[:, :MAX_VECTOR].tolist()
    return means


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the cosine of two vectors; 0 where their lengths differ or one is zero."""
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


def plan_of_examples(path: Path) -> Plan:
    """Return the prompts of a file of examples as inputs.

    Their completions, where they have any, are what the author wants.

    Raises:
        NotFound, Malformed: as `read_examples`, and where an example has no prompt.
    """
    goldens, problems = [], []
    for number, example in enumerate(read_examples(path, takes_prompts=True), 1):
        if example.prompt is None:
            problems.append(f"line {example.line}: `text` alone says not where the prompt ends")
            continue
        asked: Asked = ""
        if isinstance(example.prompt, str):
            asked = example.prompt
        else:
            asked = tuple(Turn(role=turn.role, content=turn.content) for turn in example.prompt)
        goldens.append(Wanted(id=f"golden-{number}", asked=asked, completion=example.completion or None))
    if problems:
        title = f"{shown(str(path), 200)}: some lines have no prompt"
        raise Malformed(problem_list(title, problems), hint='write {"prompt": …}, with a `completion` if you like')
    return Plan(goldens=tuple(goldens))


def examples_of(name: str, contract: Contract, model: Model, tokenizer: PreTrainedTokenizerBase) -> tuple[Encoded, ...]:
    """Return the goldens of a contract as examples in tokens: the prompt in its form, and the recorded answer.

    Raises:
        CouldNotTell: as `asked_again`, or the model has an encoder.
    """
    rows = asked_again(name, contract, contract.distinct, model, tokenizer)
    if contract.kind != "causal":
        raise CouldNotTell(
            f"the contract of `{shown(name, 200)}` has no log-odds; weights cannot be tuned on it",
            hint="tune on a file of examples: `adapt merge --tune FILE`",
        )
    return tuple(Encoded(tokens=(*row.prompt, *row.answer), first=len(row.prompt)) for row in rows)


def asked_again(
    name: str, contract: Contract, goldens: Sequence[Golden], model: Model, tokenizer: PreTrainedTokenizerBase
) -> list[AnswerRow]:
    """Return the prompts of goldens of a contract in tokens, with the recorded answers.

    Raises:
        CouldNotTell: it holds only digests, no answers in tokens, or the tokenizer makes other tokens of its prompts.
    """
    goldens = [golden for golden in goldens if golden.asked is not None and golden.tokens]
    if contract.kind not in WRITERS or not goldens:
        what = "digests alone" if contract.visibility == "digests" else f"no answers in tokens, as {contract.kind} has"
        raise CouldNotTell(
            f"the contract of `{shown(name, 200)}` holds {what}; weights cannot be tuned on it", hint=TUNE
        )
    longest = max(len(golden.tokens) for golden in goldens)
    try:
        asked = [golden.asked for golden in goldens if golden.asked is not None]
        prompts = prompts_in_tokens(contract.prompt, asked, model, tokenizer, new=longest)
    except Unknown as unknown:
        raise CouldNotTell(
            f"the contract of `{shown(name, 200)}` cannot be asked here: {unknown.detail}", hint=TUNE
        ) from None
    for golden, prompt in zip(goldens, prompts, strict=True):
        if ids_digest(prompt) != golden.prompt_sha256:
            raise CouldNotTell(
                f"the tokenizer of the base makes other tokens of `{golden.id}` in the contract of"
                f" `{shown(name, 200)}` than at the recording",
                hint=TUNE,
            )
    return [AnswerRow(prompt=p, answer=g.tokens) for p, g in zip(prompts, goldens, strict=True)]


TOLERANCE: Final = 1e-3
"""Nats per token within which a loss is the same: no bound hangs on rounding."""

FEWEST: Final = 4
"""Goldens with different prompts below which a check warns."""

BASE_MOVED: Final = 0.05
"""Nats per token by which a base's loss may differ from the recorded one before it is called another base."""

GAP_MOVED: Final = 0.35
"""The same for images: the share of its gap by which a base's latent may be nearer or farther. For log-odds, too."""

_HALVES: Final = ("bfloat16", "float16")
GOLDENS_AN_OUTLIER: Final = 20
"""Of so many goldens of a classifier, the one that moved most does not count towards the mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a model gave for the lines of a contract, by their ids.

    `base` holds the scores of the plain base on all goldens, if those were requested, `alone` those on some. `labels`
    are the names that a classifier gave; `decoded` are the recorded tokens as text. `latents` are what a pipeline drew,
    `base_latents` what it drew without the adapter, where that was asked.
    """

    scores: Mapping[str, Score] = field(default_factory=dict)
    base: Mapping[str, Score] = field(default_factory=dict)
    alone: Mapping[str, Score] = field(default_factory=dict)
    encodings: Mapping[str, Encoding] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    decoded: Mapping[str, str] = field(default_factory=dict)
    latents: Mapping[str, Sequence[float]] = field(default_factory=dict)
    base_latents: Mapping[str, Sequence[float]] = field(default_factory=dict)


def judge(made: Tested, contract: Contract, measured: Measured) -> Tested:
    """Return the facts about a build with the verdict on the measurement, within the bounds of `made`."""
    goldens, bounds = contract.distinct, Bounds(**made.bounds)
    if contract.kind in ENCODERS:
        made = _judge_encoder(made, contract, goldens, measured, bounds)
    elif contract.kind == IMAGE:
        made = _judge_images(made, goldens, measured, bounds)
    else:
        made = _judge_writer(made, contract, goldens, measured, bounds)
    texts, labels = measured.texts, measured.labels
    cases = [*made.cases, *(expectation(one, texts[one.id], labels.get(one.id)) for one in contract.expects)]
    cases += [_left_alone(one, measured.scores[one.id]) for one in contract.leave_alone]
    broken = list(made.broken)
    for kind in ("expect", "never", "leave_alone"):
        of_kind = [case for case in cases if case.kind == kind]
        if failed := [case for case in of_kind if case.verdict == "CHANGED"]:
            text = f"{len(failed)} of {len(of_kind)} `{kind}` lines are broken"
            broken.append(f"{text}; `{failed[0].id}`: {failed[0].problem}")
    warnings = list(made.warnings)
    if loose := contract.bounds.loose:
        warnings.append(f"the contract's bounds are so loose that they prove little: {loose}")
    if 0 < len(goldens) < FEWEST:
        lost = bounds.may_lose(len(goldens))
        warnings.append(f"it has {len(goldens)} different goldens, of which {lost} may change: a PASS proves little")
    reason = "" if broken else made.reason
    if made.has_drifted and not broken and not reason:
        of_base = "the base itself moved by" if made.is_of_other_base else "the noise here is"
        told = f"its drift is {made.drift:.3f} of what it does, and {of_base} {made.noise:.3f}"
        warnings.append(f"the adapter has changed, though its answers have not: {told}")
    return replace(
        made,
        verdict="CHANGED" if broken else "UNKNOWN" if reason else "PASS",
        reason=reason,
        detail=REASONS.get(reason, ""),
        goldens=len(goldens),
        cases=tuple(cases),
        broken=tuple(broken),
        warnings=tuple(warnings),
    )


# ---------------------------------------------------------------- models that write
def _judge_writer(
    made: Tested, contract: Contract, goldens: Sequence[Golden], measured: Measured, bounds: Bounds
) -> Tested:
    if not goldens:
        return made
    cases = [_golden_case(golden, measured, bounds) for golden in goldens]
    broken = _forged(goldens, measured)
    lost = [case for case in cases if not case.same]
    same = 1 - len(lost) / len(goldens)
    if len(lost) > bounds.may_lose(len(goldens)):
        worst = min(lost, key=lambda case: math.inf if case.retention is None else case.retention)
        allowed = bounds.may_lose(len(goldens))
        broken.append(f"{len(lost)} of {len(goldens)} answers changed, at most {allowed} may; worst: `{worst.id}`")
    sums = [(len(g.tokens), g.base_loss or 0.0, g.loss or 0.0, measured.scores[g.id].loss) for g in goldens]
    tokens = sum(count for count, *_ in sums)
    base, recorded, now = (sum(row[0] * row[at] for row in sums) / tokens for at in (1, 2, 3))
    gap, reason, retention = base - recorded, "", None
    if not math.isfinite(now):
        broken.append("the losses are not finite numbers")
    elif gap < bounds.min_gap:
        reason = "no-gap"
    else:
        retention = (base - now) / gap
        if retention + TOLERANCE / gap < bounds.retention:
            broken.append(f"retention is {retention:.3f}, at least {bounds.retention:g} is required")
    if measured.base:
        broken += _base_problems(goldens, measured, bounds)
    found = drift_of(goldens, _odds(measured.scores), _odds(measured.alone), _sensitivity(made, contract))
    if found is not None:
        made, cases = _with_drift(made, found, contract), [replace(case, drift=found.of.get(case.id)) for case in cases]
    everywhere = drift_of(goldens, _odds(measured.scores), _odds(measured.base)) if measured.base else None
    if everywhere is not None and (off := everywhere.noise or 0.0) > GAP_MOVED:
        text = f"on the recorded answers, the base is {off:.2g} of the effect off"
        broken.append(f"base-odds-are-not-so: {text}; this is not the base of the recording")
    said, unclear = _drift_problem(made, bounds)
    broken, reason = [*broken, *said], reason or unclear
    worst_retention = min((case.retention for case in cases if case.retention is not None), default=None)
    made = replace(made, reason=reason, same=same, retention=retention, retention_worst=worst_retention)
    return replace(made, cases=tuple(cases), broken=tuple(broken))


def _sensitivity(made: Tested, contract: Contract) -> float:
    """How many times as far as its base the adapter moves here: what rounding did at the recording, where it rounds.

    Packed weights move it differently, so there it moves at least as far as its base; on another base that itself
    moves.
    """
    if made.is_of_other_base:
        return 1.0
    return contract.sensitivity if _is_only_rounded(made) else max(1.0, contract.sensitivity)


def _is_only_rounded(made: Tested) -> bool:
    """Return whether the base runs in a half precision, and its weights are not packed."""
    return made.dtype in _HALVES and not made.load_in and "QUANTISED" not in made.base_verdict


def _odds(scores: Mapping[str, Score]) -> dict[str, Sequence[float]]:
    return {name: score.odds for name, score in scores.items()}


def _with_drift(made: Tested, found: Drift, contract: Contract) -> Tested:
    low, high = found.interval or (None, None)
    rounding = contract.rounding if made.dtype == "bfloat16" and _is_only_rounded(made) else None
    told = found.value > ROUNDING if made.is_of_other_base else found.is_more_than_noise(rounding)
    return replace(made, drift=found.value, drift_low=low, drift_high=high, noise=found.noise, has_drifted=told)


def _drift_problem(made: Tested, bounds: Bounds) -> tuple[list[str], str]:
    """Return how the adapter breaks a bound on the drift, or the reason for which it is UNKNOWN."""
    if bounds.drift == DEFAULT_BOUNDS.drift or (made.drift is not None and made.drift <= bounds.drift):
        return [], ""
    if made.drift is None:
        return [], "no-odds"
    if made.has_drifted is False:
        return [], "noise"
    return [f"the drift is {made.drift:.3g} of the adapter's effect, at most {bounds.drift:g} is allowed"], ""


def _golden_case(golden: Golden, measured: Measured, bounds: Bounds) -> TestedCase:
    score = measured.scores[golden.id]
    gap = (golden.base_loss or 0.0) - (golden.loss or 0.0)
    retention = None
    if gap >= bounds.min_gap and math.isfinite(score.loss):
        retention = ((golden.base_loss or 0.0) - score.loss) / gap
    return TestedCase(
        id=golden.id,
        kind="golden",
        verdict="PASS" if score.same else "CHANGED",
        same=score.same,
        loss=score.loss if math.isfinite(score.loss) else None,
        recorded_loss=golden.loss,
        base_loss=golden.base_loss,
        retention=retention,
        text=measured.texts.get(golden.id),
        recorded_text=golden.answer,
        problem="" if score.same else "the answer is not the recorded one",
    )


def _forged(goldens: Sequence[Golden], measured: Measured) -> list[str]:
    """Answers whose text is not that of their tokens."""
    wrong = [g.id for g in goldens if measured.decoded.get(g.id, g.answer) != g.answer]
    return [f"answer-is-not-tokens: the text of `{wrong[0]}` is not that of its tokens"] if wrong else []


def _base_problems(goldens: Sequence[Golden], measured: Measured, bounds: Bounds) -> list[str]:
    """Check the base's own scores against the contract: its losses must be so, and its answers must differ."""
    moved = {g.id: abs(measured.base[g.id].loss - (g.base_loss or 0.0)) for g in goldens}
    worst = max(moved, key=lambda name: moved[name])
    broken = []
    if moved[worst] > BASE_MOVED:
        number = f"{measured.base[worst].loss:.3f} nats a token on `{worst}`"
        broken.append(f"base-loss-is-not-so: the base has {number}; this is not the base of the recording")
    alike = sum(measured.base[g.id].same for g in goldens) / len(goldens)
    gap = sum((g.base_loss or 0.0) - (g.loss or 0.0) for g in goldens) / len(goldens)
    if alike >= 0.5 or gap < bounds.min_gap:
        broken.append(f"proves-nothing: the base alone gives {alike:.0%} of the recorded answers")
    return broken


# ---------------------------------------------------------------- encoders
def _judge_encoder(
    made: Tested, contract: Contract, goldens: Sequence[Golden], measured: Measured, bounds: Bounds
) -> Tested:
    if not goldens:
        return made
    cases, divergences, cosines, broken = [], [], [], []
    for golden in goldens:
        now = measured.encodings[golden.id]
        same = _best(golden.logits) == _best(now.logits) if golden.logits else None
        if golden.logits:
            divergences.append(divergence(golden.logits, now.logits))
        if golden.vector is not None:
            cosines.append(cosine(unpacked(golden.vector), now.vector))
        is_far = golden.vector is not None and cosines[-1] < bounds.cosine
        problem = "the label is another" if same is False else "the vector is another" if is_far else ""
        problem = problem if now.is_finite else "the numbers are not finite"
        case = TestedCase(id=golden.id, kind="golden", verdict="CHANGED" if problem else "PASS", same=same,
                          text=measured.labels.get(golden.id), recorded_text=_label(contract, golden.logits),
                          problem=problem)  # fmt: skip
        cases.append(case)
    same_share = kl = least = None
    if any(not measured.encodings[g.id].is_finite for g in goldens):
        broken.append("the numbers are not finite")
        divergences, cosines = [], []
    if divergences:
        lost = [case for case in cases if case.same is False]
        same_share, kl = 1 - len(lost) / len(goldens), mean_divergence(divergences)
        allowed = bounds.may_lose(len(goldens))
        if len(lost) > allowed:
            broken.append(f"{len(lost)} of {len(goldens)} labels changed, at most {allowed} may; `{lost[0].id}`")
        if kl > bounds.kl + TOLERANCE:
            broken.append(f"the mean KL divergence is {kl:.3f} nats, at most {bounds.kl:g} is allowed")
    if cosines:
        least = min(cosines)
        if least < bounds.cosine - TOLERANCE:
            worst = [g.id for g in goldens if g.vector is not None][cosines.index(least)]
            broken.append(f"the least cosine is {least:.3f}, at least {bounds.cosine:g} is required; `{worst}`")
    return replace(made, same=same_share, kl=kl, cosine=least, cases=tuple(cases), broken=tuple(broken))


def mean_divergence(divergences: Sequence[float]) -> float:
    """Return the mean KL divergence of goldens, in nats, without the largest of every twenty.

    One golden on the edge between two labels moves by several nats at any change, and would outweigh nineteen that
    stay.
    """
    kept = sorted(divergences)[: len(divergences) - len(divergences) // GOLDENS_AN_OUTLIER]
    return math.fsum(kept) / len(kept)


def _best(logits: Sequence[float]) -> int:
    return max(range(len(logits)), key=lambda at: logits[at], default=-1)


def _label(contract: Contract, logits: Sequence[float]) -> str | None:
    at = _best(logits)
    return None if at < 0 else contract.labels[at] if at < len(contract.labels) else str(at)


# ---------------------------------------------------------------- pipelines
def _judge_images(made: Tested, goldens: Sequence[Golden], measured: Measured, bounds: Bounds) -> Tested:
    """By how much of the adapter's effect is kept: 1 as recorded, 0 as far off as the base, below 0 further."""
    recorded = {golden.id: unpacked_latent(golden.latent or "") for golden in goldens}
    gaps = {golden.id: golden.gap or 0.0 for golden in goldens}
    apart = {name: distance(recorded[name], measured.latents[name]) for name in recorded}
    effects = {name: 1 - apart[name] / gaps[name] for name in recorded}
    cases = tuple(_image_case(name, effect, bounds) for name, effect in effects.items())
    lost = [case.id for case in cases if not case.same]
    broken, reason, effect = [], "", None
    if not all(map(math.isfinite, effects.values())):
        broken.append("a latent is not of finite numbers, or has another size")
    elif math.hypot(*gaps.values()) < bounds.min_gap * math.sqrt(len(goldens)):
        reason = "no-gap"  # rounding alone moves images so far
    else:
        if len(lost) > bounds.may_lose(len(goldens)):
            worst, allowed = min(lost, key=lambda name: effects[name]), bounds.may_lose(len(goldens))
            broken.append(f"{len(lost)} of {len(goldens)} images changed, at most {allowed} may; worst: `{worst}`")
        effect = 1 - math.hypot(*apart.values()) / math.hypot(*gaps.values())
        if effect + TOLERANCE < bounds.effect:
            broken.append(f"{effect:.3f} of the adapter's effect is kept, at least {bounds.effect:g} is required")
    for name, latent in measured.base_latents.items():
        alone = distance(recorded[name], latent)
        if not abs(alone - gaps[name]) <= GAP_MOVED * gaps[name]:
            broken.append(
                f"base-gap-is-not-so: on `{name}` the base is {alone:.3f} off, and {gaps[name]:.3f} at the recording"
            )
            break
    same = 1 - len(lost) / len(goldens)
    made = replace(made, effect=effect, drift=None if effect is None else 1 - effect)
    said, unclear = _drift_problem(made, bounds) if effect is not None else ([], "")
    return replace(made, reason=reason or unclear, same=same, cases=cases, broken=(*broken, *said))


def distance(recorded: Sequence[float], now: Sequence[float]) -> float:
    """How far two latents are apart, as a share of the recorded one's length; infinite if they cannot be compared."""
    if len(recorded) != len(now) or not all(map(math.isfinite, now)):
        return math.inf
    apart = math.fsum((a - b) ** 2 for a, b in zip(recorded, now, strict=True))
    return math.sqrt(apart / math.fsum(a * a for a in recorded))


def _image_case(name: str, effect: float, bounds: Bounds) -> TestedCase:
    same = effect + TOLERANCE >= bounds.effect
    known = effect if math.isfinite(effect) else None
    problem = "" if same else "the image is another" + (f": {effect:.3f} of the effect" if known is not None else "")
    verdict: Verdict = "PASS" if same else "CHANGED"
    return TestedCase(id=name, kind="golden", verdict=verdict, same=same, effect=known, problem=problem)


# ---------------------------------------------------------------- answers without losses
def judge_texts(
    made: Tested, contract: Contract, answers: Mapping[str, tuple[str, bool]], expects: Sequence[TestedCase] = ()
) -> Tested:
    """Return the verdict on plain answers, each a text and whether it is the recorded one, by the id of its golden.

    At most so many goldens may be lost, and no demand broken; `expects` are the cases of those.
    """
    goldens = contract.distinct
    cases = []
    for golden in goldens:
        text, same = answers[golden.id]
        problem = "" if same else "the answer is not the recorded one"
        verdict: Verdict = "PASS" if same else "CHANGED"
        cases.append(TestedCase(id=golden.id, kind="golden", verdict=verdict, same=same, text=text,
                                recorded_text=golden.answer, problem=problem))  # fmt: skip
    lost = [case for case in cases if not case.same]
    broken, allowed = [], Bounds(**made.bounds).may_lose(len(goldens))
    if len(lost) > allowed:
        broken.append(f"{len(lost)} of {len(goldens)} answers changed, at most {allowed} may; `{lost[0].id}`")
    broken += [f"`{case.kind}` line `{case.id}`: {case.problem}" for case in expects if case.problem]
    same_share = 1 - len(lost) / len(goldens) if goldens else None
    made = replace(made, verdict="CHANGED" if broken else "PASS", same=same_share, goldens=len(goldens))
    return replace(made, cases=(*cases, *expects), broken=tuple(broken))


# ---------------------------------------------------------------- demands
def expectation(expect: Expect, text: str, label: str | None = None) -> TestedCase:
    """Return how an answer meets a demand; `label` is the one that a classifier gave."""
    problem = expect.demand.problem(text, label)
    said = f"the answer {problem}" if problem else ""
    return TestedCase(id=expect.id, kind=expect.kind, verdict="CHANGED" if problem else "PASS", text=text, problem=said)


def _left_alone(line: LeaveAlone, score: Score) -> TestedCase:
    rise, problem = score.loss - line.loss, ""
    if not math.isfinite(score.loss):
        problem = "the loss is not a finite number"
    elif rise > line.rise + TOLERANCE:
        problem = f"the loss of the base's answer rose by {rise:.3f} nats a token, at most {line.rise:g} is allowed"
    elif line.same and not score.same:
        problem = f"the answer is not the base's own, `{shown(line.answer)}`"
    return TestedCase(
        id=line.id,
        kind="leave_alone",
        verdict="CHANGED" if problem else "PASS",
        same=score.same,
        loss=score.loss if math.isfinite(score.loss) else None,
        recorded_loss=line.loss,
        recorded_text=line.answer,
        problem=problem,
    )
