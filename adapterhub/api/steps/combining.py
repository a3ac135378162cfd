"""New adapters from others: what a caller names and asks for becomes a merge, a copy at a lower rank, or two sides."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Final

from adapterhub.core.arguments import path_of
from adapterhub.core.digests import canonical_json, digest_of
from adapterhub.core.errors import (
    AdapterNotFound,
    BaseMismatch,
    BaseNotFound,
    Conflict,
    CouldNotTell,
    NoCompatibleRelease,
    RemoteUnreachable,
    SpecError,
    UnsupportedAdapter,
    UsageProblem,
    shown,
)
from adapterhub.core.specs import AdapterSpec, names_folder, parse_name, parse_version, version_of
from adapterhub.distribution.choosing import find_installed, look_up
from adapterhub.distribution.finding import ensure_folder
from adapterhub.formats.contract.reader import contract_in
from adapterhub.formats.documented import Documented
from adapterhub.formats.manifest import CONTRACT_FILE, BaseRef
from adapterhub.library.intake.clashes import Bump, check_naming
from adapterhub.library.intake.description import Description
from adapterhub.projects.session import sources_from, wanted_from
from adapterhub.weights.catalogue import describe, names

if TYPE_CHECKING:
    from adapterhub.api.opened import Adapters
    from adapterhub.core.digests import Digest
    from adapterhub.core.specs import BaseSpec
    from adapterhub.formats.contract.contract import Contract
    from adapterhub.formats.derived.comparison import Comparison
    from adapterhub.inference.tuning import Encoded, Example, Tuned
    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.library import Library
    from adapterhub.library.store.catalog import AdapterLike
    from adapterhub.library.transfer import Source
    from adapterhub.projects.session import Session
    from adapterhub.weights.compare.difference import ComparedSide
    from adapterhub.weights.recipes.combination import Combination, Ingredient, Runner

DEFAULT_VERSION: Final = "1.0.0"
AUTO: Final = "auto"
AUTO_ENERGY: Final = 0.99
"""The share of the squared norm that rank `auto` keeps: an error of 10 % in each module."""
CONTRACTS: Final = "contracts"
"""The word that takes the goldens of the parents' contracts in place of a file of examples."""

_NAME_HINT: Final = "`-o NAME` adds the result to the library, `-o ./folder` writes it to a folder"
_NUMBER: Final = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)")
_SET_APART: Final = ("method", "rank", "energy", "max_error", "seed", "dtype")
"""What is asked for by an argument of its own, never among the options of a method."""


# ---------------------------------------------------------------- what the result is called
@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a caller says of a new adapter; None leaves it to a default. `bump` and `variant` are as for `Library.add`.

    Raises:
        UsageProblem: two of them exclude each other.
    """

    version: str | None = None
    bump: Bump | None = None
    variant: bool = False
    task: str | None = None
    description: str | None = None
    license: str | None = None

    def __post_init__(self) -> None:
        check_naming(self.bump, variant=self.variant, version=self.version)

    @property
    def words(self) -> dict[str, str]:
        """The fields for the manifest."""
        words = {name: getattr(self, name) for name in ("version", "task", "description", "license")}
        return {name: text for name, text in words.items() if text is not None}

    def target(self, output: str, own: Mapping[str, str | None] | None = None) -> Description | Path:
        """Return the new folder that `output` names, or the description of an adapter by that name.

        `own` holds where unsaid.

        Raises:
            SpecError: the name or the version is invalid.
            UsageProblem: a folder has no version, so it takes no `bump` and no `variant`.
        """
        if names_folder(output):
            if self.bump is not None or self.variant:
                raise UsageProblem(
                    "`--bump` and `--variant` are for adapters of the library; a folder has no version",
                    hint="drop them, or pass a name to `-o`",
                )
            return path_of(output)
        words = {**(own or {}), **self.words}
        return Description(
            name=parse_name(output),
            version=parse_version(words.get("version") or DEFAULT_VERSION),
            task=words.get("task"),
            description=words.get("description") or "",
            license=words.get("license"),
        )


def _name_of_label(label: str) -> str:
    """Return the bare name in `acme/legal-qa==1.0.0` or a Hub id, or the last part of a folder's path."""
    if names_folder(label):
        return path_of(label).resolve().name.lower()
    return label.partition("==")[0].rpartition("/")[2].lower()


