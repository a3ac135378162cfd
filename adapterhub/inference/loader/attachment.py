"""`attach` prepares adapters and injects them into a model; `Attached` is the result, until it is detached."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from torch import nn

from adapterhub.core.arguments import ModelLike, parsed
from adapterhub.core.digests import Digest
from adapterhub.core.errors import UsageProblem, shown
from adapterhub.core.specs import BaseSpec
from adapterhub.distribution.finding import with_weights
from adapterhub.inference.loader.base.model import BaseModel
from adapterhub.inference.loader.base.pipeline import PipelineModules, as_given, as_model
from adapterhub.inference.loader.facts import AttachedAdapter, lines
from adapterhub.inference.loader.injection import ReadyAdapter, inject, set_scales
from adapterhub.inference.loader.mixture import check_mixture
from adapterhub.inference.loader.preparation import Preparation
from adapterhub.library.default import LibraryLike, open_library
from adapterhub.library.store.catalog import AdapterLike

if TYPE_CHECKING:
    from peft import PeftModel
    from typing_extensions import Self


class Attached:
    """A base with adapters on it; a context manager that detaches at its end.

    `model` is PEFT's `PeftModel`; `adapters` are in the order of the call.
    """

    def __init__(
        self,
        base: BaseModel,
        model: PeftModel,
        adapters: tuple[AttachedAdapter, ...],
        ready: Sequence[ReadyAdapter],
    ) -> None:
        self.adapters = adapters
        self._base = base
        self._model = model
        self._ready = ready
        self._hooks = base.added_hooks()
        self._is_pipeline = isinstance(base.model, PipelineModules)

    @property
    def model(self) -> PeftModel:
        """The `PeftModel`; call it, or its `generate`, like the base. For a pipeline, the pipeline itself.

        Raises:
            UsageProblem: the adapters were detached.
        """
        if self._model is None:
            raise UsageProblem("the adapter was detached", hint="use the base model, which `detach()` returned")
        given: PeftModel = as_given(self._base.model) if self._is_pipeline else self._model  # a pipeline: itself
        return given

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings of all adapters, each with the adapter's name."""
        return tuple(f"`{shown(a.label, 200)}` {warning}" for a in self.adapters for warning in a.warnings)

    def explain(self) -> str:
        """The attached adapters in lines for people: base, scales, modules replaced whole, warnings."""
        return "\n".join(line for adapter in self.adapters for line in lines(adapter))

    def base_digest(self) -> Digest:
        """Digest over every parameter and buffer of the base, the same before, during and after an attach.

        Reads the whole base: 0.3 s for 500 MB.
        """
        return self._base.digest()

    @parsed
    def weigh(self, weights: Sequence[float]) -> None:
        """Give the adapters new weights, in the order of `adapters`. Attaches nothing again; takes milliseconds.

        Raises:
            UsageProblem: not one finite number for each adapter, or the adapters were detached.
            MergeRefused: the method of an adapter has no weights.
        """
        _ = self.model  # raises once they are detached
        modules = dict(self._model.get_base_model().named_modules(remove_duplicate=False))
        pairs = with_weights([adapter.folder for adapter in self.adapters], weights)
        ready = [replace(r, weight=weight) for r, (_, weight) in zip(self._ready, pairs, strict=True)]
        check_mixture(ready)
        for each in ready:
            set_scales(modules, each)
        self._ready = ready
        self.adapters = tuple(replace(a, weight=r.weight) for a, r in zip(self.adapters, ready, strict=True))

    @contextlib.contextmanager
    def base_alone(self) -> Iterator[None]:
        """Within, the model answers without the adapters, which stay attached.

        Raises:
            UsageProblem: the adapters were detached.
        """
        _ = self.model  # raises once they are detached
        with self._model.disable_adapter(), self._base.own_parameters():
            yield

    def detach(self) -> nn.Module:
        """Take the adapters off; returns the model that `attach` was given, unchanged. May be called twice."""
        if self._model is not None:
            self._base.restore(self._hooks)
            self._model = None
        return as_given(self._base.model)

    def __enter__(self) -> Self:
        """Go on with the attached adapters.

        Raises:
            UsageProblem: they were detached; a second block would run without them.
        """
        _ = self.model  # raises once they are detached
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


@parsed
def attach(
    model: ModelLike,
    adapter: AdapterLike | Sequence[AdapterLike] | Mapping[AdapterLike, float],
    *,
    library: LibraryLike = None,
    base: BaseSpec | str | None = None,
    weights: Sequence[float] | None = None,
    allow_base_mismatch: bool = False,
) -> Attached:
    """Put one or several adapters on `model`; the base stays frozen, and `detach` returns it unchanged.

    Several adapters add up at run time: the update is exactly the sum of weight * delta. Name an adapter by a spec, a
    folder or an installed build. `base` names the base for all of them; without it, the model itself decides which
    build fits. Sampled numbers of the model are compared with the base of each adapter before anything is wrapped. An
    adapter that declares no base gets a warning; if the model is a registered base, the adapter is pinned to it.

    `model` may be a pipeline: any object with a mapping `components`. An adapter of several components has their names
    in front of its modules (`unet.down_blocks.0…`); one of a single component has that model's own names.

    Raises:
        BaseMismatch: an adapter was made for another base (`allow_base_mismatch` permits one with the same shapes), or
            for modules or shapes that this model does not have.
        UnsupportedAdapter: PEFT cannot attach this kind of adapter, or not without changing the base.
        MergeRefused: the adapters cannot be added up.
        RefusedAdapter, Malformed, DigestMismatch: the contents or the files of an adapter are damaged or unsafe.
        AdapterNotFound, NoCompatibleRelease, AmbiguousSpec, BaseNotFound, UsageProblem: the request has no match, or
            more than one.

    After any of these errors the model is unchanged.
    """
    place = open_library(library)
    pairs = with_weights(adapter, weights)
    frozen = BaseModel(as_model(model))
    preparation = Preparation(frozen, place, base=base, allow_base_mismatch=allow_base_mismatch)
    prepared = preparation.prepare([preparation.find(each, weight) for each, weight in pairs])
    ready = [each.ready for each in prepared]
    try:
        wrapped = inject(frozen, ready)
    except BaseException:
        frozen.restore(frozen.added_hooks())
        raise
    for each in ready:
        each.contents.weights.close()  # the model has all of it
    return Attached(frozen, wrapped, tuple(preparation.record(each) for each in prepared), ready)
