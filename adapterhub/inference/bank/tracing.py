"""Finds the rows of a batch in the inputs of each module, by watching and never by guessing.

The first call of its kind runs the model a few more times, each time with other contents in some of its rows. What
changes in a module's input when one row changes belongs to that row. Sizes would not be enough: two rows of two tokens
look alike with time first, and two images may belong to one row.
"""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from adapterhub.core.digests import Digest
from adapterhub.core.errors import DigestMismatch, UnsupportedAdapter, UsageProblem, shown
from adapterhub.inference.bank.updates import Args, Current, Kwargs, Output, first_input
from adapterhub.inference.loader.base import BaseModel, PipelineModules
from adapterhub.inference.loader.identity import LoadedBase, sample_base
from adapterhub.inference.loader.reading import LISTED

_HINT = "load the base again, and find what wrote to it: an adapter bank never does"


class FrozenBase:
    """Compares the base with itself. `at_start` holds the samples of its tensors from before anything ran.

    The digest is taken at the first check, not at the start: it reads the whole base, which would delay a bank on 13 GB
    by seconds.
    """

    def __init__(self, base: BaseModel, at_start: LoadedBase) -> None:
        self._base = base
        self._at_start = at_start
        self._digest: Digest | None = None
        self._lock = threading.Lock()

    def check(self) -> Digest:
        """Return the digest of the base.

        Raises:
            DigestMismatch: a tensor has changed.
        """
        with self._lock:
            if self._digest is None:
                self._compare_samples()
            actual = self._base.digest()
            if self._digest is None:
                self._digest = actual
            if actual != self._digest:
                raise DigestMismatch("the base model in memory", expected=self._digest, actual=actual, hint=_HINT)
            return actual

    def _compare_samples(self) -> None:
        before, now = self._at_start.samples, sample_base(self._base).samples
        changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        if changed:
            raise DigestMismatch(
                f"the base model in memory, `{changed[0]}`" + (f" and {len(changed) - 1} more" if changed[1:] else ""),
                expected="the numbers sampled when the bank was made",
                actual="other numbers",
                hint=_HINT,
            )


SHORT: Final = -1
"""The version of a row that has one entry and padding."""

_PLACEHOLDERS: Final = ("image", "video", "vision", "audio", "speech", "modal")


def changed_arguments(
    model: nn.Module, given: Mapping[str, Any], inputs: Mapping[str, Tensor], versions: Sequence[int]
) -> dict[str, Any]:
    """Return the arguments with the rows in these versions; 0 is the row itself.

    Caches are copied, which calls write to.
    """
    changed: dict[str, Any] = {}
    short = [row for row, version in enumerate(versions) if version == SHORT]
    for name, value in given.items():
        if name not in inputs:
            changed[name] = value if isinstance(value, Tensor) else copy.deepcopy(value)
            if short and name.endswith("attention_mask") and isinstance(value, Tensor) and value.ndim == 2:
                changed[name] = value.clone()
                changed[name][short, 1:] = 0
            continue
        tensor = inputs[name].detach()
        rows = (_floats if tensor.is_floating_point() else _numbers)(model, tensor, versions)
        if isinstance(value, Tensor):
            changed[name] = rows
        elif isinstance(value, Mapping):
            made: Any = copy.copy(value)
            made[next(iter(value))] = rows
            changed[name] = made
        else:
            changed[name] = type(value)((rows, *value[1:]))
    return changed


def _floats(_model: nn.Module, tensor: Tensor, versions: Sequence[int]) -> Tensor:
    changed = tensor.clone()
    size = float(tensor.float().std()) if tensor.numel() > 1 else 0.0
    for row, version in enumerate(versions):
        if version == SHORT:
            changed[row, 1:] = 0
        elif version:
            noise = torch.randn(tensor[row].shape, generator=_of(version, row))
            changed[row] += (noise * (size or 1.0)).to(changed)
    return changed


def _of(version: int, row: int) -> torch.Generator:
    return torch.Generator().manual_seed(version << 32 | row)


