"""Weights that answer a few examples best, found by trying them on the base."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from adapterhub.core.digests import canonical_json, digest_of
from adapterhub.core.disk.files import digest_of_file
from adapterhub.core.errors import BaseMismatch, BaseNotFound, CouldNotTell, shown
from adapterhub.formats.contract.reading import contract_in

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from adapterhub.core.specs import BaseSpec
    from adapterhub.formats.contract.contract import Contract
    from adapterhub.inference.tuning import Encoded, Example, Tuned
    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.library import Library
    from adapterhub.projects.reporting import Bars
    from adapterhub.projects.session import Session
    from adapterhub.weights.recipes.combination import Ingredient


CONTRACTS: Final = "contracts"
"""The word that takes the goldens of the parents' contracts in place of a file of examples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedMerge:
    """The ingredients with their tuned weights, the metrics for the manifest, and the JSON document."""

    result: Tuned
    ingredients: tuple[Ingredient, ...]
    metrics: Mapping[str, float | str]
    document: Mapping[str, Any]


def tuned(
    session: Session,
    library: Library,
    ingredients: Sequence[Ingredient],
    examples: Path,
    on: BaseSpec | None,
    *,
    budget: int | None,
    seed: int,
    bars: Bars,
) -> TunedMerge:
    """Search the weights. `examples` is a file, or the word `contracts` for the goldens of the ingredients' contracts.

    Raises:
        CouldNotTell: no ingredient has a contract, or one cannot be asked.
        BaseNotFound: the weights of the base are not on this machine.
        BaseMismatch: the adapters were made for another base.
        Malformed, NotFound: the examples cannot be read.
    """
    from adapterhub.core.specs import BaseSpec
    from adapterhub.inference.loader.text import load_base
    from adapterhub.inference.tuning import DEFAULT_BUDGET, read_examples, tune

    record, folder = _base(library, ingredients, on)
    contracts = _contracts(session, ingredients) if str(examples) == CONTRACTS else {}
    lines: Sequence[Example | Encoded] = () if contracts else read_examples(examples)
    source = digest_of(canonical_json([one.digest for one in contracts.values()])) if contracts else None
    session.out.note(f"loading base {record.label}")
    model, tokenizer = load_base(folder)
    if contracts:
        from adapterhub.inference.contracts.inputs import examples_of

        lines = [one for name, each in contracts.items() for one in examples_of(name, each, model, tokenizer)]
    with bars.steps("tune", unit="tries") as progress:
        result = tune(
            model,
            tokenizer,
            [i.folder if i.digest is None else f"{i.label}#{i.digest}" for i in ingredients],
            lines,
            budget=budget or DEFAULT_BUDGET,
            seed=seed,
            library=library,
            base=BaseSpec.parse(record.alias or str(folder)),
            progress=progress,
        )
    if not result.is_better:
        where = "examples that the search did not use" if result.is_held_out else "the examples"
        are_equal = len(set(result.weights)) == 1
        ending = "so the shares stay equal" if are_equal else "but the tuned weights are smaller"
        session.out.warn(f"no weights did better than equal shares on {where}, {ending}")
    losses = {"base": result.base_loss, "before": result.loss_before, "after": result.loss_after}
    metrics: dict[str, float | str] = {f"tune_loss_{name}": float(f"{loss:.6g}") for name, loss in losses.items()}
    metrics |= {"tune_examples": source or digest_of_file(examples)[0], "tune_evaluations": result.evaluations}
    metrics |= {"tune_searched": result.searched, "tune_reported": result.reported}
    return TunedMerge(
        result=result,
        ingredients=tuple(replace(i, weight=w) for i, w in zip(ingredients, result.weights, strict=True)),
        metrics=metrics,
        document=result.to_json(),
    )


def _contracts(session: Session, ingredients: Sequence[Ingredient]) -> dict[str, Contract]:
    """The contracts of the ingredients by label.

    Raises:
        CouldNotTell: none has one.
    """
    found = {one.label: contract for one in ingredients if (contract := contract_in(one.folder)) is not None}
    missing = [f"`{shown(one.label, 200)}`" for one in ingredients if one.label not in found]
    if not found:
        raise CouldNotTell(
            f"none of {', '.join(missing)} has a contract to tune the weights on. Nothing was merged",
            hint="`adapt test --record NAME` records one; `--tune FILE` takes examples",
        )
    if missing:
        session.out.warn(f"no contract asks for the task of {', '.join(missing)}, so its weight may fall to 0")
    return found


def _base(library: Library, ingredients: Sequence[Ingredient], on: BaseSpec | None) -> tuple[BaseRecord, Path]:
    """The base on which to try the weights, and its folder: `on`, else the base of the adapters."""
    from adapterhub.formats.base.fingerprint import compare
    from adapterhub.weights.recipes.combination import common_base

    base, _ = common_base(ingredients)
    if on is not None:
        record = library.bases.find(on)
    elif base.fingerprint is not None:
        found = library.bases.by_fingerprint(base.fingerprint)
        if found is None:
            raise BaseNotFound("the base of these adapters is not registered here", hint="`adapt base add PATH`")
        record = found
    else:
        raise BaseNotFound("the base of these adapters is unknown", hint="name it with `--on`")
    comparison = compare(base.fingerprint, record.fingerprint)
    if base.fingerprint is not None and not comparison.verdict.allows_attach:
        lines = [f"these adapters were made for another base than `{record.label}`", *comparison.differences]
        raise BaseMismatch("\n  ".join(lines))
    if record.path is None or not record.path.is_dir():
        raise BaseNotFound(
            f"the weights of base `{record.label}` are not on this machine",
            hint="register a local copy with `adapt base add PATH --as NAME`, then pass `--on NAME`",
        )
    return record, record.path
