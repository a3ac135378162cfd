"""Make adapters and models from others: merge, tune, resize, extract, port, fuse, export; compare adapters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from adapterhub.api.arguments import refuse
from adapterhub.api.opened import (
    Adapters,
    BaseLike,
    OpenedLibrary,
    base_of,
    folder_text,
    paths_of,
    report_warnings,
    text_of,
)
from adapterhub.core.arguments import (
    Count,
    MergeSeed,
    Precision,
    Rank,
    RelativeError,
    ResizedTo,
    Seed,
    Share,
    StrPath,
    parsed,
    path_of,
)
from adapterhub.core.display import html_table
from adapterhub.core.errors import UsageProblem
from adapterhub.core.extras import extra_named
from adapterhub.formats.documented import Documented
from adapterhub.formats.manifest import Parent
from adapterhub.library.installed import Added
from adapterhub.library.intake.clashes import Bump
from adapterhub.library.store.catalog import AdapterLike, Installed

if TYPE_CHECKING:
    from adapterhub.api.steps.combining import HeldWeights
    from adapterhub.api.steps.contracts.gating import MergeTest
    from adapterhub.api.steps.contracts.recording import LeftOutInput
    from adapterhub.api.steps.porting import PortLook, PortTry
    from adapterhub.core.specs import BaseSpec
    from adapterhub.formats.contract.results import Tested
    from adapterhub.inference.tuning import Tuned
    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.intake.description import Description
    from adapterhub.weights.catalogue import Method
    from adapterhub.weights.extract import ExtractResult
    from adapterhub.weights.recipes.combination import Combination, Ingredient, Made, Runner

LARGE_LOSS: Final = 0.2
"""The relative error from which a cut to a given rank is worth a warning: twice that of rank `auto`."""
_ADDED: Final = " ".join(f"{key}=added.{path}" for key, path in Added.document_attributes().items())
"""The keys of an added build; `added` is the attribute."""
_MERGED: Final = (
    "tests? relative_error=made.result.relative_error worst_module=made.result.worst_module"
    " worst_error=made.result.worst_error truncation_error=made.result.truncation_error ranks dtype=made.result.dtype"
    " parents recipe tuning?"
)
_RESIZED: Final = (
    "before after dtype=made.result.dtype relative_error=made.result.relative_error"
    " worst_module=made.result.worst_module tests? worst_error=made.result.worst_error recipe"
)
_EXTRACTED: Final = (
    "relative_error=result.relative_error worst_module=result.worst_module worst_error=result.worst_error"
    " missing_share=result.missing_share ranks=result.ranks dtype=result.dtype unchanged_tensors=result.unchanged"
    " left_out=result.left_out recipe=result.recipe"
)

_LOOK: Final = (
    "adapter=look.adapter made_for=look.base to=look.to bases=look.bases prediction=look.prediction"
    " distance=look.distance notes=look.notes"
)


# ---------------------------------------------------------------- results
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Merged(Documented, keys=f"path=folder {_MERGED}", title="MergedFolder"):
    """A merge written to a folder.

    Holds what was made, how far that is from the exact sum, and what it was made of.
    """

    combination: Combination
    made: Made
    added: Added | None = None
    tuning: Annotated[Tuned | None, "with --tune"] = None
    tests: Annotated[tuple[Tested, ...] | None, "with --test: one for each parent that has a contract"] = None
    recorded_digest: Annotated[str | None, "with --recipe: the digest in the recipe"] = None

    @property
    def folder(self) -> Path:
        """A path on this machine."""
        return self.added.build.folder if self.added else self.made.result.out_folder

    @property
    def adapter(self) -> Installed | None:
        """The installed result; None for a plain folder."""
        return self.added.build if self.added else None

    @property
    def as_recorded(self) -> bool | None:
        """With --recipe: whether the result has that digest."""
        if self.recorded_digest is None or self.added is None:
            return None
        return self.added.build.manifest.digest == self.recorded_digest

    @property
    def error(self) -> float:
        """The measured relative error against the exact weighted sum, over all modules."""
        return self.made.result.relative_error

    @property
    def parents(self) -> tuple[Parent, ...]:
        """Each adapter that went in, with the product of its weights on all levels."""
        from adapterhub.weights.recipes.combination import parents_of

        return tuple(Parent(digest=i.digest, spec=i.label, weight=weight) for i, weight in parents_of(self.combination))

    @property
    def ranks(self) -> Mapping[int, int]:
        """Number of modules by rank."""
        return dict(sorted(self.made.result.ranks.items()))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings of the merge."""
        return self.made.warnings

    @property
    def recipe(self) -> Mapping[str, Any]:
        """How to repeat it."""
        return self.made.recipe

    @property
    def is_sum(self) -> bool:
        """Whether its method is after the plain sum, so that the distance from it is an error."""
        from adapterhub.weights.catalogue import SUMS

        return self.combination.method in SUMS

    @property
    def formula(self) -> str:
        """The sum, such as `0.7 x a + 0.3 x (1 x b + 1 x c, by ties)`."""
        from adapterhub.api.steps.combining import formula

        return formula(self.combination)

    def __repr__(self) -> str:
        name = f"{self.adapter.full_name} {self.adapter.manifest.version}" if self.adapter else self.folder
        what = f"{name} = {self.formula} by {self.combination.method}"
        return f"<{type(self).__name__.removesuffix('Build')} {what}, error {self.error:.2g}>"

    def _repr_html_(self) -> str:
        rows: list[tuple[str, object]] = [("method", self.combination.method)]
        rows += [(f"{one.weight:g} x", one.spec) for one in self.parents]
        ranks = ", ".join(f"{rank} in {count}" for rank, count in self.ranks.items())
        return html_table(
            (), [*rows, ("ranks", ranks), ("relative error", f"{self.error:.2g}"), ("folder", self.folder)]
        )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class MergedBuild(Merged, keys=f"{_ADDED} {_MERGED} recorded_digest? as_recorded?", title="Merged"):
    """A merge in the library."""

    added: Added


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Resized(Merged, keys=f"path=folder {_RESIZED}", title="ResizedFolder"):
    """A smaller adapter written to a folder."""

    before: HeldWeights
    after: HeldWeights


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ResizedBuild(Resized, keys=f"{_ADDED} {_RESIZED}", title="Resized"):
    """A smaller adapter in the library."""

    added: Added


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Extracted(Documented, keys=f"path=folder {_EXTRACTED}", title="ExtractedFolder"):
    """A LoRA extracted from a fine-tuned model into a folder."""

    base: str
    tuned: str
    result: ExtractResult
    added: Added | None = None

    @property
    def folder(self) -> Path:
        """A path on this machine."""
        return self.added.build.folder if self.added else self.result.out_folder

    @property
    def error(self) -> float:
        """The relative error against the exact difference of the weights that the adapter covers."""
        return self.result.relative_error

    def __repr__(self) -> str:
        what = repr(self.added.build) if self.added else self.folder
        return f"<Extracted {what}, error {self.error:.2g}>"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ExtractedBuild(Extracted, keys=f"{_ADDED} {_EXTRACTED}", title="Extracted"):
    """A LoRA extracted from a fine-tuned model."""

    added: Added


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Ported(Documented, keys=f"{_LOOK}", title="PortLook"):
    """What the files of an adapter and of two bases tell before a port, and what each way made of it.

    `method` is the way that was chosen, `contract` the digest of the new build's contract, `left_out` the prompts that
    it does not have. All are empty after a dry run.
    """

    look: PortLook
    tries: tuple[PortTry, ...] = ()
    method: str = ""
    contract: Annotated[str, "digest of the new build's contract; empty without one"] = ""
    left_out: tuple[LeftOutInput, ...] = ()
    added: Added | None = None

    @property
    def adapter(self) -> Installed | None:
        """The new build; None after a dry run."""
        return self.added.build if self.added else None

    def __repr__(self) -> str:
        what = f"{self.adapter!r} by {self.method}" if self.adapter else f"a copy {self.look.prediction.expected}"
        return f"<{type(self).__name__} {self.look.adapter} on {self.look.to}: {what}>"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PortedBuild(Ported, keys=f"{_ADDED} method contract left_out tries {_LOOK}", title="Ported"):
    """An adapter that was moved to another base."""

    added: Added


