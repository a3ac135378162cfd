"""Moves an adapter from its base to a related one, and measures from the files how far the two are apart.

Bases are read tensor by tensor; memory holds one module. `pairing` chooses the module of the new base for each old one,
a file of `methods` computes its update, and `prediction` estimates before any run whether a copy is likely to work.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import torch
from torch import Tensor

from adapterhub.core.digests import Digest, strict_json
from adapterhub.core.disk.files import new_folder
from adapterhub.core.errors import BaseMismatch, UnsupportedAdapter, UsageProblem, first_lines, shown
from adapterhub.formats.base.fingerprint import BaseFingerprint, is_vocabulary
from adapterhub.formats.documented import Documented
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.formats.naming.files import find_in_files
from adapterhub.formats.peft.config import owner
from adapterhub.formats.peft.pairs import PEFT_PREFIX, Factors
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.library.bases.records import BaseRecord
from adapterhub.weights.dtypes import TENSOR_DTYPES, TORCH_DTYPES
from adapterhub.weights.extract.pairing import PairedWeight, StoredModel, WeightReader
from adapterhub.weights.lowrank.algebra import MATRIX_NDIM, LowRank
from adapterhub.weights.lowrank.factors import AdapterFactors, TensorFileWriter
from adapterhub.weights.merge.plan import common_rank, plain_lora, rank_pattern
from adapterhub.weights.model_files import CONV1D, CONV1D_TYPES
from adapterhub.weights.port.catalogue import COPY, describe
from adapterhub.weights.port.pairing import BasePairing, pair_bases
from adapterhub.weights.port.place import Place, rotation

if TYPE_CHECKING:
    from adapterhub.formats.naming.finding import BaseNames

PortProgress = Callable[[int, int], None]
"""Called with what is done and what there is in all."""

_ROWS: Final = 4096
"""Rows of an embedding that are read at once."""
_STEPS: Final = 8
_NOT_RENUMBERED: Final = "the new base has other layers, and only a plain LoRA can be given their numbers"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleDistance(Documented):
    """How far one weight that the adapter changes has moved from the old base to the new one."""

    module: str
    change: Annotated[float, "Frobenius norm of the difference, as a share of the old weight's"]
    overlap: Annotated[float, "cosine of what both weights do to the directions that the adapter reads and writes"]
    update: Annotated[float, "Frobenius norm of the adapter's update, as a share of the old weight's"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseDistance(Documented, keys="change spectral update overlap strength modules"):
    """How far two bases are apart, over all matrices but the embeddings of tokens; one that is gone counts whole.

    `update` and `overlap` are over the modules of the adapter, weighted by their squared norms.
    """

    change: Annotated[float, "Frobenius norm of the difference, as a share of the old base's"]
    spectral: Annotated[float, "largest singular values of the differences, as a share of those of the old weights"]
    concentration: float
    update: Annotated[float, "Frobenius norm of the adapter's update, as a share of the weights that it changes"]
    overlap: Annotated[float, "mean cosine of what both bases do to the directions that the adapter reads and writes"]
    modules: tuple[ModuleDistance, ...]

    @property
    def strength(self) -> float:
        """The change of the base beside that of the adapter; what is concentrated in few directions counts more."""
        return _six(self.spectral * self.concentration / self.update) if self.update else math.inf


@dataclass(kw_only=True, eq=False)
class OpenedPort:
    """An adapter and the two bases, open for reading. `old` is None if the files of the old base are not here.

    `modules` has the adapter's module on the new base for each of its modules; what has no place there is left out.
    """

    factors: AdapterFactors
    label: str
    old: StoredModel | None
    new: StoredModel
    pairing: BasePairing
    modules: Mapping[str, str]
    in_old: BaseNames
    in_new: BaseNames
    reader: WeightReader = field(default_factory=WeightReader)

    # ------------------------------------------------------------ what can be done
    @property
    def notes(self) -> tuple[str, ...]:
        """What is different about the new base, a sentence each."""
        return self.pairing.notes

    def obstacle(self, method: str) -> str:
        """Return why a method does not apply to this adapter and these bases; "" if it does."""
        config, needs = self.factors.config, describe(method).needs
        if needs == "nothing":
            return ""
        if not config.is_lora or config.use_dora or config.start_changes_base:
            return f"`{method}` moves plain LoRA, and this is {', '.join(config.methods())}"
        if self.old is None:
            return f"`{method}` needs the old base, which is not on this machine"
        if not any(self._is_movable(module) for module in self.modules):
            return f"`{method}` finds no weight that the adapter changes as plain numbers in both bases"
        return ""

    def _weight(self, module: str, *, is_new: bool) -> PairedWeight | None:
        """Return the weight of one of the adapter's modules in one base, if it is a matrix of plain numbers."""
        model = self.new if is_new else self.old
        names, own = (self.in_new, self.modules[module]) if is_new else (self.in_old, module)
        found = model.weights.get(f"{names.here(owner(own))}.weight") if model is not None else None
        if found is None or len(found.spec.shape) != MATRIX_NDIM or found.spec.dtype not in TORCH_DTYPES:
            return None
        return found

    def _is_movable(self, module: str) -> bool:
        layout = self.factors.modules[module].layout
        both = [self._weight(module, is_new=is_new) for is_new in (False, True)]
        return layout.kind == "linear" and layout.parts == 1 and None not in both

    def _matrix(self, weight: PairedWeight, *, is_turned: bool = False) -> Tensor:
        """Return the numbers of a weight as [out, in], float64."""
        data = self.reader.data(weight)
        matrix = torch.frombuffer(data, dtype=TORCH_DTYPES[weight.spec.dtype]).reshape(weight.spec.shape).double()
        return matrix.T if is_turned else matrix

    def _both(self, module: str) -> tuple[Tensor, Tensor]:
        found = []
        for is_new in (False, True):
            weight, model = self._weight(module, is_new=is_new), self.new if is_new else self.old
            assert weight is not None  # `_is_movable`
            assert model is not None
            turned = model.model_type in CONV1D_TYPES and module.rpartition(".")[2] in CONV1D
            found.append(self._matrix(weight, is_turned=turned))
        return found[0], found[1]

    @cached_property
    def _hidden(self) -> Tensor | None:
        """The rotation of the hidden numbers from the old base to the new one, as the embeddings of tokens show it."""
        models = [model for model in (self.old, self.new) if model is not None and model.embedding is not None]
        tables = [model.weights[model.embedding] for model in models if model.embedding is not None]
        if len(tables) < 2 or tables[0].spec.shape[1:] != tables[1].spec.shape[1:]:
            return None
        if any(one.spec.dtype not in TORCH_DTYPES for one in tables):
            return None
        rows, width = min(one.spec.shape[0] for one in tables), tables[0].spec.shape[1]
        product, sizes = torch.zeros(width, width, dtype=torch.float64), [0.0, 0.0]
        for first in range(0, rows, _ROWS):
            old, new = (self._rows(one, first, min(first + _ROWS, rows)) for one in tables)
            product += new.T @ old
            sizes = [size + float(one.square().sum()) for size, one in zip(sizes, (old, new), strict=True)]
        return rotation(product, math.sqrt(sizes[0]), math.sqrt(sizes[1]))

    def _rows(self, weight: PairedWeight, first: int, last: int) -> Tensor:
        dtype, width = TORCH_DTYPES[weight.spec.dtype], weight.spec.shape[1]
        data = self.reader.data(weight, first * width * dtype.itemsize, (last - first) * width * dtype.itemsize)
        return torch.frombuffer(data, dtype=dtype).reshape(last - first, width).double()

    # ------------------------------------------------------------ how far the bases are apart
    def distance(self, progress: PortProgress = lambda _done, _all: None) -> BaseDistance | None:
        """Return the distance of the two bases, read from their files.

        None if these hold no plain numbers, or are away.
        """
        if self.old is None:
            return None
        before = {
            name: one
            for name, one in self.old.weights.items()
            if len(one.spec.shape) == MATRIX_NDIM and not is_vocabulary(name)
        }
        if any(one.spec.dtype not in TORCH_DTYPES for one in (*before.values(), *self.new.weights.values())):
            return None
        total = len(before) + len(self.modules)
        sizes = [0.0] * 4
        for done, (name, weight) in enumerate(before.items(), 1):
            there = self.new.weights.get(self.pairing.tensors.get(name, ""))
            sizes = [size + more for size, more in zip(sizes, self._moved(weight, there), strict=True)]
            progress(done, total)
        modules, weights = [], []
        for done, module in enumerate(self.modules, 1):
            if self._is_movable(module):
                old, new = self._both(module)
                modules.append(_module_distance(module, self.factors.read(module), old, new))
                weights.append(float(old.square().sum()))
            progress(len(before) + done, total)
        whole, moved, of_old, of_moved = map(math.sqrt, sizes)
        if not modules or not whole or not of_old or not math.isfinite(moved + whole):
            return None
        norms = math.fsum(weights)
        mean = math.fsum(one.overlap * size for one, size in zip(modules, weights, strict=True)) / norms
        update = math.fsum(one.update**2 * size for one, size in zip(modules, weights, strict=True)) / norms
        return BaseDistance(
            change=_six(moved / whole),
            spectral=_six(of_moved / of_old),
            concentration=_six(of_moved / moved if moved else 0.0),
            update=_six(math.sqrt(update)),
            overlap=_six(mean),
            modules=tuple(modules),
        )

    def _moved(self, weight: PairedWeight, there: PairedWeight | None) -> tuple[float, float, float, float]:
        """Return the squared norms of an old weight and its difference, and their largest singular values squared."""
        matrix = self._matrix(weight)
        whole, largest = float(matrix.square().sum()), _largest(matrix)
        if there is None or there.spec.shape != weight.spec.shape:
            return whole, whole, largest, largest
        if there.sha256 == weight.sha256:
            return whole, 0.0, largest, 0.0
        difference = self._matrix(there) - matrix
        return whole, float(difference.square().sum()), largest, _largest(difference)

    # ------------------------------------------------------------ writing
    def write(
        self,
        method: str,
        folder: Path,
        progress: PortProgress = lambda _done, _all: None,
    ) -> None:
        """Write the adapter, moved by `method`, into the new folder `folder`.

        Raises:
            UsageProblem: the method does not apply here.
            UnsupportedAdapter: the result is not finite, or the adapter has parts that cannot be renumbered.
        """
        if problem := self.obstacle(method):
            raise UsageProblem(f"{problem}. Nothing was written", hint="`--method copy` takes any adapter")
        move = importlib.import_module(f"adapterhub.weights.port.methods.{method}").move
        renumbered = self.pairing.is_renumbered
        if renumbered and not self._can_be_renumbered():
            raise UnsupportedAdapter(f"`{shown(self.label, 200)}` cannot be ported", [_NOT_RENUMBERED])
        with new_folder(folder) as partial:
            if method == COPY and not renumbered:
                self.factors.weights.copy_to(partial / WEIGHTS_FILE)
            else:
                self._write_moved(partial, move, progress)
            (partial / CONFIG_FILE).write_text(json.dumps(self._config(), indent=2, sort_keys=True) + "\n", "utf-8")

    def _can_be_renumbered(self) -> bool:
        config = self.factors.config
        has_odd = any(one.parameters or one.tensors or one.layout.parts > 1 for one in self.factors.modules.values())
        carried = [spec for spec in self.factors.others if self._new_name(spec) is None]
        plain = config.is_lora and not (config.use_dora or config.start_changes_base or self.factors.unclear)
        return plain and not has_odd and not carried and config.bias == "none"

    def _write_moved(
        self,
        folder: Path,
        move: Callable[[Place], LowRank],
        progress: PortProgress,
    ) -> None:
        header = {spec.name: spec for spec in self.factors.header.tensors}
        dropped = {s.name for m, f in self.factors.modules.items() if m not in self.modules for s in _specs(f)}
        kept = [spec for spec in header.values() if spec.name not in dropped]
        planned = [TensorSpec.planned(self._new_name(s) or s.name, s.dtype, s.shape) for s in kept]
        with TensorFileWriter(folder / WEIGHTS_FILE, planned) as writer:
            written: set[str] = set()
            for done, (module, there) in enumerate(self.modules.items(), 1):
                factors, moved = self.factors.modules[module], None
                if self._is_movable(module):
                    moved = move(
                        Place(
                            update=self.factors.read(module),
                            weights=lambda module=module: self._both(module),  # type: ignore[misc]
                            hidden=lambda: self._hidden,
                        )
                    )
                written |= self._add(writer, factors, there, moved)
                progress(done, len(self.modules))
            for spec in kept:
                if spec.name not in written:
                    named = TensorSpec.planned(self._new_name(spec) or spec.name, spec.dtype, spec.shape)
                    writer.add_chunks(named, self.factors.chunks(spec))

    def _add(self, writer: TensorFileWriter, factors: Factors, there: str, moved: LowRank | None) -> set[str]:
        """Write one module's tensors; returns their old names. A renumbered adapter gets a scale of 1."""
        specs = _specs(factors)
        if moved is None and not self.pairing.is_renumbered:
            return set()  # with what is carried
        names = factors.layout.names(there)
        old_a, old_b = self.factors.tensor(factors.a), self.factors.tensor(factors.b)
        a, b = (old_a, old_b) if moved is None else (moved.a, moved.b)
        if self.pairing.is_renumbered:
            b = b.double() * factors.scale
        for name, spec, number in ((names.a, factors.a, a), (names.b, factors.b, b)):
            stored = number.to(TENSOR_DTYPES[spec.dtype]).reshape(spec.shape)
            if not bool(torch.isfinite(stored.float()).all()):
                raise UnsupportedAdapter(
                    f"`{shown(self.label, 200)}` cannot be ported", [f"`{shown(name)}` is not finite"]
                )
            writer.add(name, stored)
        if factors.bias is not None:
            scale = factors.scale if self.pairing.is_renumbered else 1.0
            writer.add(
                factors.layout.bias_name(there), (self.factors.tensor(factors.bias).double() * scale).to(b.dtype)
            )
        return {spec.name for spec in specs}

    def _new_name(self, spec: TensorSpec) -> str | None:
        """Return the name of a tensor that is carried: it must not lie in a layer that has another number."""
        if not self.pairing.is_renumbered:
            return spec.name
        name = spec.name.removeprefix(PEFT_PREFIX)
        inner = self.in_old.here(name.rpartition(".")[0])
        module = self.pairing.module(name.rpartition(".")[0], inner)
        return None if module is None else f"{PEFT_PREFIX}{module}.{name.rpartition('.')[2]}"

    def _config(self) -> dict[str, Any]:
        """Return the adapter's config, for the new base."""
        config: dict[str, Any] = strict_json(self.factors.config_bytes)
        hints = self.new.record.hints
        config["base_model_name_or_path"] = hints.hub_id
        config["revision"] = hints.commit if hints.hub_id else None
        if self.pairing.is_renumbered:
            ranks = {there: self.factors.modules[module].rank for module, there in self.modules.items()}
            r = common_rank(ranks.values())
            config |= plain_lora(r, rank_pattern(ranks, r))
            config |= {"target_modules": sorted(ranks), "layers_to_transform": None, "layers_pattern": None}
        return config


