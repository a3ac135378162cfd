"""A package manager for LoRA adapters: one frozen base, a directory of adapters.

    import adapterhub

    with adapterhub.attach(model, {"legal-qa": 0.7, "plain-words": 0.3}) as attached:
        attached.model.generate(**inputs)

Names are found on first use (PEP 562), so that importing the package costs nothing.
"""

from __future__ import annotations

import copyreg
import importlib
from types import FunctionType, MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from torch import nn

    from adapterhub.api import callbacks
    from adapterhub.api.library import Library
    from adapterhub.api.project import Project
    from adapterhub.core.errors import AdapterHubError
    from adapterhub.core.specs import AdapterSpec, BaseSpec
    from adapterhub.distribution.requirements import read_requirements
    from adapterhub.formats.base.comparison import compare as compare_bases
    from adapterhub.formats.base.fingerprint import BaseFingerprint, BaseVerdict
    from adapterhub.formats.base.folders import fingerprint_folder
    from adapterhub.formats.contract.contract import Contract
    from adapterhub.formats.contract.results import Tested
    from adapterhub.formats.manifest import Manifest
    from adapterhub.formats.prompts.form import PromptForm
    from adapterhub.inference.bank import AdapterBank
    from adapterhub.inference.loader import AdapterLike, Attached
    from adapterhub.library.bases.records import BaseRecord, Bases
    from adapterhub.library.following import Published
    from adapterhub.library.store.catalog import Installed
    from adapterhub.live.stream import LiveStream
    from adapterhub.projects.reporting import ProgressEvent
    from adapterhub.trust.explaining import explain, explanations
    from adapterhub.trust.verify import verify_folder
    from adapterhub.vllm_plugin import in_process as vllm
    from adapterhub.weights.merge import MergeInput
    from adapterhub.weights.merge import merge as merge_adapters

__all__ = [
    "AdapterBank",
    "AdapterHubError",
    "AdapterSpec",
    "Attached",
    "BaseFingerprint",
    "BaseRecord",
    "BaseSpec",
    "BaseVerdict",
    "Bases",
    "Contract",
    "Installed",
    "Library",
    "LiveStream",
    "Manifest",
    "MergeInput",
    "ProgressEvent",
    "Project",
    "PromptForm",
    "Published",
    "Tested",
    "attach",
    "callbacks",
    "compare_bases",
    "default_library",
    "explain",
    "explanations",
    "fingerprint_folder",
    "merge_adapters",
    "read_requirements",
    "verify_folder",
    "vllm",
]

_MODULES = {
    "AdapterBank": "inference.bank",
    "AdapterHubError": "core.errors",
    "AdapterSpec": "core.specs",
    "Attached": "inference.loader",
    "BaseFingerprint": "formats.base.fingerprint",
    "BaseRecord": "library.bases.records",
    "BaseSpec": "core.specs",
    "BaseVerdict": "formats.base.fingerprint",
    "Bases": "library.bases.records",
    "Contract": "formats.contract.contract",
    "Installed": "library.store.catalog",
    "Library": "api.library",
    "LiveStream": "live.stream",
    "Manifest": "formats.manifest",
    "MergeInput": "weights.merge",
    "ProgressEvent": "projects.reporting",
    "Project": "api.project",
    "PromptForm": "formats.prompts.form",
    "Published": "library.following",
    "Tested": "formats.contract.results",
    "compare_bases": "formats.base.comparison",
    "explain": "trust.explaining",
    "explanations": "trust.explaining",
    "fingerprint_folder": "formats.base.folders",
    "merge_adapters": "weights.merge",
    "read_requirements": "distribution.requirements",
    "verify_folder": "trust.verify",
}
_MODULES_WHOLE = {"callbacks": "api.callbacks", "vllm": "vllm_plugin.in_process"}
_NAMES_THERE = {"compare_bases": "compare", "merge_adapters": "merge"}


def _read_only(items: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(items)


# what functions return holds such mappings, and may be copied or go to another process
copyreg.pickle(MappingProxyType, lambda items: (_read_only, (dict(items),)))


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("adapterhub")
    if name not in {*_MODULES, *_MODULES_WHOLE}:
        raise AttributeError(f"module `adapterhub` has no attribute `{name}`")
    from adapterhub.core.extras import extra_named

    with extra_named(f"`adapterhub.{name}`"):
        if name in _MODULES_WHOLE:
            return importlib.import_module(f"adapterhub.{_MODULES_WHOLE[name]}")
    with extra_named(f"`adapterhub.{name}`"):
        value = getattr(importlib.import_module(f"adapterhub.{_MODULES[name]}"), _NAMES_THERE.get(name, name))
    if isinstance(value, FunctionType):  # what is called from outside parses its arguments
        from adapterhub.core.arguments import parsed

        value = parsed(value)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def default_library() -> Library:
    """Return the library that the command line uses: `Library.default()`."""
    from adapterhub.api.library import Library

    return Library.default()


def attach(
    model: nn.Module,
    adapter: AdapterLike | Sequence[AdapterLike] | Mapping[AdapterLike, float],
    *,
    library: Library | str | os.PathLike[str] | None = None,
    base: BaseSpec | str | None = None,
    weights: Sequence[float] | None = None,
    allow_base_mismatch: bool = False,
) -> Attached:
    """Put one or several adapters on a loaded model, which stays frozen and comes back unchanged from `detach`.

    Several are added up at run time: the update is exactly the sum of weight times update. Before anything is wrapped,
    the files are verified and sampled numbers of the model are compared with the base of each adapter.

    Args:
        model: a torch module without adapters, with all parameters in memory; or a pipeline of diffusers.
        adapter: a spec (`legal-qa@base-7b`), a folder or an installed build; a list of these; or a mapping to weights.
        library: a library or its folder; default: the library of the command line.
        base: the base, where the specs name none. Without either, the model itself determines which build fits.
        weights: one for each adapter of a list; default: 1.0.
        allow_base_mismatch: attach to other weights of the same shapes.

    Returns:
        An `Attached`: call its `.model` (PEFT's `PeftModel`); `.adapters`, `.warnings` and `.explain()` describe what
            is attached; `.detach()`, or the end of a `with` block, returns the model.

    Raises:
        BaseMismatch: an adapter was made for another base, or for modules that this model lacks.
        UnsupportedAdapter: a kind of adapter that cannot be attached without touching the base.
        MergeRefused: adapters that cannot be added up.
        RefusedAdapter, Malformed, DigestMismatch: files that are not sound, or not those of the manifest.
        AdapterNotFound, NoCompatibleRelease, BaseNotFound, UsageProblem: what was asked for is not here.
        After any of these the model is unchanged.

    Example:
        >>> with adapterhub.attach(model, {"legal-qa": 0.7, "summarize": 0.3}) as attached:  # doctest: +SKIP
        ...     attached.model.generate(**inputs)
    """
    from adapterhub.core.extras import extra_named

    with extra_named("`adapterhub.attach`"):
        from adapterhub.inference.loader import attach as attach_adapters

    return attach_adapters(
        model,
        adapter,
        library=library,
        base=base,
        weights=weights,
        allow_base_mismatch=allow_base_mismatch,
    )
