"""The pages of all homes: the path of each, its template, and the question that it asks of the home."""

from __future__ import annotations

from typing import Final

from adapterhub.pages.page import Elsewhere, Page, PageQuery, PageSource
from adapterhub.pages.values import SignInPage

_REFUSED: Final = "The registry does not know this token: it was mistyped, revoked, or has expired."


def _then(text: str) -> str:
    """A path of this home to return to; anything else leads to the first page."""
    is_path = (
        text.startswith("/")
        and not text.startswith("//")
        and "\\" not in text
        and text.isascii()
        and text.isprintable()
    )
    return text if is_path else "/"


def _sign_in(source: PageSource, asked: PageQuery) -> object:
    then = _then(asked.form.get("then", "/"))
    session = source.sign_in(asked.form.get("token", "").strip())
    return SignInPage(then=then, problem=_REFUSED) if session is None else Elsewhere(url=then, session=session)


def _sign_out(source: PageSource, _asked: PageQuery) -> object:
    source.sign_out()
    return Elsewhere(url="/", signs_out=True)


def _tree(source: PageSource, asked: PageQuery) -> object:
    folder = asked.path.get("path", "").strip("/")
    return source.tree(asked.repo, asked.path["revision"], folder, asked.query.get("after", ""))


_REPO: Final = "/{namespace}/{name}"
PAGES: Final = (
    Page(
        path="/",
        template="search.html",
        show=lambda home, asked: home.search(asked),
        act=lambda home, asked: home.search(asked, asked.files.get("config", b"")),
    ),
    Page(
        path="/feed",
        template="feed.xml",
        show=lambda home, asked: home.feed(asked),
        media_type="application/atom+xml",
    ),
    Page(
        path="/sign-in",
        template="sign-in.html",
        show=lambda _, asked: SignInPage(then=_then(asked.query.get("then", "/"))),
        act=_sign_in,
    ),
    Page(path="/sign-out", template="", show=lambda _home, _: Elsewhere(url="/"), act=_sign_out),
    # an adapter, its files and its figures
    Page(path=_REPO, template="adapter.html", show=lambda home, asked: home.adapter(asked.repo, asked)),
    Page(
        path=f"{_REPO}/commit/{{revision}}",
        template="commit.html",
        show=lambda home, asked: home.commit(asked.repo, asked.path["revision"], asked.query.get("before")),
    ),
    Page(path=f"{_REPO}/tree/{{revision}}", template="tree.html", show=_tree),
    Page(path=f"{_REPO}/tree/{{revision}}/{{path:path}}", template="tree.html", show=_tree),
    Page(
        path=f"{_REPO}/blob/{{revision}}/{{path:path}}",
        template="blob.html",
        show=lambda home, asked: home.blob(asked.repo, asked.path["revision"], asked.path["path"]),
    ),
    Page(
        path=f"{_REPO}/raw/{{revision}}/{{path:path}}",
        template="",
        show=lambda home, asked: home.raw(asked.repo, asked.path["revision"], asked.path["path"]),
    ),
    Page(
        path=f"{_REPO}/{{version}}",
        template="build.html",
        show=lambda home, asked: home.build(asked.repo, asked.path["version"]),
    ),
    Page(path="/compare", template="compare.html", show=lambda home, asked: home.compare(asked)),
    Page(
        path="/base/{fingerprint}", template="base.html", show=lambda home, asked: home.base(asked.path["fingerprint"])
    ),
    Page(
        path="/lineage/{namespace}/{name}",
        template="lineage.html",
        show=lambda home, asked: home.lineage(asked.repo, asked.query.get("version", "")),
    ),
    # a library on this machine
    Page(path="/library", template="library.html", show=lambda home, _: home.library()),
    Page(path="/projects", template="projects.html", show=lambda home, _: home.projects()),
    Page(
        path="/outdated",
        template="outdated.html",
        show=lambda home, _: home.outdated(ask=False),
        act=lambda home, _: home.outdated(ask=True),
    ),
    Page(
        path="/playground",
        template="playground.html",
        show=lambda home, asked: home.playground(asked),
        act=lambda home, asked: home.play(asked),
    ),
    Page(
        path="/playground-stream",
        template="playground.html",
        show=lambda home, asked: home.playground(asked),
        act=lambda home, asked: home.stream(asked),
    ),
    # administration of a registry; with paths of one part, which no repository `namespace/name` can have
    Page(
        path="/admin",
        template="admin-users.html",
        show=lambda home, _: home.users(),
        act=lambda home, asked: home.change_tokens(asked),
    ),
    Page(
        path="/admin-space",
        template="admin-space.html",
        show=lambda home, _: home.space(preview=False),
        act=lambda home, _: home.space(preview=True),
    ),
    Page(
        path="/admin-refusals",
        template="admin-refusals.html",
        show=lambda home, asked: home.refusals(asked.query.get("user", "")),
    ),
    Page(
        path="/admin-adapter",
        template="admin-adapter.html",
        show=lambda home, asked: home.handled(asked.query.get("repo", "")),
        act=lambda home, asked: home.withdraw(asked),
    ),
)


def all_pages() -> tuple[Page, ...]:
    """Every page; paths with fewer parameters come first, so that a fixed path wins."""
    return tuple(sorted(PAGES, key=lambda page: (page.path.count("{"), page.path)))
