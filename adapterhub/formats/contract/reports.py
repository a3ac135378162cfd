"""Results for other programs: JUnit XML for build servers, and an in-toto statement for signing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any, Final
from xml.sax.saxutils import escape, quoteattr

from adapterhub.core.digests import hex_of, parse_digest
from adapterhub.core.errors import shown
from adapterhub.formats.contract.attested import PREDICATE_TYPE, RESULT_SCHEMA, RESULTS, STATEMENT_TYPE
from adapterhub.formats.contract.results import Tested, TestedCase

_SHOWN: Final = 500
_BROKEN_STATED: Final = 20


def junit(results: Sequence[Tested]) -> str:
    """The results as JUnit XML: a suite for each build, a case for each line of its contract."""
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
    return quoteattr(shown(text, _SHOWN))


def _xml(text: str) -> str:
    return escape("\n".join(shown(line, _SHOWN) for line in text.split("\n")))


def statement(result: Tested, *, time: datetime | None = None, sequence: int = 1) -> dict[str, Any] | None:
    """The result as an in-toto statement about the build's manifest; None where no verdict is possible.

    The predicate has no word for UNKNOWN, so such a result makes no statement. `trust.signing.results` signs it.
    """
    if result.verdict not in RESULTS or not result.digest:
        return None
    moment = (time or datetime.now(timezone.utc)).replace(microsecond=0)
    base = {"name": "base", "digest": _digest(result.base_weights)}
    base["annotations"] = {"dtype": result.dtype, "load_in": result.load_in, "state": result.base_state}
    measured = {"same": result.same, "retention": result.retention, "kl": result.kl, "cosine": result.cosine}
    measured["effect"] = result.effect
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
            "warnedTests": [],
            "failedTests": [case.id for case in result.cases if case.verdict == "CHANGED"],
            "adapterhub": {
                "schema": RESULT_SCHEMA,
                "verdict": result.verdict,
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