def _numbers(model: nn.Module, tensor: Tensor, versions: Sequence[int]) -> Tensor:
    """Token ids with others instead of ordinary ones; those that stand for images and the like stay."""
    if tensor.dtype == torch.bool:
        return tensor.clone()
    special, held = _special(getattr(model, "config", None))
    entries = max(int(tensor.max()) + 1, 2)
    ordinary = torch.tensor([i for i in range(entries) if i not in special][-4096:] or [0, 1], device=tensor.device)
    changed = tensor.clone()
    for row, version in enumerate(versions):
        if not version:
            continue
        own = tensor[row]
        may = ~torch.isin(own, torch.tensor(sorted(special), device=own.device, dtype=own.dtype)) & (own >= 0)
        if not bool(may.any()):
            may = ~torch.isin(own, torch.tensor(sorted(held), device=own.device, dtype=own.dtype)) & (own >= 0)
        if version == SHORT:
            may[:1] = False
            changed[row] = own.masked_fill(may, getattr(getattr(model, "config", None), "pad_token_id", None) or 0)
            continue
        drawn = torch.randint(len(ordinary), own.shape, generator=_of(version, row)).to(own.device)
        other = ordinary[drawn].to(own.dtype)
        other = torch.where(other == own, ordinary[(drawn + 1) % len(ordinary)].to(own.dtype), other)
        changed[row] = torch.where(may, other, own)
    return changed


def _special(config: object) -> tuple[set[int], set[int]]:
    """Return the ids of special tokens in a model's config, and those among them that stand for something else."""
    special, held = set[int](), set[int]()
    written = getattr(config, "to_dict", dict)
    left: list[dict[str, Any]] = [written()]
    while left:
        for key, value in left.pop().items():
            if isinstance(value, dict):
                left.append(value)
            elif type(value) is int and key.endswith(("_token_id", "_token_index", "_id")):
                special.add(value)
                if any(word in key for word in _PLACEHOLDERS):
                    held.add(value)
    return special, held


_BY_ROW: Final = (
    "input_ids", "inputs_embeds", "decoder_input_ids", "decoder_inputs_embeds", "encoder_outputs",
    "encoder_hidden_states", "timestep",
)  # fmt: skip
"""Arguments of models that hold one entry per row, beside the one that the model names as its main input."""

_NOISE: Final = 0.05
"""How much less a row's numbers may differ between two passes with the same row than with another one."""
_DIRECTIONS: Final = 4
_TOKENS: Final = 64
_MOST_PASSES: Final = 6


class Layout(NamedTuple):
    """The axis of a module's input and output on which rows lie, each of them `times` entries that are adjacent.

    `counted` names the arguments of the call with as many tokens as `times`; if it is empty, `times` holds only for
    inputs of the model with the shapes `shapes`.
    """

    axis: int
    times: int
    counted: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]


class KnownClass(NamedTuple):
    """The findings about one kind of call: the layouts of the modules `watched`, or why a module has none.

    `leading` names those whose first axis has one entry per row.
    """

    watched: frozenset[str]
    layouts: Mapping[str, Layout | str]
    leading: frozenset[str]


class Call(NamedTuple):
    """A call of the model that runs now: its rows, the arguments that hold them, and the layouts of its modules."""

    batch: int
    inputs: Mapping[str, Tensor]
    layouts: Mapping[str, Layout | str]
    leading: frozenset[str]

    def axis(self, name: str, inputs: Tensor) -> int:
        """Return the axis of these inputs of the module `name` on which the rows lie, in their order and adjacent.

        Raises:
            UnsupportedAdapter: they were never seen to lie there.
        """
        found = self.layouts.get(name, "is called only for some contents of a batch")
        if isinstance(found, str):
            raise refusal([f"`{shown(name)}` {found}"])
        times = inputs.shape[found.axis] / self.batch if inputs.ndim > found.axis else 0
        if times == 1 == found.times or any(times == self.inputs[given].shape[1] for given in found.counted):
            return found.axis
        if times == found.times and _shapes(self.inputs) == found.shapes:
            return found.axis
        raise refusal(
            [f"`{shown(name)}` got an input of shape {list(inputs.shape)}, in which no row has a known place"]
        )


def refusal(reasons: Sequence[str]) -> UnsupportedAdapter:
    """Return the error for modules whose rows have no known place."""
    more = [f"and {len(reasons) - LISTED} more modules"] if len(reasons) > LISTED else []
    return UnsupportedAdapter(
        "these adapters cannot be chosen by row in this call",
        [*reasons[:LISTED], *more],
        hint="bank.use(…) uses them for the whole batch; call the model once per row, each with its own choice",
    )


