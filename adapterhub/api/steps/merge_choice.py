"""How to merge: a method with its options and a choice of the rank, out of what a caller gives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from adapterhub.core.errors import UsageProblem, shown
from adapterhub.weights.catalogue import describe, names

if TYPE_CHECKING:
    from adapterhub.weights.recipes.combination import Combination, Ingredient

AUTO: Final = "auto"
AUTO_ENERGY: Final = 0.99
"""The share of the squared norm that `--rank auto` keeps: an error of 10 % in each module."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How to merge: a method, its options (the rank among them), a dtype and a seed."""

    method: str
    options: dict[str, object]
    dtype: str | None
    seed: int | None

    def step(self, inputs: Sequence[Ingredient]) -> Combination:
        """The merge of `inputs` by this choice."""
        from adapterhub.weights.recipes.toml.values import Step

        return Step(inputs=tuple(inputs), method=self.method, options=self.options, dtype=self.dtype, seed=self.seed)


CHOICE_FLAGS: Final = {
    "method": "--method",
    "rank": "--rank",
    "energy": "--energy",
    "max_error": "--max-error",
    "density": "--density",
    "seed": "--seed",
    "more": "-O",
    "dtype": "--dtype",
}
"""The options that `choice_options` adds, by click's parameter names."""


def choice_from(
    *,
    method: str | None,
    rank: int | str | None,
    energy: float | None,
    max_error: float | None,
    density: float | None,
    seed: int | None,
    more: Iterable[tuple[str, object]],
    dtype: str | None,
    is_tuned: bool = False,
) -> Choice:
    """The choice that these options make; a weight search (`is_tuned`) uses the seed with every method.

    Raises:
        UsageProblem: two options exclude each other, or the method does not have one.
    """
    from adapterhub.formats.documents import near_name
    from adapterhub.weights.recipes.toml.values import converted, default_method, options_of

    given: dict[str, object] = _cut(rank, energy, max_error)
    about = describe(method or default_method(given))
    known = options_of(about)
    own: list[tuple[str, object]] = [("density", density)] if density is not None else []
    for name, value in [*own, *more]:
        if name in given:
            raise UsageProblem(f"`{name}` is given twice")
        if name not in known:
            raise _no_such_option(name, about.name, near_name(name, known))
        given[name] = converted(known[name], value)
    if seed is not None and not about.is_random and not is_tuned:
        raise UsageProblem(f"`{about.name}` is not random, so `--seed` has no effect; drop it")
    return Choice(method=about.name, options=given, dtype=dtype, seed=seed if about.is_random else None)


def _cut(rank: int | str | None, energy: float | None, max_error: float | None) -> dict[str, object]:
    """The option that sets the rank; at most one of the three."""
    if rank == AUTO:
        rank = None
        energy = AUTO_ENERGY if energy is None and max_error is None else energy
    cuts: dict[str, object] = {"rank": rank, "energy": energy, "max_error": max_error}
    given = {name: value for name, value in cuts.items() if value is not None}
    if len(given) > 1:
        flags = " and ".join(CHOICE_FLAGS[name] for name in given)
        raise UsageProblem(f"{flags} exclude each other: each sets the rank; give one")
    return given


def _no_such_option(name: str, method: str, near: str) -> UsageProblem:
    having = [other for other in names() if any(option.name == name for option in describe(other).options)]
    text = f"`{method}` has no option `{shown(name)}`{near}"
    hint = f"{', '.join(f'`{m}`' for m in having)} have it" if having and not near else ""
    return UsageProblem(text, hint=hint or "`adapt merge --methods` lists every method with its options")


def one_cut(*, rank: int | None, energy: float | None, max_error: float | None) -> dict[str, int | float]:
    """The one of the three options that the user gave.

    Raises:
        UsageProblem: the user gave none or several.
    """
    given = {
        flag: value
        for flag, value in (("--rank", rank), ("--energy", energy), ("--max-error", max_error))
        if value is not None
    }
    if len(given) != 1:
        message = f"{' and '.join(given)} each choose the rank" if given else "no option chooses the rank"
        raise UsageProblem(message, hint="give one of `--rank N`, `--energy E` and `--max-error E`")
    return {flag.removeprefix("--").replace("-", "_"): value for flag, value in given.items()}
