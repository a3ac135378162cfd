"""A pipeline of several models as one model: a module with its components as children."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from adapterhub.core.errors import UsageProblem
from adapterhub.formats.diffusion.components import COMPONENTS


class PipelineModules(nn.Module):
    """The components of a pipeline that adapters are made for, as children; it is never called itself.

    Wrapping a module inside a component changes the pipeline, which goes on to call its own components. Any object with
    a mapping `components` counts as a pipeline.

    Raises:
        UsageProblem: the pipeline has none of these components in memory.
    """

    def __init__(self, pipeline: Any) -> None:  # noqa: ANN401 - diffusers is not needed here
        super().__init__()
        object.__setattr__(self, "pipeline", pipeline)  # no child: it may be a module itself
        for name in COMPONENTS:
            component = pipeline.components.get(name)
            if isinstance(component, nn.Module):
                self.add_module(name, component)
        if not self._modules:
            raise UsageProblem(
                "the pipeline has no model in memory that adapters are made for",
                hint=f"expected one of {', '.join(COMPONENTS)} among its `components`",
            )
        self.training = next(self.children()).training

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its components, in the order of `COMPONENTS`."""
        return tuple(self._modules)


def as_model(model: Any) -> Any:  # noqa: ANN401 - checked by `BaseModel`
    """A pipeline as one model; anything else unchanged."""
    if not isinstance(model, nn.Module) and isinstance(getattr(model, "components", None), Mapping):
        return PipelineModules(model)
    return model


def as_given(model: nn.Module) -> nn.Module:
    """The inverse of `as_model`: a pipeline stands for the model that it was given as."""
    given: nn.Module = vars(model)["pipeline"] if isinstance(model, PipelineModules) else model
    return given
