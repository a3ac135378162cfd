"""Compares two models tensor by tensor: differences that fit a LoRA, other differences, and tensors without a partner.

The model is never built, so name, shape and config decide the kind of a tensor: `X.weight` with two dimensions is the
weight of a linear layer, unless its name is that of an embedding.
"""

from __future__ import annotations

import bisect
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from adapterhub.core.errors import shown
from adapterhub.formats.peft.layouts import Layout
from adapterhub.weights.dtypes import TORCH_DTYPES
from adapterhub.weights.extract._models import Model, Weight, aligned
from adapterhub.weights.lowrank.algebra import MATRIX_NDIM

_MOST_DIMENSIONS: Final = 5

_EMBEDDING: Final = re.compile(
    r"(?!patch_)(?:\w+_)?embeddings?|embed_(?:tokens|in|positions)|tokens_embed|positions_embed|shared|emb|wte|wpe"
    r"|relative_attention_bias"
)
"""Last names of modules whose weight is a table of vectors [entries, width]; `patch_embedding` is a projection."""

_CONV1D: Final = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})
_CONV1D_TYPES: Final = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"})
"""Model types in which layers of those names are transformers' Conv1D, stored as [in, out]."""

_TASK_HEADS: Final[Mapping[str, tuple[str, ...]]] = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
NEW_HEADS: Final = frozenset({"classifier", "score", "qa_outputs", "lm_head", "embed_out"})
_OUTPUT_HEADS: Final = ("lm_head", "embed_out")

