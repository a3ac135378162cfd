"""`adapt resize`: the closest adapter of a lower rank."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.adapters.add import added_document
from adapterhub.cli.completion.completing import complete_spec_or_folder
from adapterhub.cli.options.cutting import chosen_cut, cut_options, ranks_text
from adapterhub.cli.options.output_names import default_name
from adapterhub.cli.options.params import BASE, Session, common
from adapterhub.cli.output import size_text
from adapterhub.cli.weights.ingredients import ingredient

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adapterhub.core.digests import Digest
    from adapterhub.core.specs import BaseSpec
    from adapterhub.library.library import Library
    from adapterhub.weights.recipes.combination import Combination, Ingredient, Made


@click.command()
@click.argument("adapter", metavar="SPEC|FOLDER", shell_complete=complete_spec_or_folder)
@click.option(
    "-o",
    "--output",
    metavar="NAME|DIR",
    help="Name of the new adapter [default: its own and `rN` or `small`], or `./folder`.",
)
@cut_options("the adapter's own")
@click.option("--base", type=BASE, help="The base, where the spec names none.")
@click.option("--version", metavar="VERSION", help="Version of the new adapter [default: the adapter's own].")
@click.option("--task", metavar="TASK", help="Task of the new adapter [default: the adapter's own].")
@click.option("--description", metavar="TEXT", help="One sentence for lists and search [default: the adapter's own].")
@common
def resize(
    session: Session,
    adapter: str,
    output: str | None,
    rank: int | None,
    energy: float | None,
    max_error: float | None,
    dtype: str | None,
    base: BaseSpec | None,
    version: str | None,
    task: str | None,
    description: str | None,
) -> None:
    """Make an adapter smaller: the closest update of a lower rank, module by module.

    No update of that rank is closer (Eckart and Young); how far it is from the adapter is measured, printed and
    recorded. `--energy` and `--max-error` give each module the rank it needs. A rank beyond what the adapter has
    changes nothing: there is nothing to fill it with.

    \b
    Examples:
      adapt resize legal-qa --rank 4
      adapt resize legal-qa --energy 0.99 -o legal-qa-small
      adapt resize ./out/legal-qa --max-error 0.05 --dtype bfloat16 -o ./out/legal-qa-small
    """
    from adapterhub.core.specs import names_folder
    from adapterhub.weights.recipes.combination import Combination

    cut = chosen_cut(rank, energy, max_error)
    library = session.library
    parent = ingredient(library, adapter, 1.0, base)
    before, own_dtype = _weights_in(parent.folder, parent.expected())
    combination = Combination(inputs=(parent,), method="svd", options=cut, dtype=dtype or own_dtype)
    if rank is not None and rank >= max(before.ranks):
        combination = Combination(inputs=(parent,), dtype=dtype)  # a copy, unless --dtype converts it
    output = output or default_name([parent.label], f"r{rank}" if rank is not None else "small")
    work = _Resizing(session=session, combination=combination, before=before, rank=rank)
    if names_folder(output):
        work.to_folder(Path(output).expanduser())
        return
    words = _words_of(library, parent)
    given = {"version": version, "task": task, "description": description}
    work.to_library(library, output, words | {key: text for key, text in given.items() if text is not None})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Weights:
    """Size of an adapter's files in bytes, and how many modules have which rank."""

    size_bytes: int
    ranks: Mapping[int, int]

    def to_json(self) -> dict[str, Any]:
        return {"size_bytes": self.size_bytes, "ranks": {str(r): count for r, count in sorted(self.ranks.items())}}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Resizing:
    """One resize: what is run, what there was before, and the rank that was asked for."""

    session: Session
    combination: Combination
    before: _Weights
    rank: int | None

    def to_folder(self, folder: Path) -> None:
        from adapterhub.weights.recipes.combination import merge_into_folder

        with self.session.out.steps("resize", unit="modules") as progress:
            made = merge_into_folder(self.combination, folder, progress=progress)
        self._say(made, folder, f"resized into {folder}", {"path": str(folder)})

    def to_library(self, library: Library, output: str, words: Mapping[str, str]) -> None:
        from adapterhub.core.specs import parse_name, parse_version
        from adapterhub.library.intake.description import Description
        from adapterhub.weights.recipes.combination import merge_into_library

        about = Description(
            name=parse_name(output),
            version=parse_version(words.get("version", "1.0.0")),
            task=words.get("task"),
            description=words.get("description", ""),
            license=words.get("license"),
        )
        with self.session.out.steps("resize", unit="modules") as progress:
            outcome = merge_into_library(library, self.combination, about, progress=progress)
        added = outcome.added
        for finding in added.report.warnings:
            self.session.out.warn(f"[{finding.code}] {finding.message}")
        state = "resized" if added.created else "already there:"
        headline = f"{state} {added.build.full_name} {added.build.manifest.label}"
        self._say(outcome.made, added.build.folder, headline, added_document(added))

    def _say(self, made: Made, folder: Path, headline: str, document: dict[str, Any]) -> None:
        out, result = self.session.out, made.result
        for warning in made.warnings:
            out.warn(warning)
        after, _ = _weights_in(folder, None)
        document |= {"before": self.before.to_json(), "after": after.to_json(), "dtype": result.dtype}
        document |= {"relative_error": result.relative_error, "worst_module": result.worst_module}
        document |= {"worst_error": result.worst_error, "recipe": dict(made.recipe)}

        def text() -> None:
            out.line(headline)
            for when, weights in (("before", self.before), ("after", after)):
                out.line(f"  {when:6}  {size_text(weights.size_bytes)}  {ranks_text(weights.ranks)}")
            worst = f", worst in {result.worst_module}: {result.worst_error:.2g}" if result.worst_error > 0 else ""
            out.line(f"  {result.dtype}; relative error against the adapter: {result.relative_error:.2g}{worst}")
            if self.rank is not None and self.rank > max(after.ranks):
                out.line(
                    f"  no module's update has a rank above {max(after.ranks)}: rank {self.rank} would add nothing but "
                    "zeros, and was not filled up"
                )

        out.result(document, text)


def _weights_in(folder: Path, expected: Mapping[str, Digest] | None) -> tuple[_Weights, str | None]:
    """What the files hold, and the dtype of all factors if they have one that a result can have."""
    from adapterhub.weights.dtypes import TORCH_DTYPES
    from adapterhub.weights.lowrank.factors import AdapterFactors
    from adapterhub.weights.merge import DTYPES

    with AdapterFactors(folder, expected) as factors:
        ranks = Counter(module.rank for module in factors.modules.values())
        dtypes = {TORCH_DTYPES[spec.dtype] for module in factors.modules.values() for spec in (module.a, module.b)}
        size = len(factors.config_bytes) + factors.header.size_bytes
    own = next((name for name, dtype in DTYPES.items() if dtypes == {dtype}), None)
    return _Weights(size_bytes=size, ranks=ranks), own


def _words_of(library: Library, parent: Ingredient) -> dict[str, str]:
    """What the author said of an installed adapter."""
    if parent.digest is None:
        return {}
    manifest = library.store.read_manifest(parent.digest)
    said = {"version": manifest.version, "task": manifest.task, "description": manifest.description}
    return {key: text for key, text in (said | {"license": manifest.license}).items() if text}
