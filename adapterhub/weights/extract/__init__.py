"""Extraction: turns the difference between a fine-tuned model and its base into a LoRA.

Both models are read weight by weight and shard by shard; no model is loaded or built. The difference D = tuned - base
of each weight is cut to the closest update of low rank (`randomized`). Other differences are listed, because a LoRA
cannot hold them. Extraction needs the memory of a few float32 copies of the largest weight.

The result has scale 1 in every module (alpha equals the rank). Its relative error ‖D - B A‖ / ‖D‖ over all modules is
measured on the stored factors, after rounding.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import torch

from adapterhub.core.digests import Progress
from adapterhub.core.disk.files import new_folder
from adapterhub.core.errors import BaseMismatch, Incompatible, UsageProblem, alike_once, problem_list, shown
from adapterhub.core.specs import BaseSpec
from adapterhub.formats.documented import Documented
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.formats.peft.pairs import PEFT_PREFIX
from adapterhub.formats.prompts.form import PromptForm
from adapterhub.formats.safetensors.header import DTYPE_BITS, TensorSpec
from adapterhub.library.bases.records import BaseRecord, Bases
from adapterhub.library.installed import Added
from adapterhub.library.intake.clashes import Bump
from adapterhub.library.intake.description import Description
from adapterhub.library.intake.prompts import template_in, with_template
from adapterhub.library.library import Library
from adapterhub.weights.dtypes import FORMAT_DTYPES
from adapterhub.weights.extract.pairing import (
    NEW_HEADS,
    ExtractTarget,
    OtherTensor,
    Pairing,
    StoredModel,
    WeightReader,
    error_of,
    kept_whole,
    pair,
    unit_of,
)
from adapterhub.weights.lowrank.algebra import LowRank, ModuleErrors, error_of_energy, limit_of
from adapterhub.weights.lowrank.factors import TensorFileWriter
from adapterhub.weights.lowrank.randomized import closest
from adapterhub.weights.merge import DEFAULT_DTYPE, DTYPES
from adapterhub.weights.merge.plan import common_rank, plain_lora, rank_pattern

ExtractProgress = Callable[[int, int], None]
"""Called with the weights done and the weights that differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut(Documented, keys="name reason elements change carried=is_carried"):
    """A tensor that differs and has no factors: why, its count of numbers, and whether it can be and is carried whole.

    `change` is ‖tuned - base‖, Frobenius; None unless both models have the tensor in one shape.
    """

    name: str
    reason: str
    elements: int
    change: Annotated[float | None, "Frobenius norm of the difference"]
    is_savable: bool
    is_carried: Annotated[bool, "whether --save-rest stored it whole"]


