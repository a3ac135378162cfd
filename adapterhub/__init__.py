"""A package manager for LoRA adapters: one frozen base, a directory of adapters.

    import adapterhub

    with adapterhub.attach(model, {"legal-qa": 0.7, "plain-words": 0.3}) as attached:
        attached.model.generate(**inputs)

Names are found on first use (PEP 562), so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from adapterhub.core.errors import AdapterHubError
    from adapterhub.core.specs import AdapterSpec, BaseSpec
    from adapterhub.formats.base.fingerprint import BaseFingerprint, BaseVerdict, fingerprint_folder
    from adapterhub.formats.base.fingerprint import compare as compare_bases
    from adapterhub.formats.manifest import Manifest
    from adapterhub.inference.bank import AdapterBank
    from adapterhub.inference.loader import AdapterLike, Attached
    from adapterhub.library.bases.records import BaseRecord, Bases
    from adapterhub.library.library import Library
    from adapterhub.library.store.catalog import Installed
    from adapterhub.trust.verify import verify_folder
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
    "Installed",
    "Library",
    "Manifest",
    "MergeInput",
    "attach",
    "compare_bases",
    "default_library",
    "fingerprint_folder",
    "merge_adapters",
    "verify_folder",
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
    "Installed": "library.store.catalog",
    "Library": "library.library",
    "Manifest": "formats.manifest",
    "MergeInput": "weights.merge",
    "compare_bases": "formats.base.fingerprint",
    "fingerprint_folder": "formats.base.fingerprint",
    "merge_adapters": "weights.merge",
    "verify_folder": "trust.verify",
}
_NAMES_THERE = {"compare_bases": "compare", "merge_adapters": "merge"}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    if name == "__version__":
        from importlib.metadata import version

        return version("adapterhub")
    if name not in _MODULES:
        raise AttributeError(f"module `adapterhub` has no attribute `{name}`")
    from adapterhub.core.extras import extra_named

    with extra_named(f"`adapterhub.{name}`"):
        value = getattr(importlib.import_module(f"adapterhub.{_MODULES[name]}"), _NAMES_THERE.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def default_library() -> Library:
    """The library that the command line uses: `ADAPTERHUB_HOME`, else the user's data folder.

    Below a folder with an `adapters.toml`, a bare name of that project is the build that its lock file names.
    """
    import os
    from pathlib import Path

    from adapterhub.core.disk.home import default_root
    from adapterhub.library.library import Library
    from adapterhub.projects.builds import ProjectNames

    library = Library(default_root(os.environ))
    library.names = ProjectNames(Path.cwd()).build
    return library


def attach(
    model: nn.Module,
    adapter: AdapterLike | Sequence[AdapterLike] | Mapping[AdapterLike, float],
    *,
    library: Library | str | Path | None = None,
    base: BaseSpec | str | None = None,
    weights: Sequence[float] | None = None,
    allow_base_mismatch: bool = False,
) -> Attached:
    """Put adapters on `model`; see `adapterhub.inference.loader.attach`. The default library is the command line's."""
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
