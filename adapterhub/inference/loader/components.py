"""The component of a pipeline that an adapter is for."""

from __future__ import annotations

from collections.abc import Callable

from adapterhub.core.errors import BaseMismatch, UsageProblem, shown
from adapterhub.distribution.finding import FoundAdapter
from adapterhub.formats.diffusion.components import COMPONENTS, stated_component
from adapterhub.inference.loader.base.model import BaseModel
from adapterhub.inference.loader.base.pipeline import PipelineModules
from adapterhub.inference.loader.reading.naming import names_for
from adapterhub.inference.loader.reading.placing import modules_in
from adapterhub.trust.verify import Subject


def component_for(found: FoundAdapter, files: Subject, base: BaseModel, fits: Callable[[str], bool]) -> str:
    """The component whose own names the adapter uses; "" when its names begin with components, or `base` is one model.

    An adapter that several components have room for goes to the one that its manifest names as its origin, else to the
    one whose weights it was made for (`fits`).

    Raises:
        BaseMismatch: the pipeline lacks a component that the adapter changes.
        UsageProblem: several components fit alike.
    """
    if not isinstance(base.model, PipelineModules):
        return ""
    names, modules = base.model.names, modules_in(files.weights, files.config)
    fronts = {module.partition(".")[0] for module in modules}
    if fronts <= set(COMPONENTS):
        absent = sorted(fronts - set(names), key=COMPONENTS.index)
        if absent:
            listed = ", ".join(f"`{name}`" for name in absent)
            what = f"`{shown(found.label, 200)}` changes {listed}, which this pipeline does not have in memory"
            raise BaseMismatch(what, hint=f"load the pipeline with it; this one has {', '.join(names)}")
        return ""
    having = [name for name in names if names_for(modules, base, name).has(modules)]
    stated = stated_component(found.manifest.annotations) if found.manifest else ""
    if stated in having:
        return stated
    if len(having) > 1:
        having = [name for name in having if fits(name)] or having
    if len(having) > 1:
        listed = " and ".join(f"`{name}`" for name in having)
        raise UsageProblem(
            f"`{shown(found.label, 200)}` fits {listed} of this pipeline alike",
            hint=f"attach it to one: attach(pipeline.{having[0]}, …), or add it with `--base NAME/{having[0]}`",
        )
    return having[0] if having else next(iter(names))