def default_name(labels: Sequence[str], ending: str = "") -> str:
    """Return a name for a result made from the adapters or models `labels`: their names and `ending`, joined by `-`.

    Raises:
        UsageProblem: the joined name is invalid, or equals the name of a parent.
    """
    parts = [_name_of_label(label) for label in labels]
    name = "-".join([*parts, ending] if ending else parts)
    try:
        if name in parts:
            raise UsageProblem("the result needs a name", hint=_NAME_HINT)
        return parse_name(name)
    except SpecError as error:
        raise UsageProblem(f"the result needs a name: {error.message}", hint=_NAME_HINT) from None


# ---------------------------------------------------------------- what goes in
def with_shares(adapters: Adapters, weights: Sequence[float] | None) -> list[tuple[AdapterLike, float]]:
    """Each adapter with its weight: that of a mapping, its one of `weights`, or an equal share; the shares sum to 1.

    Raises:
        UsageProblem: the weights are not one each and finite, or they stand among the adapters.
    """
    from adapterhub.distribution.finding import with_weights

    if isinstance(adapters, Mapping):
        return with_weights(adapters, weights)
    several = [one for one, _ in with_weights(adapters, None)]
    numbers = [one for one in several if isinstance(one, str) and _NUMBER.fullmatch(one)]
    if numbers:
        words = " ".join(str(one) for one in several if one not in numbers)
        meant = ",".join([*(f"{weight:g}" for weight in weights or ()), *numbers])
        place = "stands where an adapter is" if len(numbers) == 1 else "stand where adapters are"
        raise UsageProblem(
            f"{', '.join(f'`{one}`' for one in numbers)} {place} expected; weights go into one option, with commas",
            hint=f"write `{words} --weights {meant}`",
        )
    count = len(several)
    if weights is not None and len(weights) != count:
        example = ",".join([f"{1 / count:.2g}"] * count)
        raise UsageProblem(
            f"{len(weights)} weight{'s' * (len(weights) != 1)} for {count} adapter{'s' * (count != 1)}",
            hint=f"separate weights with commas: `--weights {example}`",
        )
    return with_weights(several, [1 / count] * count if weights is None else weights)


def ingredient(library: Library, text: str, weight: float, base: BaseSpec | None) -> Ingredient:
    """Return the adapter that `text` names, to be used: a folder if it begins as a path does, or an installed one.

    Raises:
        AdapterNotFound, NoCompatibleRelease, SpecError: no installed adapter matches.
        SignatureRefused, NamespaceBound: it may not be used.
    """
    return ingredient_of(side_of(library, text, base, find=find_installed), weight)


def ingredient_of(side: ComparedSide, weight: float) -> Ingredient:
    """Return a side as an input of a merge; a folder declares no base here."""
    from adapterhub.weights.recipes.combination import Ingredient

    if side.manifest is None or side.base is None or not (side.is_installed or side.origin):
        return Ingredient(folder=side.folder, label=side.label, weight=weight)
    digest = side.manifest.digest
    return Ingredient(folder=side.folder, label=side.label, weight=weight, base=side.base, digest=digest)


@contextmanager
def sides_of(
    session: Session,
    library: Library,
    texts: Sequence[str],
    base: BaseSpec | None,
    *,
    find: Callable[..., Any],
    remote: str | None = None,
    token: str | None = None,
    offline: bool = False,
) -> Iterator[list[ComparedSide]]:
    """Provide the adapters to compare: folders, installed ones, and a server's in temporary folders.

    With `remote`, specs are read from that server only. `library` resolves names, `find` chooses an installed build.

    Raises:
        AdapterNotFound, NoCompatibleRelease: neither here nor on a server.
    """
    from adapterhub.api.steps.publishing import pull_release
    from adapterhub.weights.compare.difference import ComparedSide

    def side(text: str, folder: Path) -> ComparedSide:
        if names_folder(text) or not remote:
            try:
                return side_of(library, text, base, find=find)
            except (AdapterNotFound, NoCompatibleRelease):
                if names_folder(text) or offline or not session.sources_of(AdapterSpec.parse(text), None, token=token):
                    raise
        elif offline:
            raise RemoteUnreachable(
                "`--offline` forbids asking a server", hint="without `--remote`, it asks the library"
            )
        spec = AdapterSpec.parse(text)
        release = pull_release(session, spec, folder, base=base, remote=remote, token=token).release
        manifest, label = release.manifest, f"{release.full_name}=={release.manifest.version}"
        return ComparedSide(folder=folder, label=label, manifest=manifest, base=manifest.base, origin=release.origin)

    with TemporaryDirectory(prefix="adapt-compare-") as folder:
        yield [side(text, Path(folder) / str(number)) for number, text in enumerate(texts)]


