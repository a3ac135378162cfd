"""The result of one check of one build against a contract, as values and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Annotated, Any, Final, Literal, cast, get_args

from adapterhub.core.dates import parse_time
from adapterhub.core.digests import Digest, hex_of, parse_digest, strict_json
from adapterhub.core.display import html_table
from adapterhub.core.errors import shown
from adapterhub.formats.base.fingerprint import BaseVerdict
from adapterhub.formats.contract.standards import DEFAULT_BOUNDS, LOOSEST, looser_than
from adapterhub.formats.documented import Documented
from adapterhub.formats.documents import JSON_KINDS, DocumentReader

Verdict = Literal["PASS", "CHANGED", "UNKNOWN", "NONE"]
"""`PASS`: every bound held. `CHANGED`: one did not. `UNKNOWN`: no verdict is possible. `NONE`: there is no contract."""

Outcome = Literal["broken", "drifts", "cannot_run", "works"]
"""A result in one word, the worst first; `Tested.outcome` decides, and `""` is no contract.

`works`: PASS, and the drift, where it was measured, is at most `WORKS_WITHIN`, or the bound that was given. `drifts`:
PASS with more drift, or CHANGED while half of what the adapter does is left and each `expect` and `never` line holds.
`broken`: any other CHANGED. `cannot_run`: UNKNOWN.
"""

OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)
WORKS_WITHIN: Final = 0.2
"""The drift of an adapter that is scaled by 0.8: a fifth of what it does."""

_STATED: Final[Mapping[str, tuple[Outcome, ...]]] = {"PASS": ("works", "drifts"), "CHANGED": ("broken", "drifts")}
"""What a statement with a verdict may state; the first one stands for a statement that has no outcome."""

REASONS: Final[Mapping[str, str]] = {
    "no-base": "the weights of the base are not on this machine",
    "other-tokenizer": "the tokenizer makes other tokens of the prompts than at the recording",
    "no-template": "the base has no chat template, and the contract asks in its chat",
    "other-scheduler": "the pipeline has another scheduler than at the recording",
    "other-template": "the base has another chat template than at the recording",
    "no-gap": "adapter and base were too close at the recording to tell them apart",
    "too-long": "a prompt has more tokens than this base has room for",
    "budget": "the time for one verdict is over",
    "memory": "the memory does not suffice",
    "kind": "this kind of contract cannot be checked here",
    "limits": "the adapter's chat template passes a limit",
    "other-contract": "the build holds digests alone, and the given contract does not have them",
    "no-texts": "the contract holds digests alone; its prompts are needed to check it",
    "refused": "the build cannot be put on this base",
    "no-odds": "the contract has no log-odds, which a bound on the drift needs; record it again",
    "noise": "the drift is above its bound, but noise and rounding may explain it here",
    "no-bound": "a task has no bound of its own; give one with `--bound METRIC=X`",
    "no-tests": "the runner ran no test",
}
"""Why no verdict is possible, with a sentence each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TestedCase(Documented):
    """One line of a contract, checked; losses are in nats per token. `effect` is for an image, as in `Tested`."""

    __test__ = False  # for pytest, which takes the name for a test's

    id: str
    kind: Annotated[str, "`golden`, `expect`, `never` or `leave_alone`; `test` of pytest"]
    verdict: Annotated[Verdict, "`PASS` or `CHANGED`; `UNKNOWN` for a skipped test"]
    same: Annotated[bool | None, "whether the answer is the recorded one, token for token"] = None
    loss: float | None = None
    recorded_loss: float | None = None
    base_loss: Annotated[float | None, "that of the base alone, at the recording"] = None
    retention: float | None = None
    effect: Annotated[float | None, "of an image: share of what the adapter changes in it that is kept"] = None
    drift: Annotated[float | None, "of this line, as in `Tested`"] = None
    text: Annotated[str | None, "the answer now, where it was written"] = None
    recorded_text: str | None = None
    problem: Annotated[str, "empty unless it is CHANGED"] = ""


NO_EFFECT: Final = "no-effect"
"""How the broken bound of an adapter begins that changes nothing."""

