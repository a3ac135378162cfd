"""Make adapters and models from others: merge, tune, resize, extract, fuse, export; and tell how alike they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

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
    ExportFormat,
    MergeSeed,
    Precision,
    Rank,
    RelativeError,
    Seed,
    Share,
    StrPath,
    parsed,
    path_of,
)
from adapterhub.core.display import html_table
from adapterhub.core.errors import UsageProblem
from adapterhub.core.extras import extra_named, require
from adapterhub.formats.documented import Documented
from adapterhub.formats.manifest import Parent
from adapterhub.library.installed import Added
from adapterhub.library.intake.clashes import Bump
from adapterhub.library.store.catalog import AdapterLike, Installed

if TYPE_CHECKING:
    from adapterhub.api.installing import Requirements
    from adapterhub.api.steps.combining import HeldWeights
    from adapterhub.api.steps.contracts.gating import MergeTest
    from adapterhub.api.steps.exporting import ExportedRouter
    from adapterhub.core.specs import BaseSpec
    from adapterhub.formats.contract.results import Tested
    from adapterhub.inference.export import Exported
    from adapterhub.inference.tuning import Tuned
    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.intake.description import Description
    from adapterhub.weights.compare.difference import Difference
    from adapterhub.weights.compare.similarity import Comparison
    from adapterhub.weights.extract import ExtractResult
    from adapterhub.weights.fuse import Fused
    from adapterhub.weights.recipes.combination import Combination, Ingredient, Made

LARGE_LOSS: Final = 0.2
"""The relative error from which a cut to a given rank is worth a warning: twice that of rank `auto`."""
_AS_GGUF: Final = frozenset({"gguf", "ollama"})
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


# ---------------------------------------------------------------- results
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Merged(Documented, keys=f"path=folder {_MERGED}", title="MergedFolder"):
    """A merge written to a folder.

    It says what was made, how far that is from the exact sum, and what it was made of.
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
        """What the merge warns of."""
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
            base: the base, where the specs name none; with `tune` or `test`, the base to ask on.
            version: of the new adapter; default: 1.0.0.
            bump: `patch`, `minor` or `major`: take the next free version where the name exists for this base.
            variant: add a build of another rank to a version that exists.
            task: of the new adapter.
            description: one sentence for lists and search.
            license: of the new adapter.
            recipe: do what this TOML file says (see `recipe`), instead of `adapters` and how to merge them.
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
        from adapterhub.api.steps.contracts.gating import merge_test
        from adapterhub.weights.catalogue import SUMS
        from adapterhub.weights.recipes.combination import ensure_room

        about = About(version=version, bump=bump, variant=variant, task=task, description=description, license=license)
        told, spec, here = _output_text(output), base_of(base), paths_of(places)
        how = {"method": method, "rank": rank, "energy": energy, "max_error": max_error, "seed": seed, "dtype": dtype}
        if recipe is not None:
            _refuse("`--recipe` sets these", adapters=adapters, weights=weights, tune=tune, option=options, **how)
            _refuse("`--recipe` merges", base=None if test else base, tune_budget=tune_budget)
            plan = plan_recipe(
                self.session, self, path_of(recipe), told, about, places=here, offline=offline, bars=self.reports
            )
            asked = merge_test(self, plan.combination, spec, bars=self.reports) if test else None
            if asked is not None:
                asked.measures = plan.expected is None
            made, added = self._combine(plan.combination, plan.target, about, test=asked)
            return self._merged(plan.combination, made, added, asked, recorded_digest=plan.expected)
        _refuse("only `--recipe` fetches adapters", **{"from": here}, offline=offline)
        if tune is None:
            _refuse("only `--tune` evaluates", tune_budget=tune_budget)
        else:
            _refuse("`--tune` finds the weights", weights=weights)
        if not adapters:
            raise UsageProblem("no adapters given", hint="`adapt merge legal-qa summarize -o both`, or `--recipe FILE`")
        chosen = choice_from(**how, options=options or {}, is_tuned=tune is not None)  # type: ignore[arg-type]  # of each its type
        ingredients = self._ingredients(adapters, weights, spec)
        target = about.target(told or default_name([each.label for each in ingredients]))
        searched = None
        if tune is not None:
            if not isinstance(target, Path) and bump is None:
                ensure_room(self, chosen.step(ingredients), target, variant=variant, tuned=True)
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
                bars=self.reports,
            )
            ingredients = list(searched.ingredients)
            target = target if isinstance(target, Path) else replace(target, metrics=searched.metrics)
        combination = chosen.step(ingredients)
        asked = merge_test(self, combination, spec, bars=self.reports) if test else None
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
    ) -> tuple[Made, Added | None]:
        """Run a merge into the library, or into a new folder.

        Raises:
            BehaviourChanged, CouldNotTell: `test` does not let the result pass; nothing was written.
            ReleaseExists: the library has another build under the name and version; nothing was merged.
        """
        from adapterhub.weights.recipes.combination import merge_into_folder, merge_into_library

        with self.reports.steps(what, unit="modules") as progress:
            if isinstance(target, Path):
                return merge_into_folder(combination, target, progress=progress, test=test), None
            found = merge_into_library(
                self, combination, target, bump=about.bump, variant=about.variant, progress=progress, test=test
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
        found = tuned(
            self.session, library, ingredients, path_of(examples), spec, budget=budget, seed=seed, bars=self.reports
        )
        return found.result

    @extra_named("`compare`")
    def compare(
        self,
        *adapters: AdapterLike,
        weights: Sequence[float] | None = None,
        base: BaseLike | None = None,
        dtype: Precision = "float32",
        plot: StrPath | None = None,
        diff: bool = False,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> Comparison | Difference:
        """How alike adapters are, module by module, and what their merge would be; nothing is merged.

        With `diff`, what is different between two: files, config, manifest, and the exact difference of their updates.
        What is not installed is read from a server; with `remote`, every spec is read from that server.

        Args:
            adapters: two or more; each a spec, a build or a folder.
            weights: of the merge, one for each adapter; default: equal shares that sum to 1.
            base: the base, where the specs name none.
            dtype: precision of the files that are predicted.
            plot: draw layers and modules to this .png, .svg or .pdf.
            diff: return the differences of two adapters.
            remote: the server that has them; without, the library is asked first.
            token: access token for it.
            offline: refuse to open a connection.

        Returns:
            `.pairs` with cosines and overlaps, `.modules`, `.forecast`, and `.obstacles` to a merge. With `diff`
            `.is_identical`, `.files`, `.config`, `.manifest`, and `.weights` with the figures.

        Raises:
            AdapterNotFound, NoCompatibleRelease: one is neither here nor on a server.
            MergeRefused, Malformed: they cannot be compared; every reason is listed.
            UsageProblem, NotAllowed: fewer than two are given, or the picture cannot be written.
        """
        from adapterhub.api.steps.combining import compared, ingredient_of, sides_of, with_shares
        from adapterhub.distribution.choosing import find_installed, look_up
        from adapterhub.weights.compare.difference import differ
        from adapterhub.weights.compare.heatmap import check_picture, write_picture

        pairs = with_shares(adapters, weights) if adapters else []
        if len(pairs) < 2 or (diff and len(pairs) > 2):
            count = "two adapters to compare with `--diff`" if diff else "at least two adapters to compare"
            raise UsageProblem(f"give {count}", hint="see the examples of `adapt compare --help`")
        if diff:
            _refuse("`--diff` merges and draws nothing", weights=weights, plot=plot)
        if plot is not None:
            check_picture(path_of(plot))
        asked = sides_of(
            self.session,
            self.named,
            [text_of(what) for what, _ in pairs],
            base_of(base),
            find=look_up if diff else find_installed,
            remote=remote,
            token=token,
            offline=offline,
            bars=self.reports,
        )
        with asked as sides:
            if diff:
                with self.reports.progress("compare", None, unit="modules") as progress:
                    return differ(sides[0], sides[1], progress)
            inputs = [ingredient_of(side, weight) for side, (_, weight) in zip(sides, pairs, strict=True)]
            found = compared(self.session, inputs, dtype, bars=self.reports)
        if plot is None:
            return found
        write_picture(found, path_of(plot))
        return replace(found, plot=path_of(plot))

    @extra_named("`resize`")
    def resize(
        self,
        adapter: AdapterLike,
        *,
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
    ) -> Resized:
        """Make an adapter smaller: the closest update of a lower rank, module by module, with the error measured.

        Give one of `rank`, `energy` and `max_error`; the other arguments are those of `merge`. What you do not say of
        the new adapter is as for the old one. With `test` the result must pass the adapter's contract, or nothing is
        written.
        """
        from adapterhub.api.steps.combining import About, ingredient, one_cut, plan_resize, weights_in
        from adapterhub.api.steps.contracts.gating import same_adapter_test

        about = About(version=version, bump=bump, variant=variant, task=task, description=description)
        cut = one_cut(rank=rank, energy=energy, max_error=max_error)
        parent = ingredient(self.named, text_of(adapter), 1.0, base_of(base))
        plan = plan_resize(self, parent, _output_text(output), cut, about, dtype=dtype)
        asked = same_adapter_test(self, plan.combination, bars=self.reports) if test else None
        made, added = self._combine(plan.combination, plan.target, about, what="resize", test=asked)
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
        from adapterhub.api.steps.combining import About, default_name, one_cut
        from adapterhub.weights.extract import ExtractOptions, ensure_room, extract, extract_into_library

        about = About(version=version, bump=bump, variant=variant, task=task, description=description)
        cut = one_cut(rank=rank, energy=energy, max_error=max_error)
        options = ExtractOptions(**cut, dtype=dtype, save_rest=save_rest, skip_unequal=skip_unequal)  # type: ignore[arg-type]  # a whole number only for the rank
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

    def _model(self, spec: BaseSpec) -> BaseRecord:
        """The record of the model that `spec` names, from its current files."""
        from adapterhub.formats.base.weight_files import weight_files
        from adapterhub.weights.extract import model_record

        is_folder = spec.kind == "path"
        size = sum(p.stat().st_size for p in weight_files(path_of(spec.text))) if is_folder else None
        with self.reports.progress(f"fingerprint {spec}", size) as progress:
            return model_record(self.bases, spec, progress=progress)

    @extra_named("`fuse`")
    def fuse(
        self,
        adapters: Adapters,
        *,
        output: StrPath,
        weights: Sequence[float] | None = None,
        base: BaseLike | None = None,
        dtype: Precision | None = None,
        allow_base_mismatch: bool = False,
        test: bool = False,
    ) -> Fused:
        """Write a base with adapters added as a model of its own in the new folder `output`. No model is loaded.

        Args:
            adapters: one, several, or a mapping to weights.
            output: the new model's folder.
            weights: one for each adapter of a sequence; default: equal shares that sum to 1.
            base: the base, where the specs name none.
            dtype: precision of the new model; default: that of the base, tensor by tensor.
            allow_base_mismatch: fuse into other weights of the same shapes.
            test: load the new model, and keep it only if it passes the adapter's contract; of several adapters, their
                `never` and `leave_alone` lines.

        Returns:
            `.relative_error` is what rounding lost of the update; `.out_folder`, `.tensors`, `.tests`, `.warnings`.

        Raises:
            AdapterNotFound, NoCompatibleRelease: an adapter is not here, or none fits.
            RefusedAdapter, DigestMismatch: its files are not sound.
            Conflict: the folder exists.
            BaseNotFound, Malformed: the base is not known here, or its record or folder cannot be read.
            BehaviourChanged, CouldNotTell: it does not pass its test; nothing was written.
        """
        from adapterhub.api.steps.combining import with_shares
        from adapterhub.api.steps.contracts.gating import WrittenTest
        from adapterhub.weights.fuse import prepare

        library, pairs = self.named, with_shares(adapters, weights)
        with self.reports.progress("fingerprint", None) as reading:
            fusion = prepare(
                [what for what, _ in pairs],
                path_of(output),
                library=library,
                base=base_of(base),
                weights=[weight for _, weight in pairs],
                dtype=dtype,
                allow_base_mismatch=allow_base_mismatch,
                reading=reading,
            )
        with fusion, self.reports.progress("fuse", fusion.size_bytes) as progress:
            for warning in fusion.warnings:
                self.reports.warn(warning)
            asked = WrittenTest(library, self.reports, is_model=True) if test else None
            fused = fusion.write(progress=progress, test=asked)
            return replace(fused, tests=tuple(asked.results)) if asked is not None else fused

    @extra_named("`export`")
    def export(
        self,
        adapter: AdapterLike | None = None,
        output: StrPath | None = None,
        *,
        format: ExportFormat | Literal["semantic-router"] | None = None,  # noqa: A002 - the option's name
        base: BaseLike | None = None,
        dtype: Precision | None = None,
        gguf: str | None = None,
        allow_base_mismatch: bool = False,
        test: bool = False,
        llama_server: str | None = None,
        groups: Sequence[str] = (),
        all_groups: bool = False,
        library: bool = False,
        url: str | None = None,
    ) -> Exported | ExportedRouter | Requirements:
        """Write an adapter for another program, meaning exactly what PEFT means by it; or a plain list of adapters.

        Args:
            adapter: a spec, a build or a folder; for `semantic-router`, a routing file. None makes the list: the locked
                adapters of the project that the library follows, otherwise the installed ones.
            output: a new file for gguf, comfyui, diffusers, kohya, semantic-router and the list, a new folder for the
                other formats.
            format: the program or the form, such as `gguf`, `vllm` or `peft`.
            base: the base, where the spec names none.
            dtype: precision of what is written; default: exact.
            gguf: the base as a GGUF file: for gguf with `test`, what llama.cpp's server is asked on; for ollama, this
                file or what Ollama calls the base.
            allow_base_mismatch: take a base of the same shapes with other weights.
            test: for gguf, merged, peft and vllm: load it again, and keep it only if it passes its contract.
            llama_server: that program; default: `llama-server` in PATH.
            groups: of the list: these optional groups of the project, too.
            all_groups: of the list: every group.
            library: list the library, also in a project.
            url: for semantic-router: where `adapt serve` answers; default: `http://127.0.0.1:8000`.

        Returns:
            `.paths`, `.size_bytes`, `.flags` that the program needs, `.notes`, `.tests`; of the list `.requirements`,
            of a router `.path`.

        Raises:
            AdapterNotFound, NoCompatibleRelease: an adapter is not here, or none fits.
            RefusedAdapter, DigestMismatch: its files are not sound.
            Conflict: the output exists.
            NotAllowed: the output would lie in a library's own folders, or where you may not write.
            BaseNotFound, Malformed: the base is not known here, or its record or folder cannot be read.
            BehaviourChanged, CouldNotTell: it does not pass its test; nothing was written.
            UnsupportedAdapter: the format cannot carry it; nothing was written.
        """
        from adapterhub.api.installing import Requirements
        from adapterhub.api.steps.exporting import export_router, listed

        place = None if output is None else path_of(output)
        how = {"base": base, "dtype": dtype, "gguf": gguf, "allow_base_mismatch": allow_base_mismatch, "test": test}
        how |= {"llama_server": llama_server}
        if adapter is None:
            _refuse("a list of adapters has no format", format=format, url=url, **how)
            made = Requirements.of(listed(self, groups=groups, all_groups=all_groups, whole_library=library))
            return made if place is None else made.written(place)
        _refuse("these choose from a list; name no adapter", group=groups, all_groups=all_groups, library=library)
        if format is None or place is None:
            hint = "`adapt export NAME --format gguf -o NAME.gguf`; without a name, it prints a plain list"
            raise UsageProblem("an export needs an adapter, `--format` and `-o`", hint=hint)
        if format == "semantic-router":
            _refuse("a routing file holds no weights", **how)
            return export_router(self, path_of(text_of(adapter)), place, url=url)
        _refuse("`--url` is for `--format semantic-router`", url=url)
        require("export" if format in _AS_GGUF else "weights", f"`--format {format}`")
        from adapterhub.api.steps.contracts.exporting import export_test
        from adapterhub.inference.export import export

        if ((gguf is not None and format != "ollama") or llama_server) and not test:
            raise UsageProblem("`--gguf` and `--llama-server` are for `--test`")
        asked, known, spec = None, self.named, base_of(base)
        if test:
            file = None if gguf is None else path_of(gguf)
            asked = export_test(known, format, on=spec, gguf=file, llama_server=llama_server, bars=self.reports)
        with self.reports.steps(f"export {format}", unit="bytes" if format == "merged" else "modules") as progress:
            exported = export(
                adapter,
                place,
                form=format,
                library=known,
                base=spec,
                dtype=dtype,
                ollama_base=gguf if format == "ollama" else None,
                allow_base_mismatch=allow_base_mismatch,
                test=asked,
                progress=progress,
            )
        return replace(exported, format=format, tests=tuple(asked.results) if asked is not None else None)


def _output_text(output: StrPath | None) -> str | None:
    """A name or a folder as one would type it; a path object is always a folder."""
    return output if output is None or isinstance(output, str) else folder_text(output)


def _refuse(why: str, **options: object) -> None:
    """Raise `UsageProblem` if any of `options` was given."""
    flags = {"adapters": "the adapters", "option": "-O"}
    unset = [name for name, value in options.items() if value is None or value is False or value in ((), [], {})]
    if given := [name for name in options if name not in unset]:
        words = ", ".join(flags.get(name, f"--{name.replace('_', '-')}") for name in given)
        raise UsageProblem(f"{why}; drop {words}")
