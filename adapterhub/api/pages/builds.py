"""The pages of one installed build: what it is, and its files.

`?build=` and the revision of a file name a build by the first digits of its digest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlencode

from adapterhub.api.describing import Shown, shown_build
from adapterhub.api.pages.addresses import DIGITS, NO_NAMESPACE, address_of
from adapterhub.api.searching import ask, base_name, method_text, search_installed
from adapterhub.core.disk.files import open_plain, read_plain
from adapterhub.core.errors import AdapterHubError, NotFound, shown
from adapterhub.core.specs import AdapterSpec
from adapterhub.formats.contract.reader import contract_in
from adapterhub.formats.manifest import CARD_FILE, LIMIT_BYTES, MANIFEST_FILE
from adapterhub.pages.page import PageSource
from adapterhub.pages.values import (
    AdapterLine,
    AdapterPage,
    AnswerView,
    Badge,
    BlobPage,
    CommitPage,
    FileChange,
    FileLine,
    Link,
    RawFile,
    Snippet,
    TreePage,
    VersionLine,
)

if TYPE_CHECKING:
    from adapterhub.api.library import Library
    from adapterhub.library.store.catalog import Installed
    from adapterhub.library.store.rows import BuildRow
    from adapterhub.pages.page import PageQuery

_ANSWERS: Final = 5
_TEXT_BYTES: Final = 1 << 20
_PIECE_BYTES: Final = 1 << 18


class WithBuilds(PageSource):
    """The pages of the builds of one library."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def adapter(self, repo: str, asked: PageQuery) -> AdapterPage:
        """One installed build: the one that `?build=` names, else the newest that is not yanked."""
        namespace, _, name = repo.partition("/")
        builds = self._builds(repo)
        build = self._chosen(builds, asked.query.get("build", ""))
        spec = AdapterSpec.parse(build.spec)
        shown = shown_build(self._library.session, self._library, build, spec, offline=True)
        manifest = build.manifest
        here = address_of(build.namespace, manifest.name, manifest.digest)
        revision = manifest.digest.removeprefix("sha256:")
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
            "Used by": "; ".join(f"{use.who} ({use.why})" for use in shown.used_by),
            "From": shown.origin or "",
            "Folder": str(build.folder),
        }
        return AdapterPage(
            repo=repo,
            namespace=namespace,
            name=name,
            private=False,
            description=manifest.description,
            card=_card(build.folder),
            badges=tuple(_badges(shown)),
            facts=tuple((label, text) for label, text in facts.items() if text),
            versions=tuple(
                VersionLine(
                    version=f"{one.manifest.version} for {one.base_name or 'an unknown base'}"
                    + (f", rank {one.manifest.rank}" if one.manifest.rank else ""),
                    url=address_of(one.namespace, one.manifest.name, one.manifest.digest),
                    commit=one.manifest.digest,
                    digest=one.manifest.digest,
                    released_at=round(one.added_at * 1000),
                )
                for one in builds
            ),
            note="" if shown.yanked is None else "This build is yanked; `adapt remove` removes it",
            snippets=_snippets(build) if shown.yanked is None else (),
            files=tuple(_files(build, repo, revision)),
            more_files=0,
            answers=tuple(_answers(build.folder)),
            downloads=None,
            days=(),
            commit=revision,
            modified_at=round(build.added_at * 1000),
            links=(
                Link(text="Files", url=f"/{repo}/tree/{revision}"),
                Link(text="Try it", url=f"/playground?{urlencode({'base': build.base_name, 'pick': build.spec})}"),
                Link(text="Weights", url=f"/{repo}/{revision[:DIGITS]}"),
                Link(text="Lineage", url=f"/lineage/{repo}?{urlencode({'version': revision[:DIGITS]})}"),
                Link(text="This build", url=here),
            ),
        )

    # ------------------------------------------------------------ files
    def commit(self, repo: str, revision: str, before: str | None) -> CommitPage:
        """A build, which is a commit without a parent: all its files are new."""
        del before
        build = self._chosen(self._builds(repo), revision)
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

    def tree(self, repo: str, revision: str, folder: str, after: str) -> TreePage:
        """The files of a build, which has no folders."""
        del after
        build = self._chosen(self._builds(repo), revision)
        if folder:
            raise NotFound(f"no folder `{shown(folder, 200)}`")
        return TreePage(
            repo=repo,
            revision=revision,
            commit=build.manifest.digest.removeprefix("sha256:"),
            folder="",
            trail=_trail(repo, revision),
            entries=tuple(_files(build, repo, revision)),
        )

    def blob(self, repo: str, revision: str, path: str) -> BlobPage:
        """One file of a build, as text where it is one."""
        build, entry = self._file(repo, revision, path)
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

    def raw(self, repo: str, revision: str, path: str) -> RawFile:
        """The bytes of a file of a build."""
        build, entry = self._file(repo, revision, path)
        is_text = entry.sha256 is None or not path.endswith(".safetensors")
        content = _pieces(build.folder / path)
        return RawFile(path=path, size=entry.size, is_text=is_text, etag=entry.sha256 or revision, content=content)

    # ------------------------------------------------------------ inside
    def _builds(self, repo: str) -> list[Installed]:
        """The builds of `namespace/name`, newest first, and after them those that are yanked."""
        namespace, _, name = repo.partition("/")
        wanted = None if namespace == NO_NAMESPACE else namespace
        rows = search_installed(self._library.session, None, name=name)
        mine = [row for row in rows if row.name == name and (row.namespace or None) == wanted]
        builds = list(self._library.still_in(self._library.root / row.folder for row in mine))
        if not builds:
            raise NotFound(f"no adapter `{shown(repo, 200)}` is installed")
        return sorted(builds, key=lambda build: (self._library.yanked(build) is not None, -build.added_at))

    def _lines(self, rows: Sequence[BuildRow]) -> Iterator[AdapterLine]:
        """The rows as a list shows them."""
        aliases = ask(self._library.session, lambda index: index.aliases())
        return (_line(row, aliases) for row in rows)

    def _chosen(self, builds: list[Installed], digits: str) -> Installed:
        """The newest build whose digest begins with `digits`, or that has this version."""
        begin = f"sha256:{digits}"
        found = [b for b in builds if b.manifest.digest.startswith(begin) or b.manifest.version == digits]
        if not found:
            raise NotFound(f"no build `{shown(digits, 80)}`")
        return found[0]

    def _file(self, repo: str, revision: str, path: str) -> tuple[Installed, FileLine]:
        build = self._chosen(self._builds(repo), revision)
        entry = next((one for one in _files(build, repo, revision) if one.path == path), None)
        if entry is None:
            raise NotFound(f"no file `{shown(path, 200)}`")
        return build, entry


