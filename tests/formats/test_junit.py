"""JUnit XML of verdicts has the structure that Jenkins' xUnit plug-in checks (its `junit-10.xsd`), and counts that agree."""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.etree import ElementTree as ET

import pytest

from adapterhub.formats.contract.results import Tested, TestedCase, junit

TIME = re.compile(r"\d+(\.\d*)?")


@dataclass(frozen=True)
class Element:
    """What an element may and must have."""

    needs: frozenset[str]
    may_have: frozenset[str]
    holds: frozenset[str]


def element(needs: str = "", may_have: str = "", holds: str = "") -> Element:
    return Element(*(frozenset(words.split()) for words in (needs, may_have, holds)))


SCHEMA = {
    "testsuites": element(may_have="name time tests failures errors", holds="testsuite"),
    "testsuite": element(
        needs="name tests failures errors",
        may_have="group time skipped timestamp hostname id package file log url",
        holds="testsuite properties testcase system-out system-err",
    ),
    "properties": element(holds="property"),
    "property": element(needs="name value"),
    "testcase": element(
        needs="name", may_have="time classname group", holds="skipped error failure system-out system-err"
    ),
    "failure": element(may_have="type message"),
    "skipped": element(may_have="type message"),
}


def problems(root: ET.Element) -> list[str]:
    """Where a report departs from the schema."""
    found = [] if root.tag == "testsuites" else [f"the root is {root.tag}"]
    for one in root.iter():
        known = SCHEMA.get(one.tag)
        if known is None:
            found.append(f"no element {one.tag}")
            continue
        found += [f"{one.tag} has {name}" for name in set(one.keys()) - known.needs - known.may_have]
        found += [f"{one.tag} lacks {name}" for name in known.needs - set(one.keys())]
        found += [f"{one.tag} holds {child.tag}" for child in one if child.tag not in known.holds]
        if (time := one.get("time")) is not None and not TIME.fullmatch(time):
            found.append(f"{one.tag} took {time}")
    return found


def case(verdict: str, number: int) -> TestedCase:
    return TestedCase(id=f"golden-{number}", kind="golden", verdict=verdict, text="<now>", recorded_text="then & there")  # type: ignore[arg-type]


def result(verdict: str, *cases: str) -> Tested:
    return Tested(
        name="acme/legal-qa",
        version="1.0.0",
        digest="sha256:0",
        verdict=verdict,  # type: ignore[arg-type]
        reason="no-base" if verdict == "UNKNOWN" else "",
        cases=tuple(case(one, number) for number, one in enumerate(cases)),
        broken=("retention is 0.5",) if verdict == "CHANGED" else (),
        cpu_seconds=1234.5,
    )


ALL = [
    result("PASS", "PASS", "PASS"),
    result("CHANGED", "PASS", "CHANGED"),
    result("CHANGED", "PASS"),
    result("UNKNOWN"),
    result("NONE"),
    result("PASS", "PASS", "UNKNOWN"),
]


@pytest.mark.parametrize("results", [[], *([one] for one in ALL), ALL], ids=len)
def test_a_report_is_as_the_schema_says_and_its_counts_are_those_of_its_cases(results: list[Tested]) -> None:
    root = ET.fromstring(junit(results))  # noqa: S314 - ours

    assert problems(root) == []
    assert len(root) == len(results)
    for suite in root:
        cases = suite.findall("testcase")
        kinds = [{child.tag for child in one} for one in cases]
        counted = {"tests": len(cases)}
        counted |= {
            name: sum(tag in kind for kind in kinds) for name, tag in (("failures", "failure"), ("skipped", "skipped"))
        }
        assert {name: int(suite.get(name, "")) for name in counted} == counted
        assert len({one.get("name") for one in cases}) == len(cases)
    for name in ("tests", "failures", "errors"):
        assert int(root.get(name, "")) == sum(int(suite.get(name, "")) for suite in root)


def test_a_departure_from_the_schema_is_noticed() -> None:
    text = junit(ALL).replace("<testsuites ", '<testsuites skipped="1" ').replace('time="1234.500"', 'time="1.2.3"')

    assert {"testsuites has skipped", "testsuite took 1.2.3"} <= set(problems(ET.fromstring(text)))  # noqa: S314 - ours