_OF_EFFECT: Final = ("retention", "kl", "cosine", "effect")
"""The numbers that say how much of what an adapter does is left."""

_DEMANDS: Final = ("expect", "never", "test")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Tested(Documented):
    """The verdict on one build. `broken` lists the broken bounds, with number, bound and the worst example.

    `same` and `retention` are shares; `kl` (nats) and `cosine` belong to classifiers and encoders, and `effect` to
    images: the share of the adapter's change that is kept. None is what was not measured. `goldens` counts those with
    different prompts. `metrics` are those of a runner, as `task/metric`. `is_cached` results were measured earlier.
    `rules` is the digest of a project's rules that were checked with the contract. `base_state` is the digest of all
    that decides what the base answers, its settings and tokenizer too; `base_alone` says that it was measured as well.
    """

    __test__ = False

    name: str
    version: str = ""
    digest: Annotated[str, "of its manifest; empty for a folder"] = ""
    weights: Annotated[str, "digest of its weights"] = ""
    contract: Annotated[str, "digest of the contract; empty without one"] = ""
    rules: Annotated[str, "digest of the project's `tests-never` that were checked, too; empty without any"] = ""
    verdict: Annotated[Verdict, "`PASS`, `CHANGED`, `UNKNOWN` or `NONE` (there is no contract)"]
    reason: Annotated[str, "one word for UNKNOWN"] = ""
    detail: Annotated[str, "the reason in a sentence"] = ""
    base: Annotated[str, "the base that was asked"] = ""
    base_weights: Annotated[str, "its digest"] = ""
    base_state: Annotated[str, "digest of all that decides what it answers: weights, settings, tokenizer, template"] = (
        ""
    )
    base_verdict: Annotated[str, "how it compares with the base that the adapter was made for"] = ""
    dtype: Annotated[str, "its precision"] = ""
    load_in: str = ""
    base_alone: Annotated[bool, "whether the base was measured, too"] = False
    engine: Annotated[str, "the programs that answered, with versions"] = ""
    same: Annotated[float | None, "share of the goldens with the recorded answer"] = None
    retention: Annotated[float | None, "share of what the adapter gained over its base"] = None
    retention_worst: float | None = None
    kl: Annotated[float | None, "for classifiers: mean KL divergence of the labels, in nats"] = None
    cosine: Annotated[float | None, "for vectors: the least cosine"] = None
    effect: Annotated[float | None, "for images: share of what the adapter changes in them that is kept"] = None
    drift: Annotated[
        float | None, "change since the recording, as a share of what the adapter changes: of log-odds, or of images"
    ] = None
    drift_low: Annotated[float | None, "the interval that holds it on other such prompts, 95 of 100 times"] = None
    drift_high: float | None = None
    noise: Annotated[float | None, "what precision and programs move, in the same units"] = None
    has_drifted: Annotated[bool | None, "whether neither noise nor rounding explains the drift"] = None
    goldens: Annotated[int, "different prompts with a recorded answer"] = 0
    metrics: Annotated[Mapping[str, float], "what a runner measured, as `task/metric`"] = field(
        default_factory=dict, hash=False
    )
    cases: Sequence[TestedCase] = ()
    bounds: Annotated[Mapping[str, float], "the bounds that held"] = field(default_factory=dict, hash=False)
    broken: Annotated[Sequence[str], "each broken bound with its number"] = ()
    warnings: Sequence[str] = ()
    cpu_seconds: float = 0.0
    is_cached: Annotated[bool, "whether an earlier result of the very same question is shown"] = False
    outcome: Annotated[str, "`works`, `drifts`, `broken` or `cannot_run`; empty without a contract"] = field(
        init=False, default=""
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "outcome", self._outcome())

    def _outcome(self) -> str:
        """See `Outcome`."""
        if self.verdict in ("NONE", "UNKNOWN"):
            return "" if self.verdict == "NONE" else "cannot_run"
        if self.verdict == "PASS":
            bound = self.bounds.get("drift", DEFAULT_BOUNDS.drift)
            within = WORKS_WITHIN if bound == DEFAULT_BOUNDS.drift else bound
            return "works" if self.drift is None or self.drift <= within else "drifts"
        left = {name: value for name in _OF_EFFECT if (value := getattr(self, name)) is not None}
        is_left = bool(left) and not looser_than(left, {name: LOOSEST[name] for name in left})
        has_none = any(one.startswith(NO_EFFECT) for one in self.broken)
        fails = any(case.verdict == "CHANGED" and case.kind in _DEMANDS for case in self.cases)
        return "drifts" if is_left and not has_none and not fails else "broken"

    @property
    def is_of_other_base(self) -> bool:
        """True if `attach` refuses the tested base for the adapter."""
        verdict = BaseVerdict.__members__.get(self.base_verdict)
        return verdict is not None and not verdict.allows_attach

    @property
    def passed(self) -> bool:
        """Whether the verdict is PASS."""
        return self.verdict == "PASS"

    @property
    def why(self) -> Sequence[str]:
        """What there is against a PASS: each broken bound, or why no verdict is possible."""
        return self.broken or ([f"{self.reason}: {self.detail}"] if self.reason else [])

    @property
    def kept(self) -> str:
        """What a PASS shows, in words."""
        if self.goldens:
            return f"{'answers' if self.effect is None else 'draws'} as recorded on {self.goldens} prompts"
        return f"keeps {len(self.cases)} {'line' if len(self.cases) == 1 else 'lines'}"

    @property
    def drifted(self) -> str:
        """The drift with its interval and the noise, in words; empty if none was measured."""
        if self.drift is None:
            return ""
        reach = "" if self.drift_low is None else f" ({self.drift_low:.3f} to {self.drift_high:.3f})"
        noise = "" if self.noise is None else f", noise {self.noise:.3f}"
        return f"drift {self.drift:.3f}{reach}{noise}"

    @property
    def row(self) -> str:
        """One row of a table: what kept how much."""
        same = "-" if self.same is None else f"{self.same:.0%}"
        if self.effect is not None:
            return f"{shown(self.name):20}  same {same:>5}  effect {self.effect:>10.3f}"
        retention = "-" if self.retention is None else f"{self.retention:.3f}"
        drift = "" if self.drift is None else f"  drift {self.drift:>7.3f}"
        return f"{shown(self.name):20}  same {same:>5}  retention {retention:>7}{drift}"

    @property
    def label(self) -> str:
        """The build in words."""
        return f"{self.name} {self.version}".strip()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Tested:
        """Return the result that `to_json` wrote.

        Raises:
            TypeError, KeyError: it was written by another version.
        """
        cases = tuple(TestedCase(**case) for case in value["cases"])
        kept = {name: one for name, one in value.items() if name != "outcome"}
        return cls(**{**kept, "cases": cases, "broken": tuple(value["broken"])})

    def unknown(self, reason: str, detail: str = "") -> Tested:
        """Return the same build without a verdict, for one of `REASONS`."""
        return replace(self, verdict="UNKNOWN", reason=reason, detail=detail or REASONS[reason])

    def named(self, name: str, version: str) -> Tested:
        """Return the same result under the name that the build has here."""
        return replace(self, name=name, version=version)

    def __repr__(self) -> str:
        why = self.reason or "; ".join(self.broken[:1])
        return f"<{self.verdict}: {self.label}, {self.goldens} goldens{f', {why}' if why else ''}>"

    def _repr_html_(self) -> str:
        rows = [(case.id, case.verdict, case.loss, case.recorded_loss, case.problem) for case in self.cases]
        return html_table((f"{self.label}: {self.verdict}", "verdict", "loss", "recorded", "problem"), rows)


STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://in-toto.io/attestation/test-result/v0.1"
RESULT_SCHEMA: Final = "adapterhub/result/1"
RESULTS: Final = {"PASS": "PASSED", "CHANGED": "FAILED"}
"""The words of in-toto for verdicts; it has none for UNKNOWN."""

RESULT_LIMIT_BYTES: Final = 64 << 10
CLOCKS_DIFFER_S: Final = 300.0
"""How far ahead the clock of a tester may be."""

_LARGEST_SEQUENCE: Final = 1 << 53


@dataclass(frozen=True, slots=True, kw_only=True)
class Attested:
    """What a statement says: the verdict on one manifest, by one contract, on one base.

    `rules` is the digest of the project's rules that were checked with the contract, None without any. `sequence`
    counts the statements of one key about one manifest; `time` is Unix time. `bounds` are those that decided.
    `base_alone` is True if the base was measured as well. `drift` and `noise` are as in `Tested`.
    """

    name: Annotated[str, "as the tester names the build"]
    manifest: Digest
    contract: Digest
    base: Annotated[Digest, "of the base that was asked"]
    rules: Annotated[Digest | None, "digest of the rules that were checked, too"]
    dtype: str
    load_in: str
    verdict: Annotated[Literal["PASS", "CHANGED"], "`PASS` or `CHANGED`"]
    sequence: Annotated[int, "counts the results of one key on one build"]
    time: float
    bounds: Mapping[str, float] = field(default_factory=dict)
    base_alone: Annotated[bool, "whether the base was measured, too"] = False
    drift: Annotated[float | None, "change since the recording, as a share of what the adapter changes"] = None
    noise: Annotated[float | None, "what precision and programs move, in the same units"] = None
    outcome: Annotated[str, "`works`, `drifts` or `broken`"] = ""

    @property
    def question(self) -> tuple[object, ...]:
        """What was checked: a later statement on the same supersedes an earlier one."""
        return (*self._about, *(("base_alone",) if self.base_alone else ()))

    @property
    def _about(self) -> tuple[object, ...]:
        return self.manifest, self.contract, self.base, self.rules, self.dtype, self.load_in

    def is_outweighed_by(self, other: Attested) -> bool:
        """Return True for a PASS that did not measure the plain base, if `other` did and is CHANGED."""
        is_weaker = other.base_alone and not self.base_alone and self._about == other._about
        return is_weaker and (self.verdict, other.verdict) == ("PASS", "CHANGED")

    @classmethod
    def parse(cls, payload: bytes) -> Attested:
        """Read the bytes of a statement.

        Raises:
            ValueError: they are not a statement about a contract's result; the first problem with its place.
        """
        value = strict_json(payload, limit_bytes=RESULT_LIMIT_BYTES)
        if not isinstance(value, dict):
            raise ValueError("statement: expected an object")
        reader = _Reader()
        made = reader.statement(value)
        if reader.problems:
            raise ValueError(reader.lines[0])
        assert made is not None
        return made


