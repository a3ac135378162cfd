"""A routing file as a configuration of vLLM's semantic router, in its form v0.3 (`vllm-sr` 0.4).

Each adapter becomes an embedding signal with its example prompts, and a decision that takes its LoRA on the base. The
base is the default model. The router compares with its own encoder, so the thresholds are a beginning.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from adapterhub.api.steps.find.routing import prompts_of
from adapterhub.core.arguments import path_of
from adapterhub.core.disk.new_folder import write_output
from adapterhub.core.errors import CouldNotTell, UsageProblem, problem_list, shown

if TYPE_CHECKING:
    from adapterhub.formats.route import Route, RoutedAdapter
    from adapterhub.library.library import Library

DEFAULT_URL: Final = "http://127.0.0.1:8000"
_LISTEN_PORT: Final = 8801


def export_router(library: Library, route: Route, path: Path, *, url: str = DEFAULT_URL) -> Path:
    """Write the configuration; `url` is where `adapt serve` answers. Returns the path.

    It holds the example prompts themselves, which are read from the installed builds.

    Raises:
        UsageProblem: `url` is none.
        CouldNotTell: a build of the routing file is not installed here, or has no prompts.
        NotAllowed: the place cannot be written.
    """
    import yaml

    text = yaml.safe_dump(semantic_router(library, route, url=url), sort_keys=False, allow_unicode=True, width=120)
    return write_output(path_of(path), text.encode())


def semantic_router(library: Library, route: Route, *, url: str = DEFAULT_URL) -> dict[str, Any]:
    """The configuration as a value; see `export_router`."""
    address = urlsplit(url)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise UsageProblem(f"`{shown(url, 100)}` is no address of a server", hint=f"write it as `{DEFAULT_URL}`")
    builds = {build.manifest.digest: build for build in library.installed()}
    prompts = {one.digest: prompts_of(builds[one.digest]) if one.digest in builds else () for one in route.adapters}
    if missing := [one for one in route.adapters if not prompts[one.digest]]:
        lines = [
            f"`{one.label}` is not installed here" if one.digest not in builds else f"`{one.label}` has none"
            for one in missing
        ]
        raise CouldNotTell(problem_list("the export needs the example prompts of each adapter", lines))
    base = route.base_name
    return {
        "version": "v0.3",
        "listeners": [{"name": "http", "address": "127.0.0.1", "port": _LISTEN_PORT}],
        "providers": {
            "defaults": {"model": base},
            "models": [
                {
                    "name": base,
                    "backend_refs": [{"name": "adapt-serve", "base_url": f"{url.rstrip('/')}/v1", "provider": "vllm"}],
                }
            ],
        },
        "routing": {
            "strategy": "confidence",
            "modelCards": [
                {"name": base, "loras": [{"name": one.model, "description": one.digest} for one in route.adapters]}
            ],
            "signals": {"embeddings": [_signal(one, route, prompts[one.digest]) for one in route.adapters]},
            "decisions": [_decision(one, base) for one in route.adapters],
        },
    }


def _name(adapter: RoutedAdapter) -> str:
    return adapter.name.replace("/", "--")


def _signal(adapter: RoutedAdapter, route: Route, prompts: tuple[str, ...]) -> dict[str, Any]:
    return {
        "name": _name(adapter),
        "threshold": route.threshold,
        "aggregation_method": "mean",
        "candidates": list(prompts),
    }


def _decision(adapter: RoutedAdapter, base: str) -> dict[str, Any]:
    return {
        "name": _name(adapter),
        "description": f"Prompts that are like those of {adapter.label}",
        "priority": 100,
        "rules": {"operator": "AND", "conditions": [{"type": "embedding", "name": _name(adapter)}]},
        "modelRefs": [{"model": base, "lora_name": adapter.model, "use_reasoning": False}],
    }
