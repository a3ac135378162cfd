"""Turns an adapter of any linear method into a LoRA: what PEFT's own layers do to each weight, as factors.

PEFT builds its layers on the weights of the base that the adapter is for, mapped from their files. Each layer is then
asked, in float64, for its merged weight; the difference to the base's is the update of that module, which gets its
closest factors. The same layer answers on random inputs: an update that is not a linear map, or that depends on the
prompt, is refused. Memory holds the adapter, and a few copies of one weight.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors import safe_open
from torch import Tensor, nn

from adapterhub.core.digests import strict_json
from adapterhub.core.disk.files import new_folder
from adapterhub.core.errors import BaseMismatch, UnsupportedAdapter, alike_once, shown
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.formats.naming.files import find_in_files
from adapterhub.formats.naming.finding import AMBIGUOUS_HINT, ambiguous_names
from adapterhub.formats.peft.pairs import PEFT_PREFIX
from adapterhub.formats.peft.settings import excess, undetermined
from adapterhub.formats.safetensors.header import DTYPE_BITS, TensorSpec
from adapterhub.library.bases.records import BaseRecord
from adapterhub.trust.verify import open_files
from adapterhub.weights.dtypes import FORMAT_DTYPES, TENSOR_DTYPES
from adapterhub.weights.extension import extension_where_possible
from adapterhub.weights.extract import short_names
from adapterhub.weights.extract.pairing import PairedWeight, StoredModel
from adapterhub.weights.lowrank.algebra import MATRIX_NDIM, LowRank, ModuleErrors, limit_of
from adapterhub.weights.lowrank.factors import TensorFileWriter
from adapterhub.weights.lowrank.randomized import closest
from adapterhub.weights.merge import DEFAULT_DTYPE, DTYPES, MergeInput, MergeProgress, MergeResult
from adapterhub.weights.merge.plan import common_rank, plain_lora, rank_pattern
from adapterhub.weights.model_files import CONV1D, CONV1D_TYPES

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    from adapterhub.formats.peft.config import AdapterConfig
    from adapterhub.trust.verify import Subject

METHOD: Final = "lora"
"""What the recipe of a result names."""

_OFF: Final = 1e-5
"""The part of the update by which a linear layer's answer may differ from its merged weight's: some of PEFT's layers
compute in float32 whatever their weights have."""
_ROUNDING: Final = 1e-6
"""The part of the whole answer that float32 may round off."""
_PLACES: Final = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save")
"""Settings that say which modules an adapter is for; the file itself names them."""
_ELSEWHERE: Final = frozenset({"auto_mapping", "peft_version"})
"""Settings that change no number."""
_BY_ORDER: Final = ("TINYLORA",)
"""Methods whose numbers depend on the order in which the model has its layers, which no file tells."""
_UNNAMED: Final = "UNILORA"
"""A method whose file names no module; which ones its vector is for follows from the class of the whole model."""
_FROM_THE_BASE: Final = frozenset({"ADAMSS", "OSF", "PSOFT"})
"""Methods that rest on a decomposition of the base's weights that is in no file; its signs depend on the rounding."""
_FAULTS: Final = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError)
"""What PEFT raises for adapters that do not fit their own settings or the base."""
_LISTED: Final = 20


@dataclass(slots=True, kw_only=True, eq=False)
class _Update:
    """What a layer adds: `matrix` [out, in] to its weight and `bias` to its bias, both float64."""

    matrix: Tensor
    bias: Tensor | None


@dataclass(slots=True, kw_only=True, eq=False)
class _Conversion:
    """One adapter on its base. `places` has the base's module by the adapter's, `carried` what is written unchanged."""

    label: str
    subject: Subject
    model: StoredModel
    places: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    paths: frozenset[str]
    carried: list[TensorSpec] = field(default_factory=list)
    ranks: dict[str, int] = field(default_factory=dict)
    errors: ModuleErrors = field(default_factory=ModuleErrors)

    def weight(self, module: str, key: str = "weight") -> PairedWeight | None:
        """Return the base's tensor of a module of the adapter."""
        return self.model.weights.get(f"{self.places[module]}.{key}")

    def is_turned(self, module: str) -> bool:
        """Return whether the base stores the weight as [in, out]."""
        return self.model.model_type in CONV1D_TYPES and module.rpartition(".")[2] in CONV1D