class _Reader(DocumentReader):
    kinds = JSON_KINDS

    def statement(self, top: dict[str, Any]) -> Attested | None:
        self.is_text(top, "_type", STATEMENT_TYPE)
        self.is_text(top, "predicateType", PREDICATE_TYPE)
        subjects = list(self.tables(top, "subject", most=1, required=True))
        predicate = self.take(top, "predicate", dict, required=True) or {}
        said = self.take(predicate, "adapterhub", dict, "predicate.", required=True) or {}
        self.is_text(said, "schema", RESULT_SCHEMA, "predicate.adapterhub.")
        parts: dict[str, tuple[str, dict[str, Any]]] = {}
        for place, one in self.tables(predicate, "configuration", "predicate.", most=16, required=True):
            if parts.setdefault(str(one.get("name")), (place, one))[1] is not one:
                self.say(f"{place}name", f"`{shown(one.get('name'))}` is there twice")
        verdict = self.text(said, "verdict", "predicate.adapterhub.", required=True)
        result = self.text(predicate, "result", "predicate.", required=True)
        failed = self.texts(predicate, "failedTests", "predicate.")
        if self.problems:
            return None
        if RESULTS.get(verdict or "") != result or (result == "PASSED" and failed):
            self.say("predicate.result", f"contradicts itself: {shown(result)} with the verdict {shown(verdict)}")
        if len(subjects) != 1:
            self.say("subject", f"expected one, got {len(subjects)}")
        sequence = self.take(said, "sequence", int, "predicate.adapterhub.", required=True)
        if sequence is not None and not 1 <= sequence <= _LARGEST_SEQUENCE:
            self.say("predicate.adapterhub.sequence", "expected a whole number from 1")
        time = self.checked(said, "time", parse_time, "predicate.adapterhub.", required=True)
        digests = {name: self.digest(parts, name) for name in ("contract", "base")}
        rules = self.digest(parts, "rules") if "rules" in parts else None
        place, base = parts.get("base", ("", {}))
        notes = self.take(base, "annotations", dict, place) or {}
        dtype, load_in = (self.text(notes, key, f"{place}annotations.") or "" for key in ("dtype", "load_in"))
        where, held = parts.get("bounds", ("", {}))
        held = self.take(held, "annotations", dict, where) or {}
        bounds = {name: self.number(held, name, f"{where}annotations.") for name in held}
        base_alone = self.take(said, "base_alone", bool, "predicate.adapterhub.")
        possible = _STATED.get(verdict or "", ("",))
        outcome = self.text(said, "outcome", "predicate.adapterhub.") or possible[0]
        if outcome not in possible:
            self.say("predicate.adapterhub.outcome", f"{shown(outcome)} contradicts the verdict {shown(verdict)}")
        drift, noise = (self.share(said, key, "predicate.adapterhub.") for key in ("drift", "noise"))
        manifest = self.digest({"subject": subjects[0]}, "subject") if subjects else None
        if self.problems:
            return None
        return Attested(
            name=self.text(subjects[0][1], "name", "subject[0].") or "",
            manifest=cast("Digest", manifest),
            rules=rules,
            dtype=dtype,
            load_in=load_in,
            verdict=cast("Literal['PASS', 'CHANGED']", verdict),
            sequence=cast("int", sequence),
            time=cast("float", time),
            bounds=bounds,
            base_alone=base_alone is True,
            drift=drift,
            noise=noise,
            outcome=outcome,
            **cast("dict[str, Digest]", digests),
        )

    def is_text(self, holder: Mapping[str, Any], key: str, expected: str, path: str = "") -> None:
        """Record a text that is not the expected one."""
        if holder.get(key) != expected:
            self.say(f"{path}{key}", f"expected `{expected}`, got {shown(holder.get(key))}")

    def share(self, holder: dict[str, Any], key: str, path: str) -> float | None:
        """Return a number of at least 0; None if there is none."""
        number: float | None = self.take(holder, key, float, path)
        if number is not None and number < 0:
            self.say(f"{path}{key}", f"expected 0 or more, got {shown(number)}")
        return number

    def digest(self, parts: Mapping[str, tuple[str, dict[str, Any]]], name: str) -> Digest | None:
        """Return the SHA-256 of a part."""
        if name not in parts:
            self.say("predicate.configuration", f"names no {name}")
            return None
        place, part = parts[name]
        inner = self.take(part, "digest", dict, place, required=True) or {}
        found: Digest | None = self.checked(
            inner, "sha256", lambda text: parse_digest(f"sha256:{text}"), f"{place}digest.", required=True
        )
        return found


