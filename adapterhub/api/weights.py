"""Compute with adapters from Python: merge, compare, resize, extract, fuse, tune, export, attach, generate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adapterhub.api.opened import (
    Adapters,
    BaseLike,
    OpenedLibrary,
    base_of,
    folder_text,
    paths_of,
    shares,
    text_of,
)
from adapterhub.api.results import Merged, report_warnings
from adapterhub.core.arguments import (
    AdapterWord,
    Count,
    MergeSeed,
    Precision,
    Rank,
    RelativeError,
    Share,
    StrPath,
    parsed,
    path_of,
)
from adapterhub.core.errors import UsageProblem
from adapterhub.core.extras import extra_named
from adapterhub.core.specs import names_folder
from adapterhub.library.intake.clashes import Bump, check_naming
from adapterhub.library.store.catalog import AdapterLike

if TYPE_CHECKING:
    from adapterhub.core.specs import BaseSpec
    from adapterhub.library.library import Added
    from adapterhub.weights.compare.similarity import Comparison
    from adapterhub.weights.extract import ExtractResult
    from adapterhub.weights.recipes.combination import Ingredient


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Extracted:
    """A LoRA out of a fine-tuned model: `result` has the errors and what was left out; `added` is None for a folder."""

    result: ExtractResult
    added: Added | None

    @property
    def folder(self) -> Path:
        """Where the adapter is."""
        return self.added.build.folder if self.added else self.result.out_folder

    @property
    def error(self) -> float:
        """The relative error against the exact difference of the weights that the adapter covers."""
        return self.result.relative_error

    def __repr__(self) -> str:
        what = repr(self.added.build) if self.added else self.folder
        return f"<Extracted {what}, error {self.error:.2g}>"


@parsed
class WithWeights(OpenedLibrary):
    """Everything that computes with the numbers of adapters; torch is imported by the first call."""

    @extra_named("`Library.merge`")
    def merge(
        self,
        adapters: Adapters = (),
        *,
        name: AdapterWord | None = None,
        output: StrPath | None = None,
        weights: Sequence[float] | None = None,
        method: str | None = None,
        rank: Rank | Literal["auto"] | None = None,
        energy: Share | None = None,
        max_error: RelativeError | None = None,
        density: Share | None = None,
        seed: MergeSeed | None = None,
        dtype: Precision | None = None,
        options: Mapping[str, object] | None = None,
        base: BaseLike | None = None,
        version: str | None = None,
        bump: Bump | None = None,
        variant: bool = False,
        task: str | None = None,
        description: str | None = None,
        license: str | None = None,  # noqa: A002 - the option's name
        recipe: StrPath | None = None,
        places: StrPath | Iterable[StrPath] = (),
        offline: bool = False,
        force: bool = False,
        tune: StrPath | None = None,
        on: BaseLike | None = None,
        tune_budget: Count | None = None,
        test: bool = False,
    ) -> Merged:
        """Merge adapters into one: the weighted sum of their updates, exact by default, with the error measured.

        Args:
            adapters: a mapping from adapters to weights, or several adapters; each a spec, a build or a folder.
            name: name of the new adapter; default: theirs, joined.
            output: write this new folder instead of adding to the library.
            weights: one for each adapter of a sequence; default: equal shares that sum to 1.
            method: `cat` (exact), `svd` (closest at a rank) or another of the reference page.
            rank: rank of the result, or `auto`.
            energy: smallest rank of each module that keeps this share of its squared norm.
            max_error: smallest rank of each module within this relative error.
            density: share of the numbers that a method which prunes keeps.
            seed: of a method that draws, and of `tune`.
            dtype: `float32` (default), `bfloat16` or `float16`.
            options: other options of the method.
            base: the base, where the specs name none.
            version: of the new adapter; default: 1.0.0.
            bump: `patch`, `minor` or `major`: take the next free version where the name exists for this base.
            variant: add a build of another rank to a version that exists.
            task: of the new adapter.
            description: one sentence for lists and search.
            license: of the new adapter.
            recipe: do what this TOML file says (see `recipe`), instead of `adapters` and how to merge them.
            places: with `recipe`: where to look for adapters that are not installed.
            offline: with `recipe`: ask no server for them.
            force: with `recipe`: its name may be that of an installed adapter.
            tune: JSON Lines of examples, or `contracts`: find the weights that answer them best (see `tune`).
            on: with `tune` or `test`: the base to ask on.
            tune_budget: with `tune`: how many weights to try.
            test: keep the result only if it keeps the `never` and `leave_alone` lines of all parents' contracts.

        Returns:
            `.error`, `.parents`, `.adapter` (or `.folder`), `.ranks`, `.recipe`, `.warnings`.

        Raises:
            NotFound: there is no such recipe.
            MergeRefused: they cannot be added up; every reason is listed.
            BaseMismatch: they were made for different bases.
            ReleaseExists, Conflict: the name and version exist for this base, or the folder does; nothing was merged.
            BehaviourChanged, CouldNotTell: it does not pass its test; nothing was written.
            UsageProblem: arguments that do not go together.
        """
        from adapterhub.api.steps.combining import combine, default_name, description_from, ensure_named
        from adapterhub.api.steps.contracts.gating import merge_test
        from adapterhub.api.steps.merge_choice import choice_from

        check_naming(bump, variant=variant, version=version)
        said = {"version": version, "task": task, "description": description, "license": license}
        target = _target(name, output)
        if recipe is not None:
            if adapters or weights or method or options or tune:
                raise UsageProblem("`recipe` says everything about how to merge; give nothing else of it")
            more = paths_of(places)
            return self._merge_recipe(
                path_of(recipe),
                target,
                said,
                more,
                tests_on=(base_of(on),) if test else None,
                offline=offline,
                force=force,
                bump=bump,
                variant=variant,
            )
        ingredients = self._ingredients(adapters, weights, base)
        chosen = choice_from(
            method=method,
            rank=rank,
            energy=energy,
            max_error=max_error,
            density=density,
            seed=seed,
            more=tuple((options or {}).items()),
            dtype=dtype,
            is_tuned=tune is not None,
        )

        target = target or default_name([each.label for each in ingredients])
        about = path_of(target) if names_folder(target) else description_from(target, said)
        ensure_named(about, bump, variant=variant)
        tuning: Mapping[str, Any] = {}
        if tune is not None:
            from adapterhub.api.steps.tuning import tuned
            from adapterhub.weights.recipes.combination import ensure_room

            if not isinstance(about, Path) and bump is None:
                ensure_room(self, chosen.step(ingredients), about, variant=variant, tuned=True)
            found = tuned(
                self.session,
                self,
                ingredients,
                path_of(tune),
                base_of(on),
                budget=tune_budget,
                seed=seed or 0,
                bars=self.reports,
            )
            ingredients, tuning = list(found.ingredients), found.document
            if not isinstance(about, Path):
                about = replace(about, metrics=found.metrics)
        combination = chosen.step(ingredients)
        return self._merged(
            combine(
                self,
                combination,
                about,
                tuning=tuning,
                bump=bump,
                variant=variant,
                test=merge_test(self, combination, base_of(on), bars=self.reports) if test else None,
                bars=self.reports,
            )
        )

    def _merge_recipe(
        self,
        recipe: Path,
        output: str | None,
        said: Mapping[str, str | None],
        places: tuple[Path, ...],
        *,
        offline: bool,
        force: bool,
        bump: Bump | None,
        variant: bool,
        tests_on: tuple[BaseSpec | None] | None,
    ) -> Merged:
        from adapterhub.api.steps.combining import combine
        from adapterhub.api.steps.contracts.gating import merge_test
        from adapterhub.api.steps.recipes import plan_recipe

        plan = plan_recipe(
            self.session,
            recipe,
            output=output,
            details=said,
            places=places,
            offline=offline,
            force=force,
            bars=self.reports,
        )
        test = merge_test(self, plan.combination, *tests_on, bars=self.reports) if tests_on else None
        if test is not None:
            test.measures = bump is not None or plan.expected is None
        return self._merged(
            combine(
                self,
                plan.combination,
                plan.target,
                expected=plan.expected if bump is None else None,
                bump=bump,
                variant=variant,
                test=test,
                bars=self.reports,
            )
        )

    def _merged(self, merged: Merged) -> Merged:
        from adapterhub.api.steps.combining import report_merged

        report_merged(self.session, merged)
        return merged

    def _ingredients(
        self, adapters: Adapters, weights: Sequence[float] | None, base: BaseLike | None
    ) -> list[Ingredient]:
        """The adapters with their weights; equal shares that sum to 1 where none is given."""
        from adapterhub.api.steps.combining import ingredient
        from adapterhub.distribution.finding import with_weights

        weights = shares(adapters, weights)
        spec = base_of(base)
        return [ingredient(self, text_of(what), weight, spec) for what, weight in with_weights(adapters, weights)]

    @extra_named("`Library.compare`")
    def compare(
        self,
        *adapters: AdapterLike,
        weights: Sequence[float] | None = None,
        base: BaseLike | None = None,
        dtype: Precision = "float32",
    ) -> Comparison:
        """How alike adapters are, module by module, and what their merge would be; nothing is merged.

        Returns:
            `.pairs` with cosines and overlaps, `.modules`, `.forecast`, and `.obstacles` to a merge.
        """
        from adapterhub.api.steps.combining import compared

        if len(adapters) < 2:  # noqa: PLR2004 - a comparison
            raise UsageProblem("give two adapters or more to compare")
        return compared(self.session, self._ingredients(adapters, weights, base), dtype, bars=self.reports)

    @extra_named("`Library.resize`")
    def resize(
        self,
        adapter: AdapterLike,
        *,
        name: AdapterWord | None = None,
        output: StrPath | None = None,
        rank: Rank | None = None,
        energy: Share | None = None,
        max_error: RelativeError | None = None,
        dtype: Precision | None = None,
        base: BaseLike | None = None,
        version: str | None = None,
        bump: Bump | None = None,
        variant: bool = False,
        task: str | None = None,
        description: str | None = None,
        test: bool = False,
    ) -> Merged:
        """Make an adapter smaller: the closest update of a lower rank, module by module, with the error measured.

        Give one of `rank`, `energy` and `max_error`; the other arguments are those of `merge`. With `test` the result
        must pass the adapter's contract, or nothing is written.
        """
        from adapterhub.api.steps.combining import combine, plan_resize
        from adapterhub.api.steps.contracts.gating import same_adapter_test
        from adapterhub.api.steps.merge_choice import one_cut

        check_naming(bump, variant=variant, version=version)
        said = {"version": version, "task": task, "description": description}
        cut = one_cut(rank=rank, energy=energy, max_error=max_error)
        plan = plan_resize(
            self, text_of(adapter), _target(name, output), cut, dtype=dtype, base=base_of(base), said=said
        )
        return self._merged(
            combine(
                self,
                plan.combination,
                plan.target,
                what="resize",
                bump=bump,
                variant=variant,
                test=same_adapter_test(self, plan.combination, bars=self.reports) if test else None,
                bars=self.reports,
            )
        )

    @extra_named("`Library.extract`")
    def extract(
        self,
        *,
        base: BaseLike,
        tuned: BaseLike,
        name: AdapterWord | None = None,
        output: StrPath | None = None,
        rank: Rank | None = None,
        energy: Share | None = None,
        max_error: RelativeError | None = None,
        dtype: Precision | None = None,
        save_rest: bool = False,
        skip_unequal: bool = False,
        version: str | None = None,
        bump: Bump | None = None,
        variant: bool = False,
        task: str | None = None,
        description: str = "",
    ) -> Extracted:
        """Extract a LoRA: what a fine-tuned model has over its base, cut to a low rank. No model is loaded.

        Args:
            base: the model before.
            tuned: the model after.
            name: name of the new adapter; default: that of `tuned` and `lora`.
            output: write this new folder instead of adding to the library.
            rank: this rank in every module, at most.
            energy: smallest rank of each module that keeps this share of its squared norm.
            max_error: smallest rank of each module within this relative error.
            dtype: precision of the result; default: float32.
            save_rest: carry small modules whole that a LoRA cannot hold.
            skip_unequal: leave out tensors of one model only, or of two shapes.
            version: of the new adapter; default: 1.0.0.
            bump: as for `merge`.
            variant: as for `merge`.
            task: of the new adapter.
            description: one sentence for lists and search.

        Returns:
            `.error`, `.folder`, `.result` with ranks and what was left out, `.added`.
        """
        from adapterhub.api.steps.combining import default_name, description_from, ensure_named
        from adapterhub.api.steps.merge_choice import one_cut
        from adapterhub.weights.extract import (
            ExtractOptions,
            ensure_room,
            extract,
            extract_into_library,
            model_record,
        )

        check_naming(bump, variant=variant, version=version)
        cut = one_cut(rank=rank, energy=energy, max_error=max_error)
        options = ExtractOptions(**cut, dtype=dtype, save_rest=save_rest, skip_unequal=skip_unequal)  # type: ignore[arg-type]  # a whole number only for the rank
        before, after = base_of(base), base_of(tuned)
        assert before is not None  # both were given
        assert after is not None
        target = _target(name, output) or default_name([after.text], "lora")
        about = None
        if not names_folder(target):  # refuse a wrong name before any work
            about = description_from(target, {"version": version, "task": task, "description": description})
        ensure_named(about, bump, variant=variant)
        with self.reports.progress("fingerprint", None) as progress:
            first = model_record(self.bases, before, progress=progress)
            if about is not None and bump is None:
                ensure_room(self, first, None, about, options, variant=variant)
            second = model_record(self.bases, after, progress=progress)
        added = None
        with self.reports.steps("extract", unit="weights") as steps:
            if about is None:
                result = extract(first, second, path_of(target), options, progress=steps)
            else:
                added, result = extract_into_library(
                    self, first, second, about, options, bump=bump, variant=variant, progress=steps
                )
        for warning in result.warnings:
            self.reports.warn(warning)
        report_warnings(self.session, added)
        return Extracted(result=result, added=added)


def _target(name: str | None, output: StrPath | None) -> str | None:
    """The name or the folder of the result; None where neither is given.

    Raises:
        UsageProblem: both are.
    """
    if name is not None and output is not None:
        raise UsageProblem("`name` adds the result to the library, `output` writes a folder; give one of them")
    if output is None:
        return name
    return output if isinstance(output, str) and names_folder(output) else folder_text(Path(output))
