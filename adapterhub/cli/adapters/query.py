"""`adapt list`, `search`, `path`: questions to the library, answered from the index."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_remote
from adapterhub.cli.options.asking import ask, find_build
from adapterhub.cli.options.params import BASE, SPEC, Session, common, project_option, rank_options
from adapterhub.cli.output import size_text
from adapterhub.core.ranks import RankRange

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.core.specs import AdapterSpec, BaseSpec
    from adapterhub.library.store.index import BuildRow

_COLUMNS = ("name", "version", "base", "task", "rank", "method", "size")


@click.command("list")
@click.option("--base", type=BASE, help="Only installed adapters for this base.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["vllm", "peft", "json"]),
    help="Names and folders for vLLM's --lora-modules, as calls of PEFT, or as JSON.",
)
@project_option
@common
def list_(session: Session, base: BaseSpec | None, form: str | None) -> None:
    """List installed adapters; with --format inside a project, those of the project.

    \b
    Examples:
      adapt list --base base-7b
      vllm serve ./base-7b --enable-lora --lora-modules $(adapt list --format vllm)
    """
    if form is None:
        _answer(session, base=base)
        return
    from adapterhub.cli.adapters.list_formats import library_adapters, lines_of, project_adapters

    folder = session.project_folder if base is None else None
    adapters = library_adapters(session, _rows(session, base)) if folder is None else project_adapters(session, folder)

    def text() -> None:
        for line in lines_of(adapters, form):
            session.out.line(line)

    session.out.result(adapters, text)


@click.command()
@click.argument("text", nargs=-1)
@click.option("--base", type=BASE, help="For this base: alias, Hub id, digest prefix or path.")
@click.option("--task", default="", metavar="TASK", help="With exactly this task.")
@rank_options
@click.option("--method", default="", metavar="METHOD", help="PEFT type or variant, such as `lora` or `rslora`.")
@click.option(
    "--remote", metavar="NAME|URL", shell_complete=complete_remote, help="Ask this server instead of the library."
)
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
    ranks = RankRange(rank=rank, min_rank=min_rank, max_rank=max_rank)
    if remote is not None:
        from adapterhub.cli.adapters.remote_search import search_remote

        hub = session.named_hub(remote, token=token, offline=False)
        from adapterhub.distribution.hub import Search

        asked = Search(text=" ".join(text), task=task, ranks=ranks, method=method, limit=limit)
        search_remote(session, hub, base, asked)
        return
    _answer(
        session,
        text=" ".join(text),
        base=base,
        task=task,
        ranks=ranks,
        method=method,
    )


def _answer(session: Session, *, base: BaseSpec | None, text: str = "", **filters: Any) -> None:  # noqa: ANN401 - Filters' fields
    rows = _rows(session, base, text=text, **filters)
    aliases = ask(session, lambda index: index.aliases())
    session.out.result(
        lambda: [_row_document(row, aliases, session.root) for row in rows],
        lambda: session.out.table(_COLUMNS, _cells(rows, aliases), right=("rank", "size")),
    )
    if not rows and not session.out.as_json:
        session.out.hint(
            "nothing matches; `adapt add FOLDER --name NAME` or `adapt install NAME@BASE` brings adapters in"
        )


def _rows(session: Session, base: BaseSpec | None, **filters: Any) -> list[BuildRow]:  # noqa: ANN401 - Filters' fields
    from adapterhub.library.store.index import Filters

    fingerprints, hub_id = (None, "") if base is None else _base_filter(session, base)
    asked = Filters(bases=fingerprints, base_hub_id=hub_id, **filters)
    return ask(session, lambda index: index.search(asked))


def _base_filter(session: Session, base: BaseSpec) -> tuple[tuple[str, ...] | None, str]:
    """Fingerprints that count as `base`, or the Hub id when the base is known by name only."""
    known = {row.alias: row.weights for row in ask(session, lambda index: index.bases())}
    if base.kind == "alias" and base.text in known:
        return ask(session, lambda index: index.equivalents(known[base.text])), ""
    from adapterhub.library.bases.requested import requested_base

    library = session.library
    wanted = requested_base(base, library.bases)
    assert wanted is not None
    if wanted.record is not None:
        weights = wanted.record.fingerprint.weights
        if weights in known.values():
            return ask(session, lambda index: index.equivalents(weights)), ""
        return library.catalog.declared_like(wanted.record.fingerprint), ""
    if wanted.digest_prefix is not None:
        declared = ask(session, lambda index: index.declared_bases())
        return tuple(w for w in declared if w.startswith(wanted.digest_prefix)), ""
    return None, wanted.hub_id or ""


def _base_name(row: BuildRow, aliases: dict[str, str]) -> str:
    return aliases.get(row.base_weights) or row.base_hub_id or row.base_weights[7:19] or "unknown"


def _cells(rows: Sequence[BuildRow], aliases: dict[str, str]) -> list[tuple[object, ...]]:
    return [
        (r.full_name, r.version, _base_name(r, aliases), r.task, r.rank, r.method.lower(), size_text(r.size_bytes))
        for r in rows
    ]


def _row_document(row: BuildRow, aliases: dict[str, str], root: Path) -> dict[str, Any]:
    document = {name: None if value == "" else value for name, value in row._asdict().items()}
    del document["folder"]
    document["path"] = os.fspath(root / row.folder)
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
    from adapterhub.core.ranks import RankRange

    bounds = RankRange(rank=rank, min_rank=min_rank, max_rank=max_rank)
    build = find_build(session, spec, bounds, for_use=True)  # by other programs
    session.out.result({"path": str(build.folder)}, lambda: session.out.line(str(build.folder)))