_SHOWN: Final = 500
_BROKEN_STATED: Final = 20


def junit(results: Sequence[Tested]) -> str:
    """Return the results as JUnit XML: a suite for each build, a case for each line of its contract."""
    suites = "".join(map(_suite, results))
    counts = [_counts(result) for result in results]
    tests, failures = (sum(count[at] for count in counts) for at in range(2))
    totals = f'tests="{tests}" failures="{failures}" errors="0"'  # Jenkins' schema has no `skipped` here
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<testsuites {totals}>\n{suites}</testsuites>\n'


def _counts(result: Tested) -> tuple[int, int, int]:
    verdicts = [case.verdict for case in result.cases] or [result.verdict]
    broken = result.verdict == "CHANGED" and "CHANGED" not in verdicts
    return (
        len(verdicts) + broken,
        verdicts.count("CHANGED") + broken,
        sum(verdict in ("UNKNOWN", "NONE") for verdict in verdicts),
    )


def _suite(result: Tested) -> str:
    name = f"adapterhub.{result.name}"
    cases = [_case(name, case.id, case.verdict, case.problem, _evidence(case)) for case in result.cases]
    if not result.cases:
        cases = [_case(name, "contract", result.verdict, result.reason or "there is no contract", result.detail)]
    elif result.verdict == "CHANGED" and all(case.verdict != "CHANGED" for case in result.cases):
        cases.append(_case(name, "bounds", "CHANGED", "; ".join(result.broken), ""))
    facts = {"digest": result.digest, "contract": result.contract, "base": result.base_weights, "dtype": result.dtype}
    facts |= {"engine": result.engine, "verdict": result.verdict}
    properties = "".join(f"<property name={_attribute(k)} value={_attribute(v)}/>" for k, v in facts.items() if v)
    tests, failures, skipped = _counts(result)
    head = f'name={_attribute(result.label)} tests="{tests}" failures="{failures}" errors="0" skipped="{skipped}"'
    seconds = f'time="{result.cpu_seconds:.3f}"'
    return f"<testsuite {head} {seconds}><properties>{properties}</properties>\n{''.join(cases)}</testsuite>\n"