def convert(
    given: MergeInput,
    base: BaseRecord,
    out_folder: Path,
    options: Mapping[str, int | float],
    *,
    dtype: str | None = None,
    progress: MergeProgress | None = None,
) -> MergeResult:
    """Write the adapter as a LoRA of scale 1; `options` hold one of rank, energy and max_error, or nothing.

    Without a limit, each module has the rank that its update has in float32.

    Raises:
        UnsupportedAdapter: the method is not a linear map of the inputs of its layers, or other parts have no place in
            a LoRA; names each.
        BaseMismatch: the base lacks modules, or PEFT cannot put the adapter on it.
        BaseNotFound, Malformed, CouldNotTell, DigestMismatch: the files of base or adapter cannot be read.
    """
    run = _opened(given, base)
    kind = DTYPES[dtype or DEFAULT_DTYPE]
    limit: dict[str, Any] = {"rank": None, "max_error": None, **limit_of(**_all(options))}
    with _numbers_apart(), ExitStack() as stack, new_folder(out_folder) as partial:
        peft = _built(run, stack)
        layers = dict(_layers(peft))
        updates = _updates(run, layers)
        _write(run, partial, updates, limit, kind, progress or (lambda _done, _all: None))
    worst_module, worst_error = run.errors.worst
    return MergeResult(
        out_folder=out_folder,
        relative_error=run.errors.relative,
        worst_error=worst_error,
        worst_module=worst_module,
        truncation_error=None,
        ranks=MappingProxyType(dict(sorted(Counter(run.ranks.values()).items()))),
        dtype=dtype or DEFAULT_DTYPE,
        is_copy=False,
        warnings=(),
        recipe={"method": METHOD, "options": dict(options), "dtype": dtype or DEFAULT_DTYPE},
    )


def _all(options: Mapping[str, int | float]) -> dict[str, Any]:
    return {name: options.get(name) for name in ("rank", "max_error", "energy")}


# ---------------------------------------------------------------- the adapter and its base
def _opened(given: MergeInput, base: BaseRecord) -> _Conversion:
    subject = open_files(given.folder, given.expected)
    config, label = subject.config, shown(given.label, 200)
    if config.start_changes_base:
        raise UnsupportedAdapter(f"`{label}` cannot become a LoRA here", list(config.obstacles))
    marks = config.method.marks
    modules: set[str] = set()
    for spec in subject.weights.tensors:
        parts = spec.name.removeprefix(PEFT_PREFIX).split(".")
        at = next((i for i, part in enumerate(parts) if part.startswith(marks)), 0)
        if at and spec.name.startswith(PEFT_PREFIX):
            modules.add(".".join(parts[:at]))
    model = StoredModel.of(base)
    shapes = {name: weight.spec.shape for name, weight in model.weights.items()}
    if not modules:
        raise UnsupportedAdapter(
            f"`{label}` cannot become a LoRA", [f"{config.peft_type} has no factors on linear layers of the base"]
        )
    names = find_in_files(dict.fromkeys(sorted(modules)), shapes, model.model_type or None)
    if names.readings:
        raise BaseMismatch(f"`{label}`: {ambiguous_names(names.readings)}", hint=AMBIGUOUS_HINT)
    places = {module: names.here(module) for module in _ordered(label, modules, model, config)}
    _check_places(label, places, shapes)
    odd = [f"`{shown(s.name)}` is stored as {s.dtype}" for s in subject.weights.tensors if s.dtype not in TENSOR_DTYPES]
    if odd:
        raise UnsupportedAdapter(f"`{label}` cannot become a LoRA", alike_once(odd))
    return _Conversion(
        label=label,
        subject=subject,
        model=model,
        places=places,
        tensors={spec.name: _tensor(subject, spec) for spec in subject.weights.tensors},
        paths=frozenset(name.rpartition(".")[0] for name in shapes) if names.is_own else frozenset(),
    )