@parsed
class WithWeights(OpenedLibrary):
    """Everything that computes with the numbers of adapters; torch is imported by the first call."""

    @extra_named("`merge`")
    def merge(
        self,
        adapters: Adapters = (),
        *,
        output: StrPath | None = None,
        weights: Sequence[float] | None = None,
        method: str | None = None,
        rank: Rank | Literal["auto"] | None = None,
        energy: Share | None = None,
        max_error: RelativeError | None = None,
        options: Mapping[str, object] | None = None,
        seed: MergeSeed | None = None,
        dtype: Precision | None = None,
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
        tune: StrPath | None = None,
        tune_budget: Count | None = None,
        test: bool = False,
    ) -> Merged:
        """Merge adapters into one: the weighted sum of their updates, exact by default, with the error measured.

        Args:
            adapters: a mapping from adapters to weights, or several adapters; each a spec, a build or a folder.
            output: name of the new adapter, or the new folder (`./out`, or a path object) to write instead of adding
                to the library; default: their names, joined.
            weights: one for each adapter of a sequence; default: equal shares that sum to 1.
            method: `cat` (exact), `svd` (closest at a rank) or another of the reference page.
            rank: rank of the result, or `auto`.
            energy: smallest rank of each module that keeps this share of its squared norm.
            max_error: smallest rank of each module within this relative error.
            options: other options of the method, such as `{"density": 0.3}`.
            seed: of a method that draws, and of `tune`.
            dtype: `float32` (default), `bfloat16` or `float16`.
            base: the base, where the specs name none; with `tune` or `test`, the base to test on.
            version: of the new adapter; default: 1.0.0.
            bump: `patch`, `minor` or `major`: take the next free version where the name exists for this base.
            variant: add a build of another rank to a version that exists.
            task: of the new adapter.
            description: one sentence for lists and search.
            license: of the new adapter.
            recipe: make the merge that this TOML file describes (see `recipe`), instead of `adapters` and how to merge
                them.
            places: with `recipe`: where to look for adapters that are not installed.
            offline: with `recipe`: ask no server for them.
            tune: JSON Lines of examples, or `contracts`: find the weights that answer them best (see `tune`).
            tune_budget: with `tune`: how many weights to try.
            test: keep the result only if it keeps the `never` and `leave_alone` lines of all parents' contracts.

        Returns:
            `.error`, `.parents`, `.adapter` (or `.folder`), `.ranks`, `.recipe`, `.warnings`.

        Raises:
            NotFound: there is no such recipe.
            MergeRefused: they cannot be added up; every reason is listed.
            BaseMismatch, Malformed: they were made for different bases, or that of one cannot be read.
            ReleaseExists, Conflict: the name and version exist for this base, or the folder does; nothing was merged.
            BehaviourChanged, CouldNotTell: it does not pass its test; nothing was written.
            UsageProblem: arguments that do not go together.
        """
        from adapterhub.api.steps.combining import About, choice_from, default_name, plan_recipe, tuned
        from adapterhub.api.steps.contracts.gating import MergeTest
        from adapterhub.api.steps.contracts.testing import TestQuestion
        from adapterhub.weights.catalogue import SUMS
        from adapterhub.weights.recipes.combination import ensure_room

        about = About(version=version, bump=bump, variant=variant, task=task, description=description, license=license)
        told, spec, here = _output_text(output), base_of(base), paths_of(places)
        how = {"method": method, "rank": rank, "energy": energy, "max_error": max_error, "seed": seed, "dtype": dtype}
        if recipe is not None:
            refuse("`--recipe` sets these", adapters=adapters, weights=weights, tune=tune, option=options, **how)
            refuse("`--recipe` merges", base=None if test else base, tune_budget=tune_budget)
            plan = plan_recipe(self.session, self, path_of(recipe), told, about, places=here, offline=offline)
            measures, parents = plan.expected is None, tuple(plan.combination.leaves())
            asked = MergeTest(self, self.session, parents, TestQuestion(on=spec), measures=measures) if test else None
            made, added = self._combine(plan.combination, plan.target, about, test=asked)
            return self._merged(plan.combination, made, added, asked, recorded_digest=plan.expected)
        refuse("only `--recipe` fetches adapters", **{"from": here}, offline=offline)
        if tune is None:
            refuse("only `--tune` evaluates", tune_budget=tune_budget)
        else:
            refuse("`--tune` finds the weights", weights=weights)
        if not adapters:
            raise UsageProblem("no adapters given", hint="`adapt merge legal-qa summarize -o both`, or `--recipe FILE`")
        chosen = choice_from(**how, options=options or {}, is_tuned=tune is not None)  # type: ignore[arg-type]  # of each its type
        ingredients = self._ingredients(adapters, weights, spec)
        target = about.target(told or default_name([each.label for each in ingredients]))
        searched = None
        if tune is not None:
            if not isinstance(target, Path) and bump is None:
                ensure_room(self, replace(chosen, inputs=tuple(ingredients)), target, variant=variant, tuned=True)
            if chosen.method not in SUMS:
                self.reports.warn(
                    f"`--tune` searches weights for the plain sum, but `{chosen.method}` computes another result"
                )
            searched = tuned(
                self.session,
                self.named,
                ingredients,
                path_of(tune),
                spec,
                budget=tune_budget,
                seed=seed or 0,
            )
            ingredients = list(searched.ingredients)
            target = target if isinstance(target, Path) else replace(target, metrics=searched.metrics)
        combination = replace(chosen, inputs=tuple(ingredients))
        asked = MergeTest(self, self.session, tuple(combination.leaves()), TestQuestion(on=spec)) if test else None
        made, added = self._combine(combination, target, about, test=asked)
        return self._merged(combination, made, added, asked, tuning=searched.result if searched else None)

    def _combine(
        self,
        combination: Combination,
        target: Description | Path,
        about: Any,
        *,
        what: str = "merge",
        test: MergeTest | None,
        run: Runner | None = None,
    ) -> tuple[Made, Added | None]:
        """Run a merge into the library, or into a new folder.

        Raises:
            BehaviourChanged, CouldNotTell: `test` does not let the result pass; nothing was written.
            ReleaseExists: the library has another build under the name and version; nothing was merged.
        """
        from adapterhub.weights.recipes.combination import merge_into_folder, merge_into_library

        with self.reports.steps(what, unit="modules") as progress:
            if isinstance(target, Path):
                return merge_into_folder(combination, target, progress=progress, test=test, run=run), None
            found = merge_into_library(
                self, combination, target, bump=about.bump, variant=about.variant, progress=progress, test=test, run=run
            )
        return found.made, found.added

    def _merged(
        self,
        combination: Combination,
        made: Made,
        added: Added | None,
        test: MergeTest | None,
        *,
        tuning: Tuned | None = None,
        recorded_digest: str | None = None,
    ) -> Merged:
        """Report the warnings of a merge, and return its result."""
        tests = None if test is None else tuple(test.results)
        self._tell(combination, made, added, is_tested=tests is not None)
        rank, lost = combination.options.get("rank"), made.result.truncation_error
        if rank is not None and lost is not None and lost > LARGE_LOSS:
            self.reports.warn(
                f"the cut to rank {rank} loses much: its relative error is {lost:.2g}; "
                "rank `auto` keeps the error near 0.1, and without a rank nothing is cut"
            )
        facts: dict[str, Any] = {"combination": combination, "made": made, "tuning": tuning, "tests": tests}
        facts |= {"recorded_digest": recorded_digest}
        return Merged(**facts) if added is None else MergedBuild(**facts, added=added)

    def _tell(self, combination: Combination, made: Made, added: Added | None, *, is_tested: bool) -> None:
        """Report the warnings of a merge and of the checks of its result, and what became of its parents' contracts."""
        for warning in made.warnings:
            self.reports.warn(warning)
        report_warnings(self.session, added)
        from adapterhub.api.steps.combining import contract_note

        folder = added.build.folder if added else made.result.out_folder
        if note := "" if is_tested else contract_note(combination, folder):
            self.reports.note(note)

    def _ingredients(
        self, adapters: Adapters, weights: Sequence[float] | None, base: BaseSpec | None
    ) -> list[Ingredient]:
        from adapterhub.api.steps.combining import ingredient, with_shares

        library = self.named
        return [ingredient(library, text_of(what), weight, base) for what, weight in with_shares(adapters, weights)]

    @extra_named("`tune`")
    def tune(
        self,
        adapters: Sequence[AdapterLike],
        examples: StrPath,
        *,
        base: BaseLike | None = None,
        budget: Count | None = None,
        seed: Seed = 0,
    ) -> Tuned:
        """Find the weights of a sum of adapters that answer examples best, by trying them on the base.

        Args:
            adapters: what to put together.
            examples: a file of JSON Lines, `{"prompt": …, "completion": …}` each, or the word `contracts`: the recorded
                answers of the adapters' own contracts.
            base: the base, where the specs name none, to try them on; default: theirs.
            budget: how many weights to try.
            seed: of the search.

        Returns:
            `.weights`, `.base_loss`, `.loss_before`, `.loss_after`. `merge(…, tune=examples)` also merges with them.

        Raises:
            AdapterNotFound, NoCompatibleRelease: an adapter is not here, or none fits.
            BaseNotFound, Malformed: the base is not known here, or its record or folder cannot be read.
        """
        from adapterhub.api.steps.combining import tuned

        spec, library = base_of(base), self.named
        ingredients = self._ingredients(adapters, None, spec)
        found = tuned(self.session, library, ingredients, path_of(examples), spec, budget=budget, seed=seed)
        return found.result

    @extra_named("`resize`")
    def resize(
        self,
        adapter: AdapterLike,
        *,
        output: StrPath | None = None,
        to: ResizedTo | None = None,
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
    ) -> Resized:
        """Make an adapter smaller: the closest update of a lower rank, module by module, with the error measured.

        Args:
            adapter: the adapter, or its folder.
            output: a name in the library, or a new folder (`"./out"`); default: the name and `rN`, `small` or `lora`.
            to: `lora` makes a LoRA of an adapter of any linear method of PEFT, by default at full rank; it reads the
                weights of the base.
            rank: the rank of every module. Pass one of `rank`, `energy` and `max_error`.
            energy: the share of each module's squared norm to keep, 0 to 1.
            max_error: the largest relative error (Frobenius norm) of each module.
            dtype: of the new tensors; default: that of the old ones.
            base: the base, if the spec names none.
            version: of the new adapter; default: that of the old one.
            bump: `patch`, `minor` or `major`: take the next free version where the name exists for this base.
            variant: add a build of another rank to a version that exists.
            task: default: that of the old adapter.
            description: default: that of the old adapter.
            test: write the result only if it passes the adapter's contract.

        Raises:
            AdapterNotFound, NoCompatibleRelease, BaseNotFound, Malformed: the adapter or the base is not here or cannot
                be read.
            UnsupportedAdapter, MergeRefused: the method of the adapter has no such form.
            ReleaseExists: a build of that name and version exists.
            UsageProblem: these options do not go together, or one is out of range.
        """
        from adapterhub.api.steps.combining import (
            About,
            cut_from,
            ingredient,
            plan_conversion,
            plan_resize,
            weights_in,
        )
        from adapterhub.api.steps.contracts.gating import MergeTest

        about = About(version=version, bump=bump, variant=variant, task=task, description=description)
        cut, on = cut_from(rank=rank, energy=energy, max_error=max_error, is_required=to is None), base_of(base)
        parent = ingredient(self.named, text_of(adapter), 1.0, on)
        if to is None:
            plan = plan_resize(self, parent, _output_text(output), cut, about, dtype=dtype)
        else:
            plan = plan_conversion(self, parent, on, _output_text(output), cut, about, dtype=dtype)
        asked = MergeTest(self, self.session, tuple(plan.combination.leaves()), carries=True) if test else None
        made, added = self._combine(plan.combination, plan.target, about, what="resize", test=asked, run=plan.run)
        self._tell(plan.combination, made, added, is_tested=test)
        after, _ = weights_in(added.build.folder if added else made.result.out_folder, None)
        facts: dict[str, Any] = {"combination": plan.combination, "made": made, "before": plan.before, "after": after}
        facts |= {"tests": None if asked is None else tuple(asked.results)}
        return Resized(**facts) if added is None else ResizedBuild(**facts, added=added)

    @extra_named("`extract`")
    def extract(
        self,
        tuned: BaseLike,
        *,
        base: BaseLike,
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
        description: str | None = None,
    ) -> Extracted:
        """Extract a LoRA: what a fine-tuned model has over its base, cut to a low rank. No model is loaded.

        Args:
            tuned: the model after.
            base: the model before.
            output: as for `merge`; default: the name of `tuned` and `lora`.
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
        from adapterhub.api.steps.combining import About, cut_from, default_name
        from adapterhub.weights.extract import ExtractOptions, ensure_room, extract, extract_into_library

        about = About(version=version, bump=bump, variant=variant, task=task, description=description)
        cut = cut_from(rank=rank, energy=energy, max_error=max_error, is_required=True)
        options = ExtractOptions(**cut, dtype=dtype, save_rest=save_rest, skip_unequal=skip_unequal)
        before, after = base_of(base), base_of(tuned)
        assert before is not None  # both were given
        assert after is not None
        target = about.target(_output_text(output) or default_name([str(after.text)], "lora"))
        first = self._model(before)
        if not isinstance(target, Path) and bump is None:
            ensure_room(self, first, None, target, options, variant=variant)
        second, added = self._model(after), None
        with self.reports.steps("extract", unit="weights") as steps:
            if isinstance(target, Path):
                result = extract(first, second, target, options, progress=steps)
            else:
                added, result = extract_into_library(
                    self, first, second, target, options, bump=bump, variant=variant, progress=steps
                )
        for warning in result.warnings:
            self.reports.warn(warning)
        report_warnings(self.session, added)
        facts: dict[str, Any] = {"base": first.label, "tuned": second.label, "result": result}
        return Extracted(**facts) if added is None else ExtractedBuild(**facts, added=added)

    @extra_named("`port`")
    def port(
        self,
        adapter: AdapterLike,
        *,
        to: BaseLike,
        method: str | None = None,
        output: str | None = None,
        unproved: bool = False,
        dry_run: bool = False,
        version: str | None = None,
        bump: Bump | None = None,
    ) -> Ported:
        """Move an adapter to another base that is related to its own, as a new build; the old one does not change.

        Args:
            adapter: a spec, a build or a folder.
            to: the new base: a later checkpoint, an instruct version, a merge, a pruned one.
            method: `copy` or `project`; default: try them, and choose by the contract.
            output: name of the new build; default: the adapter's own.
            unproved: write it also without a contract, or where the contract does not pass; it then has none.
            dry_run: return the prediction from the files, and write nothing.
            version: of the new build; default: the adapter's own.
            bump: as for `merge`.

        Returns:
            `.look` with `.prediction`, `.distance` and `.notes`; `.tries`; the new build as `.adapter` and `.added`;
            `.method`, `.left_out`.

        Raises:
            UsageProblem: the base needs no port, or the method does not apply.
            AdapterNotFound: the adapter is not installed.
            BaseNotFound: a base is not on this machine.
            BaseMismatch: the new base lacks what the adapter changes, or has it in other shapes.
            BehaviourChanged: it does not pass its contract there.
            CouldNotTell: it has no contract, or none that can be asked.
            ReleaseExists: the name and version exist for this base.
        """
        from adapterhub.api.steps.combining import About, default_name
        from adapterhub.api.steps.contracts.testing import subject_of
        from adapterhub.api.steps.porting import plan_port
        from adapterhub.weights.port.catalogue import describe as describe_port

        if method is not None:
            describe_port(method)
        library, spec = self.session.project_library, base_of(to)
        assert spec is not None  # it was given
        subject = subject_of(library, text_of(adapter))
        plan = plan_port(library, self.session, subject, spec)
        own = subject.manifest
        words = {key: getattr(own, key) for key in ("version", "task", "description", "license")} if own else {}
        name = _output_text(output) or (str(own.name) if own else default_name([subject.label], "ported"))
        about = About(version=version, bump=bump).target(name, words)
        if isinstance(about, Path):
            raise UsageProblem("a port is a build of the library", hint="`-o NAME`; `adapt pull` writes a folder of it")
        with plan.opened() as run:
            look = plan.looked(run)
            if dry_run:
                return Ported(look=look)
            contract = plan.contract(unproved=unproved)
            if bump is None:
                namesakes = library.namesakes(about.name, None, plan.new.fingerprint)
                namesakes.ensure_room(
                    about.version, f"the port of `{subject.label}`", rank=own.rank if own else None, variant=False
                )
            for note in look.notes:
                self.reports.note(note)
            with library.store.staging() as staging:
                chosen = plan.best(run, contract, method, staging, unproved=unproved)
                is_proven = contract is not None and chosen.result is not None and chosen.result.passed
                kept, left_out = plan.recorded(contract, chosen) if is_proven and contract is not None else (None, ())
                added = plan.add(chosen, kept, about, bump)
        report_warnings(self.session, added)
        if kept is None:
            self.reports.warn("the new build has no contract: nothing proves that it works on the new base")
        return PortedBuild(
            look=look,
            tries=tuple(plan.tries),
            method=chosen.method,
            contract=kept.digest if kept else "",
            left_out=left_out,
            added=added,
        )

    def _model(self, spec: BaseSpec) -> BaseRecord:
        """Return the record of the model that `spec` names, from its current files."""
        from adapterhub.formats.base.weight_files import weight_files
        from adapterhub.weights.extract import model_record

        is_folder = spec.kind == "path"
        size = sum(p.stat().st_size for p in weight_files(path_of(spec.text))) if is_folder else None
        with self.reports.progress(f"fingerprint {spec}", size) as progress:
            return model_record(self.bases, spec, progress=progress)


def merge_methods() -> list[Method]:
    """Return the merge methods with their options, as `adapt merge --methods` lists them."""
    from adapterhub.weights.catalogue import describe, names

    return [describe(name) for name in names()]


def _output_text(output: StrPath | None) -> str | None:
    """Return a name or a folder as one would type it; a path object is always a folder."""
    return output if output is None or isinstance(output, str) else folder_text(output)
