"""Pages that show which adapters work on which base, move one to another base or export it for another program."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from starlette.exceptions import HTTPException

from adapterhub.api.pages.source import address_of, has_folder, make_url, problem_text
from adapterhub.api.pages.weights import outcomes
from adapterhub.api.searching import ask
from adapterhub.core.errors import AdapterHubError, UsageProblem, shown
from adapterhub.library.store.rows import Filters
from adapterhub.pages.local_values import ContractsPage, MakePage
from adapterhub.pages.values import FormChoice, Link
from adapterhub.weights.port.catalogue import names as port_methods

if TYPE_CHECKING:
    from adapterhub.api.pages.source import LibrarySource
    from adapterhub.core.arguments import ExportFormat
    from adapterhub.library.store.catalog import Installed
    from adapterhub.pages.page import PageQuery

_MOST_ROWS: Final = 100
_RETRY_S: Final = 5
_BEST: Final = "The best one"
_ENDINGS: Final[Mapping[str, str]] = {
    "gguf": ".gguf",
    "vllm": "-vllm",
    "peft": "-peft",
    "mlx": "-mlx",
    "kohya": ".safetensors",
    "comfyui": "-comfyui.safetensors",
    "diffusers": "-diffusers.safetensors",
}
"""The formats that need nothing but the adapter, each with the end of what it writes."""
_making: Final = threading.Lock()


def contracts_page(here: LibrarySource, asked: PageQuery) -> ContractsPage:
    """Return the outcomes of tests of the adapters with a contract, on each base: the newest build of each name."""
    session = here.library.session
    rows = ask(session, lambda index: index.search(Filters(tested=True, sort="date", limit=_MOST_ROWS)))
    newest = {row.full_name: row for row in reversed(rows)}
    bases = ask(session, lambda index: index.bases())
    aliases = {base.weights: base.alias for base in bases}
    there = [base.alias for base in bases if has_folder(base)]
    base = asked.query.get("base", "")
    base = base if base in there else next(iter(there), "BASE")
    found = outcomes(here, [newest[name] for name in sorted(newest)], aliases)
    return ContractsPage(
        outcomes=found,
        without=len(newest) - len(found.rows if found else ()),
        base=base,
        command=f"adapt test --all --on {shlex.quote(base)}",
    )


def make_page(here: LibrarySource, asked: PageQuery) -> MakePage:
    """Return the commands that the query chooses: `to` and `method` of a port, `into` of a conversion."""
    return _page(here, here.build(asked.repo, asked.query.get("build", "")), asked.query)


def make(here: LibrarySource, asked: PageQuery) -> MakePage:
    """Run the command that the form chooses; one at a time.

    Raises:
        HTTPException: 503 while another one runs.
    """
    build = here.build(asked.repo, asked.query.get("build", ""))
    page = _page(here, build, asked.form)
    if not _making.acquire(blocking=False):
        raise HTTPException(503, "another adapter is being made", headers={"Retry-After": str(_RETRY_S)})
    try:
        if asked.form.get("do") == "port" and page.port:
            return replace(page, made=_ported(here, build, page))
        if asked.form.get("do") == "convert" and page.convert:
            form = cast("ExportFormat", _chosen(page.formats))  # of _ENDINGS
            done: Any = here.library.export(build, Path(_output(build, form)).absolute(), format=form)
            return replace(page, written=", ".join(str(path) for path in done.paths))
        raise UsageProblem("nothing was chosen", hint="choose at least one adapter")
    except AdapterHubError as error:
        return replace(page, problem=problem_text(error))
    finally:
        _making.release()


def _ported(here: LibrarySource, build: Installed, page: MakePage) -> Link:
    done: Any = here.library.port(build, to=_chosen(page.bases), method=_chosen(page.methods) or None)
    made = done.added.build
    return Link(text=made.spec, url=address_of(made.namespace, made.manifest.name, made.manifest.digest))


def _page(here: LibrarySource, build: Installed, chosen: Mapping[str, str]) -> MakePage:
    own = build.base.fingerprint.weights if build.base.fingerprint else ""
    registered = ask(here.library.session, lambda index: index.bases())
    others = [base.alias for base in registered if base.weights != own and has_folder(base)]
    spec = shlex.quote(build.spec)
    bases = _choices({name: name for name in others}, chosen.get("to", ""))
    methods = _choices({"": _BEST, **{name: name for name in port_methods()}}, chosen.get("method", ""))
    formats = _choices({name: name for name in _ENDINGS}, chosen.get("into", ""))
    way = f" --method {_chosen(methods)}" if _chosen(methods) else ""
    form = _chosen(formats)
    return MakePage(
        repo=build.full_name,
        version=build.manifest.version,
        url=address_of(build.namespace, build.manifest.name, build.manifest.digest),
        form_url=make_url(build),
        bases=bases,
        methods=methods,
        formats=formats,
        port=f"adapt port {spec} --to {shlex.quote(_chosen(bases))}{way}" if bases else "",
        convert=f"adapt export {spec} --format {form} -o ./{_output(build, form)}",
    )


def _output(build: Installed, form: str) -> str:
    return f"{build.manifest.name}-{build.manifest.version}{_ENDINGS[form]}"


def _choices(texts: Mapping[str, str], chosen: str) -> tuple[FormChoice, ...]:
    """Return the choices of a list, of which the first is chosen unless another one is.

    Raises:
        UsageProblem: none of them is `chosen`.
    """
    if chosen and chosen not in texts:
        expected = ", ".join(filter(None, texts))
        raise UsageProblem(f"`{shown(chosen, 200)}`: expected one of {expected}")
    chosen = chosen or next(iter(texts), "")
    return tuple(FormChoice(value=value, text=text, chosen=value == chosen) for value, text in texts.items())


def _chosen(choices: Iterable[FormChoice]) -> str:
    return next((one.value for one in choices if one.chosen), "")