def _specs(factors: Factors) -> tuple[TensorSpec, ...]:
    return (factors.a, factors.b, *([factors.bias] if factors.bias is not None else []))


@contextmanager
def opened(
    folder: Path,
    expected: Mapping[str, Digest] | None,
    label: str,
    base: BaseFingerprint | None,
    old: BaseRecord | None,
    new: BaseRecord,
) -> Iterator[OpenedPort]:
    """Open an adapter made for `base`, and both bases; `old` is None if its files are not on this machine.

    The records must match the current files (`Bases.current`).

    Raises:
        BaseMismatch: the new base lacks what the adapter changes, or has it in other shapes; names each.
        RefusedAdapter, MalformedConfig, DigestMismatch: the adapter is damaged.
        Malformed, CouldNotTell: a base cannot be read.
    """
    after = StoredModel.of(new)
    before = StoredModel.of(old) if old is not None else None
    pairing = pair_bases(base, new.fingerprint, new.label) if base is not None else BasePairing(tensors={})
    shapes = {name: one.spec.shape for name, one in after.weights.items()}
    held = dict.fromkeys(base.samples, ()) if base is not None else shapes
    ours = {name: one.spec.shape for name, one in before.weights.items()} if before is not None else held
    with AdapterFactors(folder, expected) as factors, WeightReader() as reader:
        own = dict.fromkeys(sorted(factors.modules))
        in_old = find_in_files(own, ours, (before.model_type if before else after.model_type) or None)
        places = {module: pairing.module(module, in_old.here(owner(module))) for module in own}
        modules = {module: there for module, there in places.items() if there is not None}
        if own and not modules:
            raise BaseMismatch(
                f"base `{shown(new.label)}` has none of the layers that `{shown(label, 200)}` changes",
                hint="train the adapter again on the new base",
            )
        in_new = find_in_files(dict.fromkeys(sorted(modules.values())), shapes, after.model_type or None)
        run = OpenedPort(
            factors=factors,
            label=label,
            old=before,
            new=after,
            pairing=pairing,
            modules=modules,
            in_old=in_old,
            in_new=in_new,
            reader=reader,
        )
        _check_shapes(run)
        yield run