@dataclass(slots=True, kw_only=True)
class ExtractRun:
    """The models, the options and the measurements of one extraction.

    `savable` are the modules that can be carried whole, `kept` those that are; `limit` holds the arguments of
    `closest`. `errors` compares the stored factors with the difference, by the module of a weight. `rounded` counts
    tensors that differ only by rounding, `mixed` the weights with factors that are stored in two precisions.
    """

    base: StoredModel
    tuned: StoredModel
    pairing: Pairing
    kept: Mapping[str, Sequence[str]]
    savable: Mapping[str, Sequence[str]]
    limit: Mapping[str, Any]
    dtype: torch.dtype
    progress: ExtractProgress
    ranks: dict[str, int] = field(default_factory=dict)
    errors: ModuleErrors = field(default_factory=ModuleErrors)
    turned: bool = False
    rounded: int = 0
    mixed: int = 0
    left_out: list[LeftOut] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    def write_into(self, folder: Path, reader: WeightReader) -> None:
        """Write the factors of every weight that differs, then the tensors carried whole, then the config."""
        targets = self.pairing.targets
        carried = {name: self.pairing.weights[name] for names in self.kept.values() for name in names}
        saved = {
            TensorSpec.planned(f"{PEFT_PREFIX}{name}", weight.spec.dtype, weight.spec.shape): weight
            # widest numbers first, so that each tensor starts at a multiple of their size
            for name, weight in sorted(carried.items(), key=lambda i: (-DTYPE_BITS[i[1].spec.dtype], i[0]))
        }
        with TensorFileWriter(folder / WEIGHTS_FILE, [*self._largest(), *saved]) as writer:
            for done, target in enumerate(targets, 1):
                self._write(target, reader, writer)
                self.progress(done, len(targets))
            self._measure_others(reader)
            self._check()
            for spec, weight in saved.items():
                writer.add_bytes(spec, reader.data(weight))
        config = extracted_config(self.base, self.tuned, self.ranks, self.pairing.paths, self.kept, turned=self.turned)
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def _write(self, target: ExtractTarget, reader: WeightReader, writer: TensorFileWriter) -> None:
        """Cut and measure the difference of one weight, and write it for each module that uses it."""
        difference = reader.difference(target.base, target.tuned)
        if not difference.is_finite:
            self.refusals.append(f"`{shown(target.name)}` holds NaN or infinite numbers")
        elif difference.is_nothing:
            self.rounded += 1
        # After a refusal the loop goes on, so that the error lists every reason.
        if self.refusals or difference.is_nothing:
            return
        assert difference.matrix is not None
        stored = closest(difference.matrix, **self.limit).folded(self.dtype)
        if not stored.is_finite():
            self.refusals.append(f"`{shown(target.name)}`: its factors are not finite in {FORMAT_DTYPES[self.dtype]}")
            return
        self.mixed += target.base.spec.dtype != target.tuned.spec.dtype
        self.errors[target.sites[0].module] = error_of(stored, difference.matrix), difference.norm
        for site in target.sites:
            own = LowRank(a=stored.b.T, b=stored.a.T) if site.is_turned else stored
            pairs = zip(site.layout.names(site.module), (own.a, own.b), site.layout.shapes(own.rank), strict=True)
            for name, factor, shape in pairs:
                writer.add(name, factor.reshape(shape))
            self.ranks[site.module] = own.rank
            self.turned = self.turned or (site.is_turned and site.layout.kind == "linear")

    def _measure_others(self, reader: WeightReader) -> None:
        """Measure the tensors without factors."""
        for other in self.pairing.without_factors:
            change = None
            if other.base is not None and other.tuned is not None and other.is_comparable:
                difference = reader.difference(other.base, other.tuned, with_matrix=False)
                if difference.is_nothing:
                    self.rounded += 1
                    continue
                if not difference.is_finite:
                    self.refusals.append(f"`{shown(other.name)}` holds NaN or infinite numbers")
                change = difference.norm
            self.left_out.append(
                LeftOut(
                    name=other.name,
                    reason=other.reason,
                    elements=other.elements,
                    change=change,
                    is_savable=unit_of(other.name) in self.savable,
                    is_carried=unit_of(other.name) in self.kept,
                )
            )

    def _check(self) -> None:
        """Raise unless every number is finite and there is something to extract."""
        if self.refusals:
            raise Incompatible(
                problem_list("the difference of these weights cannot be extracted", alike_once(self.refusals)),
                hint="give models whose numbers are finite; `--dtype float32` holds the largest",
            )
        if not self.ranks:
            names = [f"`{shown(one.name)}`: {one.reason}" for one in self.left_out]
            reason = "a LoRA cannot hold what differs" if names else "the models differ only by rounding"
            raise Incompatible(
                problem_list(f"`{shown(self.tuned.label)}` gives no adapter: {reason}", alike_once(names)),
                hint="give a fine-tune of this base in which linear layers changed",
            )

    def _uneven_experts(self) -> bool:
        """Return whether the experts of one layer have several ranks."""
        ranks: defaultdict[str, set[int]] = defaultdict(set)
        for module, rank in self.ranks.items():
            layer, is_expert, place = module.partition(".experts.")
            if is_expert:
                ranks[f"{layer} {place.partition('.')[2]}"].add(rank)
        return any(len(distinct) > 1 for distinct in ranks.values())

    def _largest(self) -> list[TensorSpec]:
        """Every factor at its largest possible rank."""
        dtype, specs = FORMAT_DTYPES[self.dtype], []
        for site in (site for target in self.pairing.targets for site in target.sites):
            layout = site.layout
            shapes = layout.shapes(min(layout.out, layout.width, self.limit.get("rank") or layout.out))
            names = layout.names(site.module)
            specs += [TensorSpec.planned(name, dtype, shape) for name, shape in zip(names, shapes, strict=True)]
        return specs

    def remarks(self) -> Iterator[str]:
        """Remarks on the result besides its error."""
        if self.rounded:
            yield f"{self.rounded} tensors differ only by the rounding of their precision and count as unchanged"
        if self.mixed:
            yield (
                f"{self.mixed} weights are stored in two precisions, so the rounding of the coarser one is part of "
                "their update"
            )
        if self._uneven_experts():
            yield ("the experts of a layer have several ranks, which PEFT cannot stack; give them one with `--rank N`")


