"""Run a merge for the command line and print the result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.api.steps.combining import combine, report_merged
from adapterhub.api.steps.contracts.gating import merge_test
from adapterhub.api.steps.keys import sign_made
from adapterhub.cli.options.testing import tells_tests
from adapterhub.cli.output import size_text
from adapterhub.core.errors import UsageProblem
from adapterhub.weights.catalogue import SUMS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adapterhub.api.results import Merged
    from adapterhub.cli.options.params import Session
    from adapterhub.core.specs import BaseSpec
    from adapterhub.library.intake.clashes import Bump
    from adapterhub.library.intake.description import Description
    from adapterhub.library.library import Added, Library
    from adapterhub.trust.signing.keys import SigningKey
    from adapterhub.weights.recipes.combination import Combination, Ingredient
    from adapterhub.weights.recipes.toml.values import Inner


def merge_to(
    session: Session,
    library: Library,
    combination: Combination,
    target: Description | Path,
    extra: dict[str, Any] | None = None,
    *,
    expected: str | None = None,
    bump: Bump | None = None,
    variant: bool = False,
    tests_on: tuple[BaseSpec | None] | None = None,
    signer: SigningKey | None = None,
) -> None:
    """Merge into the library, or into the new folder `target`, and print the result.

    `expected` is the manifest digest that a recipe records, `tests_on` holds the base of a test (None: no test), and
    `signer` signs a statement of how the merge was made.

    Raises:
        UsageProblem: there is a `signer` for a folder.
    """
    if isinstance(target, Path):
        if signer is not None:
            raise UsageProblem("a folder has no name to state. Nothing was merged", hint="leave out `--statement`")
        test = merge_test(session.library, combination, *tests_on, bars=session.out) if tests_on else None
        merged = combine(session.library, combination, target, test=test, bars=session.out)
        report_merged(session, merged)
        document = {"path": str(target)} | _document(merged, combination) | (extra or {})
        session.out.result(document, lambda: _say(session, [f"merged into {target}"], merged, combination))
        return
    test = merge_test(library, combination, *tests_on, bars=session.out) if tests_on else None
    if test is not None:
        test.measures = expected is None
    merged = combine(
        library, combination, target, expected=expected, bump=bump, variant=variant, test=test, bars=session.out
    )
    report_merged(session, merged)
    added = merged.added
    assert added is not None  # it went into the library
    document = added.to_json() | _document(merged, combination) | (extra or {})
    lines = [_headline(added)]
    digest = added.build.manifest.digest
    if signer is not None:
        made = sign_made(library, added.build, signer)
        document["statement"] = str(made)
        lines.append(f"  stated how it was made  {made}")
    if expected is not None:
        document |= {"recorded_digest": expected, "as_recorded": digest == expected}
        if digest == expected:
            lines.append(f"  {digest}, as recorded")
        else:
            session.out.warn(
                f"the result is {digest}, but the recipe records {expected}: the inputs are the same, but CPUs, torch "
                "versions and thread counts change the last digits of the numbers"
            )
            session.out.hint("set OMP_NUM_THREADS=1 here and where the recipe was recorded to rule out threads")
    session.out.result(document, lambda: _say(session, lines, merged, combination))


def _headline(added: Added) -> str:
    build, manifest = added.build, added.build.manifest
    state = "merged" if added.created else "already installed:"
    return f"{state} {build.full_name} {manifest.label}  {size_text(manifest.size_bytes)}"


def _document(merged: Merged, combination: Combination) -> dict[str, Any]:
    from adapterhub.weights.recipes.combination import parents_of

    made, result = merged.made, merged.made.result
    tests = {"tests": [one.to_json() for one in merged.tests]} if merged.tests else {}
    return tests | {
        "relative_error": result.relative_error,
        "worst_module": result.worst_module,
        "worst_error": result.worst_error,
        "truncation_error": result.truncation_error,
        "ranks": {str(rank): count for rank, count in sorted(result.ranks.items())},
        "dtype": result.dtype,
        "parents": [{"adapter": i.label, "weight": w, "digest": i.digest} for i, w in parents_of(combination)],
        "recipe": dict(made.recipe),
    }


def _say(session: Session, lines: Sequence[str], merged: Merged, combination: Combination) -> None:
    out, made, result = session.out, merged.made, merged.made.result
    for line in lines:
        out.line(line)
    out.line(f"  = {sum_text(combination)}")
    if combination.method != "cat" or combination.options:
        out.line(f"  by {_method_text(made.recipe)}")
    ranks = ", ".join(
        f"rank {rank} in {count} module{'s' * (count != 1)}" for rank, count in sorted(result.ranks.items())
    )
    out.line(f"  {ranks}; {result.dtype}")
    worst = f", worst in {result.worst_module}: {result.worst_error:.2g}" if result.worst_error > 0 else ""
    distance = "relative error against the exact sum" if combination.method in SUMS else "distance from the plain sum"
    out.line(f"  {distance}: {result.relative_error:.2g}{worst}")
    if result.truncation_error is not None:
        out.line(f"  lost by the cut to this rank: {result.truncation_error:.2g}")
    tells_tests(session, merged.tests)
    for inner in made.inner:
        out.line(f"  inner merge by {_method_text(inner.recipe)}: {inner.relative_error:.2g} from its plain sum")


def sum_text(combination: Combination) -> str:
    """The formula of a merge, such as `0.7 x a + 0.3 x (1 x b + 1 x c)`."""
    return " + ".join(f"{item.weight:g} x {_input_text(item)}" for item in combination.inputs)


def _input_text(item: Ingredient | Inner[Ingredient]) -> str:
    from adapterhub.weights.recipes.toml.values import Inner

    return f"({sum_text(item.step)}, by {item.step.method})" if isinstance(item, Inner) else item.label


def _method_text(recipe: Mapping[str, Any]) -> str:
    """The method and its options, such as `ties, density 0.5`."""
    return ", ".join([recipe["method"], *(f"{name} {value}" for name, value in recipe["options"].items())])
