"""The policy for builds without a PASS, and for which PASS counts: that of a project, and a user's own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Final, get_args

from adapterhub.core.arguments import TestsPolicy
from adapterhub.core.dates import parse_newest_allowed
from adapterhub.core.errors import UsageProblem, shown
from adapterhub.formats.documented import Documented

LOOSEST: Final = {"same": 0.5, "retention": 0.5, "kl": 0.5, "cosine": 0.5, "effect": 0.5}
"""Looser bounds prove nothing: `record` refuses them, a check says so, and no policy counts on them."""

_DECIMALS: Final = 9
"""1 - 0.95 is a little more than 0.05 in binary; so many decimals decide how many answers may be lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The bounds of a contract.

    `same`: share of the goldens with the recorded answer, token for token. `retention`: (base loss - loss) / (base
    loss - recorded loss) over all tokens. `kl`: mean KL divergence of a classifier's labels, in nats, without
    the largest of every twenty. `cosine`: least cosine of an encoder's vectors. `effect`: 1 - (distance to the recorded
    latent) / (that of the plain base), over all images of a pipeline. `min_gap`: nats per token that adapter and base
    must be apart for retention to mean something; for images, the distance of their latents as a share of the recorded
    one. `drift`: how far the log-odds of the recorded tokens may move, as a share of how far the adapter moved them;
    the default sets no bound.
    """

    same: float = 0.9
    retention: float = 0.95
    kl: float = 0.02
    cosine: float = 0.95
    effect: float = 0.65
    min_gap: float = 0.1
    drift: float = 100.0

    def may_lose(self, goldens: int) -> int:
        """Return how many of so many goldens may have another answer: one in ten by default, rounded up."""
        return math.ceil(round(goldens * (1 - self.same), _DECIMALS))

    @property
    def loose(self) -> str:
        """The bounds that prove nothing, in words; empty if there are none."""
        values = ((name, getattr(self, name)) for name in looser_than(asdict(self), LOOSEST))
        return ", ".join(
            f"`{name}` {value:g}, expected at {'most' if name in _AT_MOST else 'least'} {LOOSEST[name]:g}"
            for name, value in values
        )

    def to_json(self) -> dict[str, float]:
        """Return the bounds that differ from the defaults."""
        return {name: value for name, value in asdict(self).items() if value != getattr(DEFAULT_BOUNDS, name)}

    def tightened(self, chosen: Mapping[str, float]) -> Bounds:
        """Return these bounds with some of them tighter.

        Raises:
            UsageProblem: a bound is unknown, out of range, or looser than the contract's own.
        """
        for name, value in chosen.items():
            if name not in NAMES:
                raise UsageProblem(f"no bound `{shown(name)}`; there are {', '.join(NAMES)}")
            own = getattr(self, name)
            if not (problem := range_problem(name, value)) and _is_looser(name, value, own):
                problem = f"is looser than the contract's {own:g}; a bound can only be tightened"
            if problem:
                raise UsageProblem(f"bound `{name}` {value:g}: {problem}", hint=f"leave `{name}` out to keep {own:g}")
        return replace(self, **chosen)

    def no_looser_than(self, least: Mapping[str, float]) -> Bounds:
        """Return these bounds, with each that is looser than in `least` as tight as there."""
        return replace(self, **{name: least[name] for name in looser_than(asdict(self), least)})


DEFAULT_BOUNDS: Final = Bounds()
NAMES: Final = tuple(field.name for field in fields(Bounds))
_MOST: Final = {"kl": 100.0, "min_gap": 100.0, "drift": DEFAULT_BOUNDS.drift}
_AT_MOST: Final = frozenset({"kl", "drift"})
"""The bounds that are the most, where others are the least."""


def _is_looser(name: str, value: float, than: float) -> bool:
    return value > than if name in _AT_MOST else value < than


def looser_than(bounds: Mapping[str, float], least: Mapping[str, float]) -> list[str]:
    """Return the names in `least` whose bound is looser in `bounds`, or not there."""
    return [name for name, value in least.items() if name not in bounds or _is_looser(name, bounds[name], value)]


def parse_bound(text: str) -> tuple[str, float]:
    """Return the name and number in `same=1`.

    Raises:
        UsageProblem: the text has another form; names are not looked at.
    """
    name, _, number = text.partition("=")
    try:
        return name.strip(), float(number)
    except ValueError:
        raise UsageProblem(f"`{shown(text)}`: expected NAME=X, such as `same=1`") from None


def bound_text(text: str) -> str:
    """Return a bound of a contract in its normal form, as `same=0.95`.

    Raises:
        UsageProblem: the form, the name or the number is wrong.
    """
    name, value = parse_bound(text)
    if name not in NAMES:
        raise UsageProblem(f"no bound `{shown(name)}`; there are {', '.join(NAMES)}")
    if problem := range_problem(name, value):
        raise UsageProblem(f"bound `{name}` {value:g}: {problem}", hint="write a bound as in `same=0.95`")
    return f"{name}={value:g}"


def range_problem(name: str, value: float) -> str:
    """Explain why `value` is not a value of the bound `name`; empty if it is one."""
    most = _MOST.get(name, 1.0)
    return "" if 0 <= value <= most else f"expected a number from 0 to {most:g}"


TESTS_POLICIES: Final[tuple[TestsPolicy, ...]] = get_args(TestsPolicy)
"""From the laxest to the strictest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standards(Documented, keys="tests=policy max_age bounds", title="OwnTests"):
    """The policy for builds without a PASS, and the requirements on a PASS.

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
        """Return the stricter of both in each part; a user's `own` do not set `by`, which trusted keys decide."""
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
    """Return an age such as `90d`.

    Raises:
        UsageProblem: it is not an age.
    """
    try:
        if parse_newest_allowed(text).age_s is not None:
            return text
    except ValueError:
        pass
    raise UsageProblem(f"expected an age such as `90d`, `2w` or `12h`, got `{shown(text)}`")
