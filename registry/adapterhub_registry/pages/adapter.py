"""The page of one adapter: card, facts, versions, recorded answers, files, downloads, and lines to copy."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import urlencode

from sqlalchemy import ColumnElement, FromClause, Row, Select, bindparam, select
from sqlalchemy.engine import Connection

from adapterhub.core.display import size_text
from adapterhub.core.specs import is_hub_id
from adapterhub.formats.cards.card import vllm_rank
from adapterhub.formats.cards.metadata import split_block
from adapterhub.formats.contract.contract import Contract, Golden, LeaveAlone
from adapterhub.formats.manifest import CARD_FILE, WEIGHTS_FILE
from adapterhub.formats.publication import Job
from adapterhub.pages.figures import method_name
from adapterhub.pages.page import PageQuery
from adapterhub.pages.rendering import readme_of
from adapterhub.pages.values import AdapterPage, AnswerView, Day, Fact, Feed, FeedEntry, Snippet
from adapterhub_registry.api.context import Registry
from adapterhub_registry.database.db import adapters, downloads, now_ms, releases, repo_tags, repos
from adapterhub_registry.database.prepared import PreparedSql
from adapterhub_registry.database.search_tables import among
from adapterhub_registry.database.trees import FileTree
from adapterhub_registry.errors import bad_request
from adapterhub_registry.pages.builds import SeenBuilds, digests_of
from adapterhub_registry.pages.files import file_line, may_read, repo_of, text_of
from adapterhub_registry.pages.head import Top
from adapterhub_registry.pages.pictures import pictures_of
from adapterhub_registry.pages.visit import Visit
from adapterhub_registry.repos import commits, retention
from adapterhub_registry.repos.adapters import newest_version
from adapterhub_registry.repos.bases import BASE_DIGEST, kin_digests, related_bases, spans_of_base
from adapterhub_registry.repos.repos import MAIN
from adapterhub_registry.repos.search import (
    AdapterQuery,
    conditions_of,
    met,
    rarest,
)

MAX_CARD_BYTES: Final = 1 << 20
FILES_SHOWN: Final = 100
ANSWERS_SHOWN: Final = 5
DAYS_SHOWN: Final = 90
KIN_SHOWN: Final = 3
MAX_ANSWER_CHARACTERS: Final = 1000
DAY_MS: Final = 86_400_000
_EPOCH: Final = dt.date(1970, 1, 1)


def adapter_page(here: Visit, asked: PageQuery) -> AdapterPage:
    """Return the newest version of an adapter that is not yanked; without any version, the head of `main`.

    If all versions are yanked, it shows the newest with a note, and has no lines to copy. Card, answers and files'
    content need the right to read the files.
    """
    registry, caller = here.registry, here.caller
    below = asked.query.get("below")
    tab = "versions" if below or asked.query.get("tab") == "versions" else "overview"
    with registry.db.read() as connection:
        row = repo_of(registry, connection, caller, asked.repo)
        reads = may_read(here, connection, asked.repo)
        of_head = select(adapters).where(adapters.c.repo_id == row.id, adapters.c.commit_id == row.head)
        head = connection.execute(of_head).one_or_none()
        newest = newest_version(connection, row.id)
        facts = head if newest is None else newest
        commit, revision = row.head, MAIN  # a commit after the release may add a signature or tests to the same build
        if facts is not None and (head is None or head.digest != facts.digest):
            commit, revision = facts.commit_id, facts.tag
        name, tree = row.full_name, commits.tree_of(connection, row.id, commit)
        entries = list(islice(tree.walk(), FILES_SHOWN))
        totals = tree.totals()
        tags = sorted(connection.scalars(select(repo_tags.c.tag).where(repo_tags.c.repo_id == row.id)))
        since = now_ms() // DAY_MS - DAYS_SHOWN + 1
        days = select(downloads.c.day, downloads.c.count.label("number"))
        days = days.where(downloads.c.repo_id == row.id, downloads.c.day >= since)
        counted = {at.day: at.number for at in connection.execute(days)}
        card = _text(registry, tree, CARD_FILE, MAX_CARD_BYTES) if reads else ""
        top = Top(
            here=here,
            connection=connection,
            repo=row,
            facts=facts,
            newest=newest,
            tree=tree,
            reads=reads,
            name=MAIN,
            below=below,
        )
        shown = top.head(tab)
        kept = [Fact(name=f"Kept of {one.alias}", text=one.text) for one in retention.of_repo(connection, row)]
        sights = registry.repos.visible(caller), registry.repos.readable(caller)
        also = tuple(related_bases(connection, facts.base_sha256, *sights)) if facts is not None else ()
        seen = SeenBuilds(registry, connection, caller)
        # as its manifest and its weights, whose files a gated repository keeps
        kin = facts.digest if facts is not None and reads else None
        parents = seen.parents_of(kin)[:KIN_SHOWN] if kin else []
        children = seen.children_of(kin)[:KIN_SHOWN] if kin else []
    licenses = [tag.removeprefix("license:") for tag in tags if tag.startswith("license:")]
    usable = None if getattr(facts, "yanked_at", None) is not None else facts
    front = json.loads(row.card)
    pictures = tuple(pictures_of(name, revision, front, entries)) if reads else ()
    return AdapterPage(
        repo=name,
        head=shown,
        tab=tab,
        card=readme_of(split_block(card)[1].strip()) if card else "",
        facts=(*_facts(row, facts, licenses, tree), *kept) if facts is not None else (),
        digests=tuple(digests_of(facts)) if facts is not None else (),
        versions=top.versions,
        more_versions=top.rest and f"/{name}?{urlencode({'tab': 'versions', 'below': top.rest})}",
        snippets=tuple(_snippets(row, usable, here.address, has_pictures=bool(pictures))) if usable is not None else (),
        files=tuple(file_line(name, revision, entry) for entry in entries),
        more_files=max(totals.files - len(entries), 0),
        answers=tuple(_answers(top.contract)) if top.contract is not None else (),
        downloads=row.downloads,
        days=tuple(
            Day(day=(_EPOCH + dt.timedelta(days=day)).isoformat(), count=counted.get(day, 0))
            for day in range(since, since + DAYS_SHOWN)
        ),
        commit=commit,
        modified_at=row.modified_at,
        parents=tuple(parents),
        children=tuple(children),
        lineage_url=f"/lineage/{name}",
        pictures=pictures,
        trigger=front["instance_prompt"][:200] if isinstance(front.get("instance_prompt"), str) and pictures else "",
        feed_url=f"/feed?{urlencode({'namespace': row.namespace})}",
        also=also,
    )


def _facts(repo: Row[Any], row: Row[Any], licenses: Sequence[str], tree: FileTree) -> Iterator[Fact]:
    base = f"/base/{row.base_sha256}" if row.base_sha256 else f"/?{urlencode({'base': row.base_model or ''})}"
    methods = ", ".join(json.loads(row.methods)) or row.peft_type or ""
    how = [method_name(methods), f"rank {row.rank}" if row.rank else ""]
    how.append(f"alpha {row.alpha:g}" if row.alpha is not None else "")
    weights, job = tree.find(WEIGHTS_FILE), getattr(row, "publisher", None)
    found = (
        ("Base", row.base_model or (row.base_sha256 or "")[:12], base),
        ("Method", ", ".join(filter(None, how)), None),
        ("Modules", ", ".join(json.loads(row.target_modules)), None),
        ("Parameters", f"{row.parameters:,} of {row.dtype}" if row.parameters else "", None),
        ("Size", size_text(weights.size) if weights is not None else "", None),
        ("Task", row.task, f"/?{urlencode({'task': row.task or ''})}"),
        ("Licence", ", ".join(licenses[:3]), None),
        ("Published by", Job(**json.loads(job)).by if job else repo.namespace, None if job else f"/{repo.namespace}"),
    )
    return (Fact(name=name, text=str(text), url=url) for name, text, url in found if text)


def _snippets(repo: Row[Any], row: Row[Any], address: str, *, has_pictures: bool) -> Iterator[Snippet]:
    """Yield lines that work when copied, each for the version of `row`, or for its commit.

    Names in them are checked ids; a base that is not one gets a placeholder.
    """
    base = row.base_model if row.base_model and is_hub_id(row.base_model) else "path/to/base"
    full, namespace = repo.full_name, repo.namespace
    name = full.partition("/")[2]
    version = getattr(row, "released_as", None)
    pin = f"=={version}" if version else ""
    spec = f"{namespace}/{row.name or name}{pin}"
    download = f"HF_ENDPOINT={address} hf download {full} --revision {row.commit_id} --local-dir {name}"
    begin = f"# export HF_ENDPOINT={address}"
    if has_pictures or repo.pipeline_tag == "text-to-image":
        lines = (
            *(begin, "import torch", "from diffusers import AutoPipelineForText2Image", ""),
            f'pipe = AutoPipelineForText2Image.from_pretrained("{base}", torch_dtype=torch.float16)',
            f'pipe.load_lora_weights("{full}", revision="{row.commit_id}")',
        )
        yield Snippet(program="Diffusers", text="\n".join(lines))
        export = f"adapt export {spec} --format kohya -o ComfyUI/models/loras/{name}.safetensors"
        yield Snippet(program="ComfyUI", text=export)
        yield Snippet(program="hf", text=download)
        return
    lines = (
        begin,
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM  # or the class of another task",
        "",
        f'base = AutoModelForCausalLM.from_pretrained("{base}")',
        f'model = PeftModel.from_pretrained(base, "{full}", revision="{row.commit_id}")',
    )
    yield Snippet(program="PEFT", text="\n".join(lines))
    most = vllm_rank(row.rank)
    if row.peft_type == "LORA" and most is not None:
        # vLLM takes no revision
        serve = f"vllm serve {base} --enable-lora --max-lora-rank {most} --lora-modules {name}=./{name}"
        yield Snippet(program="vLLM", text=f"{download}\n{serve}")
    if row.peft_type == "LORA":
        export = f"adapt export {spec} --format gguf -o {name}.gguf"
        yield Snippet(program="llama.cpp", text=f"{export}\nllama-server --model base.gguf --lora {name}.gguf")
    yield Snippet(program="hf", text=download)
    attach = f'with adapterhub.attach(model, "{spec}") as attached:\n    attached.model.generate(...)'
    yield Snippet(program="Python", text=f"import adapterhub\n\n{attach}")


def _text(registry: Registry, tree: FileTree, path: str, most: int) -> str:
    entry = tree.find(path)
    if entry is None or entry.size > most:
        return ""
    return text_of(b"".join(registry.blobs.open(entry.sha256))) or ""


def _answers(contract: Contract) -> Iterator[AnswerView]:
    """Yield recorded answers with the base's loss on them, then questions to which the base's own answer stays."""
    lines: tuple[Golden | LeaveAlone, ...] = (*contract.goldens, *contract.leave_alone)
    for line in islice((line for line in lines if line.asked is not None and line.answer), ANSWERS_SHOWN):
        asked = line.asked
        text = asked if isinstance(asked, str) else "\n".join(turn["content"] for turn in asked or ())
        answer = line.answer[:MAX_ANSWER_CHARACTERS]
        yield AnswerView(
            question=text[:MAX_ANSWER_CHARACTERS],
            answer=answer,
            loss=line.loss,
            base_loss=line.base_loss if isinstance(line, Golden) else line.loss,
            base_answer=None if isinstance(line, Golden) else answer,
        )


ENTRIES: Final = 50
LOOKED_AT: Final = 400
"""Of the newest builds for a frequent base, so many are looked at for its feed, and so many of the last yanks."""


def feed_of(here: Visit, asked: PageQuery) -> Feed:
    """Return the newest events of `namespace=…` or `base=…` (a hash or a name), as far as the caller may see them.

    Of a base with many builds, these are the releases among its newest `LOOKED_AT` builds, and the yanks among the last
    `LOOKED_AT`.
    """
    registry, caller, address = here.registry, here.caller, here.address
    registry.repos.check_may_read(caller)
    namespace, base = asked.query.get("namespace", ""), asked.query.get("base", "")
    if bool(namespace) == bool(base):
        raise bad_request("a feed needs one of `namespace` and `base`")
    is_digest = BASE_DIGEST.fullmatch(base) is not None
    with registry.db.read() as connection:
        kin = kin_digests(connection, base, registry.repos.readable(caller))
        query = AdapterQuery(base_sha256=base, kin=kin, every=True)
        query = query if is_digest else AdapterQuery(base=base or None, every=True)
        conditions = conditions_of(connection, query)
        about, given = met(conditions)
        few = rarest(connection, conditions)
        bases = [] if few or namespace else _bases_in_order(connection, base, kin)
        begin = "namespace" if namespace else "few" if few else bases[0][0] if bases else "all"
        ask = _asking(registry.repos.visible(caller), begin, tuple(about))
        given = {**given, "namespace": namespace, "numbers": few and few.found.numbers}
        each = [{**given, "of_base": value} for _, value in bases] or [given]
        released = [row for one in each for row in ask.newest.rows(connection, **one)]
        yanked = ask.yanks.rows(connection, **given)
    entries = [
        FeedEntry(
            id=f"{address}/{row.full_name}#{row.version}-{row.digest[:16]}",
            title=f"{row.full_name} {row.version}",
            url=f"{address}/{row.full_name}/{row.version}",
            at=row.created_at,
            summary=row.description or f"{row.full_name} {row.version} was released.",
        )
        for row in released
    ]
    entries += [
        FeedEntry(
            id=f"{address}/{row.full_name}#{row.version}-yanked-{row.yanked_at}",
            title=f"{row.full_name} {row.version} was yanked",
            url=f"{address}/{row.full_name}",
            at=row.yanked_at,
            summary=row.yanked_reason or "",
        )
        for row in yanked
    ]
    entries.sort(key=lambda entry: entry.at, reverse=True)
    asked_for = urlencode({"namespace": namespace} if namespace else {"base": base})
    url = f"{address}/feed?{asked_for}"
    return Feed(
        id=url,
        title=f"Adapters in {namespace}" if namespace else f"Adapters for {base}",
        url=url,
        page_url=f"{address}/?{urlencode({'q': f'{namespace}/'})}" if namespace else f"{address}/?{asked_for}",
        updated_at=entries[0].at if entries else 0,
        entries=tuple(entries[:ENTRIES]),
    )


def _bases_in_order(connection: Connection, base: str, kin: Sequence[str]) -> list[tuple[_Begin, str]]:
    """Columns of `adapters` and values that together hold for the builds of a base, each in the order of an index.

    Empty for a part of a digest, and a digest of the base's tensors or files.
    """
    if not BASE_DIGEST.fullmatch(base):
        return [("base_model", base)]
    spans = spans_of_base(connection, base)
    digests = set(spans.get("base_sha256", ()))
    return [("base_sha256", one) for one in (*digests, *kin)] if len(spans) == len(digests) == 1 else []


_Begin = Literal["namespace", "few", "base_model", "base_sha256", "all"]


class _Asking(NamedTuple):
    """The statements of a feed: its newest releases, with their descriptions, and its last yanks."""

    newest: PreparedSql
    yanks: PreparedSql


@lru_cache(maxsize=128)
def _asking(visible: ColumnElement[bool], begin: _Begin, about: tuple[ColumnElement[bool], ...]) -> _Asking:
    """Begin with the releases of a namespace, of few repositories, or of the newest builds by a column."""
    r, is_yanked = releases.c, releases.c.yanked_at.is_not(None)
    columns = (r.repo_id, r.commit_id, r.version, r.digest, r.created_at, r.yanked_at, r.yanked_reason)
    wanted = select(*columns, repos.c.full_name).join_from(releases, repos, repos.c.id == r.repo_id).where(visible)
    if begin == "namespace":
        wanted = wanted.where(r.namespace == bindparam("namespace"))
        return _Asking(_described(wanted), _last(wanted.where(is_yanked), r.yanked_at))
    of_base = wanted.where(_is_of(releases, about))
    if begin == "few":
        of_base = of_base.where(among(r.repo_id, "numbers"))
        return _Asking(_described(of_base), _last(of_base.where(is_yanked), r.yanked_at))
    last = select(*columns).where(is_yanked).order_by(r.yanked_at.desc()).limit(LOOKED_AT).subquery()
    yanks = select(last, repos.c.full_name).join_from(last, repos, repos.c.id == last.c.repo_id)
    yanked = _last(yanks.where(visible, _is_of(last, about)), last.c.yanked_at)
    if begin == "all":
        return _Asking(_described(of_base), yanked)
    newest = select(adapters.c.repo_id, adapters.c.commit_id).where(adapters.c[begin] == bindparam("of_base"))
    some = newest.order_by(adapters.c.created_at.desc()).limit(LOOKED_AT).subquery()
    return _Asking(_described(wanted.join(some, _is_build(some, releases))), yanked)


def _is_of(found: FromClause, about: Sequence[ColumnElement[bool]]) -> ColumnElement[bool]:
    """Whether the build of a release meets some conditions."""
    # a subquery for each release: PostgreSQL expects one row of a join by two columns, and sorts them all
    build = select(adapters.c.repo_id).where(_is_build(adapters, found), *about).correlate(found)
    return build.scalar_subquery().is_not(None)


def _is_build(build: FromClause, found: FromClause) -> ColumnElement[bool]:
    return (build.c.repo_id == found.c.repo_id) & (build.c.commit_id == found.c.commit_id)


def _last(wanted: Select[Any], at: ColumnElement[int]) -> PreparedSql:
    return PreparedSql(wanted.order_by(at.desc()).limit(ENTRIES))


def _described(wanted: Select[Any]) -> PreparedSql:
    """Of some releases, the newest, with the descriptions of these only."""
    some = wanted.order_by(releases.c.created_at.desc()).limit(ENTRIES).subquery()
    text = select(adapters.c.description).where(_is_build(adapters, some)).scalar_subquery()
    return PreparedSql(select(some, text.label("description")).order_by(some.c.created_at.desc()))