def _tensor(subject: Subject, spec: TensorSpec) -> Tensor:
    dtype = TENSOR_DTYPES[spec.dtype]
    if not spec.elements:
        return torch.empty(spec.shape, dtype=dtype)
    return torch.frombuffer(_data(subject, spec), dtype=dtype).reshape(spec.shape)


def _data(subject: Subject, spec: TensorSpec) -> bytearray:
    return bytearray(subject.held.read(spec.start, spec.start + spec.size_bytes))


def _check_places(label: str, places: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise unless each module is a linear layer of the base."""
    lacking = [f"`{shown(module)}`" for module, here in places.items() if f"{here}.weight" not in shapes]
    if lacking:
        raise BaseMismatch(
            f"`{label}` is for {len(lacking)} modules that this base does not have as one weight each, such as "
            f"{', '.join(lacking[:3])}",
            hint="name the base that it was made for with `--base`",
        )
    kinds = [
        f"`{shown(module)}` is no linear layer: its weight has the shape {list(shape)}"
        for module, here in places.items()
        if len(shape := shapes[f"{here}.weight"]) != MATRIX_NDIM or module.rpartition(".")[2].endswith(_TABLES)
    ]
    if kinds:
        raise UnsupportedAdapter(f"`{label}` cannot become a LoRA here", alike_once(kinds)[:_LISTED])


def _ordered(label: str, modules: set[str], model: StoredModel, config: AdapterConfig) -> list[str]:
    """Return the modules as the model has them.

    Raises:
        UnsupportedAdapter: that order is unknown, and the method needs it.
    """
    place = {name: at for at, name in enumerate(_layers_of(model))}
    if modules <= place.keys():
        return sorted(modules, key=lambda name: place[name])
    if config.peft_type in _BY_ORDER:
        kind = shown(model.model_type) or "this base"
        reason = f"{config.peft_type} depends on the order of the layers, and transformers has no class for {kind}"
        raise UnsupportedAdapter(f"`{label}` cannot become a LoRA here", [reason])
    return sorted(modules)


def _layers_of(model: StoredModel) -> list[str]:
    """Return the names of all modules, in the order of transformers' class; empty if it has none."""
    import transformers

    [kind, *_] = model.config.get("architectures") or [""]
    make = getattr(transformers, str(kind), None)
    if make is None or not hasattr(make, "config_class") or model.record.path is None:
        return []
    try:
        config = transformers.AutoConfig.from_pretrained(model.record.path, local_files_only=True)
        with torch.device("meta"):
            return [name for name, _ in make(config).named_modules()]
    except Exception:  # noqa: BLE001 - whatever such a class needs
        return []


_TABLES: Final = ("embed_tokens", "wte", "wpe", "embed_in", "word_embeddings", "embeddings", "shared")


# ---------------------------------------------------------------- PEFT's layers
@contextmanager
def _numbers_apart() -> Iterator[None]:
    """Suppress PEFT's warnings, and preserve the random state of the caller while the block runs."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield


def _built(run: _Conversion, stack: ExitStack) -> PeftModel:
    """PEFT's layers over the base's weights, holding every number of the adapter."""
    from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    files: dict[Path, Any] = {}
    first: dict[str, Tensor] = {}

    def read(weight: PairedWeight) -> Tensor:
        if weight.path not in files:
            files[weight.path] = stack.enter_context(safe_open(weight.path, "pt"))
        found: Tensor = files[weight.path].get_tensor(weight.spec.name)
        if not found.is_floating_point() or found.element_size() == 1:
            reason = f"`{shown(weight.spec.name)}` of the base is stored as {weight.spec.dtype}"
            raise UnsupportedAdapter(f"`{run.label}` can become a LoRA only beside unquantised weights", [reason])
        return found

    config = _config(run)
    try:
        skeleton = _skeleton(run, read)
        first |= {name: bias.clone() for name, bias in skeleton.named_parameters() if bias.ndim == 1}
        with extension_where_possible():
            model = PeftModel(skeleton, config)
        set_peft_model_state_dict(model, dict(run.tensors))
        held = get_peft_model_state_dict(model, save_embedding_layers=False)
    except _FAULTS as error:
        raise UnsupportedAdapter(f"PEFT cannot put `{run.label}` on this base", [shown(str(error), 300)]) from error
    _check_held(run, held)
    for name, layer in _layers(model):
        bias = getattr(layer.get_base_layer(), "bias", None)
        if isinstance(bias, Tensor) and not torch.equal(bias, first[f"{name}.bias"]):
            reason = f"it replaces the bias of `{shown(name)}` in the base (bias {run.subject.config.bias})"
            raise UnsupportedAdapter(f"`{run.label}` cannot become a LoRA here", [reason])
    if any("base_layer" in name for name in held):
        raise UnsupportedAdapter(f"`{run.label}` cannot become a LoRA here", ["it replaces weights of the base"])
    wrapped = {name for name, _ in _layers(model)}
    if odd := sorted(wrapped ^ run.places.keys()):
        listed = [f"`{shown(name)}`" for name in odd[:_LISTED]]
        raise UnsupportedAdapter(f"PEFT wraps other modules than those of `{run.label}`", listed)
    return model.eval()


def _config(run: _Conversion) -> Any:
    """Return the adapter's config for PEFT, with exactly the modules of the file as targets."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING as KINDS
    from peft import PeftType
    from peft import __version__ as version

    kind = run.subject.config.peft_type
    given: dict[str, Any] = strict_json(run.subject.config_bytes)  # an object, as was checked
    make = KINDS.get(PeftType.__members__.get(kind))
    if make is None:
        raise UnsupportedAdapter(f"`{run.label}` cannot become a LoRA", [f"PEFT {version} does not have {kind}"])
    known = inspect.signature(make).parameters
    shapes = [spec.shape for spec in run.subject.weights.tensors]
    shapes += [weight.spec.shape for name in run.places if (weight := run.weight(name)) is not None]
    if reason := _unsettled(kind, given, run.subject) or excess(given, shapes):
        raise UnsupportedAdapter(f"`{run.label}` cannot become a LoRA", [reason])
    strange = [f"`{shown(k, 60)}`" for k, value in given.items() if k not in {*known, *_ELSEWHERE} and value]
    if strange:
        reason = f"PEFT {version} has no setting {', '.join(strange[:5])} for {kind}, so what it does is unknown here"
        raise UnsupportedAdapter(f"`{run.label}` cannot become a LoRA", [reason])
    try:
        config: Any = make(**{key: value for key, value in given.items() if key in known})
    except (*_FAULTS, ImportError) as error:
        raise UnsupportedAdapter(f"PEFT refuses the config of `{run.label}`", [shown(str(error), 300)]) from error
    changes = dict.fromkeys(_PLACES) | {"progressbar": False}
    for name in changes.keys() & vars(config).keys():
        setattr(config, name, changes[name])
    config.target_modules, config.task_type, config.inference_mode = set(run.places), None, True
    return config


def _unsettled(kind: str, settings: Mapping[str, Any], subject: Subject) -> str:
    """Return why the file does not settle what the adapter does."""
    has_basis = any(not spec.name.startswith(PEFT_PREFIX) for spec in subject.weights.tensors)
    if kind in _FROM_THE_BASE or (kind == "FROD" and not has_basis):
        return f"{kind} rests on a decomposition of the base's weights that is in no file"
    if kind == _UNNAMED:
        return f"{kind} leaves open which modules its one vector is for, and in which order"
    return undetermined(settings)


def _skeleton(run: _Conversion, read: Callable[[PairedWeight], Tensor]) -> nn.Module:
    """Load only the modules of the base that the adapter changes: linear layers under the adapter's names."""
    from transformers.pytorch_utils import Conv1D

    root = nn.Module()
    for name in run.places:
        weight, bias = run.weight(name), run.weight(name, "bias")
        assert weight is not None  # as `_check_places` found
        rows, columns = weight.spec.shape
        with torch.device("meta"):
            layer = Conv1D(columns, rows) if run.is_turned(name) else nn.Linear(columns, rows, bias=bias is not None)
        layer.weight = nn.Parameter(read(weight), requires_grad=False)
        if bias is not None:
            layer.bias = nn.Parameter(read(bias), requires_grad=False)
        at, (*parents, last) = root, name.split(".")
        for part in parents:
            if part not in at._modules:  # noqa: SLF001 - torch has no other way to ask
                at.add_module(part, nn.Module())
            at = at.get_submodule(part)
        at.add_module(last, layer)
    root.config = {"model_type": run.model.model_type or "custom"}  # type: ignore[assignment]  # PEFT asks for it
    return root


def _check_held(run: _Conversion, held: Mapping[str, Tensor]) -> None:
    """Raise unless PEFT holds every number of the file and no other; what replaces modules whole is carried."""
    reasons = [f"its file lacks `{shown(name)}`" for name in sorted(held.keys() - run.tensors.keys())]
    ends = run.subject.config.saved_modules
    for spec in run.subject.weights.tensors:
        if spec.name in held:
            mine, theirs = run.tensors[spec.name], held[spec.name]
            if mine.shape != theirs.shape or not torch.equal(mine.to(theirs.dtype), theirs):
                reasons.append(f"PEFT does not load `{shown(spec.name)}` as the file has it")
            continue
        module = spec.name.removeprefix(PEFT_PREFIX).rpartition(".")[0]
        parts = module.split(".")
        if ends and any(".".join(parts[: at + 1]).endswith(ends) for at in range(len(parts))):
            run.carried.append(spec)
        else:
            reasons.append(f"a LoRA has no place for `{shown(spec.name)}`")
    if reasons:
        raise UnsupportedAdapter(f"`{run.label}` cannot become a LoRA", alike_once(reasons)[:_LISTED])


def _layers(model: PeftModel) -> Iterator[tuple[str, BaseTunerLayer]]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    inside: nn.Module = model.base_model.model
    return ((name, layer) for name, layer in inside.named_modules() if isinstance(layer, BaseTunerLayer))


def _updates(run: _Conversion, layers: Mapping[str, BaseTunerLayer]) -> Iterator[tuple[str, _Update]]:
    """Yield the update of each layer, one at a time; the base's weights leave memory again."""
    for name in run.places:
        layer: Any = layers[name]
        base = layer.get_base_layer()
        kept = {key: parameter.data for key, parameter in base.named_parameters(recurse=False)}
        layer.double()
        before = {key: parameter.data.clone() for key, parameter in base.named_parameters(recurse=False)}
        generator = torch.Generator().manual_seed(0)
        width = layer.in_features
        inputs = torch.randn(3, 4, width, generator=generator, dtype=torch.float64)
        inputs *= torch.logspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4, 1)  # what is no linear map bends
        plain, answer = base(inputs), _answer(run, name, layer, inputs)
        try:
            layer.merge(safe_merge=False)
        except _FAULTS as error:
            raise _not_linear(run, name, f"PEFT cannot merge it ({shown(str(error), 200)})") from error
        merged = layer.get_base_layer()
        after = {key: parameter.data for key, parameter in merged.named_parameters(recurse=False)}
        gap = torch.linalg.vector_norm(merged(inputs) - answer, dim=-1)
        room = torch.linalg.vector_norm(answer - plain, dim=-1) * _OFF
        room += torch.linalg.vector_norm(plain, dim=-1) * _ROUNDING
        matrix = after["weight"] - before["weight"]
        if not bool(matrix.isfinite().all()):
            raise UnsupportedAdapter(f"`{run.label}` cannot become a LoRA", [f"`{shown(name)}`: NaN or infinite"])
        if after.keys() != before.keys() or bool((gap > room).any()):
            raise _not_linear(run, name, "its layers are no linear map of their inputs")
        bias = after["bias"] - before["bias"] if "bias" in after else None
        for key, parameter in base.named_parameters(recurse=False):
            parameter.data = kept[key]
        yield name, _Update(matrix=matrix.T.contiguous() if run.is_turned(name) else matrix, bias=bias)


