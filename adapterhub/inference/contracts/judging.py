"""From what was measured to a verdict, by the bounds alone; no model is needed.

The rule: at most one golden in ten may have another answer, and the adapter must keep 0.95 of what it gained over its
base. Retention alone passes adapters that changed a third of their answers; equal answers alone refuse unchanged ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from adapterhub.core.errors import shown
from adapterhub.formats.contract.bounds import Bounds
from adapterhub.formats.contract.contract import ENCODERS, IMAGE, Contract, Expect, Golden, LeaveAlone
from adapterhub.formats.contract.results import TestedCase, Verdict
from adapterhub.formats.contract.vectors import unpacked, unpacked_latent
from adapterhub.inference.contracts.answers import Score
from adapterhub.inference.contracts.encoders import Encoding, cosine, divergence

TOLERANCE: Final = 1e-3
"""Nats per token within which a loss is the same: no bound hangs on rounding."""

FEWEST: Final = 4
"""Goldens with different prompts below which a check warns."""

BASE_MOVED: Final = 0.05
"""Nats per token by which a base's loss may differ from the recorded one before it is called another base."""

GAP_MOVED: Final = 0.35
"""The same for images: the share of its gap by which a base's latent may be nearer or farther."""

GOLDENS_AN_OUTLIER: Final = 20
"""Of so many goldens of a classifier, the one that moved most does not count towards the mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a model gave for the lines of a contract, by their ids.

    `base` holds the scores of the base alone on the goldens, where they were measured. `labels` are the names that a
    classifier gave; `decoded` are the recorded tokens as text. `latents` are what a pipeline drew, `base_latents`
    what it drew without the adapter, where that was asked.
    """

    scores: Mapping[str, Score] = field(default_factory=dict)
    base: Mapping[str, Score] = field(default_factory=dict)
    encodings: Mapping[str, Encoding] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    decoded: Mapping[str, str] = field(default_factory=dict)
    latents: Mapping[str, Sequence[float]] = field(default_factory=dict)
    base_latents: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The verdict with its numbers; `reason` is why no verdict is possible, `broken` is what broke which bound."""

    verdict: Verdict
    reason: str = ""
    same: float | None = None
    retention: float | None = None
    retention_worst: float | None = None
    kl: float | None = None
    cosine: float | None = None
    effect: float | None = None
    goldens: int = 0
    cases: tuple[TestedCase, ...] = ()
    broken: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def judge(contract: Contract, measured: Measured, bounds: Bounds) -> Judgement:
    """The verdict on what was measured."""
    goldens = contract.distinct
    if contract.kind in ENCODERS:
        judgement = _judge_encoder(contract, goldens, measured, bounds)
    elif contract.kind == IMAGE:
        judgement = _judge_images(goldens, measured, bounds)
    else:
        judgement = _judge_writer(goldens, measured, bounds)
    cases = [*judgement.cases, *(_expectation(one, measured) for one in contract.expects)]
    cases += [_left_alone(one, measured.scores[one.id]) for one in contract.leave_alone]
    broken = list(judgement.broken)
    for kind in ("expect", "never", "leave_alone"):
        of_kind = [case for case in cases if case.kind == kind]
        if failed := [case for case in of_kind if case.verdict == "CHANGED"]:
            text = f"{len(failed)} of {len(of_kind)} `{kind}` lines are broken"
            broken.append(f"{text}; `{failed[0].id}`: {failed[0].problem}")
    warnings = list(judgement.warnings)
    if loose := contract.bounds.loose:
        warnings.append(f"the contract's bounds are so loose that they prove little: {loose}")
    if 0 < len(goldens) < FEWEST:
        lost = bounds.may_lose(len(goldens))
        warnings.append(f"it has {len(goldens)} different goldens, of which {lost} may change: a PASS proves little")
    verdict: Verdict = "CHANGED" if broken else "UNKNOWN" if judgement.reason else "PASS"
    return replace(
        judgement,
        verdict=verdict,
        reason="" if broken else judgement.reason,
        goldens=len(goldens),
        cases=tuple(cases),
        broken=tuple(broken),
        warnings=tuple(warnings),
    )


# ---------------------------------------------------------------- models that write
def _judge_writer(goldens: Sequence[Golden], measured: Measured, bounds: Bounds) -> Judgement:
    if not goldens:
        return Judgement(verdict="PASS")
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
    worst_retention = min((case.retention for case in cases if case.retention is not None), default=None)
    return Judgement(
        verdict="PASS",
        reason=reason,
        same=same,
        retention=retention,
        retention_worst=worst_retention,
        cases=tuple(cases),
        broken=tuple(broken),
    )


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
    """What the base's own scores say about the contract: its losses must be so, and the base must answer otherwise."""
    moved = {g.id: abs(measured.base[g.id].loss - (g.base_loss or 0.0)) for g in goldens}
    worst = max(moved, key=lambda name: moved[name])
    broken = []
    if moved[worst] > BASE_MOVED:
        number = f"{measured.base[worst].loss:.3f} nats a token on `{worst}`"
        broken.append(f"base-loss-is-not-so: the base has {number}; this is not the base of the recording")
    alike = sum(measured.base[g.id].same for g in goldens) / len(goldens)
    gap = sum((g.base_loss or 0.0) - (g.loss or 0.0) for g in goldens) / len(goldens)
    if alike >= 0.5 or gap < bounds.min_gap:  # noqa: PLR2004 - half of them
        broken.append(f"proves-nothing: the base alone gives {alike:.0%} of the recorded answers")
    return broken


# ---------------------------------------------------------------- encoders
def _judge_encoder(contract: Contract, goldens: Sequence[Golden], measured: Measured, bounds: Bounds) -> Judgement:
    if not goldens:
        return Judgement(verdict="PASS")
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
    return Judgement(verdict="PASS", same=same_share, kl=kl, cosine=least, cases=tuple(cases), broken=tuple(broken))


def mean_divergence(divergences: Sequence[float]) -> float:
    """The mean KL divergence of goldens, in nats, without the largest of every twenty.

    One golden on the edge between two labels moves by several nats at any change, and alone would outweigh nineteen
    that stay.
    """
    kept = sorted(divergences)[: len(divergences) - len(divergences) // GOLDENS_AN_OUTLIER]
    return math.fsum(kept) / len(kept)


def _best(logits: Sequence[float]) -> int:
    return max(range(len(logits)), key=lambda at: logits[at], default=-1)


def _label(contract: Contract, logits: Sequence[float]) -> str | None:
    at = _best(logits)
    return None if at < 0 else contract.labels[at] if at < len(contract.labels) else str(at)


# ---------------------------------------------------------------- pipelines
def _judge_images(goldens: Sequence[Golden], measured: Measured, bounds: Bounds) -> Judgement:
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
    return Judgement(verdict="PASS", reason=reason, same=same, effect=effect, cases=cases, broken=tuple(broken))


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


# ---------------------------------------------------------------- demands
def _expectation(expect: Expect, measured: Measured) -> TestedCase:
    text = measured.texts[expect.id]
    problem = expect.demand.problem(text, measured.labels.get(expect.id))
    said = f"the answer {problem}" if problem else ""
    verdict: Verdict = "CHANGED" if problem else "PASS"
    return TestedCase(id=expect.id, kind=expect.kind, verdict=verdict, text=text, problem=said)


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