def extracted_config(
    base: StoredModel,
    tuned: StoredModel,
    ranks: Mapping[str, int],
    paths: Iterable[str],
    saved: Iterable[str],
    *,
    turned: bool,
) -> dict[str, Any]:
    """Return the config for factors of rank `ranks[module]`: scale 1 everywhere, exactly those modules as targets.

    `paths` are all modules in the files of both models, `saved` the modules that are carried whole. `turned` is true if
    some weights are stored as [in, out]. The config names the base by its Hub id, never by a local folder.
    """
    hints = base.record.hints
    r = common_rank(ranks.values())
    return plain_lora(r, rank_pattern(ranks, r)) | {
        "task_type": tuned.task_type,
        "base_model_name_or_path": hints.hub_id,
        "revision": hints.commit if hints.hub_id else None,
        "target_modules": short_names(ranks, paths),
        "modules_to_save": sorted(saved) or None,
        "fan_in_fan_out": turned,
        "bias": "none",
    }


def short_names(modules: Collection[str], paths: Iterable[str]) -> list[str]:
    """PEFT's `target_modules` for exactly `modules`: the last name where all modules of that name are targets.

    PEFT targets every module whose name ends with an entry, at a dot.
    """
    apart = {path.rpartition(".")[2] for path in set(paths).difference(modules)}
    leaves = {module: module.rpartition(".")[2] for module in modules}
    return sorted({module if leaf in apart else leaf for module, leaf in leaves.items()})


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
    """The output of an extraction, and how far it is from the tuned model.

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
        """Return the options that are set, without the dtype."""
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
    before, after = StoredModel.of(base), StoredModel.of(tuned)
    _check_forms(base, tuned)
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
    """Return a chat in the tuned model's template, where that is another than the base's and a build can hold it."""
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
    """Return the record of the model that `spec` names, compared with its current files.

    Raises:
        BaseNotFound, UsageProblem, Malformed, CouldNotTell: as `Bases.find` and `Bases.look`.
        BaseMismatch: the weights differ from the registered ones.
    """
    record = bases.find(spec, progress=progress)
    return bases.current(record, progress=progress) if record.alias and record.path is not None else record


def _result(run: ExtractRun, out_folder: Path, options: ExtractOptions) -> ExtractResult:
    """Return the result from the measurements of the run."""
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
    """Return the derivation for the result's manifest; without `tuned`, the part that the rest states."""
    dtype = options.dtype or DEFAULT_DTYPE
    recipe: dict[str, object] = {"method": "extract", "options": options.to_json(), "dtype": dtype}
    return recipe | _named("base", base) | (_named("tuned", tuned) if tuned is not None else {})


def _check_forms(base: BaseRecord, tuned: BaseRecord) -> None:
    """Raise if one of the two is quantised: codes cannot be subtracted from floats.

    Raises:
        Incompatible: names the quantised one and its format.
    """
    copies = [record for record in (base, tuned) if record.fingerprint.copy is not None]
    if len(copies) == 1:
        (copy,) = copies
        facts = copy.fingerprint.copy
        form = facts and (facts.form or facts.unknown)
        what = f"`{shown(copy.label, 200)}` is a quantised copy ({form}), whose codes cannot be compared with floats"
        hint = "extract from two models in floats: give the copy's source, or save the copy as floats with transformers"
        raise Incompatible(what, hint=hint)


def _check_pairing(pairing: Pairing, base: StoredModel, tuned: StoredModel, unequal: list[OtherTensor]) -> None:
    """Raise unless the models pair up; `unequal` are the tensors that must not differ in shape."""
    if not (pairing.targets or pairing.others or pairing.unequal or pairing.unreadable):
        raise Incompatible(
            f"`{shown(tuned.label)}` and `{shown(base.label)}` have equal weights; nothing to extract",
            hint="name the base with `--base`, and the fine-tuned model first",
        )
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
    """Return a model in a recipe: the digest of its weights, and a readable name that is not a path."""
    name = record.hub or (record.alias if role == "tuned" else "")  # the base's alias is local to this machine
    return {role: record.fingerprint.weights} | ({f"{role}_name": name} if name else {})