def _answer(run: _Conversion, name: str, layer: Any, inputs: Tensor) -> Tensor:
    try:
        found: Tensor = layer(inputs)
    except _FAULTS as error:
        raise _not_linear(run, name, f"PEFT's layer needs more than its inputs ({shown(str(error), 200)})") from error
    return found


def _not_linear(run: _Conversion, name: str, why: str) -> UnsupportedAdapter:
    kind = " with ".join(run.subject.config.methods()[:2])
    return UnsupportedAdapter(f"`{run.label}` cannot become a LoRA", [f"{kind} on `{shown(name)}`: {why}"])


# ---------------------------------------------------------------- the result
def _write(
    run: _Conversion,
    folder: Path,
    updates: Iterator[tuple[str, _Update]],
    limit: Mapping[str, Any],
    dtype: torch.dtype,
    progress: MergeProgress,
) -> None:
    """Write the factors module by module, then what is carried, then the config."""
    offsets: dict[str, Tensor] = {}
    # widest numbers first, so that each tensor starts at a multiple of their size
    carried = sorted(run.carried, key=lambda one: (-DTYPE_BITS[one.dtype], one.name))
    with TensorFileWriter(folder / WEIGHTS_FILE, [*_planned(run, limit, dtype), *carried]) as writer:
        for done, (name, update) in enumerate(updates, 1):
            stored = closest(update.matrix, **limit).folded(dtype)
            if not stored.is_finite():
                reason = f"`{shown(name)}`: its factors are not finite in {FORMAT_DTYPES[dtype]}"
                raise UnsupportedAdapter(f"`{run.label}` cannot become a LoRA", [reason])
            bias = torch.zeros(len(update.matrix), dtype=torch.float64) if update.bias is None else update.bias
            offsets[name] = bias.to(dtype)
            parts = [(_gap(stored, update.matrix), float(update.matrix.norm()))]
            run.errors.record(name, [*parts, (float((offsets[name].double() - bias).norm()), float(bias.norm()))])
            writer.add(f"{PEFT_PREFIX}{name}.lora_A.weight", stored.a)
            writer.add(f"{PEFT_PREFIX}{name}.lora_B.weight", stored.b)
            run.ranks[name] = stored.rank
            progress(done, len(run.places))
        has_bias = any(bool(offset.any()) for offset in offsets.values())
        for name, offset in offsets.items() if has_bias else ():
            writer.add(f"{PEFT_PREFIX}{name}.lora_B.bias", offset)
        for spec in carried:
            writer.add_bytes(spec, _data(run.subject, spec))
    own = run.subject.config
    r = common_rank(run.ranks.values())
    config = plain_lora(r, rank_pattern(run.ranks, r)) | {
        "task_type": own.task_type,
        "base_model_name_or_path": own.base_model_name_or_path,
        "revision": own.revision,
        "target_modules": short_names(run.ranks, run.paths) if run.paths else sorted(run.ranks),
        "modules_to_save": sorted(own.modules_to_save) or None,
        "fan_in_fan_out": any(map(run.is_turned, run.places)),
        "lora_bias": has_bias,
        "bias": "none",
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _planned(run: _Conversion, limit: Mapping[str, Any], dtype: torch.dtype) -> Iterator[TensorSpec]:
    """Every factor at its largest possible rank."""
    kind, biases = FORMAT_DTYPES[dtype], []
    for name in run.places:
        weight = run.weight(name)
        assert weight is not None  # as `_check_places` found
        out, width = weight.spec.shape[::-1] if run.is_turned(name) else weight.spec.shape
        rank = min(out, width, limit["rank"] or out)
        yield TensorSpec.planned(f"{PEFT_PREFIX}{name}.lora_A.weight", kind, (rank, width))
        yield TensorSpec.planned(f"{PEFT_PREFIX}{name}.lora_B.weight", kind, (out, rank))
        biases.append(TensorSpec.planned(f"{PEFT_PREFIX}{name}.lora_B.bias", kind, (out,)))
    yield from biases


def _gap(stored: LowRank, matrix: Tensor) -> float:
    return float(torch.addmm(matrix, stored.b.double(), stored.a.double(), alpha=-1).norm())
