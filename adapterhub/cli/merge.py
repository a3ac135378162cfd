"""`adapt merge`: several adapters become one, exactly by default, with the error said."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.add import added_document
from adapterhub.cli.output import size_text
from adapterhub.cli.params import BASE, Session, common
from adapterhub.errors import UsageProblem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.library import Library
    from adapterhub.merge import MergeResult
    from adapterhub.recipe import Ingredient
    from adapterhub.specs import BaseSpec


class MethodType(click.ParamType):  # type: ignore[type-arg]  # generic only in new versions of click
    """A merge method: one file of the merge package; listing them imports none."""

    name = "method"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the name."""
        known = merge_methods()
        if value not in known:
            self.fail(f"`{value}` is no merge method; there are {', '.join(known)}", param, ctx)
        return value


def merge_methods() -> list[str]:
    """Names of the merge methods, read off the package's folder."""
    folder = Path(__file__).parent.parent / "merge"
    return sorted(p.stem for p in folder.glob("[!_]*.py"))


@click.command()
@click.argument("adapters", nargs=-1, required=True, metavar="SPEC|FOLDER...")
@click.option("--weights", metavar="W,W,...", help="One number per adapter [default: equal shares that sum to 1].")
@click.option("-o", "--output", required=True, metavar="NAME|DIR", help="Name of the new adapter, or `./folder`.")
@click.option(
    "--method",
    type=MethodType(),
    help="`cat` exact; `svd` closest at a rank; `linear` PEFT's factor average "
    "[default: cat; svd with --rank or --max-error].",
)
@click.option("--rank", type=click.IntRange(min=1), metavar="N", help="Rank of the result (svd).")
@click.option(
    "--max-error", type=click.FloatRange(0, 1), metavar="E", help="Smallest rank within this relative error (svd)."
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Precision of the result [default: float32, which keeps the sum exact].",
)
@click.option("--base", type=BASE, help="The base, where the specs name none.")
@click.option("--version", default="1.0.0", show_default=True, metavar="VERSION", help="Version of the new adapter.")
@click.option("--task", metavar="TASK", help="Task of the new adapter.")
@click.option("--description", default="", metavar="TEXT", help="One sentence for lists and search.")
@common
def merge(
    session: Session,
    adapters: tuple[str, ...],
    weights: str | None,
    output: str,
    base: BaseSpec | None,
    version: str,
    task: str | None,
    description: str,
    **options: Any,  # noqa: ANN401 - the options of the methods
) -> None:
    """Merge adapters into one: the weighted sum of their updates.

    The default concatenates the factors, which is exact. The relative error against the exact sum is always measured,
    printed and recorded, with the parents and weights. The base is not needed; memory is that of one module.

    \b
    Examples:
      adapt merge legal-qa summarize --weights 0.7,0.3 -o legal-summary
      adapt merge a b c --method svd --rank 16 -o abc
      adapt merge ./out/a ./out/b --weights 1,-1 -o ./difference
    """
    numbers = _weights(weights, len(adapters))
    if options["rank"] is not None and options["max_error"] is not None:
        raise UsageProblem("--rank and --max-error both choose the rank; give one of them")
    truncates = options["rank"] is not None or options["max_error"] is not None
    options["method"] = options["method"] or ("svd" if truncates else "cat")
    library = session.library
    ingredients = [_ingredient(library, a, w, base) for a, w in zip(adapters, numbers, strict=True)]
    if output.startswith((".", "/", "~")):
        _merge_to_folder(session, ingredients, Path(output).expanduser(), options)
        return
    from adapterhub.recipe import merge_into_library
    from adapterhub.specs import parse_name, parse_version

    name, version = parse_name(output), parse_version(version)
    with _bar(session) as progress:
        outcome = merge_into_library(
            library, ingredients, name, version, task=task, description=description, progress=progress, **options
        )
    added = outcome.added
    for warning in outcome.warnings:
        session.out.warn(warning)
    for finding in added.report.warnings:
        session.out.warn(f"[{finding.code}] {finding.message}")
    document = added_document(added) | _merge_document(outcome.result, ingredients)
    state = "merged" if added.created else "already there:"
    text = f"{state} {added.build.full_name} {added.build.manifest.label}  {size_text(added.build.manifest.size_bytes)}"
    session.out.result(document, lambda: _say(session, text, outcome.result, ingredients))


def _merge_to_folder(
    session: Session, ingredients: Sequence[Ingredient], folder: Path, options: dict[str, Any]
) -> None:
    from adapterhub.merge import MergeInput
    from adapterhub.merge import merge as run_merge
    from adapterhub.recipe import common_base

    _, warnings = common_base(ingredients)
    inputs = [MergeInput(folder=i.folder, label=i.label, weight=i.weight) for i in ingredients]
    with _bar(session) as progress:
        result = run_merge(inputs, folder, progress=progress, **options)
    for warning in (*warnings, *result.warnings):
        session.out.warn(warning)
    document = {"path": str(folder)} | _merge_document(result, ingredients)
    session.out.result(document, lambda: _say(session, f"merged into {folder}", result, ingredients))


def _bar(session: Session) -> Any:  # noqa: ANN401 - a context manager of a callback
    import contextlib
    from collections.abc import Callable, Iterator

    @contextlib.contextmanager
    def bar() -> Iterator[Callable[[int, int], None]]:
        with session.out.progress("merge", None, unit="modules") as step:
            yield lambda _done, _all: step(1)

    return bar()


def _weights(text: str | None, count: int) -> list[float]:
    if text is None:
        return [1 / count] * count
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageProblem(f"--weights `{text}`: expected numbers separated by commas, such as `0.7,0.3`") from None
    if len(numbers) != count:
        raise UsageProblem(f"--weights gives {len(numbers)} numbers for {count} adapters")
    return numbers


def _ingredient(library: Library, text: str, weight: float, base: BaseSpec | None) -> Ingredient:
    from adapterhub.cli.params import wanted_from
    from adapterhub.install import find_installed
    from adapterhub.recipe import Ingredient
    from adapterhub.specs import AdapterSpec

    if text.startswith((".", "/", "~")):
        return Ingredient(folder=Path(text).expanduser(), label=text, weight=weight)
    spec = AdapterSpec.parse(text)
    build, _ = find_installed(library, spec, wanted=wanted_from(library, spec, base))
    label = f"{build.full_name}=={build.manifest.version}"
    return Ingredient(folder=build.folder, label=label, weight=weight, base=build.base, digest=build.manifest.digest)


def _merge_document(result: MergeResult, ingredients: Sequence[Ingredient]) -> dict[str, Any]:
    return {
        "relative_error": result.relative_error,
        "worst_module": result.worst_module,
        "worst_error": result.worst_error,
        "ranks": {str(rank): count for rank, count in sorted(result.ranks.items())},
        "dtype": result.dtype,
        "parents": [{"adapter": i.label, "weight": i.weight, "digest": i.digest} for i in ingredients],
        "recipe": dict(result.recipe),
    }


def _say(session: Session, text: str, result: MergeResult, ingredients: Sequence[Ingredient]) -> None:
    out = session.out
    out.line(text)
    out.line("  = " + " + ".join(f"{i.weight:g} x {i.label}" for i in ingredients))
    ranks = ", ".join(
        f"rank {rank} in {count} module{'s' * (count != 1)}" for rank, count in sorted(result.ranks.items())
    )
    out.line(f"  {ranks}; {result.dtype}")
    worst = f", worst in {result.worst_module}: {result.worst_error:.2g}" if result.worst_error > 0 else ""
    out.line(f"  relative error against the exact sum: {result.relative_error:.2g}{worst}")
