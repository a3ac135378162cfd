"""Matches the tensors of an adapter's file to modules as factors, by names, shapes and the config."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from adapterhub.core.errors import RefusedAdapter, shown
from adapterhub.formats.manifest import CONFIG_FILE
from adapterhub.formats.peft.config import AdapterConfig, owner
from adapterhub.formats.peft.layouts import Kind, Layout
from adapterhub.formats.safetensors.dtypes import FACTOR_DTYPES
from adapterhub.formats.safetensors.header import TensorSpec

_FACTOR: Final = re.compile(
    r"base_model\.model\.(?:(?P<module>.+)\.lora_(?:(?P<side>[AB])\.weight|(?P<bias>B\.bias))"
    r"|(?P<embedding>.+)\.lora_embedding_(?P<embedding_side>[AB]))"
)
MATRIX_NDIM: Final = 2
_MOST_NESTED = 4
"""The most pairs on the parameters of one module that rank distinguishes; every order is tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """The tensors of one module's pair: `a`, `b` and, with `lora_bias`, `bias`.

    The update is `scale * B @ A`, and a bias adds `scale * bias` to the module's output. `rank` is the rank of each
    part of the layout. `parameters` lists the parameters of the base that the pair may belong to (`target_parameters`);
    it is empty for a pair on the weight of a module. `tensors`: all tensors of a module, by PEFT's names, where the
    update is a product of more than two (`products`); `a` and `b` are then the first of them.
    """

    layout: Layout
    rank: int
    scale: float
    a: TensorSpec
    b: TensorSpec
    bias: TensorSpec | None = None
    parameters: tuple[str, ...] = ()
    tensors: Mapping[str, TensorSpec] = field(default_factory=lambda: MappingProxyType({}))


class Pairs(NamedTuple):
    """The tensors of an adapter by their role.

    Pairs by module, sorted; tensors that are not factors, in file order; the reason for each pair of unclear meaning.
    """

    modules: Mapping[str, Factors]
    others: tuple[TensorSpec, ...]
    unclear: Mapping[str, str]


def pair_up(specs: Iterable[TensorSpec], config: AdapterConfig, folder: Path) -> Pairs:
    """The pairs among the tensors `specs` of the adapter in `folder`.

    Raises:
        RefusedAdapter: factors have no partner, or do not fit each other or the config; lists all.
        MalformedConfig: E_REGEX, because the patterns of the config take too long.
    """
    tensors: dict[tuple[str, bool], dict[str, TensorSpec]] = {}
    others = []
    for spec in specs:
        match = _FACTOR.fullmatch(spec.name)
        if match is None or (match["bias"] and not config.lora_bias):
            others.append(spec)
        elif match["embedding"] is not None:
            tensors.setdefault((match["embedding"], True), {})[match["embedding_side"]] = spec
        else:
            tensors.setdefault((match["module"], False), {})[match["side"] or "bias"] = spec

    modules: dict[str, Factors] = {}
    unclear: dict[str, str] = {}
    findings: list[tuple[str, str]] = []
    settings = _Settings(config, tensors)
    for (module, is_embedding), sides in sorted(tensors.items()):
        problem = _problem(sides, expects_bias=config.lora_bias and not is_embedding)
        if problem is None and (module in modules or module in unclear):
            problem = "E_PAIR", "has factors of a linear layer and also of an embedding"
        made = problem or settings.factors(module, sides, is_embedding=is_embedding)
        if isinstance(made, Factors):
            modules[module] = made
        elif isinstance(made, str):
            unclear[module] = made
        else:
            findings.append((made[0], f"`{shown(module)}`: {made[1]}"))
    if findings:
        raise RefusedAdapter(f"`{shown(str(folder), 200)}` has factors that do not fit together", findings)
    return Pairs(MappingProxyType(modules), tuple(others), MappingProxyType(unclear))


