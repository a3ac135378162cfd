"""The plan of a merge, made before any number is read, or every reason against it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Final, Literal

from adapterhub.core.errors import MergeRefused, shown
from adapterhub.formats.dialects.experts import MARKS
from adapterhub.formats.peft.config import AdapterConfig, owner, saved_name
from adapterhub.formats.peft.methods import ADALORA_MARGIN, CONVERTIBLE_STARTS, METHODS, VARIANTS
from adapterhub.formats.peft.pairs import NESTED, PEFT_PREFIX, ROWS, FactorLayout, plain_name
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.weights.lowrank.algebra import MATRIX_NDIM
from adapterhub.weights.lowrank.factors import AdapterFactors, WeightedAdapter

_LORA: Final = ".lora_"
_KINDS: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r".*lora_magnitude_vector.*"), "a DoRA magnitude"),
    (re.compile(r".*\.lora_.*\.bias"), "a bias inside a LoRA pair, which its config does not announce (lora_bias)"),
    (re.compile(r".*\.base_layer\.weight"), "a copy of a base weight that is not an embedding"),
    (re.compile(r".*\.bias"), "a trained bias of the base, which its config does not announce (bias)"),
    (
        re.compile(r".*trainable_tokens.*"),
        "trained rows of an embedding, which its config does not announce (trainable_token_indices)",
    ),
    (re.compile(re.escape(PEFT_PREFIX) + ".*"), "which is not a LoRA factor"),
)


def raise_for(reasons: Sequence[str], hint: str = "") -> None:
    """Raise unless `reasons` is empty.

    Raises:
        MergeRefused: lists the reasons.
    """
    if reasons:
        raise MergeRefused("these adapters cannot be merged", reasons, hint=hint)


def foreign(adapter: WeightedAdapter) -> Iterator[str]:
    """Reasons against even copying an adapter: it is not a LoRA, or contains other tensors."""
    factors = adapter.factors
    if not factors.config.method.merges:
        mergeable = [name for name, method in METHODS.items() if method.merges]
        yield f"is of type {shown(factors.config.peft_type)}, expected {', '.join(mergeable[:-1])} or {mergeable[-1]}"
    elif not factors.modules and not (
        factors.config.is_lora and any(_LORA in spec.name for spec in factors.header.tensors)
    ):
        yield f"holds no {'LoRA' if factors.config.is_lora else factors.config.peft_type} factors"
    else:
        yield from (_unknown(spec.name) for spec in _not_recognised(adapter) if _LORA not in spec.name)


def own_reasons(adapter: WeightedAdapter, *, nonlinear: str = "") -> Iterator[str]:
    """Reasons against an adapter in any merge.

    `nonlinear` is the name of a method that does not sum, and so has no rule for biases.
    """
    yield from foreign(adapter)
    config = adapter.factors.config
    if not config.method.merges:
        return
    variants = [one.what for one in config.variants.values() if one.merging == "never"]
    yield from variants
    if config.lora_bias and nonlinear:
        yield f"has a bias inside its factors (lora_bias), and `{nonlinear}` has no rule for biases"
    init = config.init_lora_weights
    if config.start_changes_base:
        yield (
            f"changed the base weights when it was initialised (init_lora_weights {shown(init)}); its update is "
            "relative to the changed weights, not to the base"
        )
    elif config.start_is_unknown:
        yield f"has an unknown initialisation ({shown(init)}), which may have changed the base weights"
    for module, reason in adapter.factors.unclear.items():
        yield f"holds a pair on `{shown(module)}` that {reason}"
    yield from (_unknown(spec.name) for spec in _not_recognised(adapter) if _LORA in spec.name)
    if adapter.factors.component and adapter.factors.others:
        whole, component = shown(adapter.factors.others[0].name), adapter.factors.component
        yield f"is for the component `{component}` and holds `{whole}`, which cannot move into a pipeline's adapter"


def way_out(adapters: Sequence[WeightedAdapter], *, nonlinear: str = "") -> str:
    """Return the advice for adapters of these kinds; empty if nothing helps."""
    hints = []
    for adapter in adapters:
        config = adapter.factors.config
        if not config.method.merges:
            continue
        if config.use_dora:
            hints.append(f"a fused model holds a DoRA adapter exactly: `adapt fuse {shown(adapter.label)} -o ./fused`")
        elif str(config.init_lora_weights).lower().startswith(CONVERTIBLE_STARTS):
            hints.append(
                "PEFT converts it to a plain LoRA where it was trained: `model.save_pretrained(path, "
                "path_initial_model_for_weight_conversion=initial)`, where `initial` is a folder of the untrained "
                "adapter"
            )
        elif config.lora_bias and nonlinear:
            hints.append("`--method cat` and `--method svd` also add up biases")
    return "; ".join(dict.fromkeys(hints))


def shared_settings(adapters: Sequence[WeightedAdapter]) -> tuple[dict[str, object], list[str]]:
    """Return the settings that all adapters must share, and a reason for each setting on which they differ."""
    settings: dict[str, object] = {}
    reasons = []
    for key, variant in VARIANTS.items():
        if variant.merging != "alike":
            continue
        values = [getattr(s.factors.config, key) or () for s in adapters]
        holders = [s for s, value in zip(adapters, values, strict=True) if value]
        if holders and len(set(values)) > 1:
            each = ", ".join(f"`{shown(s.label)}`" for s in holders)
            reasons.append(f"{each} {variant.what}, but the other adapters do not, or differ in how")
        elif holders:
            settings[key] = [list(v) if isinstance(v, tuple) else v for v in values[0]]
    return settings, reasons


def _not_recognised(adapter: WeightedAdapter) -> Iterator[TensorSpec]:
    """Return the tensors that are not factors and that the config does not announce."""
    return (
        spec
        for spec in adapter.factors.others
        if recognised(adapter, spec) is None and not adapter.factors.config.is_of_variant(spec.name)
    )


def _unknown(name: str) -> str:
    kind = next((kind for pattern, kind in _KINDS if pattern.fullmatch(name)), "a name that PEFT does not use")
    return f"holds `{shown(name)}`, {kind}"


CarriedKind = Literal["module", "bias", "rows", "copy"]

_EMBEDDING: Final = re.compile(r"(.+\.)?([^.]*embed[^.]*|lm_head|wte|wpe|shared)")
"""Modules whose weights PEFT saves a copy of (`save_embedding_layers`), by the last part of their names."""

_REMARKS: Final[Mapping[CarriedKind, str]] = {
    "module": "{names} (modules_to_save) is carried over unchanged from `{label}`; its weight does not apply",
    "bias": "biases of the base ({names}) are carried over unchanged from `{label}`; its weight does not apply",
    "rows": "trained rows of {names} are carried over unchanged from `{label}`; its weight does not apply",
    "copy": "the copy of {names} is carried over unchanged from `{label}`; its weight does not apply",
}
_NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Carried:
    """One such tensor: its kind, its name in the base, its module, and its place in the file of `source`.

    `entry` names the module in `modules_to_save`. For `rows`, `name` is the name of PEFT's own layer, and `tokens`
    lists the rows.
    """

    what: CarriedKind
    name: str
    module: str
    entry: str
    source: WeightedAdapter
    spec: TensorSpec
    tokens: tuple[int, ...] = ()

    def name_in_file(self, depths: Mapping[str, int]) -> str:
        """Return the tensor's name in a file whose factors wrap each module in `depths` that many times.

        `q_proj.bias` of one adapter becomes `q_proj.base_layer.bias` beside another adapter that targets `q_proj`; PEFT
        silently ignores a name that it does not find.
        """
        if self.what in ("module", "rows"):
            return PEFT_PREFIX + self.name
        parts = self.name.split(".")
        wrapped = []
        for count, part in enumerate(parts, 1):
            wrapped += [part, *[NESTED] * depths.get(".".join(parts[:count]), 0)]
        return PEFT_PREFIX + ".".join(wrapped)


def recognised(source: WeightedAdapter, spec: TensorSpec) -> Carried | None:
    """Return the base's module that a tensor other than a factor replaces; None if the config does not announce it."""
    config = source.factors.config
    if not spec.name.startswith(PEFT_PREFIX):
        return None
    name = saved_name(spec.name).removeprefix(PEFT_PREFIX)
    saved = saved_module(spec.name, config)
    if saved is not None:
        entry, module = saved
        return Carried(what="module", name=name, module=module, entry=entry, source=source, spec=spec)
    if name.endswith(ROWS) and config.trainable_token_indices is not None:
        module = name.removesuffix(ROWS)
        tokens = config.trained_rows(module)
        if len(spec.shape) == MATRIX_NDIM and len(tokens) == spec.shape[0]:
            return Carried(what="rows", name=name, module=module, entry=module, source=source, spec=spec, tokens=tokens)
        return None
    plain = plain_name(name)
    module, _, leaf = plain.rpartition(".")
    if ".lora_" in name or leaf not in ("weight", "bias"):
        return None
    what: CarriedKind | None = None
    if leaf == "bias" and config.bias != "none":
        what = "bias"
    elif _EMBEDDING.fullmatch(module) or _is_embedding(source, module):
        what = "copy"
    return what and Carried(what=what, name=plain, module=module, entry=module, source=source, spec=spec)