def side_of(library: Library, text: str, base: BaseSpec | None, *, find: Callable[..., Any] = look_up) -> ComparedSide:
    """Return the adapter that `text` names: a folder where it begins as a path does, otherwise an installed one.

    Raises:
        AdapterNotFound: there is none; the hint shows how to write a folder.
    """
    from adapterhub.library.upkeep.damage import ensure_manifest_unchanged
    from adapterhub.weights.compare.difference import ComparedSide, side_of_folder

    if names_folder(text):
        folder = path_of(text)
        ensure_folder(folder)
        return side_of_folder(folder, text)
    spec = AdapterSpec.parse(text)
    try:
        build, _ = find(library, spec, wanted=wanted_from(library, spec, base))
    except AdapterNotFound as error:
        if not Path(text).is_dir():
            raise
        raise AdapterNotFound(error.message, hint=f"write `{shown(f'./{text}', 200)}` to name the folder") from None
    ensure_manifest_unchanged(library, build)
    label = f"{build.full_name}=={build.manifest.version}"
    return ComparedSide(folder=build.folder, label=label, manifest=build.manifest, base=build.base, is_installed=True)


def compared(session: Session, ingredients: Sequence[Ingredient], dtype: str) -> Comparison:
    """Return how alike the adapters are, and what their merge would be; nothing is merged.

    Raises:
        MergeRefused, Malformed: what cannot be compared.
    """
    from adapterhub.weights.compare.similarity import compare_adapters
    from adapterhub.weights.recipes.combination import common_base, in_pipeline
    from adapterhub.weights.recipes.toml import MergeStep

    obstacles: tuple[str, ...] = ()
    try:
        base, warnings = common_base(ingredients, session.library.bases.judged)
        ingredients = list(in_pipeline(MergeStep(inputs=tuple(ingredients)), base).leaves())
    except BaseMismatch as error:
        # Adapters of different bases can still be compared if the shapes agree, as for a base and its chat version.
        obstacles, warnings = ("; ".join(line.strip() for line in error.message.splitlines()),), []
    for warning in warnings:
        session.out.note(warning)
    with ExitStack() as stack:
        sides = [one.pinned().open(stack) for one in ingredients]
        total = len({module for side in sides for module in side.factors.modules})
        step = stack.enter_context(session.out.progress("compare", total, unit="modules"))
        found = compare_adapters(sides, dtype=dtype, progress=lambda _done, _all: step(1))
    figures = zip(found.adapters, ingredients, strict=True)
    found = replace(found, adapters=tuple(replace(one, digest=item.digest) for one, item in figures))
    if obstacles:
        found = replace(found, obstacles=(*obstacles, *found.obstacles), forecast=None)
    return found


