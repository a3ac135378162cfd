"""Exports that need no numbers: a plain list of adapters, and a routing file for another router."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import urlsplit

from adapterhub.api.steps.routing import prompts_of
from adapterhub.core.disk.files import write_output
from adapterhub.core.errors import CouldNotTell, UsageProblem, problem_list, shown
from adapterhub.formats.documented import Documented

if TYPE_CHECKING:
    from adapterhub.api.opened import OpenedLibrary as Library
    from adapterhub.formats.route import Route, RoutedAdapter

DEFAULT_URL: Final = "http://127.0.0.1:8000"
_LISTEN_PORT: Final = 8801


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedRouter(Documented):
    """A routing file as the configuration of another router."""

    path: Annotated[Path, "the file that was written"]
    adapters: int
    threshold: Annotated[float, "least cosine by our encoder; the router has its own"]


def listed(library: Library, *, groups: Sequence[str], all_groups: bool, whole_library: bool) -> list[str]:
    """Return the locked adapters of the session's project, or the installed ones, one `name==version#sha256:…` each.

    Raises:
        UsageProblem: there is no such group, or no project.
    """
    from adapterhub.projects.sync import exact_list

    folder = None if whole_library else library.session.project_folder
    if folder is not None:
        return exact_list(folder, library.session.out, groups, all_groups=all_groups)
    if groups or all_groups:
        raise UsageProblem(
            "`--group` needs a project, and this folder has no `adapters.toml`", hint="run it without `--group`"
        )
    return [f"{b.full_name}=={b.manifest.version}#{b.manifest.digest}" for b in library.installed()]


# ---------------------------------------------------------------- semantic router
# Its form v0.3 (`vllm-sr` 0.4): each adapter becomes an embedding signal with its example prompts, and a decision that
# takes its LoRA on the base, which is the default model. The router compares with its own encoder, so the thresholds
# are a beginning.
def export_router(library: Library, file: Path, path: Path, *, url: str | None) -> ExportedRouter:
    """Write the routing file `file` as a configuration; `url` is where `adapt serve` answers.

    It holds the example prompts themselves, which are read from the installed builds.

    Raises:
        UsageProblem: `url` is not a URL.
        NotFound: there is no such file.
        CouldNotTell: a build of the routing file is not installed here, or has no prompts.
        NotAllowed: the place cannot be written.
    """
    import yaml

    from adapterhub.formats.route import read_route

    route = read_route(file)
    made = semantic_router(library, route, url=url or DEFAULT_URL)
    text = yaml.safe_dump(made, sort_keys=False, allow_unicode=True, width=120)
    written = write_output(path, text.encode())
    return ExportedRouter(path=written, adapters=len(route.adapters), threshold=route.threshold)


def semantic_router(library: Library, route: Route, *, url: str = DEFAULT_URL) -> dict[str, Any]:
    """Return the configuration as a value; see `export_router`."""
    address = urlsplit(url)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise UsageProblem(f"`{shown(url, 100)}` is not an address of a server", hint=f"write it as `{DEFAULT_URL}`")
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