def saved_module(name: str, config: AdapterConfig) -> tuple[str, str] | None:
    """Return the entry of `modules_to_save` that a tensor belongs to, and the full name of that module.

    PEFT compares the ends of names, even inside a part between dots.
    """
    parts = saved_name(name).removeprefix(PEFT_PREFIX).split(".")
    paths = [".".join(parts[:count]) for count in range(1, len(parts))]
    entries = config.saved_modules
    return next(((entry, path) for path in paths for entry in entries if path.endswith(entry)), None)


def carried(adapters: Sequence[WeightedAdapter], modules: Collection[str]) -> tuple[dict[str, Carried], list[str]]:
    """Return the tensors to carry over, by their name in the base, and the reasons against others.

    `modules` are the modules of the base that have factors.
    """
    tensors: dict[str, Carried] = {}
    reasons: list[str] = []
    for source in adapters:
        for spec in source.factors.others:
            one = recognised(source, spec)
            if one is None:
                continue
            first = tensors.setdefault(one.name, one)
            if not _is_same(first, one):
                reasons.append(
                    f"`{shown(one.name)}`{_of_what(one)} differs between `{shown(first.source.label)}` and "
                    f"`{shown(source.label)}`: two replacements of a part of the base cannot be added up"
                )
            elif one.what == "module":
                tensors[one.name] = one if first.what != "module" else first  # the config then names it
    return tensors, [*reasons, *_clashes(tensors, modules)]