# ---------------------------------------------------------------- how to merge
def choice_from(
    *,
    method: str | None,
    rank: int | str | None,
    energy: float | None,
    max_error: float | None,
    seed: int | None,
    options: Mapping[str, object],
    dtype: str | None,
    is_tuned: bool = False,
) -> Combination:
    """Return the merge, still without inputs, that these arguments choose.

    A weight search uses the seed with every method.

    Raises:
        UsageProblem: two options exclude each other, or the method does not have one.
    """
    from adapterhub.formats.documents import near_name
    from adapterhub.weights.recipes.toml import MergeStep, converted, default_method, options_of

    for name in _SET_APART:
        if name in options:
            flag = f"--{name.replace('_', '-')}"
            raise UsageProblem(f"-O `{name}={shown(options[name])}`: write `{flag} {shown(options[name])}`")
    given: dict[str, object] = {**cut_from(rank=rank, energy=energy, max_error=max_error)}
    about = describe(method or default_method(given))
    known = options_of(about)
    for name, value in options.items():
        if name not in known:
            raise _no_such_option(name, about.name, near_name(name, known))
        given[name] = converted(known[name], value)
    if seed is not None and not about.is_random and not is_tuned:
        raise UsageProblem(f"`{about.name}` is not random, so `--seed` has no effect; drop it")
    kept_seed = seed if about.is_random else None
    return MergeStep(inputs=(), method=about.name, options=given, dtype=dtype, seed=kept_seed)


def cut_from(
    *, rank: int | str | None, energy: float | None, max_error: float | None, is_required: bool = False
) -> dict[str, Any]:
    """Return the one of the three that sets the rank, by its name.

    Raises:
        UsageProblem: there are several, or none where one is required.
    """
    if rank == AUTO:
        rank = None
        energy = AUTO_ENERGY if energy is None and max_error is None else energy
    cuts: dict[str, Any] = {"rank": rank, "energy": energy, "max_error": max_error}
    given = {name: value for name, value in cuts.items() if value is not None}
    if len(given) > 1 or (is_required and not given):
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        message = f"{flags} each choose the rank" if given else "no option chooses the rank"
        raise UsageProblem(message, hint="give one of `--rank N`, `--energy E` and `--max-error E`")
    return given


def _no_such_option(name: str, method: str, near: str) -> UsageProblem:
    having = [other for other in names() if any(option.name == name for option in describe(other).options)]
    text = f"`{method}` has no option `{shown(name)}`{near}"
    hint = f"{', '.join(f'`{m}`' for m in having)} have it" if having and not near else ""
    return UsageProblem(text, hint=hint or "`adapt merge --methods` lists every method with its options")


def formula(step: Combination) -> str:
    """Return the sum that a merge computes, such as `0.7 x a + 0.3 x (1 x b + 1 x c, by ties)`."""
    from adapterhub.weights.recipes.toml import Inner

    terms = (
        f"{item.weight:g} x "
        + (f"({formula(item.step)}, by {item.step.method})" if isinstance(item, Inner) else item.label)
        for item in step.inputs
    )
    return " + ".join(terms)


def contract_note(combination: Combination, folder: Path) -> str:
    """Report the contracts of a merge's parents if the result was not tested; empty if none has one."""
    from adapterhub.weights.recipes.combination import is_same_adapter

    labels = [f"`{shown(one.label, 200)}`" for one in combination.leaves() if (one.folder / CONTRACT_FILE).is_file()]
    if not labels:
        return ""
    if not is_same_adapter(combination):
        verb = "have contracts" if len(labels) > 1 else "has a contract"
        return f"{' and '.join(labels)} {verb}, and the result carries none: `--test` asks it theirs"
    if not (folder / CONTRACT_FILE).is_file():
        return ""
    return f"the result carries the contract of {labels[0]}, untested: `adapt test` asks it"


