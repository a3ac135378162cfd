"""Adapters for `vllm.LLM` in your own program, checked and leased. Its public name is `adapterhub.vllm`.

```python
llm = vllm.LLM("models/base-7b", enable_lora=True, max_lora_rank=32)
llm.generate(prompts, lora_request=adapterhub.vllm.lora_request("legal-qa", llm))
```
"""

from __future__ import annotations

import atexit
import os
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from adapterhub.core.arguments import parsed
from adapterhub.core.errors import NotFound, UsageProblem, shown

if TYPE_CHECKING:
    from pathlib import Path

    from vllm.lora.request import LoRARequest

    from adapterhub.core.digests import Digest
    from adapterhub.core.specs import AdapterSpec, BaseSpec
    from adapterhub.inference.serving import AdapterProvider
    from adapterhub.library.library import Library

LARGEST_ID: Final = (1 << 31) - 1
"""vLLM keeps the ids of a batch as 32-bit integers."""

_lock = Lock()
_providers: dict[tuple[Path, str, int | None, bool], AdapterProvider] = {}
_ids: dict[int, Digest] = {}


@parsed
def lora_request(
    adapter: AdapterSpec | str,
    llm: Any = None,
    *,
    base: BaseSpec | str | None = None,
    library: Library | str | os.PathLike[str] | None = None,
    offline: bool = False,
) -> LoRARequest:
    """Return the request for `LLM.generate(..., lora_request=…)`: a checked adapter, leased until `release`.

    Finds the adapter as `adapt serve` does: in the library, in the folders of ADAPTERHUB_SOURCES, then on the remotes
    that have its namespace. Before vLLM gets a path, the bytes, shapes and numbers are checked, the adapter's base is
    compared with the model's files, and vLLM's own limits are applied. The lease also ends with the process.

    All specs of one build give equal requests. The id is made from the digest, so it is the same in every process.

    Args:
        adapter: a spec, such as `legal-qa`, `acme/legal-qa>=1.2` or `legal-qa#sha256:9f86d081`.
        llm: the `vllm.LLM` or `AsyncLLM` that gets the request: gives the base and the largest rank.
        base: the base in place of `llm`: name, Hub id, digest or folder. Without both, the base that the spec names,
            or else the only registered one.
        library: a library or its folder; default: the library of the command line.
        offline: look on no remote.

    Raises:
        NotFound: vLLM is not installed.
        UsageProblem: the model runs without LoRA, or several bases are registered and none is named.
        SpecError, AdapterNotFound, BaseNotFound, NoCompatibleRelease, AmbiguousSpec, BaseMismatch: nothing fits.
        UnsupportedAdapter: vLLM cannot read it, with each reason.
        RefusedAdapter, DigestMismatch: its contents must not be loaded.
        RemoteUnreachable, NotAllowed: as for an install.
    """
    try:
        from vllm.lora.request import LoRARequest
    except ImportError as error:
        raise NotFound(f"vLLM cannot be imported: {shown(str(error))}", hint="`pip install vllm`") from None
    from adapterhub.core.specs import AdapterSpec

    spec = AdapterSpec.parse(adapter) if isinstance(adapter, str) else adapter
    root = _root_of(library)
    wanted, max_rank = _served(llm) if llm is not None else (_named(root, spec, base), None)
    leased = _provider(root, wanted, max_rank, offline=offline).find(str(spec))
    return LoRARequest(lora_name=leased.model, lora_int_id=_id_of(leased.digest), lora_path=str(leased.folder))


def release(request: LoRARequest) -> None:
    """End the lease of a request that no model will use again; does nothing if it has none."""
    with _lock:
        providers, digest = list(_providers.values()), _ids.get(request.lora_int_id)
    for provider in providers:
        if digest is not None:
            provider.release(digest)


def _root_of(library: Library | str | os.PathLike[str] | None) -> Path:
    from pathlib import Path

    from adapterhub.core.disk.home import default_root

    if library is None:
        return default_root(os.environ).absolute()
    return Path(library if isinstance(library, str | os.PathLike) else library.root).absolute()


def _served(llm: Any) -> tuple[BaseSpec, int]:
    """Return the folder of the model in memory, and the largest rank that it takes."""
    from adapterhub.core.specs import BaseSpec
    from adapterhub.vllm_plugin.resolver import folder_of_model

    config = getattr(llm, "llm_engine", llm).vllm_config
    if config.lora_config is None:
        raise UsageProblem("the model runs without LoRA", hint="start it with `LLM(..., enable_lora=True)`")
    folder = folder_of_model(config.model_config.model, config.model_config.revision)
    return BaseSpec(kind="path", text=str(folder)), config.lora_config.max_lora_rank


def _named(root: Path, spec: AdapterSpec, base: BaseSpec | str | None) -> BaseSpec:
    from adapterhub.core.specs import BaseSpec
    from adapterhub.library.aliasing import alias_of, build_under
    from adapterhub.library.library import Library

    library = Library(root)
    moving = alias_of(library, spec) if base is None else None
    if moving is not None:
        return BaseSpec.parse(library.base_label(build_under(library, moving, moving.main).base))
    if base is not None or spec.base is not None:
        return BaseSpec.parse(str(base if base is not None else spec.base))
    aliases = library.bases.aliases()
    if len(aliases) != 1:
        raise UsageProblem(
            f"the base of `{spec}` is unknown: {len(aliases)} bases are registered",
            hint=f'pass the model, `lora_request("{spec}", llm)`, or name the base with `base=`',
        )
    return BaseSpec.parse(aliases[0])


def _provider(root: Path, base: BaseSpec, max_rank: int | None, *, offline: bool) -> AdapterProvider:
    from adapterhub.inference.serving import ServeSettings
    from adapterhub.vllm_plugin.resolver import AdapterHubResolver

    key = root, str(base), max_rank, offline
    with _lock:
        if key not in _providers:
            settings = ServeSettings(root=root, max_rank=max_rank, offline=offline)
            made = AdapterHubResolver(os.environ | settings.to_environ(), [""]).open_provider(base)
            atexit.register(made.close)
            _providers[key] = made
        return _providers[key]


def _id_of(digest: Digest) -> int:
    """Return a number from 1 to LARGEST_ID for the digest.

    The next free one if this process has it for another digest.
    """
    from adapterhub.core.digests import hex_of

    number = int(hex_of(digest)[:8], 16) % LARGEST_ID + 1
    with _lock:
        while _ids.setdefault(number, digest) != digest:
            number = number % LARGEST_ID + 1
    return number
