"""The pages of one installed build: what it is, and its files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlencode

from adapterhub.api.describing import Shown, shown_build
from adapterhub.api.pages.source import DIGITS, NO_NAMESPACE, address_of, make_url
from adapterhub.api.searching import ask, base_name, method_text
from adapterhub.core.disk.files import open_plain, read_plain
from adapterhub.core.errors import AdapterHubError, NotFound, shown
from adapterhub.core.specs import AdapterSpec
from adapterhub.formats.contract.reader import contract_in
from adapterhub.formats.manifest import CARD_FILE, LIMIT_BYTES, MANIFEST_FILE
from adapterhub.pages.rendering import readme_of
from adapterhub.pages.values import (
    AdapterPage,
    AnswerView,
    Badge,
    BlobPage,
    CommitPage,
    Fact,
    FileChange,
    FileLine,
    Head,
    Link,
    Notice,
    RawFile,
    Snippet,
    Tone,
    TreePage,
    Verdict,
    VersionLine,
)

if TYPE_CHECKING:
    from adapterhub.api.pages.source import LibrarySource
    from adapterhub.library.store.catalog import Installed
    from adapterhub.pages.page import PageQuery
    from adapterhub.projects.tree import Use

_ANSWERS: Final = 5
_USERS: Final = 25
_VERSIONS: Final = 100
_TEXT_BYTES: Final = 1 << 20
_PIECE_BYTES: Final = 1 << 18
_ITS_FILES: Final = "open the list of its files"


def adapter_page(here: LibrarySource, asked: PageQuery) -> AdapterPage:
    """Build the page of one installed build: the one that `?build=` names, or the newest that is not yanked."""
    repo = asked.repo
    build = here.build(repo, asked.query.get("build", ""))
    spec = AdapterSpec.parse(build.spec)
    shown = shown_build(here.library.session, here.library, build, spec, offline=True, is_near=True)
    manifest = build.manifest
    revision = manifest.digest.removeprefix("sha256:")
    aliases = ask(here.library.session, lambda index: index.aliases())
    facts = {
        "Base": build.base_name or "unknown",
        "Task": manifest.task or "",
        "Method": method_text(manifest.method),
        "Rank": str(manifest.rank or ""),
        "Alpha": f"{manifest.alpha:g}" if manifest.alpha else "",
        "Parameters": f"{manifest.parameters:,}",
        "Modules": ", ".join(manifest.target_modules),
        "Licence": manifest.license or "",
        "Merged from": ", ".join(f"{parent.label} times {parent.weight:g}" for parent in shown.node.parents),
        "Used by": _used_by(shown.used_by),
        "From": shown.origin or "",
        "Folder": str(build.folder),
    }
    rows = here.rows(repo, _VERSIONS)
    return AdapterPage(
        repo=repo,
        head=head_of(build, "overview", badges=tuple(_badges(shown)), verdicts=tuple(_verdicts(shown))),
        card=readme_of(_card(build.folder)),
        facts=tuple(Fact(name=label, text=text) for label, text in facts.items() if text),
        digests=(("Build", manifest.digest),),
        versions=tuple(
            VersionLine(
                version=f"{one.version} for {base_name(one, aliases, 'an unknown base')}"
                + (f", rank {one.rank}" if one.rank else ""),
                url=address_of(one.namespace, one.name, one.digest),
                commit=one.digest,
                digest=one.digest,
                released_at=round(one.added_at * 1000),
            )
            for one in rows
        ),
        snippets=_snippets(build) if shown.yanked is None else (),
        files=tuple(_files(build, repo, revision)),
        more_files=0,
        answers=tuple(_answers(build.folder)),
        downloads=None,
        days=(),
        commit=revision,
        modified_at=round(build.added_at * 1000),
        also=tuple(here.other_forms(build.base.fingerprint)),
        lineage_url=f"/lineage/{repo}?{urlencode({'version': revision[:DIGITS]})}",
    )


def head_of(build: Installed, tab: str, *, badges: tuple[Badge, ...] = (), verdicts: tuple[Verdict, ...] = ()) -> Head:
    """Return the top of each page about a build."""
    manifest = build.manifest
    repo = f"{build.namespace or NO_NAMESPACE}/{manifest.name}"
    digits = manifest.digest.removeprefix("sha256:")[:DIGITS]
    pick = urlencode({"base": build.base_name, "pick": build.spec})
    return Head(
        repo=repo,
        version=manifest.version,
        is_release=False,
        description=manifest.description,
        install="",
        at=round(build.added_at * 1000),
        badges=badges,
        verdicts=verdicts,
        notices=tuple(
            Notice(tone="bad", text=f"Yanked: {badge.detail}", rest="`adapt remove` removes it.")
            for badge in badges
            if badge.text == "Yanked"
        ),
        tabs=(
            Link(text="Overview", url=address_of(build.namespace, manifest.name, digits), is_here=tab == "overview"),
            Link(text="Weights", url=f"/{repo}/{digits}", is_here=tab == "weights"),
            Link(
                text="Files",
                url=f"/{repo}/tree/{manifest.digest.removeprefix('sha256:')}",
                is_here=tab == "files",
                count=sum(1 for _ in _files(build, repo, digits)),
            ),
            Link(text="Lineage", url=f"/lineage/{repo}?{urlencode({'version': digits})}", is_here=tab == "lineage"),
            Link(text="Compare", url=f"/compare?{urlencode({'a': f'{build.full_name}@{digits}'})}"),
            Link(text="Try it", url=f"/playground?{pick}"),
            Link(text="Port or convert", url=make_url(build)),
        ),
    )


def commit_page(here: LibrarySource, asked: PageQuery) -> CommitPage:
    """Return a build, which is a commit without a parent: all its files are new."""
    repo, revision = asked.repo, asked.path["revision"]
    build = here.build(repo, revision)
    manifest = build.manifest
    return CommitPage(
        repo=repo,
        id=manifest.digest.removeprefix("sha256:"),
        title=f"{build.full_name} {manifest.version}",
        message=manifest.description,
        author=build.namespace or "",
        at=round(build.added_at * 1000),
        tree_url=f"/{repo}/tree/{revision}",
        parent=None,
        parent_url=None,
        before=None,
        files=tuple(
            FileChange(path=one.path, kind="added", url=one.url, before_sha256=None, after_sha256=one.sha256)
            for one in _files(build, repo, revision)
        ),
        more_files=0,
        versions=(manifest.version,),
    )


def tree_page(here: LibrarySource, asked: PageQuery) -> TreePage:
    """Return the files of a build, which has no folders."""
    repo, revision, folder = asked.repo, asked.path["revision"], asked.path.get("path", "").strip("/")
    build = here.build(repo, revision)
    if folder:
        raise NotFound(f"no folder `{shown(folder, 200)}`", hint=_ITS_FILES)
    return TreePage(
        repo=repo,
        revision=revision,
        commit=build.manifest.digest.removeprefix("sha256:"),
        folder="",
        trail=_trail(repo, revision),
        entries=tuple(_files(build, repo, revision)),
        tabs=head_of(build, "files").tabs,
    )


def blob_page(here: LibrarySource, asked: PageQuery) -> BlobPage:
    """One file of a build, as text where it is one."""
    build, entry = _file(here, asked)
    repo, revision, path = asked.repo, asked.path["revision"], entry.path
    text, why_not = None, "The file is larger than a page shows."
    if entry.size <= _TEXT_BYTES:
        try:
            text = read_plain(build.folder / path, _TEXT_BYTES).decode("utf-8")
        except (OSError, UnicodeDecodeError):
            why_not = "The file is not text."
    return BlobPage(
        repo=repo,
        revision=revision,
        commit=build.manifest.digest.removeprefix("sha256:"),
        path=path,
        trail=(*_trail(repo, revision), Link(text=path, url=entry.url)),
        sha256=entry.sha256 or "",
        size=entry.size,
        text=text,
        why_not="" if text is not None else why_not,
        raw_url=entry.url.replace("/blob/", "/raw/", 1),
    )


def raw_file(here: LibrarySource, asked: PageQuery) -> RawFile:
    """Return the bytes of a file of a build."""
    build, entry = _file(here, asked)
    path = entry.path
    is_text = entry.sha256 is None or not path.endswith(".safetensors")
    content = _pieces(build.folder / path)
    return RawFile(
        path=path, size=entry.size, is_text=is_text, etag=entry.sha256 or asked.path["revision"], content=content
    )


def _file(here: LibrarySource, asked: PageQuery) -> tuple[Installed, FileLine]:
    revision, path = asked.path["revision"], asked.path["path"]
    build = here.build(asked.repo, revision)
    entry = next((one for one in _files(build, asked.repo, revision) if one.path == path), None)
    if entry is None:
        raise NotFound(f"no file `{shown(path, 200)}`", hint=_ITS_FILES)
    return build, entry


def _used_by(uses: Sequence[Use]) -> str:
    """Return who needs a build, and how many more."""
    some = "; ".join(f"{use.who} ({use.why})" for use in uses[:_USERS])
    return f"{some}; and {len(uses) - _USERS} or more others" if len(uses) > _USERS else some


def _badges(shown: Shown) -> Iterator[Badge]:
    if shown.yanked is not None:
        yield Badge(text="Yanked", detail=shown.yanked, tone="bad")
    if shown.policy_refusal is not None:
        yield Badge(text="Refused by the project's policy", detail=shown.policy_refusal, tone="bad")


def _verdicts(shown: Shown) -> Iterator[Verdict]:
    signature = shown.signature
    tone: Tone = "good" if signature.signer is not None else "plain"
    yield Verdict(name="Signature", text=signature.standing.capitalize(), tone=tone, detail=signature.signer or "")
    yield Verdict(name="Contract", text="Recorded" if shown.contract else "None", detail=shown.contract or "")


def _snippets(build: Installed) -> tuple[Snippet, ...]:
    spec = build.spec  # another version may come meanwhile
    return (
        Snippet(program="adapt", text=f'adapt run {spec} "…"'),
        Snippet(program="Python", text=f'adapterhub.attach(model, "{spec}")'),
        Snippet(program="PEFT", text=f'PeftModel.from_pretrained(base, "{build.folder}")'),
        Snippet(program="vLLM", text=f"adapt serve --base {build.base_name or 'BASE'} '{spec}'"),
        Snippet(program="llama.cpp", text=f"adapt export {spec} --format gguf -o {build.manifest.name}.gguf"),
    )


def _card(folder: Path) -> str:
    """Return the card without its front matter."""
    try:
        text = read_plain(folder / CARD_FILE, LIMIT_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
    if not text.startswith("---\n"):
        return text
    _, _, rest = text.removeprefix("---\n").partition("\n---\n")
    return rest


def _answers(folder: Path) -> Iterator[AnswerView]:
    try:
        contract = contract_in(folder)
    except AdapterHubError:  # `adapt test` says what is wrong with it
        return
    for golden in contract.goldens[:_ANSWERS] if contract else ():
        asked = golden.asked
        if asked is None or not golden.answer:
            continue
        question = (
            asked if isinstance(asked, str) else "\n".join(f"{turn['role']}: {turn['content']}" for turn in asked)
        )
        yield AnswerView(question=question, answer=golden.answer, loss=golden.loss, base_loss=golden.base_loss)


def _files(build: Installed, repo: str, revision: str) -> Iterator[FileLine]:
    """Yield the files that the build has: those of its manifest, the manifest itself and the card."""
    known = {entry.path: (entry.size_bytes, entry.sha256.removeprefix("sha256:")) for entry in build.manifest.files}
    for path in (*known, MANIFEST_FILE, CARD_FILE):
        if path in known:
            size, sha256 = known[path]
        elif (build.folder / path).is_file():
            size, sha256 = (build.folder / path).stat().st_size, ""
        else:
            continue
        url = f"/{repo}/blob/{revision}/{quote(path)}"
        yield FileLine(path=path, name=path, url=url, size=size, sha256=sha256 or None)


def _trail(repo: str, revision: str) -> tuple[Link, ...]:
    return (
        Link(text=repo.removeprefix(f"{NO_NAMESPACE}/"), url=f"/{repo}?build={revision[:DIGITS]}"),
        Link(text="files", url=f"/{repo}/tree/{revision}"),
    )


def _pieces(path: Path) -> Iterator[bytes]:
    with open_plain(path) as stream:
        while piece := stream.read(_PIECE_BYTES):
            yield piece