# ---------------------------------------------------------------- resize
@dataclass(frozen=True, slots=True, kw_only=True)
class HeldWeights(Documented, title="Weights"):
    """The size of an adapter."""

    size_bytes: Annotated[int, "bytes"]
    ranks: Annotated[Mapping[int, int], "number of modules by rank"] = field(hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resizing:
    """A resize that was looked at: what to run, where to, and what the adapter holds before."""

    combination: Combination
    target: Description | Path
    before: HeldWeights
    run: Runner | None = None


def plan_resize(
    library: Library,
    parent: Ingredient,
    output: str | None,
    cut: Mapping[str, int | float],
    about: About,
    *,
    dtype: str | None = None,
) -> Resizing:
    """Look at the adapter that is to be made smaller; `cut` is one of rank, energy and max_error.

    `about` replaces the description by the author of the adapter.

    Raises:
        UnsupportedAdapter: its method has no low-rank factors.
    """
    from adapterhub.weights.recipes.toml import MergeStep

    rank = cut.get("rank")
    before, own_dtype = weights_in(parent.folder, parent.pinned().expected)
    if not before.ranks:
        raise UnsupportedAdapter(
            f"`{shown(parent.label, 200)}` has no low-rank factors to make smaller",
            hint="`adapt info` prints its method; `adapt resize NAME --to lora` makes a LoRA of it, if it is linear",
        )
    combination = MergeStep(inputs=(parent,), method="svd", options=cut, dtype=dtype or own_dtype)
    if rank is not None and rank >= max(before.ranks):
        combination = MergeStep(inputs=(parent,), dtype=dtype)  # a copy, unless --dtype converts it
    output = output or default_name([parent.label], f"r{rank}" if rank is not None else "small")
    target = about.target(output, _words_of(library, parent))
    return Resizing(combination=combination, target=target, before=before)


def plan_conversion(
    library: Library,
    parent: Ingredient,
    on: BaseSpec | None,
    output: str | None,
    cut: Mapping[str, int | float],
    about: About,
    *,
    dtype: str | None = None,
) -> Resizing:
    """Look at the adapter that is to become a LoRA, on the base `on`, by default its own; as `plan_resize`.

    Raises:
        UsageProblem: it is a plain LoRA already.
        BaseNotFound: the weights of its base are not on this machine.
    """
    from adapterhub.trust.verify import open_files
    from adapterhub.weights.recipes.combination import as_lora
    from adapterhub.weights.recipes.toml import MergeStep

    files = open_files(parent.folder, parent.pinned().expected)
    label, config = shown(parent.label, 200), files.config
    if config.is_lora and not config.start_changes_base and not any(v.changes_update for v in config.variants.values()):
        raise UsageProblem(f"`{label}` is a LoRA already", hint=f"`adapt resize {label} --rank N` makes it smaller")
    record, _ = _base(library, [parent], on)
    parent = replace(parent, base=BaseRef(fingerprint=record.fingerprint, hints=record.hints))
    size = len(files.config_bytes) + files.weights.size_bytes
    return Resizing(
        combination=MergeStep(inputs=(parent,), method="svd", options=cut, dtype=dtype),
        target=about.target(output or default_name([parent.label], "lora"), _words_of(library, parent)),
        before=HeldWeights(size_bytes=size, ranks={}),
        run=as_lora(record),
    )


def weights_in(folder: Path, expected: Mapping[str, Digest] | None) -> tuple[HeldWeights, str | None]:
    """Return the size and ranks of an adapter's files, and the dtype of all factors if they share a valid one."""
    from adapterhub.weights.dtypes import TORCH_DTYPES
    from adapterhub.weights.lowrank.factors import AdapterFactors
    from adapterhub.weights.merge import DTYPES

    with AdapterFactors(folder, expected) as factors:
        ranks = dict(sorted(Counter(module.rank for module in factors.modules.values()).items()))
        dtypes = {TORCH_DTYPES.get(spec.dtype) for module in factors.modules.values() for spec in (module.a, module.b)}
        size = len(factors.config_bytes) + factors.header.size_bytes
    own = next((name for name, dtype in DTYPES.items() if dtypes == {dtype}), None)
    return HeldWeights(size_bytes=size, ranks=ranks), own


def _words_of(library: Library, parent: Ingredient) -> dict[str, str]:
    """Return the description that an installed adapter's author gave."""
    if parent.digest is None:
        return {}
    manifest = library.store.read_manifest(parent.digest)
    words = {"version": manifest.version, "task": manifest.task, "description": manifest.description}
    return {key: text for key, text in (words | {"license": manifest.license}).items() if text}


# ---------------------------------------------------------------- recipes
@dataclass(frozen=True, slots=True, kw_only=True)
class RecipePlan:
    """A recipe whose adapters were found: what to merge, where to, and the digest that it recorded of the result."""

    combination: Combination
    target: Description | Path
    expected: str | None


def plan_recipe(
    session: Session,
    library: Library,
    path: Path,
    output: str | None,
    about: About,
    *,
    places: Sequence[Path],
    offline: bool,
) -> RecipePlan:
    """Find the recipe's inputs; those that are not installed come from `places` and servers.

    `output` and `about` replace the recipe's own values; the result then differs from the recorded one.

    Raises:
        Conflict: an installed adapter already has the name that the recipe gives, and no `output` repeats it.
        Malformed, NotFound: the file is not a recipe, or does not exist.
        DigestMismatch, AdapterNotFound, BaseMismatch: an input differs from the recipe's, or is missing.
    """
    from adapterhub.weights.recipes.combination import combination_of
    from adapterhub.weights.recipes.toml import read_recipe

    recipe = read_recipe(path)
    if not output and not recipe.name:
        raise UsageProblem("the recipe has no name for its result", hint="give one with `-o NAME`")
    own: dict[str, str | None] = {
        "version": recipe.version,
        "task": recipe.task,
        "description": recipe.description or None,
        "license": recipe.license,
    }
    target = about.target(output or str(recipe.name), own)
    if isinstance(target, Description) and output is None:
        _check_name_is_free(library, path, target, recipe.digest)
    disk = sources_from(session, tuple(places))

    def sources_for(spec: AdapterSpec) -> list[Source]:
        return disk if offline else [*disk, *session.sources_of(spec, None, token=None)]

    combination, warnings = combination_of(library, recipe, path.parent, sources_for, session.out.progress)
    for warning in warnings:
        session.out.warn(warning)
    if isinstance(target, Path):
        return RecipePlan(combination=combination, target=target, expected=None)
    is_own = target.name == recipe.name and {**own, **about.words} == own and about.bump is None
    expected = recipe.digest if is_own else None
    return RecipePlan(combination=combination, target=replace(target, metrics=recipe.metrics), expected=expected)


def _check_name_is_free(library: Library, path: Path, about: Description, digest: str | None) -> None:
    """Raise `Conflict` if the recipe's name for its result is that of another installed adapter.

    A stranger's recipe must not change the meaning of a name that the user already has.
    """
    named = library.builds_named(about.name)
    taken = [build for build in named if build.manifest.digest != digest]
    # A merge of this version may be an earlier run of this recipe; `Library.add` refuses it if the bytes differ.
    same = (one for one in named if version_of(one.manifest.version) == version_of(about.version))
    is_again = any(one.manifest.recipe.get("inputs") for one in same)
    if not taken or is_again:
        return
    there = ", ".join(f"`{build.full_name}` {build.manifest.label}" for build in taken[:3])
    raise Conflict(
        f"the recipe `{shown(str(path), 200)}` names its result `{about.name}` {about.version}, but {there} is "
        "already installed under this name. Nothing was changed",
        hint=f"`-o NAME` gives the result another name; `-o {about.name}` keeps the name",
    )


# ---------------------------------------------------------------- tune
@dataclass(frozen=True, slots=True, kw_only=True)
class TunedMerge:
    """What a search of weights found: the ingredients with these weights, and the metrics for the manifest."""

    result: Tuned
    ingredients: tuple[Ingredient, ...]
    metrics: Mapping[str, float | str]


def tuned(
    session: Session,
    library: Library,
    ingredients: Sequence[Ingredient],
    examples: Path,
    on: BaseSpec | None,
    *,
    budget: int | None,
    seed: int,
) -> TunedMerge:
    """Search the weights on the base `on`, by default that of the ingredients.

    `examples` is a file, or the word `contracts` for the goldens of the ingredients' contracts.

    Raises:
        CouldNotTell: no ingredient has a contract, or one cannot be asked.
        BaseNotFound: the weights of the base are not on this machine.
        BaseMismatch: the adapters were made for another base.
        Malformed, NotFound: the examples cannot be read.
    """
    from adapterhub.core.disk.files import digest_of_file
    from adapterhub.core.specs import BaseSpec
    from adapterhub.inference.contracts.answers import examples_of
    from adapterhub.inference.contracts.weighing import can_tune, tune_by_drift
    from adapterhub.inference.loader.text import load_base
    from adapterhub.inference.tuning import DEFAULT_BUDGET, read_examples, tune

    record, folder = _base(library, ingredients, on)
    contracts = _contracts(session, ingredients) if str(examples) == CONTRACTS else {}
    lines: Sequence[Example | Encoded] = () if contracts else read_examples(examples)
    source = digest_of(canonical_json([one.digest for one in contracts.values()])) if contracts else None
    session.out.note(f"loading base {record.label}")
    model, tokenizer = load_base(folder)
    by_drift = bool(contracts) and can_tune(contracts)
    if contracts and not by_drift:
        lines = [one for name, each in contracts.items() for one in examples_of(name, each, model, tokenizer)]
    adapters = [i.folder if i.digest is None else f"{i.label}#{i.digest}" for i in ingredients]
    with session.out.steps("tune", unit="tries") as progress:
        how: dict[str, Any] = {"budget": budget or DEFAULT_BUDGET, "library": library}
        how |= {"base": BaseSpec.parse(record.alias or str(folder)), "progress": progress}
        if by_drift:
            result = tune_by_drift(model, tokenizer, adapters, contracts, **how)
        else:
            result = tune(model, tokenizer, adapters, lines, seed=seed, **how)
    if not result.is_better:
        where = "examples that the search did not use" if result.is_held_out else "the examples"
        are_equal = len(set(result.weights)) == 1
        ending = "so the shares stay equal" if are_equal else "but the tuned weights are smaller"
        session.out.warn(f"no weights did better than equal shares on {where}, {ending}")
    losses = {"base": result.base_loss, "before": result.loss_before, "after": result.loss_after}
    metrics: dict[str, float | str] = {f"tune_loss_{name}": float(f"{loss:.6g}") for name, loss in losses.items()}
    metrics |= {"tune_examples": source or digest_of_file(examples)[0], "tune_evaluations": result.evaluations}
    metrics |= {"tune_searched": result.searched, "tune_reported": result.reported}
    drifts = {"before": result.drift_before, "after": result.drift_after}
    metrics |= {f"tune_drift_{name}": float(f"{one:.6g}") for name, one in drifts.items() if one is not None}
    return TunedMerge(
        result=result,
        ingredients=tuple(replace(i, weight=w) for i, w in zip(ingredients, result.weights, strict=True)),
        metrics=metrics,
    )


def _contracts(session: Session, ingredients: Sequence[Ingredient]) -> dict[str, Contract]:
    """Return the contracts of the ingredients by label.

    Raises:
        CouldNotTell: none has one.
    """
    found = {one.label: contract for one in ingredients if (contract := contract_in(one.folder)) is not None}
    missing = [f"`{shown(one.label, 200)}`" for one in ingredients if one.label not in found]
    if not found:
        raise CouldNotTell(
            f"none of {', '.join(missing)} has a contract to tune the weights on. Nothing was merged",
            hint="`adapt contract record NAME` records one; `--tune FILE` takes examples",
        )
    if missing:
        session.out.warn(f"no contract asks for the task of {', '.join(missing)}, so its weight may fall to 0")
    return found


def _base(library: Library, ingredients: Sequence[Ingredient], on: BaseSpec | None) -> tuple[BaseRecord, Path]:
    """Return the base on which to try the weights, and its folder: `on`, or the base of the adapters."""
    from adapterhub.weights.recipes.combination import common_base

    base, _ = common_base(ingredients, library.bases.judged)
    if on is not None:
        record = library.bases.find(on)
    elif base.fingerprint is not None:
        found = library.bases.by_fingerprint(base.fingerprint)
        if found is None:
            raise BaseNotFound("the base of these adapters is not registered here", hint="`adapt base add PATH`")
        record = found
    else:
        raise BaseNotFound("the base of these adapters is unknown", hint="name it with `--base`")
    comparison = library.bases.judged(base.fingerprint, record.fingerprint)
    if base.fingerprint is not None and not comparison.verdict.allows_attach:
        lines = [f"these adapters were made for another base than `{record.label}`", *comparison.differences]
        raise BaseMismatch("\n  ".join(lines), hint=comparison.hint)
    if record.path is None or not record.path.is_dir():
        raise BaseNotFound(
            f"the weights of base `{record.label}` are not on this machine",
            hint="register a local copy with `adapt base add PATH --as NAME`, then pass `--base NAME`",
        )
    return record, record.path