def _problem(sides: Mapping[str, TensorSpec], *, expects_bias: bool) -> tuple[str, str] | None:
    """The problem of one module's tensors, if any: a finding code and a reason."""
    for present, absent in (("A", "B"), ("B", "A"), ("bias", "A")):
        if present in sides and absent not in sides:
            return "E_PAIR", f"has factor {present} but no factor {absent}"
    a, b, bias = sides["A"], sides["B"], sides.get("bias")
    shapes = f"A is {list(a.shape)} and B is {list(b.shape)}"
    odd = next((spec.dtype for spec in sides.values() if spec.dtype not in FACTOR_DTYPES), None)
    if odd is not None:
        return "E_DTYPE", f"is stored as {shown(odd)}, expected one of {', '.join(FACTOR_DTYPES)}"
    if len(a.shape) < MATRIX_NDIM or len(a.shape) != len(b.shape) or any(size != 1 for size in b.shape[2:]):
        return "E_SHAPE", f"{shapes}, expected [r, in] and [out, r]"
    if 0 in a.shape or 0 in b.shape:
        return "E_SHAPE", f"{shapes}, expected no empty dimension"
    if expects_bias and bias is None:
        return "E_PAIR", f"has no bias of B, but {CONFIG_FILE} declares one (lora_bias)"
    if bias is not None and bias.shape != b.shape[:1]:
        return "E_SHAPE", f"B is {list(b.shape)} and its bias {list(bias.shape)}, expected one number for each output"
    return None


class _Settings:
    """The rank and scale of every pair, from the config."""

    def __init__(self, config: AdapterConfig, tensors: Mapping[tuple[str, bool], Mapping[str, TensorSpec]]) -> None:
        self._config = config
        # The rows of A of each pair on targeted parameters, by the module that owns them.
        self._rows: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for (module, _), sides in tensors.items():
            if "A" in sides and sides["A"].shape and self._config.parameters_of(module):
                self._rows[owner(module)][module] = sides["A"].shape[0]

    def factors(
        self, module: str, sides: Mapping[str, TensorSpec], *, is_embedding: bool
    ) -> Factors | str | tuple[str, str]:
        """The pair on `module`; the reason why its meaning is unclear; or a finding code and a reason."""
        a, b = sides["A"], sides["B"]
        shapes = f"A is {list(a.shape)} and B is {list(b.shape)}"
        holder = owner(module)
        parameters = () if is_embedding else self._config.parameters_of(module)
        if parameters:
            setting = self._of_parameter(module, parameters)
            if setting is None:
                return (
                    f"is on one of the parameters {', '.join(p.rpartition('.')[2] for p in parameters)}, which have "
                    "different ranks or alphas, and the file does not say on which one"
                )
            rank, scale = setting
            kind: Kind = "experts"
            fits = a.shape[0] == b.shape[1] and a.shape[0] % rank == 0 and len(a.shape) == MATRIX_NDIM
            parts = a.shape[0] // rank
        else:
            rank, scale = self._setting(holder)
            kind = "embedding" if is_embedding else "linear" if len(a.shape) == MATRIX_NDIM else "conv"
            parts = rank // b.shape[1] if kind == "conv" and rank % b.shape[1] == 0 else 1
            fits = a.shape[0] == rank == b.shape[1] * parts and b.shape[0] % parts == 0
        if not fits:
            if self._config.extra.get("use_bdlora"):
                return "has block-diagonal factors (BD-LoRA)"
            return "E_RANK", f"{shapes}, expected rank {rank} from {CONFIG_FILE}"
        return Factors(
            layout=Layout(kind=kind, out=b.shape[0], a_shape=a.shape[1:], parts=parts),
            rank=a.shape[0] // parts,
            scale=scale,
            a=a,
            b=b,
            bias=sides.get("bias"),
            parameters=parameters,
        )

    def _setting(self, name: str) -> tuple[int, float]:
        return self._config.rank_of(name), self._config.scaling_of(name)

    def _of_parameter(self, module: str, parameters: tuple[str, ...]) -> tuple[int, float] | None:
        """The rank and scale of a pair on one of `parameters`; None if it is unclear on which.

        PEFT names such pairs by their depth, and the order of the parameters depends on the base. If their settings
        differ, the shapes may decide: all parameters of a module have one number of experts.
        """
        settings = [self._setting(name) for name in parameters]
        if len(set(settings)) == 1:
            return settings[0]
        rows = self._rows[owner(module)]
        if len(rows) != len(settings) or len(rows) > _MOST_NESTED:
            return None
        orders = {order for order in permutations(settings) if _has_one_number_of_experts(rows.values(), order)}
        return dict(zip(rows, orders.pop(), strict=True))[module] if len(orders) == 1 else None


def _has_one_number_of_experts(rows: Iterable[int], settings: Iterable[tuple[int, float]]) -> bool:
    counts: Iterator[tuple[int, int]] = (divmod(count, rank) for count, (rank, _) in zip(rows, settings, strict=True))
    distinct = set(counts)
    return len(distinct) == 1 and distinct.pop()[1] == 0
