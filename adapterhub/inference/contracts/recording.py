"""Records a contract: prompts the adapter, and keeps its answers.

Recording twice on one machine gives the same bytes. Answers that hang on a coin are left out: only answers with a
margin below 0.25 nats flipped when the precision of the base changed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from adapterhub.core.errors import Incompatible, Malformed, UsageProblem, shown
from adapterhub.formats.contract.contract import (
    DEFAULT_GOLDENS,
    ENCODERS,
    FEWEST_GOLDENS,
    Asked,
    Contract,
    Golden,
    LeaveAlone,
    Recorded,
    ids_digest,
    packed,
    packed_odds,
    rounded,
)
from adapterhub.formats.contract.reader import MAX_ANSWER_TOKENS, MAX_BYTES, Plan, Wanted, parse_contract
from adapterhub.formats.contract.standards import Bounds
from adapterhub.formats.prompts.form import PromptForm, base_template, base_template_digest, has_other_template
from adapterhub.inference.contracts.answers import (
    OTHER_INPUTS,
    AnswerRow,
    Score,
    Tick,
    Unknown,
    encode,
    greedy,
    memory_as_unknown,
    prompts_in_tokens,
    scores,
    text_of,
    ticking,
)
from adapterhub.inference.contracts.drift import Rounded, asked_alone, rounded_by
from adapterhub.inference.generation import NEW_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adapterhub.inference.generation import Model

DEFAULT_MARGIN: Final = 0.05
ENOUGH_GOLDENS: Final = 8
BETTER_FORM: Final = 0.1
"""Nats per token by which another prompt form must do better on the wanted answers to be named."""

_CANDIDATES: Final = 2
"""Inputs that are asked for each golden that is wanted: thin answers are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A contract that was recorded. `left_out` pairs the id of an input with the reason."""

    contract: Contract
    left_out: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()


def record(  # noqa: PLR0913 - what to ask, how, and what to note
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    plan: Plan,
    form: PromptForm,
    recorded: Recorded,
    *,
    kind: str,
    count: int = DEFAULT_GOLDENS,
    margin: float = DEFAULT_MARGIN,
    vectors: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Recording:
    """Ask `model`, a base with the adapter attached, and record at most `count` goldens.

    Raises:
        Incompatible: adapter and base answer alike, too few answers are left, or the base has no chat template.
        UsageProblem: the bounds are too loose, or an input does not suit the form.
    """
    if form.form == "chat" and form.chat_template is None and base_template(tokenizer) is None:
        raise Incompatible("the form is `chat`, and this base has no chat template", hint="pass `--prompt raw`")
    if has_other_template(form, tokenizer):
        raise Incompatible(
            "the adapter's prompt form names another chat template than this base's",
            hint="pass `--prompt chat` to record with the base's own",
        )
    if form.form == "chat" and form.chat_template_sha256 is None:
        form = replace(form, chat_template_sha256=base_template_digest(tokenizer))
    ensure_tight(plan)
    wanted = _distinct(plan.goldens)[: max(count * _CANDIDATES, count + FEWEST_GOLDENS)]
    tick = ticking(None, progress, len(wanted) + len(plan.leave_alone))
    recorder = _Recorder(model, tokenizer, form, tick)
    try:
        with memory_as_unknown():
            if kind in ENCODERS:
                goldens, left_out = recorder.encodings(wanted, count, kind, vectors=vectors or kind == "embed")
                leave_alone: list[LeaveAlone] = []
            else:
                goldens, left_out = recorder.goldens(wanted, count, margin)
                leave_alone = recorder.left_alone(plan.leave_alone)
    except Unknown as unknown:
        raise Incompatible(f"cannot record: {unknown.detail}", hint=OTHER_INPUTS) from None
    if plan.goldens or not (plan.expects or leave_alone):
        ensure_enough(goldens, left_out, "answers", "give more inputs with `--examples`, or a lower `--margin`")
    if kind not in ENCODERS and goldens:
        _ensure_gap(goldens, plan.bounds)
    is_full = kind not in ENCODERS and str(model.dtype) == "torch.float32"
    rounded_so = recorder.rounded(goldens) if is_full and goldens else Rounded()
    contract = Contract(
        kind=kind,
        prompt=form,
        recorded=recorded,
        goldens=tuple(goldens),
        expects=plan.expects,
        leave_alone=tuple(leave_alone),
        bounds=plan.bounds,
        labels=_labels(model) if kind == "classify" else (),
        sensitivity=rounded_so.sensitivity,
        rounding=rounded_so.central,
    )
    ensure_sound(contract)
    warnings = recorder.warnings(wanted, goldens) if kind not in ENCODERS else []
    if goldens and len(goldens) < ENOUGH_GOLDENS:
        warnings.append(f"{len(goldens)} goldens: one changed adapter in ten is not seen; {DEFAULT_GOLDENS} see most")
    return Recording(contract=contract, left_out=tuple(left_out), warnings=tuple(warnings))


def _distinct(goldens: Sequence[Wanted]) -> list[Wanted]:
    """Return the inputs, each once."""
    found: list[Wanted] = []
    for golden in goldens:
        if all(golden.asked != one.asked for one in found):
            found.append(golden)
    return found


def _ensure_gap(goldens: Sequence[Golden], bounds: Bounds) -> None:
    tokens = sum(len(golden.tokens) for golden in goldens)
    gap = sum(((g.base_loss or 0.0) - (g.loss or 0.0)) * len(g.tokens) for g in goldens) / tokens
    if gap < bounds.min_gap:
        raise Incompatible(
            f"adapter and base answer alike: {gap:.3f} nats per token apart, expected at least {bounds.min_gap:g}; a "
            "contract that the base passes proves nothing",
            hint="choose prompts of the adapter's own task, in the form of its training (`--prompt`)",
        )


def ensure_tight(plan: Plan) -> None:
    """Refuse bounds that prove nothing.

    Raises:
        UsageProblem: the plan has such.
    """
    if loose := plan.bounds.loose:
        raise UsageProblem(f"such bounds prove nothing: {loose}", hint="change `[bounds]`, or leave it out")


def ensure_enough(goldens: Sequence[Golden], left_out: Sequence[tuple[str, str]], noun: str, hint: str) -> None:
    """Refuse a contract of too few goldens.

    Raises:
        Incompatible: names some of the inputs that are left out.
    """
    if len(goldens) < FEWEST_GOLDENS:
        reasons = "; ".join(f"`{shown(name)}` {reason}" for name, reason in left_out[:3])
        what = f"{len(goldens)} {noun} are left, expected at least {FEWEST_GOLDENS}"
        raise Incompatible(f"{what}: {reasons}" if reasons else what, hint=hint)


def ensure_sound(contract: Contract) -> None:
    """Read the contract back, as everybody will.

    Raises:
        Malformed: it is too long.
    """
    raw = contract.to_bytes()
    if len(raw) > MAX_BYTES:
        raise Malformed(f"the contract has {len(raw):,} bytes, at most {MAX_BYTES:,}", hint="lower `--count`")
    parse_contract(raw)


def _labels(model: Model) -> tuple[str, ...]:
    names = model.config.id2label
    return tuple(str(names[at]) for at in sorted(names))


@dataclass(frozen=True, slots=True)
class _Recorder:
    model: Model
    tokenizer: PreTrainedTokenizerBase
    form: PromptForm
    tick: Tick

    def rows(self, asked: Sequence[Asked], form: PromptForm | None = None) -> list[list[int]]:
        new = (form or self.form).max_new_tokens or NEW_TOKENS
        return prompts_in_tokens(form or self.form, asked, self.model, self.tokenizer, new=new)

    def goldens(
        self, wanted: Sequence[Wanted], count: int, margin: float
    ) -> tuple[list[Golden], list[tuple[str, str]]]:
        """Return the goldens, and what is left out with the reason; asks no more than it takes to have `count`."""
        found: list[Golden] = []
        left_out: list[tuple[str, str]] = []
        rest = list(wanted)
        while rest and len(found) < count:
            some, rest = rest[: count - len(found)], rest[count - len(found) :]
            kept, lost = self.asked(some, margin)
            found += kept
            left_out += lost
        return found, left_out

    def asked(self, wanted: Sequence[Wanted], margin: float) -> tuple[list[Golden], list[tuple[str, str]]]:
        """Return the goldens among some inputs, and those that cannot be goldens."""
        prompts = self.rows([one.asked for one in wanted])
        answers = greedy(self.model, self.tokenizer, prompts, self.form, self.tick)
        pairs = [AnswerRow(prompt=p, answer=a[:MAX_ANSWER_TOKENS]) for p, a in zip(prompts, answers, strict=True)]
        own = scores(self.model, pairs, _silent)
        with self.without_adapter():
            base = scores(self.model, pairs, _silent)
        found: list[Golden] = []
        left_out: list[tuple[str, str]] = []
        for one, pair, score, alone in zip(wanted, pairs, own, base, strict=True):
            text = text_of(self.tokenizer, pair.answer)
            golden = _golden(one.id, one.asked, pair, text, score, alone)
            if not math.isfinite(alone.loss):
                raise Incompatible("the base's own numbers are not finite", hint="load the base in float32")
            if not text.strip():
                left_out.append((one.id, "has an empty answer"))
            elif score.margin < max(margin, 0.0) or not score.same:
                left_out.append((one.id, f"hangs on a coin: its margin is {score.margin:.3f} nats"))
            else:
                found.append(golden)
        return found, left_out

    def rounded(self, goldens: Sequence[Golden]) -> Rounded:
        """Measure the effect of rounding to bfloat16; not known where the memory for both does not suffice."""
        prompts = self.rows([golden.asked for golden in goldens if golden.asked is not None])
        pairs = {g.id: AnswerRow(prompt=p, answer=g.tokens) for p, g in zip(prompts, goldens, strict=True)}
        few = [one.id for one in asked_alone(goldens, {n: len(r.prompt) + len(r.answer) for n, r in pairs.items()})]
        try:
            with memory_as_unknown(), _in_bfloat16(self.model):
                own = scores(self.model, list(pairs.values()), _silent)
                with self.without_adapter():
                    base = scores(self.model, [pairs[name] for name in few], _silent)
        except Unknown:
            return Rounded()
        return rounded_by(
            goldens,
            {name: one.odds for name, one in zip(pairs, own, strict=True)},
            {name: one.odds for name, one in zip(few, base, strict=True)},
        )

    def without_adapter(self) -> contextlib.AbstractContextManager[Any]:
        return self.model.disable_adapter() if hasattr(self.model, "disable_adapter") else contextlib.nullcontext()

    def left_alone(self, wanted: Sequence[LeaveAlone]) -> list[LeaveAlone]:
        """Return the base's own answers, with its losses."""
        if not wanted:
            return []
        prompts = self.rows([one.asked for one in wanted])
        with self.without_adapter():
            answers = greedy(self.model, self.tokenizer, prompts, self.form, self.tick)
            pairs = [AnswerRow(prompt=p, answer=a) for p, a in zip(prompts, answers, strict=True)]
            found = scores(self.model, pairs, _silent)
        return [
            replace(one, answer=text_of(self.tokenizer, pair.answer), tokens=tuple(pair.answer), loss=_six(score.loss))
            for one, pair, score in zip(wanted, pairs, found, strict=True)
        ]

    def encodings(
        self, wanted: Sequence[Wanted], count: int, kind: str, *, vectors: bool
    ) -> tuple[list[Golden], list[tuple[str, str]]]:
        """Return the goldens of an encoder; none is left out."""
        wanted = wanted[:count]
        prompts = prompts_in_tokens(self.form, [one.asked for one in wanted], self.model, self.tokenizer)
        found = encode(self.model, prompts, self.tick, vectors=vectors)
        if kind == "classify" and found and len(found[0].logits) < 2:
            raise Incompatible("an adapter that gives one number has no labels, and a contract needs at least two")
        if not all(one.is_finite for one in found):
            raise Incompatible(
                "the adapter's numbers are not finite", hint="`adapt verify` finds numbers that are not finite"
            )
        return [
            Golden(
                id=one.id,
                asked=one.asked,
                prompt_tokens=len(prompt),
                prompt_sha256=ids_digest(prompt),
                logits=tuple(_six(number) for number in encoding.logits) if kind == "classify" else (),
                vector=packed(encoding.vector) if vectors else None,
            )
            for one, prompt, encoding in zip(wanted, prompts, found, strict=True)
        ], []

    def warnings(self, wanted: Sequence[Wanted], goldens: Sequence[Golden]) -> list[str]:
        """Return the doubts about the recording: answers other than wanted, a better form."""
        kept = {golden.id: golden for golden in goldens}
        known = [one for one in wanted if one.completion is not None and one.id in kept]
        if not known:
            return []
        differ = [one for one in known if kept[one.id].answer.strip() != (one.completion or "").strip()]
        found = []
        if differ:
            found.append(f"recorded faithfully: {len(differ)} of {len(known)} are not what your examples want")
        own = self.wanted_loss(known, self.form)
        for form in self.other_forms():
            try:
                loss = self.wanted_loss(known, form)
            except (UsageProblem, Unknown):
                continue
            if own is not None and loss is not None and own - loss > BETTER_FORM:
                text = f"the form `{form.form}` does better on the wanted answers than `{self.form.form}`"
                found.append(f"{text} ({loss:.2f} and {own:.2f} nats a token): is `--prompt {form.form}` meant?")
        return found

    def other_forms(self) -> list[PromptForm]:
        """Return the forms that need no text of their own."""
        forms = [PromptForm(form="raw"), *([PromptForm(form="chat")] if base_template(self.tokenizer) else [])]
        return [form for form in forms if form.form != self.form.form]

    def wanted_loss(self, known: Sequence[Wanted], form: PromptForm) -> float | None:
        """Return the adapter's mean loss on the wanted answers in a form."""
        prompts = self.rows([one.asked for one in known], form)
        answers = [self.tokenizer(one.completion, add_special_tokens=False)["input_ids"] for one in known]
        pairs = [AnswerRow(prompt=p, answer=a) for p, a in zip(prompts, answers, strict=True) if a]
        if not pairs:
            return None
        own = scores(self.model, pairs, _silent)
        total = sum(score.loss * len(row.answer) for row, score in zip(pairs, own, strict=True))
        return total / sum(len(row.answer) for row in pairs)


@contextlib.contextmanager
def _in_bfloat16(model: Model) -> Iterator[None]:
    """Round the parameters of the base, as a test in bfloat16 loads them; the adapter's stay."""
    import torch

    kept = [
        (one, one.data) for name, one in model.named_parameters() if ".lora_" not in name and one.is_floating_point()
    ]
    try:
        for parameter, data in kept:
            parameter.data = data.to(torch.bfloat16)
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data


def _golden(name: str, asked: Asked, pair: AnswerRow, text: str, own: Score, base: Score) -> Golden:
    return Golden(
        id=name,
        asked=asked,
        answer=text,
        tokens=tuple(pair.answer),
        prompt_tokens=len(pair.prompt),
        prompt_sha256=ids_digest(pair.prompt),
        loss=_six(own.loss),
        base_loss=_six(base.loss),
        margin=_six(own.margin),
        odds=packed_odds(own.odds) if own.odds and base.odds else None,
        base_odds=packed_odds(base.odds) if own.odds and base.odds else None,
    )


def _six(number: float) -> float:
    return rounded(number) or 0.0


def _silent(_done: int) -> None:
    """Return a tick that reports nothing."""
