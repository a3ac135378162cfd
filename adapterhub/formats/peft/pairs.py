"""Matches the tensors of an adapter's file to modules as factors, by names, shapes and the config."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from adapterhub.core.errors import RefusedAdapter, shown
from adapterhub.formats.manifest import CONFIG_FILE
from adapterhub.formats.peft.config import AdapterConfig, owner
from adapterhub.formats.safetensors.header import READ_DTYPES, TensorSpec

PEFT_PREFIX = "base_model.model."
"""PEFT's prefix before the name of a module in the base."""

NESTED = "base_layer"
"""PEFT's name for the wrapped module inside its wrapper."""

ROWS = ".token_adapter.trainable_tokens_delta"
"""PEFT's name, after that of an embedding, for the rows of it that were trained (`trainable_token_indices`)."""

Kind = Literal["linear", "conv", "embedding", "experts", "loha", "adalora"]


class PairNames(NamedTuple):
    """The tensor names of one module's two factors."""

    a: str
    b: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorLayout:
    """The layout of a module's update in a file; updates with equal layouts can be added up.

    `linear`: A [r, in], B [out, r]; `embedding`: A [r, entries], B [width, r]; `conv`: A [r, in, *kernel], B [out, r,
    1, …], which are matrices once the trailing dimensions are flattened. `a_shape` is A's shape without r.

    Two kinds have several `parts`: separate low-rank pairs that act on different outputs. A grouped `conv` has one for
    each group: A [groups * r, in, *kernel] and B [out, r, 1, …], group by group. `experts`, a bare parameter of the
    base (PEFT's `target_parameters`) of shape [experts, …], has one for each expert: A [experts * r, in], expert by
    expert, but B [out, r * experts], in which the columns of one expert are `experts` apart.

    `loha` and `adalora` are pairs on a flattened weight, [out, everything else], in a file of that method, with
    constants beside them.
    """

    kind: Kind
    out: int
    a_shape: tuple[int, ...]
    parts: int = 1

    @property
    def width(self) -> int:
        """The columns of the flattened A."""
        return math.prod(self.a_shape)

    @property
    def part_out(self) -> int:
        """The outputs of one part."""
        return self.out // self.parts if self.kind == "conv" else self.out

    @property
    def full_rank(self) -> int:
        """The largest rank that a part can need."""
        return min(self.part_out, self.width)

    def names(self, module: str) -> PairNames:
        """PEFT's tensor names for the factors of the module."""
        if self.kind == "embedding":
            return PairNames(f"{PEFT_PREFIX}{module}.lora_embedding_A", f"{PEFT_PREFIX}{module}.lora_embedding_B")
        if self.kind == "loha":
            return PairNames(f"{PEFT_PREFIX}{module}.hada_w1_b", f"{PEFT_PREFIX}{module}.hada_w1_a")
        tail = "" if self.kind == "adalora" else ".weight"
        return PairNames(f"{PEFT_PREFIX}{module}.lora_A{tail}", f"{PEFT_PREFIX}{module}.lora_B{tail}")

    def bias_name(self, module: str) -> str:
        """PEFT's tensor name for the bias of B (`lora_bias`)."""
        return f"{PEFT_PREFIX}{module}.lora_B.bias"

    def shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of A and B in the file, for parts of that rank."""
        columns = rank * self.parts if self.kind == "experts" else rank
        return (rank * self.parts, *self.a_shape), (self.out, columns, *(1 for _ in self.a_shape[1:]))

    def config_rank(self, rank: int) -> int:
        """Return the rank in a config of a module whose parts have that rank."""
        return rank * self.parts if self.kind == "conv" else rank

    def part_rank(self, rank: int) -> int:
        """Return the rank of each part for a rank in a config: the inverse of `config_rank`, at least 1."""
        return max(1, rank // self.parts) if self.kind == "conv" else rank

    def split(self, a: Any, b: Any) -> tuple[tuple[Any, Any], ...]:
        """Return the factors of each part, [r, width] and [part_out, r], from A and B as in the file; views of them."""
        a, b = a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)
        if self.parts == 1:
            return ((a, b),)
        if self.kind == "experts":
            of_b = b.reshape(self.out, -1, self.parts).swapaxes(0, 2).swapaxes(1, 2)
        else:
            of_b = b.reshape(self.parts, self.part_out, -1)
        return tuple(zip(a.reshape(self.parts, -1, self.width), of_b, strict=True))

    def __str__(self) -> str:
        parts = f", {self.parts} parts" if self.parts > 1 else ""
        return f"{self.kind} {self.out} x {' x '.join(map(str, self.a_shape))}{parts}"


def plain_name(name: str) -> str:
    """Return the name of a module or tensor in the base, from its name inside PEFT's wrappers."""
    return ".".join(part for part in name.split(".") if part != NESTED)


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

    layout: FactorLayout
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
    """Return the pairs among the tensors `specs` of the adapter in `folder`.

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
    """Return the problem of one module's tensors, if any: a finding code and a reason."""
    for present, absent in (("A", "B"), ("B", "A"), ("bias", "A")):
        if present in sides and absent not in sides:
            return "E_PAIR", f"has factor {present} but no factor {absent}"
    a, b, bias = sides["A"], sides["B"], sides.get("bias")
    shapes = f"A is {list(a.shape)} and B is {list(b.shape)}"
    odd = next((spec.dtype for spec in sides.values() if spec.dtype not in READ_DTYPES), None)
    if odd is not None:
        return "E_DTYPE", f"is stored as {shown(odd)}, expected one of {', '.join(READ_DTYPES)}"
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
        """Return the pair on `module`; the reason why its meaning is unclear; or a finding code and a reason."""
        a, b = sides["A"], sides["B"]
        shapes = f"A is {list(a.shape)} and B is {list(b.shape)}"
        holder = owner(module)
        parameters = () if is_embedding else self._config.parameters_of(module)
        if parameters:
            setting = self._of_parameter(module, parameters)
            if setting is None:
                names = ", ".join(parameter.rpartition(".")[2] for parameter in parameters)
                return (
                    f"is on one of the parameters {names}, which may have different ranks or alphas, and the file does "
                    "not say on which one"
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
            layout=FactorLayout(kind=kind, out=b.shape[0], a_shape=a.shape[1:], parts=parts),
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
        """Return the rank and scale of a pair on one of `parameters`; None if it is unclear on which.

        PEFT names such pairs by their depth, and the order of the parameters depends on the base. If their settings
        differ, the shapes may decide: all parameters of a module have one number of experts.
        """
        settings = [self._setting(name) for name in parameters]
        rows = self._rows[owner(module)]
        if len(rows) > len(settings) and self._config.has_bare_parameters:
            return None  # one of them is on a parameter that its target names without this module
        if len(set(settings)) == 1:
            return settings[0]
        if len(rows) != len(settings) or len(rows) > _MOST_NESTED:
            return None
        orders = {order for order in permutations(settings) if _has_one_number_of_experts(rows.values(), order)}
        return dict(zip(rows, orders.pop(), strict=True))[module] if len(orders) == 1 else None


def _has_one_number_of_experts(rows: Iterable[int], settings: Iterable[tuple[int, float]]) -> bool:
    counts: Iterator[tuple[int, int]] = (divmod(count, rank) for count, (rank, _) in zip(rows, settings, strict=True))
    distinct = set(counts)
    return len(distinct) == 1 and distinct.pop()[1] == 0


Array: TypeAlias = Any
"""An array of torch or of numpy."""
Arrays: TypeAlias = Mapping[str, Array]
Sizes: TypeAlias = Mapping[str, tuple[int, ...]]

_SETS: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = MappingProxyType(
    {
        "ADALORA": (("lora_A", "lora_B", "lora_E"),),
        "LOHA": (
            ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
            ("hada_t1", "hada_t2", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
        ),
        "LOKR": tuple(
            (*first, *second)
            for first in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
            for second in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"), ("lokr_t2", "lokr_w2_a", "lokr_w2_b"))
        ),
    }
)
"""The tensors of one module, by method: each set that PEFT writes."""

PRODUCTS: Final = frozenset(_SETS)
"""The methods that this module reads."""
_KERNEL_NDIM: Final = 4
_KRONECKER_NDIMS: Final = (MATRIX_NDIM, _KERNEL_NDIM)


def pair_up_products(specs: Iterable[TensorSpec], config: AdapterConfig, folder: Path) -> Pairs:
    """Return the updates among the tensors `specs` of an AdaLoRA, LoHa or LoKr adapter; raises as `pairs.pair_up`."""
    pattern = re.compile(rf"{re.escape(PEFT_PREFIX)}(.+)\.({'|'.join(config.method.factors)})")
    tensors: dict[str, dict[str, TensorSpec]] = {}
    others = []
    for spec in specs:
        match = pattern.fullmatch(spec.name)
        if match is None:
            others.append(spec)
        else:
            tensors.setdefault(match[1], {})[match[2]] = spec
    modules: dict[str, Factors] = {}
    findings: list[tuple[str, str]] = []
    for module, own in sorted(tensors.items()):
        problem = _product_problem(own, config)
        if problem:
            findings.append((problem[0], f"`{shown(module)}`: {problem[1]}"))
        else:
            modules[module] = _factors(module, own, config)
    if findings:
        raise RefusedAdapter(f"`{shown(str(folder), 200)}` has factors that do not fit together", findings)
    return Pairs(MappingProxyType(modules), tuple(others), MappingProxyType({}))


def multiplied(xp: Any, tensors: Arrays) -> tuple[Array, Array]:
    """Return a [r, width] and B [out, r] of one module, by PEFT's names of its tensors, which are float64.

    Their product is the update without its scale. The rank is the smallest that the shapes tell, or lower where a merge
    left directions of zeros.
    """
    if "lora_E" in tensors:
        return tensors["lora_A"] * tensors["lora_E"], tensors["lora_B"]
    if "hada_w1_a" in tensors:
        (right, left), (other_right, other_left) = (_kept(*_hadamard_side(xp, tensors, side)) for side in "12")
        out, width = left.shape[0], right.shape[1]
        if left.shape[1] * other_left.shape[1] > min(out, width):
            return _split(xp, (left @ right) * (other_left @ other_right))
        b = (left[:, :, None] * other_left[:, None, :]).reshape(out, -1)
        return (right[:, None, :] * other_right[None, :, :]).reshape(-1, width), b
    sides = kronecker_sides(xp, tensors)
    if sides is None:
        whole = tensors["lokr_w1"] if "lokr_w1" in tensors else tensors["lokr_w1_a"] @ tensors["lokr_w1_b"]
        second = tensors["lokr_w2"]
        return _split(xp, xp.kron(whole, second).reshape(whole.shape[0] * second.shape[0], -1))
    (outer_a, outer_b), (inner_a, inner_b) = sides
    rank, full = (
        outer_a.shape[0] * inner_a.shape[0],
        (outer_b.shape[0] * inner_b.shape[0], outer_a.shape[1] * inner_a.shape[1]),
    )
    if rank > min(full):
        return _split(xp, xp.kron(outer_b @ outer_a, inner_b @ inner_a))
    return xp.kron(outer_a, inner_a), xp.kron(outer_b, inner_b)


def kronecker_sides(xp: Any, tensors: Arrays) -> tuple[tuple[Array, Array], tuple[Array, Array]] | None:
    """Return A and B of both matrices whose Kronecker product is the update of a LoKr module, as in `multiplied`.

    None if it is not that of two matrices: PEFT orders the kernel of a one-dimensional convolution otherwise.
    """
    parts: list[Array] = [tensors.get(f"lokr_{name}") for name in ("w1", "w2", "t2")]
    first, second, core = parts
    if second is not None and second.ndim not in _KRONECKER_NDIMS:
        return None
    outer = (tensors["lokr_w1_b"], tensors["lokr_w1_a"]) if first is None else _split(xp, first)
    if second is not None:
        inner = _split(xp, second.reshape(second.shape[0], -1))
    elif core is not None:
        inner = _with_core(xp, core, tensors["lokr_w2_b"]), tensors["lokr_w2_a"].T
    else:
        inner = tensors["lokr_w2_b"], tensors["lokr_w2_a"]
    return _kept(*outer), _kept(*inner)


def _hadamard_side(xp: Any, tensors: Arrays, side: str) -> tuple[Array, Array]:
    """One of the two factors of LoHa as a pair [r, width], [out, r]."""
    left, right = tensors[f"hada_w{side}_a"], tensors[f"hada_w{side}_b"]
    core = tensors.get(f"hada_t{side}")
    return (right, left) if core is None else (_with_core(xp, core, right), left.T)


def _with_core(xp: Any, core: Array, right: Array) -> Array:
    made = xp.einsum("ijkl,jr->irkl", core, right)
    return made.reshape(made.shape[0], -1)


def _split(xp: Any, matrix: Array) -> tuple[Array, Array]:
    """Return a matrix as a pair of its own smaller size, one of them the identity."""
    rows, columns = matrix.shape
    one = xp.eye(min(rows, columns), dtype=matrix.dtype)
    return (matrix, one) if rows <= columns else (one, matrix)


def _kept(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the pair without directions of zeros, which a merge leaves."""
    kept = a.any(1) & b.any(0)
    kept[0] |= not kept.any()  # a file needs a rank
    return a[kept], b[:, kept]


# ---------------------------------------------------------------- shapes, before any number is read
def _product_problem(own: Mapping[str, TensorSpec], config: AdapterConfig) -> tuple[str, str] | None:
    odd = next((spec.dtype for spec in own.values() if spec.dtype not in READ_DTYPES), None)
    if odd is not None:
        return "E_DTYPE", f"is stored as {shown(odd)}, expected one of {', '.join(READ_DTYPES)}"
    if frozenset(own) not in {frozenset(names) for names in _SETS[config.peft_type]}:
        return "E_PAIR", f"has the tensors {', '.join(sorted(own))}, which are no set that PEFT writes"
    try:
        _size({name: spec.shape for name, spec in own.items()})
    except ValueError:
        shapes = ", ".join(f"{name} {list(spec.shape)}" for name, spec in sorted(own.items()))
        return "E_SHAPE", f"its tensors do not fit together: {shapes}"
    if any(0 in spec.shape for spec in own.values()):
        return "E_SHAPE", "expected no empty dimension"
    return None


def _factors(module: str, own: Mapping[str, TensorSpec], config: AdapterConfig) -> Factors:
    out, width, rank = _size({name: spec.shape for name, spec in own.items()})
    first, second, *_ = (own[name] for name in sorted(own))
    scale = config.adalora_scaling(rank) if config.peft_type == "ADALORA" else config.scaling_of(module)
    kind: Kind = "adalora" if config.peft_type == "ADALORA" else "loha"
    layout = FactorLayout(kind=kind, out=out, a_shape=(width,))
    return Factors(layout=layout, rank=rank, scale=scale, a=first, b=second, tensors=MappingProxyType(dict(own)))


def _size(shapes: Sizes) -> tuple[int, int, int]:
    """Return outputs, width and rank of the result of `multiplied` for tensors of these shapes.

    Raises:
        ValueError: they do not fit together.
    """
    if "lora_E" in shapes:
        (rank, width), (out, columns) = shapes["lora_A"], shapes["lora_B"]
        _ensure(columns == rank and shapes["lora_E"] == (rank, 1))
        return out, width, rank
    if "hada_w1_a" in shapes:
        (out, width, rank), other = (
            _pair_size(shapes[f"hada_w{side}_a"], shapes[f"hada_w{side}_b"], shapes.get(f"hada_t{side}"))
            for side in "12"
        )
        _ensure((out, width) == other[:2])
        return out, width, min(out, width, rank * other[2])
    sides = kronecker_sizes(shapes)
    (out, width, rank), (inner_out, inner_width, inner_rank) = sides or (_lokr_size(shapes, side) for side in "12")
    full = min(out * inner_out, width * inner_width)
    return out * inner_out, width * inner_width, min(full, rank * inner_rank) if sides else full


def kronecker_sizes(shapes: Sizes) -> tuple[tuple[int, int, int], ...]:
    """Return outputs, width and rank of each of `kronecker_sides`; empty if there are none.

    Raises:
        ValueError: the tensors do not fit together.
    """
    is_lokr = any(name.startswith("lokr_") for name in shapes)
    if not is_lokr or len(shapes.get("lokr_w2", (0, 0))) not in _KRONECKER_NDIMS:
        return ()
    return tuple(_lokr_size(shapes, side) for side in "12")


def _lokr_size(shapes: Sizes, side: str) -> tuple[int, int, int]:
    whole = shapes.get(f"lokr_w{side}")
    if whole is None:
        return _pair_size(shapes[f"lokr_w{side}_a"], shapes[f"lokr_w{side}_b"], shapes.get(f"lokr_t{side}"))
    _ensure(len(whole) == MATRIX_NDIM if side == "1" else MATRIX_NDIM <= len(whole) <= _KERNEL_NDIM + 1)
    out, width = whole[0], math.prod(whole[1:])
    return out, width, min(out, width)


def _pair_size(left: tuple[int, ...], right: tuple[int, ...], core: tuple[int, ...] | None) -> tuple[int, int, int]:
    """Return outputs, width and rank of a pair; with a core, `left` is turned around."""
    (out, rank), (rows, width) = left[::-1] if core is not None else left, right
    if core is None:
        _ensure(rank == rows)
        return out, width, rank
    first, second, *kernel = core
    _ensure(len(core) == _KERNEL_NDIM and (first, second) == (rank, rows))
    return out, width * math.prod(kernel), rank


def _ensure(fits: bool) -> None:  # noqa: FBT001 - the condition itself
    if not fits:
        raise ValueError("the tensors do not fit together")
