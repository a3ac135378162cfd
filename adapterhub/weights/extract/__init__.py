"""Extraction: turns the difference between a fine-tuned model and its base into a LoRA.

Both models are read weight by weight and shard by shard; no model is loaded or built. The difference D = tuned - base
of each weight is cut to the closest update of low rank (`randomized`). Other differences are listed, because a LoRA
cannot hold them. Extraction needs the memory of a few float32 copies of the largest weight.

The result has scale 1 in every module (alpha equals the rank). Its relative error ‖D - B A‖ / ‖D‖ over all modules is
measured on the stored factors, after rounding.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

from adapterhub.core.digests import Progress
from adapterhub.core.disk.new_folder import new_folder
from adapterhub.core.errors import BaseMismatch, Incompatible, UsageProblem, alike_once, problem_list, shown
from adapterhub.core.specs import BaseSpec
from adapterhub.formats.prompts.form import PromptForm
from adapterhub.library.bases.records import BaseRecord, Bases
from adapterhub.library.intake.clashes import Bump
from adapterhub.library.intake.description import Description
from adapterhub.library.intake.prompts import template_in, with_template
from adapterhub.library.library import Added, Library
from adapterhub.weights.extract._models import Model
from adapterhub.weights.extract._pairing import NEW_HEADS, Other, Pairing, kept_whole, pair, unit_of
from adapterhub.weights.extract._reading import WeightReader
from adapterhub.weights.extract._run import ExtractProgress, ExtractRun, LeftOut
from adapterhub.weights.lowrank.algebra import error_of_energy, limit_of
from adapterhub.weights.merge import DEFAULT_DTYPE, DTYPES

__all__ = [
    "ExtractOptions",
    "ExtractProgress",
    "ExtractResult",
    "LeftOut",
    "extract",
    "extract_into_library",
    "model_record",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractResult:
    """What an extraction wrote, and how far it is from the tuned model.

    `relative_error` covers all modules with factors, `worst_error` only `worst_module`. `missing_share` is the norm of
    everything that was cut, rounded or left out, relative to ‖tuned - base‖, over all tensors that both models have.
    `ranks` counts modules by rank, `left_out` lists the differing tensors without factors, and `unchanged` counts the
    equal tensors. `recipe` is JSON.
    """

    out_folder: Path
    relative_error: Annotated[float, "against the exact difference, in the modules that the adapter has"]
    worst_error: Annotated[float, "its relative error"]
    worst_module: Annotated[str, "the module with the largest error"]
    missing_share: Annotated[float, "error against the whole difference, including what was left out"]
    ranks: Annotated[Mapping[int, int], "number of modules by rank"] = field(hash=False)
    dtype: str
    unchanged: Annotated[int, "number of tensors that do not differ"]
    left_out: tuple[LeftOut, ...]
    warnings: tuple[str, ...]
    recipe: dict[str, object] = field(hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractOptions:
    """What to keep. Give exactly one of `rank`, `max_error` (relative, of each weight) and `energy`.

    `energy` is the share of each weight's squared norm to keep. `dtype` is that of the factors, by default float32.
    `save_rest` carries small modules whole (`modules_to_save`) that do not fit a LoRA. `skip_unequal` leaves out
    tensors that only one model has or whose shapes differ; by default they are refused.

    Raises:
        UsageProblem: not exactly one of the three is given, or one is out of range.
    """

    rank: int | None = None
    max_error: float | None = None
    energy: float | None = None
    dtype: str | None = None
    save_rest: bool = False
    skip_unequal: bool = False

    def __post_init__(self) -> None:
        if not limit_of(rank=self.rank, max_error=self.max_error, energy=self.energy):
            hint = "give one of `--rank N`, `--energy E` and `--max-error E`"
            raise UsageProblem("one of rank, energy and max_error is required", hint=hint)
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UsageProblem(f"dtype `{shown(self.dtype)}`, expected one of {', '.join(DTYPES)}")

    @property
    def limit(self) -> dict[str, int | float | None]:
        """The rank and the error as arguments of `closest`."""
        if self.energy is None:
            return {"rank": self.rank, "max_error": self.max_error}
        return {"rank": None, "max_error": error_of_energy(self.energy)}

    def to_json(self) -> dict[str, object]:
        """The options that are set, without the dtype."""
        options = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "dtype"}
        return {name: value for name, value in options.items() if value is not None and value is not False}


def extract(
    base: BaseRecord,
    tuned: BaseRecord,
    out_folder: Path,
    options: ExtractOptions,
    *,
    progress: ExtractProgress | None = None,
) -> ExtractResult:
    """Write the difference between `tuned` and `base` as a PEFT folder, which appears complete or not at all.

    The records must match the current files (`Bases.look`).

    Raises:
        BaseMismatch: some tensors do not pair up; lists all.
        Incompatible: nothing differs that a LoRA can hold, or weights are quantised or not finite; lists all.
        Conflict: `out_folder` exists and is not empty.
        BaseNotFound, Malformed, CouldNotTell: a model cannot be read.
    """
    before, after = Model.of(base), Model.of(tuned)
    pairing = pair(before, after)
    savable = kept_whole(pairing)
    kept = savable if options.save_rest else {}
    standing = [] if options.skip_unequal else [o for o in pairing.unequal if unit_of(o.name) not in kept]
    _check_pairing(pairing, before, after, standing)
    run = ExtractRun(
        base=before,
        tuned=after,
        pairing=pairing,
        kept=kept,
        savable=savable,
        limit=options.limit,
        dtype=DTYPES[options.dtype or DEFAULT_DTYPE],
        progress=progress or (lambda _done, _all: None),
    )
    with new_folder(out_folder) as partial, WeightReader() as reader:
        run.write_into(partial, reader)
    return _result(run, out_folder, options)


def extract_into_library(
    library: Library,
    base: BaseRecord,
    tuned: BaseRecord,
    about: Description,
    options: ExtractOptions,
    *,
    bump: Bump | None = None,
    variant: bool = False,
    progress: ExtractProgress | None = None,
) -> tuple[Added, ExtractResult]:
    """Extract, and add the result under the description `about`, made for `base`; on an error nothing is stored.

    Adds the recipe and the measured errors to the description. `bump` and `variant` as for `Library.add`.
    """
    if bump is None:
        ensure_room(library, base, tuned, about, options, variant=variant)
    with library.store.staging() as staging:
        result = extract(base, tuned, staging / "extracted", options, progress=progress)
        measured = {"relative_error": result.relative_error, "missing_share": result.missing_share}
        # Later digits are noise of the factorisations and would give each machine its own manifest.
        metrics = {f"extract_{key}": float(f"{number:.3g}") for key, number in measured.items()}
        form = about.prompt or _own_template(base, tuned)
        about = replace(about, recipe=result.recipe, metrics=metrics, prompt=form)
        added = library.add(result.out_folder, about, base=base, bump=bump, variant=variant)
    if form is not None:
        kept = f"the adapter keeps the chat template of {shown(tuned.label, 200)}, which differs from its base's"
        result = replace(result, warnings=(*result.warnings, kept))
    return added, result


def _own_template(base: BaseRecord, tuned: BaseRecord) -> PromptForm | None:
    """A chat in the tuned model's template, where that is another than the base's and a build can hold it."""
    theirs = tuned.hints.chat_template_sha256
    if tuned.path is None or theirs is None or theirs == base.hints.chat_template_sha256:
        return None
    template = template_in(tuned.path)
    try:
        return None if template is None else with_template(PromptForm(form="chat"), template)
    except UsageProblem:  # longer than a build holds
        return None


def ensure_room(
    library: Library,
    base: BaseRecord,
    tuned: BaseRecord | None,
    about: Description,
    options: ExtractOptions,
    *,
    variant: bool,
) -> None:
    """Refuse an extraction before it runs if a build with its name, version and base exists that it would not give.

    `tuned` is None before the files of that model are read.

    Raises:
        ReleaseExists: names the build that exists and the next version.
    """
    namesakes = library.namesakes(about.name, None, base.fingerprint)
    ours = _recipe(base, tuned, options)
    for build in namesakes.with_version(about.version):
        recorded = {key: v for key, v in build.manifest.recipe.items() if tuned is not None or key[:5] != "tuned"}
        words = build.manifest.task, build.manifest.description
        if recorded == ours and words == (about.task, about.description):
            return
    namesakes.ensure_room(about.version, "the extracted adapter", variant=variant)


def model_record(bases: Bases, spec: BaseSpec | str, *, progress: Progress | None = None) -> BaseRecord:
    """The record of the model that `spec` names, compared with its current files.

    Raises:
        BaseNotFound, UsageProblem, Malformed, CouldNotTell: as `Bases.find` and `Bases.look`.
        BaseMismatch: the weights differ from the registered ones.
    """
    record = bases.find(spec, progress=progress)
    return bases.current(record, progress=progress) if record.alias and record.path is not None else record


def _result(run: ExtractRun, out_folder: Path, options: ExtractOptions) -> ExtractResult:
    """The result from the measurements of the run."""
    error, norm = run.errors.total
    worst_module, worst_error = run.errors.worst
    gone = [one.change for one in run.left_out if one.change is not None and not one.is_carried]
    kept = [one.change for one in run.left_out if one.change is not None and one.is_carried]
    return ExtractResult(
        out_folder=out_folder,
        relative_error=run.errors.relative,
        worst_error=worst_error,
        worst_module=worst_module,
        missing_share=math.hypot(error, *gone) / math.hypot(norm, *gone, *kept),
        ranks=MappingProxyType(dict(sorted(Counter(run.ranks.values()).items()))),
        dtype=options.dtype or DEFAULT_DTYPE,
        unchanged=run.pairing.unchanged + run.rounded,
        left_out=tuple(run.left_out),
        warnings=tuple(run.remarks()),
        recipe=_recipe(run.base.record, run.tuned.record, options),
    )


def _recipe(base: BaseRecord, tuned: BaseRecord | None, options: ExtractOptions) -> dict[str, object]:
    """What the manifest of the result records; without `tuned`, the part that the rest says."""
    dtype = options.dtype or DEFAULT_DTYPE
    recipe: dict[str, object] = {"method": "extract", "options": options.to_json(), "dtype": dtype}
    return recipe | _named("base", base) | (_named("tuned", tuned) if tuned is not None else {})


def _check_pairing(pairing: Pairing, base: Model, tuned: Model, unequal: list[Other]) -> None:
    """Raise unless the models pair up; `unequal` are the tensors that must not differ in shape."""
    if not (pairing.targets or pairing.others or pairing.unequal or pairing.unreadable):
        raise Incompatible(f"`{shown(tuned.label)}` and `{shown(base.label)}` have equal weights; nothing to extract")
    if unequal:
        head = (
            f"`{shown(tuned.label)}` was not fine-tuned from `{shown(base.label)}` alone: some tensors do not pair up"
        )
        new_head = any(o.base is None and unit_of(o.name).rpartition(".")[2] in NEW_HEADS for o in unequal)
        hint = "`--skip-unequal` leaves them out; the adapter then lacks their effect"
        if new_head:
            hint = (
                "`--save-rest` carries a small new head whole; `--skip-unequal` leaves out tensors that do not pair up"
            )
        raise BaseMismatch(
            problem_list(head, alike_once([f"`{shown(o.name)}`: {o.reason}" for o in unequal])), hint=hint
        )
    if pairing.unreadable:
        head = "some weights are not stored as plain floating point numbers"
        raise Incompatible(
            problem_list(head, alike_once(pairing.unreadable)), hint="use the models from before quantisation"
        )


def _named(role: str, record: BaseRecord) -> dict[str, object]:
    """A model in a recipe: the digest of its weights, and a readable name that is not a path."""
    name = record.hub or (record.alias if role == "tuned" else "")  # the base's alias is local to this machine
    return {role: record.fingerprint.weights} | ({f"{role}_name": name} if name else {})
