"""Completions for shells: names read straight from the index, the base records and the project file.

Imports nothing heavy, contacts no server, and skips files that it cannot read. A project file may come from a stranger,
and the shell types the completion, so only names that match our own grammar are offered.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from adapterhub.core.disk.home import default_root

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

PROJECT_FILE: Final = "adapters.toml"
"""As in `projects/values.py`, whose import costs more than all of this module."""

_SAFE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+@-]{0,200}")
_REQUIREMENT: Final = re.compile(r"(?P<head>[a-z0-9._/-]+(?:@[A-Za-z0-9._/-]+?)?==)(?P<version>[A-Za-z0-9.+!_-]*)")
_MAX_PROJECT_BYTES: Final = 4_000_000
_MOST_NAMES: Final = 1000
"""A shell shows no more of them; another letter brings the others."""


# ---------------------------------------------------------------- sources of names
def _root(context: click.Context) -> Path:
    root = context.params.get("root")
    return Path(root) if root else default_root(os.environ)


def _index_names(root: Path, beginning: str) -> list[str]:
    from adapterhub.library.store.index import Index

    return Index(root / "index.db").names_from(beginning, _MOST_NAMES)


def _licenses(root: Path) -> list[str]:
    from adapterhub.library.store.index import Index

    return Index(root / "index.db").licenses()


def _aliases(root: Path) -> list[str]:
    return sorted(path.stem for path in (root / "bases").glob("*.json"))


def _aliases_for(root: Path, name: str) -> list[str]:
    """Aliases of the bases that an adapter's builds are for; every alias if none is known."""
    from adapterhub.library.store.index import Index
    from adapterhub.library.store.rows import Filters

    index = Index(root / "index.db")
    namespace, _, bare = name.rpartition("/")
    known = index.aliases()
    rows = index.search(Filters(name=bare, namespace=namespace or None))
    return sorted({known[row.base_weights] for row in rows if row.base_weights in known}) or _aliases(root)


def _versions(root: Path, name: str) -> list[str]:
    from adapterhub.library.store.index import Index
    from adapterhub.library.store.rows import Filters

    namespace, _, bare = name.rpartition("/")
    rows = Index(root / "index.db").search(Filters(name=bare, namespace=namespace or None))
    return list(dict.fromkeys(row.version for row in rows))


def _remotes(root: Path) -> list[str]:
    import json

    try:
        document = json.loads((root / "remotes.json").read_bytes())
    except OSError:
        return ["hub"]
    return ["hub", *(remote["name"] for remote in document["remotes"])]


def _project(context: click.Context) -> Mapping[str, Any]:
    """Return the project file found upwards from the working directory (or in `--project`) as plain TOML.

    {} without one.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]  # of Python 3.10 only

    given = context.params.get("project_dir")
    start = Path(given) if given else Path.cwd()
    for folder in (start, *([] if given else start.parents)):
        path = folder / PROJECT_FILE
        if path.is_file() and path.stat().st_size <= _MAX_PROJECT_BYTES:
            document: Mapping[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
            return document
    return {}


def _keys(project: Mapping[str, Any]) -> Iterator[str]:
    yield from project.get("adapters", {})
    for group in project.get("groups", {}).values():
        yield from group
    yield from project.get("merges", {})


# ---------------------------------------------------------------- completers
def _offer(source: Callable[[click.Context, str], Iterable[str]]) -> Completer:
    """Return a completer of the names in `source`: safe ones that begin with the typed text, sorted, each once."""

    def complete(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            names = list(dict.fromkeys(source(context, incomplete)))
        except Exception:  # noqa: BLE001 - completion must never disturb the prompt
            return []
        fits = sorted(name for name in names if name.startswith(incomplete) and _SAFE.fullmatch(name))
        return _items(fits)

    return complete


def _items(values: Iterable[str], kind: str = "plain") -> list[CompletionItem]:
    from click.shell_completion import CompletionItem  # not at the top: every command imports this module

    return [CompletionItem(value, type=kind) for value in values]


def _quietly(source: Callable[[], Iterable[str]]) -> list[str]:
    """Return the names in `source`, or none if it is unreadable, so that other sources still count."""
    try:
        return list(source())
    except Exception:  # noqa: BLE001 - as in `_offer`
        return []


def _in_project(context: click.Context) -> list[str]:
    return _quietly(lambda: _keys(_project(context)))


def _engines() -> Iterable[str]:
    from adapterhub.formats.engines import names

    return names()


def _adapter_aliases(root: Path) -> Iterator[str]:
    """Every `name@alias` of the library, from the names of its files."""
    for path in (root / "aliases").glob("[!.]*@*.json"):
        yield path.stem.replace("--", "/")


def _of_alias(context: click.Context, incomplete: str) -> Iterable[str]:
    """Complete `name@alias`; only the alias where a command takes that."""
    full = list(_adapter_aliases(_root(context)))
    return [name.partition("@")[2] for name in full] if context.info_name == "set" and "@" not in incomplete else full


def _codes() -> Iterable[str]:
    from adapterhub.trust.explaining import explanations

    return explanations()


complete_base = _offer(lambda context, _: _aliases(_root(context)))
complete_alias = _offer(_of_alias)
complete_key = _offer(lambda context, _: _keys(_project(context)))
complete_group = _offer(lambda context, _: _project(context).get("groups", {}))
complete_engine = _offer(lambda *_: _engines())
complete_code = _offer(lambda *_: _codes())
complete_license = _offer(lambda context, _: _quietly(lambda: _licenses(_root(context))))
complete_own_key = _offer(lambda context, _: [p.stem for p in (_root(context) / "keys").glob("*.pub")])
complete_remote = _offer(
    lambda context, _: [
        *_quietly(lambda: _remotes(_root(context))),
        *_quietly(lambda: _project(context).get("remotes", {})),
    ]
)


def complete_spec(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of installed adapters and of the project; after `@` matching bases and aliases, after `==` versions."""
    root = _root(context)
    if match := _REQUIREMENT.fullmatch(incomplete):
        name = match["head"].rstrip("=").partition("@")[0]
        fits = [f"{match['head']}{v}" for v in _quietly(lambda: _versions(root, name)) if _SAFE.fullmatch(v)]
    elif "@" in incomplete:
        name = incomplete.partition("@")[0]
        own = [full for full in _quietly(lambda: _adapter_aliases(root)) if full.startswith(f"{name}@")]
        bases = _quietly(lambda: _aliases_for(root, name))
        fits = [text for text in [*(f"{name}@{alias}" for alias in bases), *own] if _SAFE.fullmatch(text)]
    else:
        names = dict.fromkeys([*_quietly(lambda: _index_names(root, incomplete)), *_in_project(context)])
        fits = sorted(name for name in names if _SAFE.fullmatch(name))
    return _items(text for text in fits if text.startswith(incomplete))


def complete_spec_or_folder(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """As `complete_spec`, but the shell itself completes paths."""
    if incomplete.startswith((".", "/", "~")):  # as `specs.names_folder`, whose import costs more than this module
        return _items([incomplete], "dir")
    return complete_spec(context, parameter, incomplete)


def complete_specs_with_commas(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """As `complete_spec`, for the last spec of a comma-separated list."""
    done, comma, last = incomplete.rpartition(",")
    return _items(done + comma + item.value for item in complete_spec(context, parameter, last))


def complete_first_spec(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """As `complete_spec` for the first word; later words are text."""
    given = context.params.get(parameter.name or "") or ()
    return [] if given else complete_spec(context, parameter, incomplete)