def remarks(tensors: Mapping[str, Carried]) -> Iterator[str]:
    """One sentence for each adapter and kind of tensor that is carried over."""
    groups: dict[tuple[str, CarriedKind], dict[str, None]] = {}
    for one in tensors.values():
        groups.setdefault((one.source.label, one.what), {})[one.entry] = None
    for (label, what), entries in groups.items():
        names = [f"`{shown(entry)}`" for entry in sorted(entries)[:_NAMES_SHOWN]]
        rest = len(entries) - len(names)
        named = ", ".join([*names, *([f"and {rest} more"] if rest else [])])
        yield _REMARKS[what].format(names=named, label=shown(label))


def config_of(tensors: Mapping[str, Carried]) -> dict[str, object]:
    """Return the settings that make PEFT load the tensors that are carried over."""
    ones = list(tensors.values())
    biases = {one.source.factors.config.bias for one in ones if one.what == "bias"}
    rows = [one for one in ones if one.what == "rows"]
    tokens: object = {one.module: list(one.tokens) for one in rows} or None
    settings = {_frozen(one.source.factors.config.trainable_token_indices) for one in rows}
    if len(settings) == 1:  # as the author wrote it
        indices = rows[0].source.factors.config.trainable_token_indices
        tokens = {k: list(v) for k, v in indices.items()} if isinstance(indices, Mapping) else list(indices or ())
    return {
        "modules_to_save": sorted({one.entry for one in ones if one.what == "module"}) or None,
        "bias": "all" if "all" in biases else "lora_only" if biases else "none",
        "trainable_token_indices": tokens,
    }


