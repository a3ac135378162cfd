"""The page of one adapter: card, facts, versions, recorded answers, files, downloads, and lines to copy."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final
from urllib.parse import urlencode

from sqlalchemy import Row, select

from adapterhub.core.digests import hex_of
from adapterhub.core.errors import AdapterHubError
from adapterhub.core.specs import is_hub_id
from adapterhub.formats.administration import NamespaceRule
from adapterhub.formats.cards.card import vllm_rank
from adapterhub.formats.cards.metadata import split_block
from adapterhub.formats.contract.contract import Contract, Golden, LeaveAlone
from adapterhub.formats.contract.reader import parse_contract
from adapterhub.formats.manifest import CARD_FILE, CONTRACT_FILE, SIGNATURE_FILE
from adapterhub.formats.signature import SIGNATURE_LIMIT_BYTES
from adapterhub.pages.page import PageQuery
from adapterhub.pages.values import AdapterPage, AnswerView, Badge, Day, Feed, FeedEntry, Link, Snippet, VersionLine
from adapterhub_registry.api.context import Registry
from adapterhub_registry.database.db import adapters, downloads, releases, repo_tags, repos
from adapterhub_registry.database.search_tables import Unindexed, among
from adapterhub_registry.database.trees import FileTree
from adapterhub_registry.errors import HttpRefusal, bad_request
from adapterhub_registry.pages.files import file_line, repo_of, text_of
from adapterhub_registry.pages.visit import Visit
from adapterhub_registry.repos import commits
from adapterhub_registry.repos.adapters import versions_of
from adapterhub_registry.repos.repos import MAIN
from adapterhub_registry.repos.search import (
    BASE_DIGEST,
    AdapterQuery,
    Condition,
    conditions_of,
    met,
    of_namespace,
    rarest,
)
from adapterhub_registry.testing import COVERED, StoredResult, results_on, rule_of, signer_of

MAX_CARD_BYTES: Final = 1 << 20
MAX_CONTRACT_BYTES: Final = 1 << 20
FILES_SHOWN: Final = 100
ANSWERS_SHOWN: Final = 5
DAYS_SHOWN: Final = 90
RESULTS_SHOWN: Final = 5
MAX_ANSWER_CHARACTERS: Final = 1000
_EPOCH: Final = dt.date(1970, 1, 1)


def adapter_page(here: Visit, repo: str, asked: PageQuery) -> AdapterPage:  # noqa: ARG001 - the page has no parameters here
    """The newest version of an adapter that is not yanked; without any version, the head of `main`.

    Where all versions are yanked, it shows the newest, says so, and has no lines to copy. Card, answers and files'
    content need the right to read the files.
    """
    registry, caller = here.registry, here.caller
    with registry.db.read() as connection:
        row = repo_of(registry, connection, caller, repo)
        try:
            repo_of(registry, connection, caller, repo, files=True)
            reads = True
        except HttpRefusal:
            reads = False
        of_head = select(adapters).where(adapters.c.repo_id == row.id, adapters.c.commit_id == row.head)
        head = connection.execute(of_head).one_or_none()
        released = versions_of(connection, row.id)
        usable = [version for version in released if version.yanked_at is None]
        facts = next(iter(usable or released), head)
        commit, revision = row.head, MAIN  # a commit after the release may add a signature or tests to the same build
        if facts is not None and (head is None or head.digest != facts.digest):
            commit, revision = facts.commit_id, facts.tag
        name, tree = row.full_name, commits.tree_of(connection, row.id, commit)
        entries = list(islice(tree.walk(), FILES_SHOWN))
        totals = tree.totals()
        tags = sorted(connection.scalars(select(repo_tags.c.tag).where(repo_tags.c.repo_id == row.id)))
        versions = tuple(_version(name, version) for version in released)
        days = select(downloads.c.day, downloads.c.count.label("number")).where(downloads.c.repo_id == row.id)
        counted = connection.execute(days.order_by(downloads.c.day.desc()).limit(DAYS_SHOWN)).all()
        card = _text(registry, tree, CARD_FILE, MAX_CARD_BYTES) if reads else ""
        contract = contract_of(registry, tree) if reads else None
        rule = rule_of(connection, row.namespace)
        tested = results_on(connection, row, facts.digest, rule) if reads and facts is not None else []
        signed = _signed(registry, tree, rule, reads=reads)
    licenses = [tag.removeprefix("license:") for tag in tags if tag.startswith("license:")]
    return AdapterPage(
        repo=name,
        namespace=row.namespace,
        name=name.partition("/")[2],
        private=row.private,
        description=(facts.description if facts is not None else "") or "",
        card=split_block(card)[1].strip() if card else "",
        badges=tuple(_badges(row, facts, signed, licenses, contract, versions, tested)),
        facts=tuple(_facts(facts)) if facts is not None else (),
        versions=versions,
        note=_note(released) if released and not usable else "",
        snippets=tuple(_snippets(name, facts, here.address)) if facts is not None and (usable or not released) else (),
        files=tuple(file_line(name, revision, entry) for entry in entries),
        more_files=max(totals.files - len(entries), 0),
        answers=tuple(_answers(contract)) if contract is not None else (),
        downloads=row.downloads,
        days=tuple(
            Day(day=(_EPOCH + dt.timedelta(days=at.day)).isoformat(), count=at.number) for at in reversed(counted)
        ),
        commit=commit,
        modified_at=row.modified_at,
        links=tuple(_links(here, name, facts)),
        feed_url=f"/feed?{urlencode({'namespace': row.namespace})}",
    )


def _version(repo: str, row: Row[Any]) -> VersionLine:
    return VersionLine(
        version=row.released_as,
        url=f"/{repo}/{row.released_as}",
        commit=row.commit_id,
        digest=f"sha256:{row.digest}",
        released_at=row.released_at,
        yanked_at=row.yanked_at,
        yanked_by=row.yanked_by,
        yanked_reason=row.yanked_reason,
    )


def _badges(
    repo: Row[Any],
    facts: Row[Any] | None,
    signed: Badge,
    licenses: list[str],
    contract: Contract | None,
    versions: tuple[VersionLine, ...],
    tested: Sequence[StoredResult],
) -> Iterator[Badge]:
    if repo.private:
        yield Badge(text="private")
    if repo.gated:
        yield Badge(text="gated")
    if facts is None:
        yield Badge(text="no adapter at main")
    elif facts.base_sha256:
        yield Badge(text="base known by content", detail=facts.base_sha256[:12], tone="good")
    else:
        yield Badge(text="base known by name only", detail=facts.base_model or "")
    yield signed
    for name in licenses[:3]:
        yield Badge(text="licence", detail=name)
    if contract is not None:
        yield Badge(text="tests recorded", detail=f"{len(contract.goldens)} {contract.noun}", tone="good")
    for one in [one for one in tested if one.signer is not None][:RESULTS_SHOWN]:
        is_pass, on = one.said.verdict == "PASS", f"by {one.signer} on base {hex_of(one.said.base)[:12]}"
        yield Badge(text="tests pass" if is_pass else "answers changed", detail=on, tone="good" if is_pass else "bad")
    for version in versions:
        if version.yanked_at is not None:
            yield Badge(text=f"{version.version} yanked", detail=version.yanked_reason or "", tone="bad")


def _signed(registry: Registry, tree: FileTree, rule: NamespaceRule, *, reads: bool) -> Badge:
    """Whether the build is signed, and by whom where the namespace knows the key."""
    entry = tree.find(SIGNATURE_FILE)
    if entry is None:
        return Badge(text="no signature")
    name = None
    if reads and rule.keys and entry.size <= SIGNATURE_LIMIT_BYTES:
        found = {path: found.sha256 for path in COVERED if (found := tree.find(path)) is not None}
        name = signer_of(b"".join(registry.blobs.open(entry.sha256)), found, rule)
    return Badge(text="signed", detail=f"by {name}", tone="good") if name else Badge(text="signature attached")


def _note(released: Sequence[Row[Any]]) -> str:
    """That every version is yanked; the reason is that of the newest."""
    return f"Every version is yanked; the newest, {released[0].released_as}: {released[0].yanked_reason}"


def _links(here: Visit, repo: str, facts: Row[Any] | None) -> Iterator[Link]:
    if facts is not None:
        yield Link(text="Weights", url=f"/{repo}/{getattr(facts, 'released_as', MAIN)}")
        yield Link(text="Lineage", url=f"/lineage/{repo}")
        yield Link(text="Compare", url=f"/compare?{urlencode({'a': repo})}")
        if facts.base_sha256:
            yield Link(text="Base", url=f"/base/{facts.base_sha256}")
    if here.viewer.is_admin:
        yield Link(text="Yank or delete", url=f"/admin-adapter?{urlencode({'repo': repo})}")


def _facts(row: Row[Any]) -> Iterator[tuple[str, str]]:
    found = (
        ("Name", row.name),
        ("Version", row.version),
        ("Task", row.task),
        ("Base", row.base_model),
        ("Base by content", f"sha256:{row.base_sha256}" if row.base_sha256 else None),
        ("Method", ", ".join(json.loads(row.methods)) or row.peft_type),
        ("Rank", row.rank),
        ("Alpha", f"{row.alpha:g}" if row.alpha is not None else None),
        ("Modules", ", ".join(json.loads(row.target_modules)) or None),
        ("Parameters", f"{row.parameters:,} of {row.dtype}" if row.parameters else None),
        ("Digest", f"sha256:{row.digest}"),
        ("Weights", f"sha256:{row.weights_sha256}" if row.weights_sha256 else None),
    )
    return ((name, str(value)) for name, value in found if value is not None)


def _snippets(repo: str, row: Row[Any], address: str) -> Iterator[Snippet]:
    """Lines that work as they stand, each for the version of `row`, else for its commit.

    Names in them are checked ids; a base that is not one gets a placeholder.
    """
    base = row.base_model if row.base_model and is_hub_id(row.base_model) else "path/to/base"
    namespace, _, name = repo.partition("/")
    version = getattr(row, "released_as", None)
    pin = f"=={version}" if version else ""
    yield Snippet(program="adapt", text=f"adapt install {repo}{pin} --remote {address}")
    download = f"HF_ENDPOINT={address} hf download {repo} --revision {row.commit_id} --local-dir {name}"
    yield Snippet(program="hf", text=download)
    lines = (
        f"# export HF_ENDPOINT={address}",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM  # or the class of another task",
        "",
        f'base = AutoModelForCausalLM.from_pretrained("{base}")',
        f'model = PeftModel.from_pretrained(base, "{repo}", revision="{row.commit_id}")',
    )
    yield Snippet(program="PEFT", text="\n".join(lines))
    most = vllm_rank(row.rank)
    if row.peft_type == "LORA" and most is not None:
        # vLLM takes no revision
        serve = f"vllm serve {base} --enable-lora --max-lora-rank {most} --lora-modules {name}=./{name}"
        yield Snippet(program="vLLM", text=f"{download}\n{serve}")
    if row.peft_type == "LORA":
        export = f"adapt export {namespace}/{row.name or name}{pin} --format gguf -o {name}.gguf"
        yield Snippet(program="llama.cpp", text=f"{export}\nllama-server --model base.gguf --lora {name}.gguf")


def _text(registry: Registry, tree: FileTree, path: str, most: int) -> str:
    entry = tree.find(path)
    if entry is None or entry.size > most:
        return ""
    return text_of(b"".join(registry.blobs.open(entry.sha256))) or ""


def contract_of(registry: Registry, tree: FileTree) -> Contract | None:
    """The contract of a build, if it is readable."""
    entry = tree.find(CONTRACT_FILE)
    if entry is None or entry.size > MAX_CONTRACT_BYTES:
        return None
    try:
        return parse_contract(b"".join(registry.blobs.open(entry.sha256)))
    except (AdapterHubError, ValueError):
        return None


def _answers(contract: Contract) -> Iterator[AnswerView]:
    """Recorded answers with the base's loss on them, then questions to which the base's own answer stays."""
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


def feed_of(here: Visit, asked: PageQuery) -> Feed:
    """The newest events of `namespace=…` or `base=…` (a hash or a name), as far as the caller may see them."""
    registry, caller, address = here.registry, here.caller, here.address
    registry.repos.check_may_read(caller)
    namespace, base = asked.query.get("namespace", ""), asked.query.get("base", "")
    if bool(namespace) == bool(base):
        raise bad_request("a feed needs one of `namespace` and `base`")
    is_digest = BASE_DIGEST.fullmatch(base) is not None
    query = AdapterQuery(base_sha256=base) if is_digest else AdapterQuery(base=base or None)
    mine = (adapters.c.repo_id == releases.c.repo_id) & (adapters.c.commit_id == releases.c.commit_id)
    described = select(adapters.c.description).where(mine).correlate(releases).scalar_subquery()
    wanted = select(releases, repos.c.full_name, described.label("description"))
    wanted = wanted.join_from(releases, repos, repos.c.id == releases.c.repo_id).where(registry.repos.visible(caller))
    with registry.db.read() as connection:
        conditions = conditions_of(connection, query)
        about, given = met(conditions)
        if conditions:
            # a subquery for each release: PostgreSQL expects one row of a join by two columns, and sorts them all
            found = select(adapters.c.repo_id).where(mine, *about).correlate(releases)
            wanted = wanted.where(found.scalar_subquery().is_not(None))
        if namespace:
            conditions.append(Condition(filters=None, holders=of_namespace(namespace)))
            wanted = wanted.where(Unindexed(repos.c.namespace) == namespace)
        few = rarest(connection, conditions)
        if few is not None:
            wanted = wanted.where(among(releases.c.repo_id, "numbers"))
            given = {**given, "numbers": few.found.numbers}
        released = connection.execute(wanted.order_by(releases.c.created_at.desc()).limit(ENTRIES), given).all()
        is_yanked = releases.c.yanked_at.is_not(None)
        yanked = connection.execute(
            wanted.where(is_yanked).order_by(releases.c.yanked_at.desc()).limit(ENTRIES), given
        ).all()
    entries = [
        FeedEntry(
            id=f"{address}/{row.full_name}#{row.version}-{row.digest[:16]}",
            title=f"{row.full_name} {row.version}",
            url=f"{address}/{row.full_name}/commit/{row.commit_id}",
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
