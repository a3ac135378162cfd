"""`adapt list`, `search`, `show`, `path`: questions to the library, answered from the index."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

import click

from adapterhub.cli.output import size_text
from adapterhub.cli.params import BASE, SPEC, Session, common, rank_options

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adapterhub.catalog import Installed
    from adapterhub.index import BuildRow, IndexReader
    from adapterhub.library import Library
    from adapterhub.specs import AdapterSpec, BaseSpec

_T = TypeVar("_T")
_COLUMNS = ("name", "version", "base", "task", "rank", "method", "size")


@click.command("list")
@click.option("--base", type=BASE, help="Only adapters for this base.")
@common
def list_(session: Session, base: BaseSpec | None) -> None:
    """List installed adapters.

    \b
    Example:
      adapt list --base base-7b
    """
    _answer(session, base=base)


@click.command()
@click.argument("text", nargs=-1)
@click.option("--base", type=BASE, help="For this base: alias, Hub id, digest prefix or path.")
@click.option("--task", default="", metavar="TASK", help="With exactly this task.")
@rank_options
@click.option("--method", default="", metavar="METHOD", help="PEFT type or variant, such as `lora` or `rslora`.")
@click.option("--remote", metavar="NAME|URL", help="Ask this server instead of the library.")
@click.option("--token", metavar="TOKEN", help="Access token for --remote [default: the one of `remote login`].")
@click.option("--limit", type=click.IntRange(min=1), default=100, metavar="N", help="With --remote, at most so many.")
@common
def search(
    session: Session,
    text: tuple[str, ...],
    base: BaseSpec | None,
    task: str,
    rank: int | None,
    min_rank: int | None,
    max_rank: int | None,
    method: str,
    remote: str | None,
    token: str | None,
    limit: int,
) -> None:
    """Search installed adapters, or with --remote those on a server; TEXT is in name, task or description.

    \b
    Examples:
      adapt search contract --base base-7b --max-rank 16
      adapt search --remote ours --base base-7b --task legal-qa
    """
    if remote is not None:
        from adapterhub.cli.remote_search import search_remote

        hub = session.named_hub(remote, token=token, offline=False)
        from adapterhub.hub import Search

        low, high = (rank, rank) if rank is not None else (min_rank, max_rank)
        asked = Search(text=" ".join(text), task=task, min_rank=low, max_rank=high, method=method, limit=limit)
        search_remote(session, hub, base, asked)
        return
    _answer(
        session,
        text=" ".join(text),
        base=base,
        task=task,
        rank=rank,
        min_rank=min_rank,
        max_rank=max_rank,
        method=method,
    )


def _answer(session: Session, *, base: BaseSpec | None, text: str = "", **filters: Any) -> None:  # noqa: ANN401 - Filters' fields
    from adapterhub.index import Filters

    fingerprints, hub_id = (None, "") if base is None else _base_filter(session, base)
    asked = Filters(text=text, bases=fingerprints, base_hub_id=hub_id, **filters)
    rows = _ask(session, lambda index: index.search(asked))
    aliases = _ask(session, lambda index: index.aliases())
    session.out.result(
        lambda: [_row_document(row, aliases) for row in rows],
        lambda: session.out.table(_COLUMNS, _cells(rows, aliases), right=("rank", "size")),
    )
    if not rows and not session.out.as_json:
        session.out.hint(
            "nothing matches; `adapt add FOLDER --name NAME` or `adapt install NAME@BASE` brings adapters in"
        )


def _ask(session: Session, question: Callable[[IndexReader], _T]) -> _T:
    """The answer of the index, straight from its file while that is current: the library takes 80 ms to import."""
    from adapterhub.index import Index, IndexUnusable

    index = Index(session.root / "index.db")
    if index.is_current:
        with contextlib.suppress(IndexUnusable):
            return question(index)
    return session.library.catalog.read(question)


def _base_filter(session: Session, base: BaseSpec) -> tuple[tuple[str, ...] | None, str]:
    """Fingerprints that count as `base`, or the Hub id when the base is known by name only."""
    known = {row.alias: row.weights for row in _ask(session, lambda index: index.bases())}
    if base.kind == "alias" and base.text in known:
        return _ask(session, lambda index: index.equivalents(known[base.text])), ""
    from adapterhub.wanted_base import wanted_base

    library = session.library
    wanted = wanted_base(base, library.bases)
    assert wanted is not None
    if wanted.record is not None:
        weights = wanted.record.fingerprint.weights
        if weights in known.values():
            return _ask(session, lambda index: index.equivalents(weights)), ""
        return library.catalog.declared_like(wanted.record.fingerprint), ""
    if wanted.digest_prefix is not None:
        declared = _ask(session, lambda index: index.declared_bases())
        return tuple(w for w in declared if w.startswith(wanted.digest_prefix)), ""
    return None, wanted.hub_id or ""


def _base_name(row: BuildRow, aliases: dict[str, str]) -> str:
    return aliases.get(row.base_weights) or row.base_hub_id or row.base_weights[7:19] or "unknown"


def _cells(rows: Sequence[BuildRow], aliases: dict[str, str]) -> list[tuple[object, ...]]:
    return [
        (r.full_name, r.version, _base_name(r, aliases), r.task, r.rank, r.method.lower(), size_text(r.size_bytes))
        for r in rows
    ]


def _row_document(row: BuildRow, aliases: dict[str, str]) -> dict[str, Any]:
    document = row._asdict()
    document["base"] = _base_name(row, aliases)
    document["method"] = row.method.split(",")
    document["target_modules"] = row.target_modules.split(",") if row.target_modules else []
    return document


@click.command()
@click.argument("spec", type=SPEC)
@rank_options
@common
def path(session: Session, spec: AdapterSpec, rank: int | None, min_rank: int | None, max_rank: int | None) -> None:
    """Print the plain PEFT folder of an adapter, for any tool that reads PEFT.

    \b
    Example:
      python -c "from peft import …" "$(adapt path legal-qa@base-7b)"
    """
    build = _find(session, spec, rank, min_rank, max_rank)
    session.out.result({"path": str(build.folder)}, lambda: session.out.line(str(build.folder)))


@click.command()
@click.argument("spec", type=SPEC)
@rank_options
@click.option("--recipe", is_flag=True, help="Only how it was merged, as TOML for `adapt merge --recipe`.")
@common
def show(
    session: Session, spec: AdapterSpec, rank: int | None, min_rank: int | None, max_rank: int | None, recipe: bool
) -> None:
    """Show everything about one adapter: base, files, rank, lineage.

    \b
    Examples:
      adapt show legal-qa@base-7b
      adapt show legal-summary --recipe > merge.toml
    """
    build = _find(session, spec, rank, min_rank, max_rank)
    if recipe:
        _show_recipe(session, build)
        return
    document = build.manifest.to_json()
    document["base"].pop("samples", None)
    document |= {"digest": build.manifest.digest, "namespace": build.namespace, "path": str(build.folder)}
    session.out.result(document, lambda: session.out.fields(_fields(session.library, build)))


def _show_recipe(session: Session, build: Installed) -> None:
    from adapterhub.recipe_toml import recipe_of, to_toml

    text = to_toml(recipe_of(build.manifest))
    session.out.result({"recipe": text}, lambda: session.out.line(text.rstrip()))


def _find(
    session: Session, spec: AdapterSpec, rank: int | None, min_rank: int | None, max_rank: int | None
) -> Installed:
    from adapterhub.cli.params import wanted_from
    from adapterhub.install import RankBounds, find_installed

    library = session.library
    bounds = RankBounds(rank=rank, min_rank=min_rank, max_rank=max_rank)
    build, resolution = find_installed(library, spec, wanted=wanted_from(library, spec, None), bounds=bounds)
    for warning in resolution.warnings:
        session.out.warn(warning)
    return build


def _fields(library: Library, build: Installed) -> list[tuple[str, object]]:
    manifest, fingerprint = build.manifest, build.base.fingerprint
    pinned = " (pinned)" if fingerprint and manifest.base.fingerprint is None else ""
    pairs: list[tuple[str, object]] = [
        ("name", build.full_name),
        ("version", manifest.version),
        ("digest", manifest.digest),
        ("base", (library.base_label(build.base) or "unknown") + pinned),
        ("base weights", fingerprint.weights if fingerprint else "unknown"),
        ("base hub id", build.base.hints.hub_id),
        ("task", manifest.task),
        ("description", manifest.description or None),
        ("license", manifest.license),
        ("method", ", ".join(manifest.method).lower()),
        ("rank", manifest.rank),
        ("alpha", f"{manifest.alpha:g}" if manifest.alpha is not None else None),
        ("target modules", ", ".join(manifest.target_modules) or None),
        ("parameters", f"{manifest.parameters:,} ({manifest.dtype})"),
        ("path", build.folder),
    ]
    pairs += [("file", f"{e.path}  {size_text(e.size_bytes)}  {e.sha256}") for e in manifest.files]
    pairs += [("merged from", f"{p.weight:g} x {p.spec}  {p.digest or ''}".rstrip()) for p in manifest.parents]
    if manifest.recipe:
        options = manifest.recipe.get("options")
        said = [manifest.recipe.get("method"), manifest.recipe.get("dtype")]
        said[1:1] = [f"{k} {v}" for k, v in options.items()] if isinstance(options, dict) else []
        pairs.append(("recipe", ", ".join(str(word) for word in said if word is not None)))
    pairs += [(f"metric {name}", value) for name, value in manifest.metrics.items()]
    return pairs