def _clashes(tensors: Mapping[str, Carried], modules: Collection[str]) -> Iterator[str]:
    """Yield the changes of two adapters to one module that exclude each other."""
    replaced: dict[str, Carried] = {}
    for one in tensors.values():
        if one.what == "module":
            replaced.setdefault(one.module, one)
    for module in modules if replaced else ():
        parts = module.split(".")
        for count in range(1, len(parts) + 1):
            whole = replaced.get(".".join(parts[:count]))
            if whole is not None:
                label = shown(whole.source.label)
                yield f"`{shown(module)}` has LoRA factors, but `{label}` replaces all of `{shown(whole.module)}`"
    for one in (one for one in tensors.values() if one.what == "rows"):
        label, other = shown(one.source.label), tensors.get(f"{one.module}.weight")
        if one.module in modules:
            yield f"`{shown(one.module)}` has LoRA factors, but `{label}` replaces rows of it"
        if other is not None:
            yield (
                f"`{shown(one.module)}` comes whole from `{shown(other.source.label)}`, and `{label}` replaces rows "
                "of it"
            )


def _is_embedding(source: WeightedAdapter, module: str) -> bool:
    factors = source.factors.modules.get(module)
    return factors is not None and factors.layout.kind == "embedding"


def _frozen(indices: tuple[int, ...] | Mapping[str, tuple[int, ...]] | None) -> object:
    return tuple(sorted(indices.items())) if isinstance(indices, Mapping) else indices


def _is_same(first: Carried, second: Carried) -> bool:
    if second is first:
        return True
    factors, others = first.source.factors, second.source.factors
    return first.tokens == second.tokens and factors.same_bytes(first.spec, others, second.spec)


def _of_what(one: Carried) -> str:
    return {"module": " of modules_to_save", "rows": " (trainable_token_indices)"}.get(one.what, "")


