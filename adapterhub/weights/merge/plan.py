"""What a merge will write, decided before any number is read, or every reason against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

from adapterhub.core.errors import shown
from adapterhub.formats.peft.config import owner
from adapterhub.formats.peft.layouts import Layout, plain_name
from adapterhub.weights.lowrank.factors import WeightedAdapter
from adapterhub.weights.merge._carried import Carried, carried
from adapterhub.weights.merge._refusals import own_reasons, raise_for, shared_settings, way_out

Refusal = Callable[[Sequence[int]], str | None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MergePlan:
    """What a merge will write.

    `layouts` has every module, sorted by name. `units` groups the modules that must have one rank because a config
    cannot tell them apart: the pairs that PEFT nests on one module of the base. `parameters` lists the parameters that
    a pair may be on. `carried` maps names in the new file to tensors. `settings` are additional settings of the
    result's config. `has_bias` gives every module of the result a bias of B.
    """

    layouts: Mapping[str, Layout]
    units: tuple[tuple[str, ...], ...]
    parameters: Mapping[str, tuple[str, ...]]
    carried: Mapping[str, Carried]
    settings: Mapping[str, object]
    has_bias: bool


def plan_merge(adapters: Sequence[WeightedAdapter], method: ModuleType) -> MergePlan:
    """The plan of a merge of `adapters` by the method in the module `method`.

    Raises:
        MergeRefused: the adapters cannot be merged by this method; lists every reason.
    """
    nonlinear = "" if getattr(method, "LINEAR", False) else method.__name__.rpartition(".")[2]
    reasons = [f"`{shown(s.label)}` {reason}" for s in adapters for reason in own_reasons(s, nonlinear=nonlinear)]
    settings, more = shared_settings(adapters)
    reasons += [*more, *_types(adapters)]
    layouts, more = _layouts(adapters)
    reasons += more
    parameters, more = _parameters(adapters)
    reasons += more
    depths: dict[str, int] = {}
    for module in layouts:
        depths[plain_name(module)] = depths.get(plain_name(module), 0) + 1
    tensors, more = carried(adapters, depths)
    reasons += more
    has_bias = any(s.factors.config.lora_bias for s in adapters)
    reasons += _without_bias(layouts) if has_bias else ()
    refusal: Refusal | None = getattr(method, "refusal", None)
    if refusal is not None:
        reasons += _method_reasons(adapters, layouts, refusal)
    raise_for(reasons, way_out(adapters, nonlinear=nonlinear))
    return MergePlan(
        layouts=layouts,
        units=_units(layouts),
        parameters=parameters,
        carried={one.name_in_file(depths): one for one in tensors.values()},
        settings=settings,
        has_bias=has_bias,
    )


def _types(adapters: Sequence[WeightedAdapter]) -> Iterator[str]:
    """A reason if the adapters are not all LoRA, all AdaLoRA, or all LoHa and LoKr, which have one format."""
    types = sorted({adapter.factors.config.peft_type for adapter in adapters})
    if len(types) > 1 and types != ["LOHA", "LOKR"]:
        yield f"the adapters are of {len(types)} types, {', '.join(types)}; LoHa and LoKr alone merge with each other"


def _layouts(adapters: Sequence[WeightedAdapter]) -> tuple[dict[str, Layout], list[str]]:
    layouts: dict[str, Layout] = {}
    reasons = []
    for module in sorted({module for s in adapters for module in s.factors.modules}):
        holders = [(s, s.factors.modules[module].layout) for s in adapters if module in s.factors.modules]
        layouts[module] = holders[0][1]
        if len({layout for _, layout in holders}) > 1:
            each = ", ".join(f"{layout} in `{shown(s.label)}`" for s, layout in holders)
            reasons.append(f"`{shown(module)}` differs: {each}")
    return layouts, reasons


def _parameters(adapters: Sequence[WeightedAdapter]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """The parameters of each pair that is on one, and a reason for each module on which adapters disagree.

    PEFT names such pairs by their depth, which depends on the targeted parameters. A name stands for the same parameter
    only between adapters with the same targets.
    """
    parameters: dict[str, tuple[str, ...]] = {}
    first: dict[str, tuple[WeightedAdapter, tuple[str, ...], frozenset[str]]] = {}
    reasons = []
    for adapter in adapters:
        pairs: dict[str, list[str]] = {}
        for module, factors in adapter.factors.modules.items():
            if factors.parameters:
                parameters[module] = factors.parameters
                pairs.setdefault(owner(module), []).append(module)
        for holder, modules in pairs.items():
            names = adapter.factors.modules[modules[0]].parameters
            other, others_names, others_modules = first.setdefault(holder, (adapter, names, frozenset(modules)))
            if (names, frozenset(modules)) != (others_names, others_modules):
                each = (
                    f"{_leaves(others_names)} in `{shown(other.label)}`, {_leaves(names)} in `{shown(adapter.label)}`"
                )
                reasons.append(
                    f"`{shown(holder)}` differs in its parameters (target_parameters): {each}; PEFT's names for such "
                    "pairs agree only between adapters with the same parameters"
                )
    return parameters, reasons


def _leaves(names: Sequence[str]) -> str:
    return ", ".join(shown(name.rpartition(".")[2]) for name in names)


def _without_bias(layouts: Mapping[str, Layout]) -> Iterator[str]:
    """A reason for each module whose bias PEFT could not load."""
    for module, layout in layouts.items():
        if layout.kind in ("embedding", "experts"):
            what = "an embedding" if layout.kind == "embedding" else "a parameter (target_parameters)"
            yield f"`{shown(module)}` is {what}, to which PEFT adds no lora_bias, and one of these adapters has one"


def _method_reasons(
    adapters: Sequence[WeightedAdapter], layouts: Mapping[str, Layout], refusal: Refusal
) -> Iterator[str]:
    """The method's own reasons, from the ranks of every module."""
    for module in layouts:
        reason = refusal([s.factors.modules[module].rank if module in s.factors.modules else 0 for s in adapters])
        if reason is not None:
            yield f"`{shown(module)}` {reason}"


def _units(layouts: Mapping[str, Layout]) -> tuple[tuple[str, ...], ...]:
    units: dict[str, list[str]] = {}
    for module in layouts:
        units.setdefault(owner(module), []).append(module)
    return tuple(tuple(modules) for modules in units.values())
