"""Turns the Markdown of a stranger into HTML that can neither run, nor load, nor imitate the page around it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

import nh3
from markdown_it import MarkdownIt
from markupsafe import Markup

from adapterhub.pages.visible import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markdown_it.token import Token

MAX_CHARACTERS: Final = 1 << 17
"""How much of a card is shown; the whole file is one click away."""
MAX_MARKS: Final = 4000
"""With more of one sign that Markdown pairs, the page shows a card's source: to pair them all takes seconds."""
_PAIRED: Final = "[<*_`~&"
_TAGS: Final = {
    *("a", "abbr", "b", "blockquote", "br", "code", "dd", "del", "details", "div", "dl", "dt", "em", "h3"),
    *("h4", "h5", "h6", "hr", "i", "kbd", "li", "ol", "p", "pre", "s", "samp", "span", "strong", "sub"),
    *("summary", "sup", "table", "tbody", "td", "th", "thead", "tr", "ul", "var"),
}
_ATTRIBUTES: Final = {"a": {"href", "title"}, "abbr": {"title"}, "td": {"colspan"}, "th": {"colspan"}}
_DROPPED: Final = {"script", "style", "template", "textarea", "title", "iframe", "noscript", "svg", "math", "select"}
_SCHEMES: Final = {"http", "https", "mailto"}
_LOWEST: Final = 6
_BELOW: Final = 2  # headings of a card stand below the page's own two


@functools.lru_cache(maxsize=256)
def card_html(text: str) -> Markup:
    """The HTML of a card, of which `MAX_CHARACTERS` are read. A picture becomes its description, so nothing loads."""
    text = visible(text[:MAX_CHARACTERS])
    if any(text.count(sign) > MAX_MARKS for sign in _PAIRED):
        return Markup('<pre tabindex="0">{}</pre>').format(text)
    tokens = _parser().parse(text)
    for token in tokens:
        if token.type in {"heading_open", "heading_close"}:
            token.tag = f"h{min(int(token.tag[1:]) + _BELOW, _LOWEST)}"
        _describe_pictures(token.children or ())
    html = _parser().renderer.render(tokens, _parser().options, {})
    safe = nh3.clean(
        html,
        tags=_TAGS,
        clean_content_tags=_DROPPED,
        attributes=_ATTRIBUTES,
        url_schemes=_SCHEMES,
        link_rel="noopener noreferrer nofollow ugc",
    )
    return Markup(safe)  # noqa: S704 - nh3 has just cleaned it


@functools.cache
def _parser() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def _describe_pictures(tokens: Sequence[Token]) -> None:
    for token in tokens:
        if token.type == "image":
            token.type, token.tag, token.content = "text", "", f"[picture: {token.content or 'without a name'}]"
            token.children = None