Refusal = Callable[[Sequence[int]], str | None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MergePlan:
    """What a merge will write.

    `layouts` has every module, sorted by name. `units` groups the modules that must have one rank because a config
    cannot tell them apart: the pairs that PEFT nests on one module of the base. `parameters` lists the parameters that
    a pair may be on. `carried` maps names in the new file to tensors. `settings` are additional settings of the
    result's config. `has_bias` gives every module of the result a bias of B.
    """

    layouts: Mapping[str, FactorLayout]
    units: tuple[tuple[str, ...], ...]
    parameters: Mapping[str, tuple[str, ...]]
    carried: Mapping[str, Carried]
    settings: Mapping[str, object]
    has_bias: bool


def plan_merge(adapters: Sequence[WeightedAdapter], method: ModuleType) -> MergePlan:
    """Return the plan of a merge of `adapters` by the method in the module `method`.

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
    """Yield a reason if the adapters are not all LoRA, all AdaLoRA, or all LoHa and LoKr, which have one format."""
    types = sorted({adapter.factors.config.peft_type for adapter in adapters})
    if len(types) > 1 and types != ["LOHA", "LOKR"]:
        yield f"the adapters are of {len(types)} types, {', '.join(types)}; LoHa and LoKr alone merge with each other"


def _layouts(adapters: Sequence[WeightedAdapter]) -> tuple[dict[str, FactorLayout], list[str]]:
    layouts: dict[str, FactorLayout] = {}
    reasons = []
    for module in sorted({module for s in adapters for module in s.factors.modules}):
        holders = [(s, s.factors.modules[module].layout) for s in adapters if module in s.factors.modules]
        layouts[module] = holders[0][1]
        if len({layout for _, layout in holders}) > 1:
            each = ", ".join(f"{layout} in `{shown(s.label)}`" for s, layout in holders)
            reasons.append(f"`{shown(module)}` differs: {each}")
    return layouts, reasons


def _parameters(adapters: Sequence[WeightedAdapter]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Return the parameters of each pair that is on one, and a reason for each module on which adapters disagree.

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


def _without_bias(layouts: Mapping[str, FactorLayout]) -> Iterator[str]:
    """Yield a reason for each module whose bias PEFT could not load."""
    for module, layout in layouts.items():
        if layout.kind in ("embedding", "experts"):
            what = "an embedding" if layout.kind == "embedding" else "a parameter (target_parameters)"
            yield f"`{shown(module)}` is {what}, to which PEFT adds no lora_bias, and one of these adapters has one"


def _method_reasons(
    adapters: Sequence[WeightedAdapter], layouts: Mapping[str, FactorLayout], refusal: Refusal
) -> Iterator[str]:
    """Yield the method's own reasons, from the ranks of every module."""
    for module in layouts:
        reason = refusal([s.factors.modules[module].rank if module in s.factors.modules else 0 for s in adapters])
        if reason is not None:
            yield f"`{shown(module)}` {reason}"


def _units(layouts: Mapping[str, FactorLayout]) -> tuple[tuple[str, ...], ...]:
    units: dict[str, list[str]] = {}
    for module in layouts:
        units.setdefault(owner(module), []).append(module)
    return tuple(tuple(modules) for modules in units.values())


def merged_config(
    adapters: Sequence[AdapterFactors], plan: MergePlan, ranks: Mapping[str, int]
) -> tuple[dict[str, object], list[str]]:
    """Return the config of a merge of `adapters` in which module m has the rank `ranks[m]`, and warnings.

    The scale of a module is alpha / rank, so alpha equals the rank everywhere, also in the patterns. Adapters that name
    different bases or tasks give a warning; names do not show whether the bases are equal.
    """
    by_name = {name: rank for module, rank in ranks.items() for name in _names(module, plan)}
    # PEFT wrongly warns that a pattern for a parameter is unused, so parameters get the common rank.
    of_parameters = [ranks[module] for module in plan.parameters]
    r = common_rank(of_parameters or by_name.values())
    pattern = rank_pattern(by_name, r)
    configs = [adapter.config for adapter in adapters]
    warnings: list[str] = []
    base = _agreed("base", [c.base_model_name_or_path for c in configs], warnings)
    task = _agreed("task_type", [c.task_type for c in configs], warnings)
    revisions = {c.revision for c in configs if c.base_model_name_or_path == base}
    config: dict[str, object] = {
        "task_type": task,
        "base_model_name_or_path": base,
        "revision": revisions.pop() if len(revisions) == 1 else None,
        "target_modules": target_modules(adapters, [m for m in ranks if m not in plan.parameters]),
        "inference_mode": True,
        **config_of(plan.carried),
    }
    kinds = {layout.kind for layout in plan.layouts.values()}
    if kinds == {"loha"}:
        own: dict[str, object] = {"peft_type": "LOHA", "r": r, "alpha": r, "init_weights": True}
        return config | own | {"rank_pattern": pattern, "alpha_pattern": pattern}, warnings
    fan_in_fan_out = any(c.fan_in_fan_out for c in configs) or any(c.extra.get("fan_in_fan_out") for c in configs)
    if kinds == {"adalora"}:
        most = max(ranks.values())
        own = {"peft_type": "ADALORA", "init_r": most, "target_r": most, "total_step": 1}
        own["lora_alpha"] = most + ADALORA_MARGIN  # so that the scale is 1
        others = {
            f"{module}.lora_E": [True] * rank + [False] * (most - rank)
            for module, rank in ranks.items()
            if rank != most
        }
        return config | own | {"rank_pattern": others or None, "fan_in_fan_out": fan_in_fan_out}, warnings
    config |= plain_lora(r, pattern) | {
        "lora_bias": plan.has_bias,
        "target_parameters": target_parameters(adapters, plan.parameters) or None,
        # PEFT rejects target parameters together with fan_in_fan_out, and no base with such layers has any.
        "fan_in_fan_out": fan_in_fan_out and not plan.parameters,
        **(MARKS if plan.parameters else {}),
        **plan.settings,
    }
    return config, warnings


def plain_lora(r: int, pattern: Mapping[str, int]) -> dict[str, object]:
    """Return the settings of a LoRA of scale 1 in every module; `pattern` has the ranks that are not `r`."""
    ranks = {"r": r, "lora_alpha": r, "rank_pattern": pattern, "alpha_pattern": pattern}
    plain = {"use_rslora": False, "use_dora": False, "lora_dropout": 0.0, "init_lora_weights": True}
    return {"peft_type": "LORA", **ranks, **plain, "inference_mode": True}


def _names(module: str, plan: MergePlan) -> tuple[str, ...]:
    """Return the names that PEFT matches against the patterns of a config for the rank of a pair."""
    return plan.parameters.get(module) or (owner(module),)


def common_rank(ranks: Iterable[int]) -> int:
    """Return the rank of most modules; the larger of two equally common ranks."""
    return max(Counter(ranks).items(), key=lambda item: (item[1], item[0]))[0]


def rank_pattern(ranks: Mapping[str, int], r: int) -> dict[str, int]:
    """Return PEFT's `rank_pattern` for modules whose rank is not `r`: by last name if these agree, or in full.

    PEFT matches each key as a regular expression against the end of a module's name, at a dot, and takes the first
    match. Here no module matches two keys, so their order does not matter.
    """
    by_leaf: defaultdict[str, list[str]] = defaultdict(list)
    for module in ranks:
        by_leaf[_leaf(module)].append(module)
    pattern: dict[str, int] = {}
    for leaf, modules in sorted(by_leaf.items()):
        if len({ranks[m] for m in modules}) == 1:
            if ranks[modules[0]] != r:
                pattern[_literal(leaf)] = ranks[modules[0]]
            continue
        for module in sorted(modules):
            if ranks[module] != r:
                # One full name may be the end of another: `layers.0.q` and `decoder.layers.0.q`.
                is_an_end = any(other.endswith("." + module) for other in modules)
                pattern["^" * is_an_end + _literal(module)] = ranks[module]
    return pattern


def target_modules(adapters: Sequence[AdapterFactors], modules: Iterable[str]) -> list[str]:
    """Return PEFT's `target_modules` for exactly `modules`: short names where they are safe, or full names.

    A short name is safe if one of the adapters targets it in every layer and has all merged modules that it matches:
    PEFT then found no others in the base. Any other short name might match modules that no adapter has.
    """
    wanted = {owner(module) for module in modules}
    safe: set[str] = set()
    for adapter in adapters:
        config = adapter.config
        if isinstance(config.target_modules, str) or config.layers_to_transform or config.exclude_modules:
            continue
        safe |= _safe(config.target_modules or (), wanted, {owner(module) for module in adapter.modules})
    return _shortest(safe, wanted)


def target_parameters(adapters: Sequence[AdapterFactors], parameters: Mapping[str, tuple[str, ...]]) -> list[str]:
    """PEFT's `target_parameters` for exactly the `parameters`, shortened under the same rule."""
    wanted = {name for names in parameters.values() for name in names}
    safe: set[str] = set()
    for adapter in adapters:
        available = {name for factors in adapter.modules.values() for name in factors.parameters}
        safe |= _safe(adapter.config.target_parameters, wanted, available)
    return _shortest(safe, wanted)


def _safe(entries: Iterable[str], wanted: Collection[str], available: Collection[str]) -> set[str]:
    """Return the entries that match names in `wanted`, all of which are in `available`."""
    reached = {entry: [name for name in wanted if _ends_with(name, entry)] for entry in entries}
    return {entry for entry, names in reached.items() if names and all(name in available for name in names)}


def _shortest(safe: Collection[str], wanted: Collection[str]) -> list[str]:
    """Return the safe entries and the full names that they do not match, less those that another entry matches."""
    chosen = {*safe, *(name for name in wanted if not _has_end_in(name, safe))}
    return sorted(entry for entry in chosen if not _has_end_in(entry, chosen - {entry}))


def _has_end_in(name: str, ends: Collection[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[i:]) in ends for i in range(len(parts)))


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith("." + end)


def _leaf(module: str) -> str:
    return module.rpartition(".")[2]


def _literal(name: str) -> str:
    """`name` as a pattern that matches it; an ordinary module name needs no escapes."""
    return name if re.fullmatch(r"[\w.-]+", name) else re.escape(name)


def _agreed(what: str, values: Sequence[str | None], warnings: list[str]) -> str | None:
    """Return the common value of the adapters that have one; if they differ, the first value, with a warning."""
    named = list(dict.fromkeys(v for v in values if v is not None))
    if len(named) > 1:
        each = ", ".join(f"`{shown(v)}`" for v in named)
        warnings.append(f"the adapters differ in their {what}: {each}; the merge keeps the first")
    return named[0] if named else None