def _badges(shown: Shown) -> Iterator[Badge]:
    signature = shown.signature
    is_good = signature.signer is not None
    yield Badge(text=signature.standing, detail=signature.signer or "", tone="good" if is_good else "plain")
    if shown.yanked is not None:
        yield Badge(text="yanked", detail=shown.yanked, tone="bad")
    if shown.policy_refusal is not None:
        yield Badge(text="refused by the project's policy", detail=shown.policy_refusal, tone="bad")


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
    """The card without its front matter."""
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
    """The files that the build has: those of its manifest, the manifest itself and the card."""
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
        Link(text=repo, url=f"/{repo}?build={revision[:DIGITS]}"),
        Link(text="files", url=f"/{repo}/tree/{revision}"),
    )


def _pieces(path: Path) -> Iterator[bytes]:
    with open_plain(path) as stream:
        while piece := stream.read(_PIECE_BYTES):
            yield piece


def _line(row: BuildRow, aliases: dict[str, str]) -> AdapterLine:
    return AdapterLine(
        repo=row.full_name,
        url=address_of(row.namespace, row.name, row.digest),
        version=row.version,
        description=row.description,
        task=row.task or None,
        base=base_name(row, aliases),
        base_sha256=row.base_weights.removeprefix("sha256:") or None,
        method=method_text(row.method.split(",")),
        rank=row.rank,
        license=None,
        downloads=None,
        modified_at=round(row.added_at * 1000),
        badges=(Badge(text="merge"),) if row.parents else (),
    )