def _check_shapes(run: OpenedPort) -> None:
    """Refuse a base that has other shapes where the adapter acts.

    Raises:
        BaseMismatch: names each weight with both shapes.
    """
    lines = []
    for module, there in run.modules.items():
        layout = run.factors.modules[module].layout
        name = f"{run.in_new.here(owner(there))}.weight"
        found = run.new.weights.get(name)
        if found is None or layout.kind not in ("linear", "embedding") or found.spec.dtype not in TORCH_DTYPES:
            continue  # `attach` tells
        if sorted(found.spec.shape) != sorted((layout.out, layout.width)):
            shape = f"[{layout.out}, {layout.width}]"
            lines.append(
                f"`{shown(module)}` is for {shape}; `{shown(name)}` of the new base is {list(found.spec.shape)}"
            )
    for spec in run.factors.others:
        name = spec.name.removeprefix(PEFT_PREFIX)
        found = run.new.weights.get(f"{run.in_new.here(name.rpartition('.')[0])}.{name.rpartition('.')[2]}")
        if found is not None and found.spec.shape != spec.shape and found.spec.dtype in TORCH_DTYPES:
            lines.append(f"`{shown(name)}` is {list(spec.shape)}; the new base has {list(found.spec.shape)}")
    if lines:
        title = f"base `{shown(run.new.label)}` has other shapes where the adapter acts. Nothing was written"
        raise BaseMismatch(
            "\n  ".join([title, *first_lines(lines, 10)]), hint="train the adapter again on the new base"
        )


