"""What becomes of a build without a PASS, and which PASS counts: the policy of a project, and a user's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Final, get_args

from adapterhub.core.arguments import TestsPolicy
from adapterhub.core.dates import parse_newest_allowed
from adapterhub.core.errors import UsageProblem, shown
from adapterhub.formats.contract.bounds import looser_than
from adapterhub.formats.documented import Documented

TESTS_POLICIES: Final[tuple[TestsPolicy, ...]] = get_args(TestsPolicy)
"""From the laxest to the strictest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standards(Documented, keys="tests=policy max_age bounds", title="OwnTests"):
    """What becomes of builds without a PASS, and what a PASS needs.

    `by` names whose results count: `local`, or trusted keys; without any, all of them. `max_age` bounds the age of
    signed results, as `90d`. `bounds` are the loosest of any test.
    """

    policy: Annotated[TestsPolicy, "`off`, `warn` or `require`"] = "off"
    by: tuple[str, ...] = ()
    max_age: Annotated[str | None, "how old a signed result may be, such as `90d`"] = None
    bounds: Annotated[Mapping[str, float], "the loosest bounds of any test, by name"] = field(
        default_factory=dict, hash=False
    )

    def and_own(self, own: Standards) -> Standards:
        """The stricter of both in each part; a user's `own` say nothing of `by`, which trusted keys decide."""
        ages = [age for age in (self.max_age, own.max_age) if age is not None]
        return replace(
            self,
            policy=max(self.policy, own.policy, key=TESTS_POLICIES.index),
            max_age=max(ages, key=lambda age: parse_newest_allowed(age).moment(0), default=None),
            bounds=tighter(self.bounds, own.bounds),
        )


def tighter(bounds: Mapping[str, float], others: Mapping[str, float]) -> dict[str, float]:
    """Of each bound in either, the tighter one."""
    return {**bounds, **{name: others[name] for name in looser_than(bounds, others)}}


def parse_tests_policy(text: str) -> TestsPolicy:
    """`off`, `warn` or `require`.

    Raises:
        UsageProblem: anything else.
    """
    found = next((policy for policy in TESTS_POLICIES if policy == text), None)
    if found is None:
        raise UsageProblem(f"`{shown(text)}`, expected one of {', '.join(TESTS_POLICIES)}")
    return found


def parse_age(text: str) -> str:
    """An age such as `90d`.

    Raises:
        UsageProblem: it is none.
    """
    try:
        if parse_newest_allowed(text).age_s is not None:
            return text
    except ValueError:
        pass
    raise UsageProblem(f"expected an age such as `90d`, `2w` or `12h`, got `{shown(text)}`")