KEPT_NUMBERS: Final = 1 << 20
"""The most numbers in a module that is carried whole; a LoRA of one layer has about as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A module that gets factors; if turned, its B A is the transpose of the stored matrix (Conv1D, embeddings)."""

    module: str
    layout: Layout
    is_turned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A weight that differs; `sites` holds the one module that uses it, or two that share it."""

    name: str
    base: Weight
    tuned: Weight
    sites: tuple[Site, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    """A tensor that differs and gets no factors; `base` or `tuned` is None if that model lacks it."""

    name: str
    reason: str
    base: Weight | None
    tuned: Weight | None

    @property
    def is_comparable(self) -> bool:
        """Whether both models have it in one shape and as plain numbers."""
        if self.base is None or self.tuned is None or self.base.spec.shape != self.tuned.spec.shape:
            return False
        return self.base.spec.dtype in TORCH_DTYPES and self.tuned.spec.dtype in TORCH_DTYPES

    @property
    def elements(self) -> int:
        """The numbers in the tuned model's tensor, else in the base's."""
        weight = self.tuned or self.base
        assert weight is not None  # one model has it
        return weight.spec.elements


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """The differences between two models, each list sorted by name.

    `others` have equal shapes but do not fit a LoRA; `unequal` are in one model only, or have two shapes; `unreadable`
    are not stored as plain numbers. `weights` are all weights of the tuned model, under common names.
    """

    targets: tuple[Target, ...]
    others: tuple[Other, ...]
    unequal: tuple[Other, ...]
    unreadable: tuple[str, ...]
    unchanged: int
    weights: Mapping[str, Weight]
    paths: frozenset[str]

    @property
    def without_factors(self) -> tuple[Other, ...]:
        """The differing tensors that get no factors, sorted by name."""
        return tuple(sorted((*self.others, *self.unequal), key=lambda other: other.name))


def pair(base: Model, tuned: Model) -> Pairing:
    """Compare two models by the digests of their tensors."""
    return _Pairing(base, tuned).run()


class _Pairing:
    """A comparison in progress."""

    def __init__(self, base: Model, tuned: Model) -> None:
        self.base, self.tuned = base, tuned
        self.ours, self.theirs = aligned(base, tuned)
        self.names = sorted({*self.ours, *self.theirs})
        self.paths = frozenset(path for name in self.names for path in _paths_above(name))
        self.targets: list[Target] = []
        self.others: list[Other] = []
        self.unequal: list[Other] = []
        self.unreadable: list[str] = []
        self.unchanged = 0
        self.embeddings = {
            name
            for model, weights in ((base, self.ours), (tuned, self.theirs))
            for name, weight in weights.items()
            if model.embedding is not None and weight is model.weights[model.embedding]
        }

    def run(self) -> Pairing:
        """Compare every tensor."""
        for name in self.names:
            base, tuned = self.ours.get(name), self.theirs.get(name)
            if base is None or tuned is None:
                self._one_sided(name, base, tuned)
            elif base.spec.shape != tuned.spec.shape:
                reason = f"{list(base.spec.shape)} in the base, {list(tuned.spec.shape)} in the tuned model"
                self.unequal.append(Other(name=name, reason=reason, base=base, tuned=tuned))
            else:
                self._two_sided(name, base, tuned)
        return Pairing(
            targets=self._shared_once(),
            others=tuple(self.others),
            unequal=tuple(self.unequal),
            unreadable=tuple(self.unreadable),
            unchanged=self.unchanged,
            weights=self.theirs,
            paths=self.paths,
        )

    def _one_sided(self, name: str, base: Weight | None, tuned: Weight | None) -> None:
        """Sort a tensor of one model: a head that the other model shares with its embedding, or one with no partner."""
        lacking, weights = (self.base, self.ours) if base is None else (self.tuned, self.theirs)
        present = base or tuned
        assert present is not None  # the name is from one of the models
        shared = next((weights[n] for n in self.embeddings if n in weights), None)
        if _is_head(name) and lacking.shares_embedding and shared and shared.spec.shape == present.spec.shape:
            self._two_sided(name, base or shared, tuned or shared)
            return
        which, other = ("base", "tuned model") if tuned is None else ("tuned model", "base")
        reason = f"{list(present.spec.shape)} in the {which}, not in the {other}"
        self.unequal.append(Other(name=name, reason=reason, base=base, tuned=tuned))

    def _two_sided(self, name: str, base: Weight, tuned: Weight) -> None:
        """Sort a tensor that both models have in one shape."""
        if base.sha256 == tuned.sha256 and base.spec.dtype == tuned.spec.dtype:
            self.unchanged += 1
            return
        odd = sorted({w.spec.dtype for w in (base, tuned)} - set(TORCH_DTYPES))
        if odd and len(tuned.spec.shape) >= MATRIX_NDIM:
            self.unreadable.append(f"`{shown(name)}` is stored as {', '.join(odd)}")
            return
        sites = self._sites(name, tuned)
        if isinstance(sites, str):
            self.others.append(Other(name=name, reason=sites, base=base, tuned=tuned))
        else:
            self.targets.append(Target(name=name, base=base, tuned=tuned, sites=sites))

    def _sites(self, name: str, weight: Weight) -> tuple[Site, ...] | str:
        """The modules that get factors, or the reason against factors."""
        module, _, _parameter = name.rpartition(".")
        leaf, shape = module.rpartition(".")[2], weight.spec.shape
        reason = self._reason(name, shape)
        if reason is not None:
            return reason
        if len(shape) > MATRIX_NDIM:
            return (Site(module=module, layout=Layout(kind="conv", out=shape[0], a_shape=shape[1:]), is_turned=False),)
        if _EMBEDDING.fullmatch(leaf):
            return self._embedding_sites(name, module, shape)
        is_turned = leaf in _CONV1D and self.base.model_type in _CONV1D_TYPES
        return (Site(module=module, layout=_linear(*(shape[::-1] if is_turned else shape)), is_turned=is_turned),)

    def _reason(self, name: str, shape: tuple[int, ...]) -> str | None:
        """The reason against factors from the name and the shape, if any."""
        module, _, parameter = name.rpartition(".")
        above, _, leaf = module.rpartition(".")
        if len(shape) < MATRIX_NDIM:
            return "a bias" if parameter == "bias" else "a vector"
        if not module or parameter != "weight" or len(shape) > _MOST_DIMENSIONS:
            return "a parameter that is not the weight of a layer"
        if unit_of(name).rpartition(".")[2] in _TASK_HEADS.get(self.tuned.task_type or "", ()):
            return "in the task head, which PEFT keeps whole"
        if len(shape) == MATRIX_NDIM + 1 and "conv" not in leaf:
            return "a stack of matrices"
        if len(shape) > MATRIX_NDIM and shape[1] == 1:
            return "a convolution in groups"
        if leaf in ("gate", "router") and f"{above}.experts" in self.paths:
            return "the router of a mixture of experts"
        return None

    def _embedding_sites(self, name: str, module: str, shape: tuple[int, ...]) -> tuple[Site, ...] | str:
        """The sites of an embedding: itself, and the output head if that has no weight of its own."""
        layout = Layout(kind="embedding", out=shape[1], a_shape=(shape[0],))
        own = Site(module=module, layout=layout, is_turned=True)
        if module.rpartition(".")[2] == "shared":
            return "an embedding that the encoder and the decoder share under other names"
        if name not in self.embeddings or any(map(_is_head, self.names)):
            return (own,)
        if self.base.head is not None:
            return own, Site(module=self.base.head, layout=_linear(*shape), is_turned=False)
        if self.base.may_share_embedding:
            return "an embedding whose weight an output layer outside the files may share"
        return (own,)

    def _shared_once(self) -> tuple[Target, ...]:
        """The targets, joined where contents are equal, such as a head saved beside its shared embedding."""
        contents: dict[tuple[str, str, tuple[int, ...]], list[Target]] = {}
        for target in self.targets:
            key = (target.base.sha256, target.tuned.sha256, target.base.spec.shape)
            contents.setdefault(key, []).append(target)
        groups = contents.values()
        return tuple(replace(same[0], sites=tuple(site for t in same for site in t.sites)) for same in groups)


def kept_whole(pairing: Pairing) -> dict[str, tuple[str, ...]]:
    """The differing modules without factors that can be carried whole (`modules_to_save`), each with its tensors.

    A module qualifies if it is small, has no factors inside, and no other module's name ends with its name (PEFT
    compares the ends of names). Of the tensors without a partner, only a new head of the tuned model qualifies.
    """
    inside: defaultdict[str, list[str]] = defaultdict(list)
    for name in pairing.weights:
        for path in _paths_above(name):
            inside[path].append(name)
    targeted = {site.module for target in pairing.targets for site in target.sites}
    holding = targeted.union(*(_paths_above(module) for module in targeted))
    units: dict[str, tuple[str, ...]] = {}
    for unit in dict.fromkeys(unit_of(other.name) for other in pairing.without_factors):
        size = sum(pairing.weights[name].spec.elements for name in inside[unit])
        if inside[unit] and size <= KEPT_NUMBERS and unit not in holding and not _is_misshapen(unit, pairing):
            units[unit] = tuple(inside[unit])
    while True:
        reached = (path for path in pairing.paths if units.keys().isdisjoint({path, *_paths_above(path)}))
        backwards = sorted(path[::-1] for path in reached)
        loose = [unit for unit in units if _begins_one(unit[::-1], backwards)]
        if not loose:
            return dict(sorted(units.items()))
        for unit in loose:
            del units[unit]


def unit_of(name: str) -> str:
    """The module that is carried with the tensor `name`: the whole head of a task, otherwise the layer."""
    parts = name.split(".")[:-1]
    head = next((count for count, part in enumerate(parts, 1) if part in NEW_HEADS), len(parts))
    return ".".join(parts[:head])


def _is_misshapen(unit: str, pairing: Pairing) -> bool:
    """Whether a tensor of the module has no partner of its shape in the base; a new head may."""
    wrong = [other for other in pairing.unequal if unit_of(other.name) == unit]
    is_new_head = unit.rpartition(".")[2] in NEW_HEADS and all(other.base is None for other in wrong)
    return bool(wrong) and not is_new_head


def _begins_one(start: str, ordered: list[str]) -> bool:
    """Whether one of the sorted texts starts with `start`."""
    at = bisect.bisect_left(ordered, start)
    return at < len(ordered) and ordered[at].startswith(start)


def _is_head(name: str) -> bool:
    return name.endswith(tuple(f"{head}.weight" for head in _OUTPUT_HEADS))


def _paths_above(name: str) -> Iterator[str]:
    """The modules that contain the tensor `name`, innermost first."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _linear(out: int, width: int) -> Layout:
    return Layout(kind="linear", out=out, a_shape=(width,))