def _module_distance(module: str, update: LowRank, old: Tensor, new: Tensor) -> ModuleDistance:
    size = float(old.norm()) or 1.0
    reads, writes = torch.linalg.qr(update.a.double().T)[0], torch.linalg.qr(update.b.double())[0]
    before = torch.cat([(old @ reads).flatten(), (writes.T @ old).flatten()])
    after = torch.cat([(new @ reads).flatten(), (writes.T @ new).flatten()])
    lengths = float(before.norm() * after.norm())
    gram = (update.a.double() @ update.a.double().T) * (update.b.double().T @ update.b.double())
    return ModuleDistance(
        module=module,
        change=_six(float((new - old).norm()) / size),
        overlap=_six(float(before @ after) / lengths if lengths else 0.0),
        update=_six(abs(update.scale) * math.sqrt(max(0.0, float(gram.sum()))) / size),
    )


def _largest(matrix: Tensor) -> float:
    """Return the square of the largest singular value by a few power iterations: a few percent too small at most."""
    vector = torch.randn(matrix.shape[1], generator=torch.Generator().manual_seed(0), dtype=matrix.dtype)
    size = 0.0
    for _ in range(_STEPS):
        length = float(vector.norm())
        if not length:
            return 0.0
        vector = vector / length
        image = matrix @ vector
        size = float(image.square().sum())
        vector = matrix.T @ image
    return size


def _six(number: float) -> float:
    return float(f"{number:.6g}")
