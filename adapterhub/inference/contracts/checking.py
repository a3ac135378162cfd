"""Checks a model with an adapter on it against a contract, the cheapest questions first."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain
from typing import TYPE_CHECKING, Final

from adapterhub.core.errors import ChatTemplateRefused
from adapterhub.formats.contract.contract import ENCODERS, IMAGE, Contract, Expect, Golden, LeaveAlone, ids_digest
from adapterhub.formats.contract.results import NO_EFFECT, Tested
from adapterhub.formats.prompts.form import base_template, has_other_template
from adapterhub.inference.contracts.answers import (
    AnswerRow,
    Measured,
    Score,
    Tick,
    Unknown,
    encode,
    greedy,
    judge,
    memory_as_unknown,
    prompts_in_tokens,
    scores,
    text_of,
    ticking,
)
from adapterhub.inference.contracts.drift import asked_alone
from adapterhub.inference.effect import MOST_ROWS, Effect, compared, numbers_of
from adapterhub.inference.generation import NEW_TOKENS

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from adapterhub.inference.generation import Model

DEFAULT_BUDGET_S: Final = 120.0
_SHOWN: Final = 3
"""Changed answers whose new text is generated, to show it."""


def check(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    contract: Contract,
    made: Tested | None = None,
    *,
    base_alone: bool = False,
    budget_s: float | None = DEFAULT_BUDGET_S,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Tested:
    """Return the verdict on `model`, a base with the adapter attached, or without one.

    `made` is what is known of the adapter, with the bounds that hold; without it, they are the contract's.

    Template, tokenizer and prompts are compared before any loss is taken. The recorded answers cost one pass; text is
    generated for `expect` and `never` lines, and for a few changed answers, to show them. An adapter that changes
    nothing that the base says is CHANGED, and `broken` says `no-effect`. With `base_alone` the base's own losses are
    measured as well; this doubles the time. `progress` gets prompts done and in all.

    Raises:
        UsageProblem: the base's chat template refuses a prompt.
    """
    start, made = time.process_time(), made or Tested(name="", verdict="NONE", bounds=asdict(contract.bounds))
    made = replace(made, dtype=str(model.dtype).removeprefix("torch."))
    total = len(contract.distinct) * (1 + base_alone) + len(contract.expects) + len(contract.leave_alone)
    try:
        with memory_as_unknown():
            measured = _measure(model, tokenizer, contract, ticking(budget_s, progress, total), base_alone=base_alone)
            effect = _effect(model, contract)
        made = judge(made, contract, measured)
        if effect.changes is False:
            made = replace(
                made, verdict="CHANGED", reason="", detail="", broken=(*made.broken, f"{NO_EFFECT}: {effect.reason}")
            )
    except Unknown as unknown:
        made = made.unknown(unknown.reason, unknown.detail)
    except ChatTemplateRefused as error:
        made = made.unknown("limits", error.message)
    return replace(made, cpu_seconds=round(time.process_time() - start, 3))


def _effect(model: Model, contract: Contract) -> Effect:
    """Find out whether the adapter on `model` changes answers; unknown without one, or for biases of the base."""
    config = getattr(model, "active_peft_config", None)
    if contract.kind == IMAGE or config is None or getattr(config, "bias", "none") != "none":
        return Effect(changes=None)
    rows = getattr(config, "trainable_token_indices", None) or ()
    each = rows.values() if isinstance(rows, Mapping) else [rows]
    tokens = (*list(chain.from_iterable(each))[:MOST_ROWS], *(getattr(config, "alora_invocation_tokens", None) or ()))

    def plain() -> list[Tensor]:
        with model.disable_adapter():
            return numbers_of(model, tokens)

    return compared(plain, lambda: numbers_of(model, tokens))


def _measure(
    model: Model, tokenizer: PreTrainedTokenizerBase, contract: Contract, tick: Tick, *, base_alone: bool
) -> Measured:
    form = contract.prompt
    ensure_comparable(contract, tokenizer)
    if contract.kind == IMAGE:
        from adapterhub.inference.contracts.images import drawn_again

        return drawn_again(model, contract, tick, base_alone=base_alone)
    lines: list[Golden | LeaveAlone | Expect] = [*contract.distinct, *contract.leave_alone, *contract.expects]
    is_encoder = contract.kind in ENCODERS
    answers = [getattr(line, "tokens", ()) for line in lines]
    new = form.max_new_tokens or NEW_TOKENS
    room = 0 if is_encoder else max([new if contract.expects else 0, *map(len, answers)])
    asked = [line.asked for line in lines if line.asked is not None]
    rows = prompts_in_tokens(form, asked, model, tokenizer, new=room)
    by_id = {line.id: row for line, row in zip(lines, rows, strict=True)}
    ensure_same_tokens(contract, by_id, model)
    if is_encoder:
        return _measure_encoder(model, contract, by_id, tick)
    scored = [line for line in lines if not isinstance(line, Expect)]
    pairs = [AnswerRow(prompt=by_id[line.id], answer=line.tokens) for line in scored]
    found = dict(zip((line.id for line in scored), scores(model, pairs, tick), strict=True))
    base: dict[str, Score] = {}
    alone: dict[str, Score] = {}
    if hasattr(model, "disable_adapter"):
        few = asked_alone(contract.distinct, {g.id: len(by_id[g.id]) + len(g.tokens) for g in contract.distinct})
        goldens: Sequence[Golden] = contract.distinct if base_alone else few
        with model.disable_adapter():
            of_base = scores(model, [AnswerRow(prompt=by_id[g.id], answer=g.tokens) for g in goldens], tick)
        base = dict(zip((g.id for g in goldens), of_base, strict=True))
        alone = {golden.id: base[golden.id] for golden in few}
    changed = [g.id for g in contract.distinct if not found[g.id].same][:_SHOWN]
    told = [*(one.id for one in contract.expects), *changed]
    texts = [text_of(tokenizer, tokens) for tokens in greedy(model, tokenizer, [by_id[i] for i in told], form, tick)]
    return Measured(
        scores=found,
        base=base if base_alone else {},
        alone=alone,
        texts=dict(zip(told, texts, strict=True)),
        decoded={golden.id: text_of(tokenizer, golden.tokens) for golden in contract.distinct},
    )


def _measure_encoder(model: Model, contract: Contract, by_id: dict[str, list[int]], tick: Tick) -> Measured:
    vectors = any(golden.vector is not None for golden in contract.goldens)
    names = list(by_id)
    found = encode(model, [by_id[name] for name in names], tick, vectors=vectors)
    encodings = dict(zip(names, found, strict=True))
    labels = {}
    for name, one in encodings.items():
        best = max(range(len(one.logits)), key=lambda at, one=one: one.logits[at], default=-1)  # type: ignore[misc]
        labels[name] = contract.labels[best] if 0 <= best < len(contract.labels) else str(best) if best >= 0 else ""
    return Measured(encodings=encodings, labels=labels, texts=labels)


def ensure_comparable(contract: Contract, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a contract that cannot be asked with this tokenizer's chat template, or without its texts.

    Raises:
        Unknown: with the reason.
    """
    form = contract.prompt
    if contract.visibility == "digests":
        raise Unknown("no-texts")
    if form.form == "chat" and form.chat_template is None and base_template(tokenizer) is None:
        raise Unknown("no-template")
    if has_other_template(form, tokenizer):
        raise Unknown("other-template")


def ensure_same_tokens(contract: Contract, by_id: Mapping[str, Sequence[int]], model: Model) -> None:
    """Refuse a tokenizer that makes other tokens of the recorded prompts: their losses would mean nothing.

    Raises:
        Unknown: it does, or a recorded token is not one of the base's.
    """
    ensure_same_prompts(contract, by_id)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    lines: Sequence[Golden | LeaveAlone] = [*contract.distinct, *contract.leave_alone]
    largest = max((max(line.tokens) for line in lines if line.tokens), default=0)
    if largest >= vocabulary:
        raise Unknown("other-tokenizer", f"the contract has token {largest}, and the base has {vocabulary} tokens")


def ensure_same_prompts(contract: Contract, by_id: Mapping[str, Sequence[int]]) -> None:
    """Refuse a tokenizer that makes other tokens of the recorded prompts.

    Raises:
        Unknown: it does.
    """
    for golden in contract.distinct:
        tokens = by_id[golden.id]
        if len(tokens) != golden.prompt_tokens or ids_digest(tokens) != golden.prompt_sha256:
            counts = f"`{golden.id}` has {len(tokens)} tokens here, and had {golden.prompt_tokens} at the recording"
            raise Unknown("other-tokenizer", counts)