def _evidence(case: TestedCase) -> str:
    parts = (("recorded", case.recorded_text), ("now", case.text))
    return "\n".join(f"{name}: {text[:_SHOWN]}" for name, text in parts if text is not None)


def _case(classname: str, name: str, verdict: str, problem: str, evidence: str) -> str:
    inner = ""
    if verdict == "CHANGED":
        inner = f'<failure type="CHANGED" message={_attribute(problem)}>{_xml(evidence)}</failure>'
    elif verdict != "PASS":
        inner = f"<skipped message={_attribute(problem or verdict)}/>"
    return f"<testcase classname={_attribute(classname)} name={_attribute(name)}>{inner}</testcase>\n"


def _attribute(text: str) -> str:
    from xml.sax.saxutils import quoteattr  # which imports urllib and tempfile

    return quoteattr(shown(text, _SHOWN))


def _xml(text: str) -> str:
    from xml.sax.saxutils import escape

    return escape("\n".join(shown(line, _SHOWN) for line in text.split("\n")))


def statement(result: Tested, *, time: datetime | None = None, sequence: int = 1) -> dict[str, Any] | None:
    """Return the result as an in-toto statement about the build's manifest; None if no verdict is possible.

    The predicate has no word for UNKNOWN, so such a result makes no statement. `trust.signing.results` signs it.
    """
    if result.verdict not in RESULTS or not result.digest:
        return None
    moment = (time or datetime.now(timezone.utc)).replace(microsecond=0)
    base = {"name": "base", "digest": _digest(result.base_weights)}
    base["annotations"] = {"dtype": result.dtype, "load_in": result.load_in, "state": result.base_state}
    measured = {"same": result.same, "retention": result.retention, "kl": result.kl, "cosine": result.cosine}
    measured |= {"effect": result.effect, "drift": result.drift, "drift_low": result.drift_low}
    measured |= {"drift_high": result.drift_high, "noise": result.noise}
    changed = [case.id for case in result.cases if case.verdict == "CHANGED"]
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": result.label, "digest": _digest(result.digest)}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "result": RESULTS[result.verdict],
            "configuration": [
                {"name": "contract", "digest": _digest(result.contract), "mediaType": "application/jsonl"},
                base,
                {"name": "weights", "digest": _digest(result.weights)},
                {"name": "bounds", "annotations": dict(result.bounds)},
                *([{"name": "rules", "digest": _digest(result.rules)}] if result.rules else []),
            ],
            "passedTests": [case.id for case in result.cases if case.verdict == "PASS"],
            "warnedTests": changed if result.passed else [],  # a PASS may lose some answers, and has no failed test
            "failedTests": [] if result.passed else changed,
            "adapterhub": {
                "schema": RESULT_SCHEMA,
                "verdict": result.verdict,
                "outcome": result.outcome,
                **{name: value for name, value in measured.items() if value is not None},
                "broken": list(result.broken[:_BROKEN_STATED]),
                **({"base_alone": True} if result.base_alone else {}),
                "engine": result.engine,
                "sequence": sequence,
                "time": moment.isoformat().replace("+00:00", "Z"),
            },
        },
    }


def _digest(text: str) -> dict[str, str]:
    return {"sha256": hex_of(parse_digest(text))} if text else {}