class Tracer:
    """Finds and remembers the layouts of the model's modules, by the kind of call.

    `hooked` gives the names of the modules that adapters change so far. Thread-safe: two threads may trace at once,
    with the same result.
    """

    def __init__(self, model: nn.Module, current: Current, hooked: Callable[[], frozenset[str]]) -> None:
        self._model = model
        self._current = current
        self._hooked = hooked
        self._known: dict[object, KnownClass] = {}

    def call(self, module: nn.Module, args: Args, kwargs: Kwargs, rows: int, names: frozenset[str]) -> Call:
        """Return the facts about a call of `module`, which is traced if it is the first of its kind.

        Raises:
            UsageProblem: the batch is not a multiple of the rows.
            UnsupportedAdapter: the rows have no known place in one of the modules `names`.
        """
        given = _by_name(module, args, kwargs)
        inputs = {name: tensor for name in _row_names(module) if (tensor := _tensor(given.get(name))) is not None}
        if any(len(tensor) > 1 for tensor in inputs.values()):  # one entry for all rows is none of a row
            inputs = {name: tensor for name, tensor in inputs.items() if len(tensor) > 1}
        sizes = {len(tensor) for tensor in inputs.values()}
        if not sizes:
            raise refusal(
                [f"`{shown(type(module).__name__)}` was called without an input that holds one entry per row"]
            )
        batch = sizes.pop()
        if sizes:
            told = ", ".join(f"`{name}` {list(tensor.shape)}" for name, tensor in inputs.items())
            raise refusal([f"the inputs have different numbers of rows: {told}"])
        if not batch or batch % rows:
            raise UsageProblem(
                f"the batch has {batch} rows, expected {rows} rows or a multiple",
                hint="pass `rows` one choice for each row of the batch",
            )
        kind = _kind(module, given, inputs)
        known = self._known.get(kind)
        if known is None or not names <= known.watched:
            watched = self._hooked()
            layouts = self._trace(module, given, inputs, batch)
            leading = {name for name, at in layouts.items() if isinstance(at, Layout) and (at.axis, at.times) == (0, 1)}
            known = self._known[kind] = KnownClass(watched, layouts, frozenset(leading))
        unknown = [f"`{shown(n)}` {why}" for n in sorted(names) if isinstance(why := known.layouts.get(n), str)]
        if unknown:
            raise refusal(unknown)
        return Call(batch, inputs, known.layouts, known.leading)

    def doors(self) -> list[RemovableHandle]:
        """Hooks that tell a choice by row of each call of the model, or of one inside of it with the same rows."""
        current, model = self._current, self._model
        main = getattr(model, "main_input_name", None)

        def enter(module: nn.Module, args: Args, kwargs: Kwargs) -> None:
            selection = current.get()
            if isinstance(selection, ByRow):
                selection.begin(module, args, kwargs)

        def leave(_module: nn.Module, _args: Args, _output: Output) -> None:
            selection = current.get()
            if isinstance(selection, ByRow):
                selection.end()

        handles: list[RemovableHandle] = []
        inside = [part for part in model.modules() if getattr(part, "main_input_name", None) in (main, *_BY_ROW[:2])]
        for door in {id(door): door for door in (*doors(model), *(inside if main else ()))}.values():
            handles.append(door.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(door.register_forward_hook(leave, always_call=True))
        return handles

    def _trace(
        self, module: nn.Module, given: Mapping[str, Any], inputs: Mapping[str, Tensor], batch: int
    ) -> Mapping[str, Layout | str]:
        if any(part.training and isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules()):  # noqa: SLF001 - the class of all of them
            raise refusal(["the model is in training mode, in which its normalisation mixes the rows"])
        # Row i has the bits of i + 1, one per pass: no two rows change together, and none never.
        codes = [[(row + 1) >> bit & 1 for row in range(batch)] for bit in range(batch.bit_length())]
        tokens = batch * max(tensor[0].numel() if tensor.ndim < 3 else tensor.shape[1] for tensor in inputs.values())
        # Where experts choose tokens, sizes depend on contents; few tokens might come out alike by chance.
        others = [[2 + turn] * batch for turn in range(min(_MOST_PASSES, max(1, _TOKENS // tokens)))]
        marked = [[0] * batch, *codes]
        if max(tensor[0].numel() for tensor in inputs.values()) > 1 and not _has_cache(given):
            # Some models sort their rows by length, or drop the padding.
            marked += [[SHORT, *[0] * (batch - 1)], [*[0] * (batch - 1), SHORT]]
        seen = []
        devices = {tensor.device for tensor in inputs.values() if tensor.is_cuda}
        first = Watch()
        for versions in (*marked, *others):
            watch = Watch() if any(versions) else first
            with torch.no_grad(), torch.random.fork_rng(devices=list(devices)), self._watching(watch):
                torch.manual_seed(0)  # dropout and noise are the same in every pass
                try:
                    module(**changed_arguments(self._model, given, inputs, versions))
                except Exception as error:
                    if not any(versions):
                        raise  # the call itself is at fault
                    if SHORT not in versions:
                        told = shown(str(error), 200)
                        raise refusal([f"the model does not run with other contents in its rows: {told}"]) from error
                    watch = first  # some models take no short rows
            seen.append(watch.seen)
        shapes = _shapes(inputs)
        names = {name for each in seen for name in each}
        return {name: _layout([each.get(name, []) for each in seen], marked, inputs, shapes) for name in names}

    @contextmanager
    def _watching(self, watch: Watch) -> Iterator[None]:
        token = self._current.set(watch)
        try:
            yield
        finally:
            self._current.reset(token)


class Watch:
    """A choice that changes nothing and keeps a digest of what each module gets and returns."""

    labels = ()

    def __init__(self) -> None:
        self.seen: dict[str, list[tuple[Tensor | None, Tensor | None]]] = {}

    def apply(self, name: str, args: Args, kwargs: Kwargs, output: Output, /) -> Output:
        """Return the output, unchanged."""
        self.seen.setdefault(name, []).append((_digest(first_input(args, kwargs)), _digest(output)))
        return output


class ByRow:
    """A choice for each of `count` rows, which changes the modules `names`; it knows the call that runs in a thread."""

    __slots__ = ("_calls", "_depths", "_names", "_tracer", "count")

    def __init__(self, count: int, names: frozenset[str], tracer: Tracer) -> None:
        self.count = count
        self._names = names
        self._tracer = tracer
        self._calls: dict[int, Call] = {}
        self._depths: dict[int, int] = {}

    @property
    def call(self) -> Call | None:
        """The call of the model that runs in this thread."""
        return self._calls.get(threading.get_ident())

    def begin(self, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        """Begin a call of the model, or of a model inside of it, which keeps the rows of the outer call.

        Raises:
            UsageProblem: the batch is not a multiple of the rows.
            UnsupportedAdapter: the rows have no known place in one of the modules.
        """
        me = threading.get_ident()
        if self._names and me not in self._calls:
            self._calls[me] = self._tracer.call(module, args, kwargs, self.count, self._names)
        self._depths[me] = self._depths.get(me, 0) + 1

    def end(self) -> None:
        """End the call that began last."""
        me = threading.get_ident()
        depth = self._depths.get(me, 0) - 1
        if depth > 0:
            self._depths[me] = depth
        else:
            self._depths.pop(me, None)
            self._calls.pop(me, None)


def doors(model: nn.Module) -> list[nn.Module]:
    """Return the model, and its parts that others call directly."""
    if isinstance(model, PipelineModules):
        return list(model.children())
    doors = {id(model): model}
    for getter in ("get_encoder", "get_decoder"):
        try:
            inner = getattr(model, getter)()
        except (AttributeError, NotImplementedError, TypeError):  # a plain module, or a model without one
            continue
        if isinstance(inner, nn.Module):
            doors[id(inner)] = inner
    return list(doors.values())


# ------------------------------------------------------------ the arguments of a call
def _parameters(module: nn.Module) -> list[str]:
    return list(inspect.signature(module.forward).parameters)


def _by_name(module: nn.Module, args: Args, kwargs: Kwargs) -> dict[str, Any]:
    return {**dict(zip(_parameters(module), args, strict=False)), **kwargs} if args else dict(kwargs)


def _row_names(module: nn.Module) -> tuple[str, ...]:
    main = getattr(module, "main_input_name", None) or _parameters(module)[0]
    return (main, *(name for name in _BY_ROW if name != main))


def _tensor(value: object) -> Tensor | None:
    """Return the tensor of an argument with rows; the outputs of an encoder begin with theirs."""
    first = value[0] if isinstance(value, Mapping | tuple) and value else value
    return first if isinstance(first, Tensor) and first.ndim else None


def _shapes(inputs: Mapping[str, Tensor]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tensor.shape[1:]) for tensor in inputs.values())


def _has_cache(given: Mapping[str, Any]) -> bool:
    cache: Any = given.get("past_key_values")
    return bool(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else cache is not None


def _kind(module: nn.Module, given: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> object:
    """Return the key of the way through the model: the arguments there are, one token or more, and a cache in use."""
    kinds = [(name, v.ndim if isinstance(v, Tensor) else type(v)) for name, v in given.items() if v is not None]
    single = tuple(tensor.ndim > 1 and tensor.shape[1] == 1 for tensor in inputs.values())
    return module, _has_cache(given), single, frozenset(kinds)


# ------------------------------------------------------------ what the passes tell
def _digest(value: object) -> Tensor | None:
    """Return a few numbers for each vector of the last axis, which differ where the vectors do.

    Whole numbers themselves.
    """
    if not isinstance(value, Tensor) or not value.ndim:
        return None
    if not value.is_floating_point() or value.ndim == 1:
        return value.detach().double()[..., None]
    directions = torch.randn((value.shape[-1], _DIRECTIONS), generator=torch.Generator().manual_seed(0))
    return value.detach().float() @ directions.to(value.device)


def _layout(
    seen: Sequence[Sequence[tuple[Tensor | None, Tensor | None]]],
    marked: Sequence[Sequence[int]],
    inputs: Mapping[str, Tensor],
    shapes: tuple[tuple[int, ...], ...],
) -> Layout | str:
    """Return the layout that every call of one module had in all passes, or why there is none.

    The first ones are `marked`.
    """
    if len({len(calls) for calls in seen}) > 1:
        return "is called only for some contents of a batch"
    found = set()
    for calls in zip(*seen, strict=True):
        for place in (0, 1):
            digests = [call[place] for call in calls]
            if any(digest is None for digest in digests):
                return "has more than one input or output"
            if len({digest.shape for digest in digests if digest is not None}) > 1:
                return "gets inputs whose size depends on the contents of all rows"
            axes = _axes([digest for digest in digests if digest is not None][: len(marked)], marked)
            if len(axes) != 1:
                return "gets an input in which the rows of the batch have no place of their own"
            found.update(axes)
    if len({axis for axis, _ in found}) != 1 or len({times for _, times in found}) != 1:
        return "gets its rows in a different place at each call"
    [(axis, times)] = found
    counted = tuple(n for n, tensor in inputs.items() if times > 1 and tensor.ndim > 1 and tensor.shape[1] == times)
    return Layout(axis, times, counted, shapes)


def _axes(digests: Sequence[Tensor], passes: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Return the axes, with entries per row, on which exactly the rows that differ between two passes differ."""
    batch, found = len(passes[0]), []
    for axis in range(digests[0].ndim - 1):
        times, rest = divmod(digests[0].shape[axis], batch)
        if rest or not times or (axis and times > 1):
            continue
        rows = torch.stack([digest.movedim(axis, 0).reshape(batch, -1) for digest in digests])
        apart = (rows[:, None] - rows[None]).abs().nan_to_num(posinf=0).amax(-1)  # [passes, passes, rows]
        versions = torch.tensor(passes, device=apart.device)
        is_same = versions[:, None] == versions[None]
        same = apart.masked_fill(~is_same, 0).amax((0, 1))
        is_shorter = (versions[:, None] == SHORT) | (versions[None] == SHORT)  # unless it was short before
        other = apart.masked_fill(is_same | is_shorter, torch.inf).amin((0, 1))
        if bool((other > 0).all()) and bool((same < _NOISE * other).all()):
            found.append((axis, times))
    return found
