"""The look of the values: Jinja's templates, and the JSON of the same value."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime, timezone
from importlib.resources import files
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import nh3
from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

import adapterhub
from adapterhub.core.display import size_text
from adapterhub.formats.documented import Documented
from adapterhub.pages.figures import engine_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markdown_it.token import Token

    from adapterhub.pages.lists import AdapterLine

MAX_CHARACTERS: Final = 1 << 17
"""How much of a card is shown; the whole file is one click away."""
MAX_MARKS: Final = 4000
"""With more of one sign that Markdown pairs, the page shows a card's source: to pair them all takes seconds."""
_PAIRED: Final = "[<*_`~&"
_TAGS: Final = {
    *("a", "abbr", "b", "blockquote", "br", "code", "dd", "del", "details", "div", "dl", "dt", "em", "h2", "h3"),
    *("h4", "h5", "h6", "hr", "i", "kbd", "li", "ol", "p", "pre", "s", "samp", "span", "strong", "sub"),
    *("summary", "sup", "table", "tbody", "td", "th", "thead", "tr", "ul", "var"),
}
_ATTRIBUTES: Final = {"a": {"href", "title"}, "abbr": {"title"}, "td": {"colspan"}, "th": {"colspan"}}
_DROPPED: Final = {"script", "style", "template", "textarea", "title", "iframe", "noscript", "svg", "math", "select"}
_SCHEMES: Final = {"http", "https", "mailto"}
_LOWEST: Final = 6
_BELOW: Final = 2  # headings of a card stand below the page's own, without a gap


_TITLE: Final = re.compile(r"\s*# [^\n]*\n|[^\n]+\n=+\n")
_UNWRITTEN: Final = "[More Information Needed]"


def readme_of(card: str) -> str:
    """Return a card without its title, which the page has; "" for one in which its author wrote nothing."""
    text = _TITLE.sub("", card, count=1) if _TITLE.match(card) else card
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    written = [one for one in lines if not one.startswith(("#", "<!--")) and _UNWRITTEN not in one]
    return text.strip() if written else ""


@functools.lru_cache(maxsize=256)
def card_html(text: str) -> Markup:
    """Return the HTML of a card, of which `MAX_CHARACTERS` are read.

    A picture becomes its description, so nothing loads.
    """
    text = visible(text[:MAX_CHARACTERS])
    if any(text.count(sign) > MAX_MARKS for sign in _PAIRED):
        return Markup('<pre tabindex="0">{}</pre>').format(text)
    tokens = _parser().parse(text)
    headings = [token for token in tokens if token.type in {"heading_open", "heading_close"}]
    levels = {tag: min(at + _BELOW, _LOWEST) for at, tag in enumerate(sorted({one.tag for one in headings}))}
    for token in headings:
        token.tag = f"h{levels[token.tag]}"
    for token in tokens:
        _describe_pictures(token.children or ())
    html = _parser().renderer.render(tokens, _parser().options, {})
    safe = nh3.clean(
        html,
        tags=_TAGS,
        clean_content_tags=_DROPPED,
        attributes=_ATTRIBUTES,
        url_schemes=_SCHEMES,
        link_rel="noopener noreferrer nofollow ugc",
        set_tag_attribute_values={
            "pre": {"tabindex": "0"},
            "table": {"tabindex": "0"},
        },  # what scrolls can be reached by the keyboard
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


_UNSEEN: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def visible(text: str) -> str:
    """`text` with marks of direction, control and zero-width characters written as their escapes; line ends stay.

    Half of a pair of UTF-16, which has no bytes in UTF-8, becomes U+FFFD.
    """
    if text.isascii() and text.isprintable():
        return text
    text = _SURROGATE.sub("\ufffd", text.replace("\r\n", "\n"))
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


STATIC_PATH: Final = "/static/pages"
MEDIA_TYPES: Final = MappingProxyType(
    {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".txt": "text/plain"}
)
_HASH: Final = re.compile(r"[0-9a-f]{40,64}")
_UNITS: Final = (("year", 31_557_600), ("month", 2_629_800), ("day", 86_400), ("hour", 3600), ("minute", 60))


@functools.cache
def static_files() -> Mapping[str, bytes]:
    """Return the style sheets and scripts by name."""
    folder = files("adapterhub.pages") / "static"
    return MappingProxyType({entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()})


@functools.cache
def static_url(name: str) -> str:
    """Return the address of a static file; it changes with the bytes, so that browsers may keep them."""
    return f"{STATIC_PATH}/{name}?v={hashlib.sha256(static_files()[name]).hexdigest()[:12]}"


def render(template: str, context: Mapping[str, Any]) -> str:
    """Return the text of a template."""
    return _environment().get_template(template).render(context)


def read_templates() -> None:
    """Compile every template, which takes 0.2 s of CPU in all."""
    for name in _environment().list_templates():
        _environment().get_template(name)


def twin(value: object) -> str:
    """Return the JSON of a page's value, with the same names; a result of the library is its own document."""
    assert is_dataclass(value)
    assert not isinstance(value, type)
    # surrogates have no bytes: escaped, any text can be sent
    return json.dumps(value, default=_fields, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _fields(value: Any) -> object:
    if isinstance(value, Documented):
        return value.to_json()
    return {field.name: getattr(value, field.name) for field in fields(value)}


@functools.cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("adapterhub.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {
        "ago": ago,
        "at_dots": lambda text: Markup(".<wbr>").join(visible(text).split(".")),
        "card": card_html,
        "count": lambda number: f"{number:,}",
        "day": lambda at_ms: _moment(at_ms).strftime("%Y-%m-%d"),
        "engine": engine_name,
        "hit": _hit,
        "instant": lambda at_ms: _moment(at_ms).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "in_parts": _in_parts,
        "in_path": lambda text: quote(text, safe=""),
        "short": lambda revision: revision[:12] if _HASH.fullmatch(revision) else revision,
        "size": size_text,
    }
    made.globals |= {"static_url": static_url, "version": adapterhub.__version__}
    return made


def _shown(value: object) -> object:
    """Return an expression's text for the page: no mark of direction gets there unseen."""
    if value.__class__ is not str:
        return value if isinstance(value, Markup) or not isinstance(value, str) else visible(value)
    return value if value.isascii() and value.isprintable() else visible(value)


def _hit(adapter: AdapterLine, *, prefix: bool = True) -> Markup:
    """Return the HTML of a line in a list; the same one for a minute, as its age grows."""
    return _hit_at(adapter, int(time.time() // 60), prefix=prefix)


@functools.lru_cache(maxsize=4096)
def _hit_at(adapter: AdapterLine, _minute: int, *, prefix: bool) -> Markup:
    parts: Any = _environment().get_template("parts.html").module
    return Markup(parts.hit(adapter, prefix=prefix))  # noqa: S704 - a template escapes


def _in_parts(repo: str) -> tuple[str, str]:
    """Return the namespace and the name of an adapter; the first is "" for `-/name` and for a name."""
    namespace, _, name = repo.rpartition("/")
    return namespace.removeprefix("-"), name


def _moment(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, tz=timezone.utc)


def ago(at_ms: int) -> Markup:
    """Return a time (milliseconds since 1970) as `3 hours ago`, with the whole time in the title."""
    age_s = time.time() - at_ms / 1000
    name, length_s = next((unit for unit in _UNITS if age_s >= unit[1]), ("", 1))
    number = int(age_s // length_s)
    text = f"{number} {name}{'s' if number > 1 else ''} ago" if name else "just now"
    moment = _moment(at_ms)
    day, clock = moment.strftime("%Y-%m-%d %H:%M:%S").split()
    # only digits and letters of ours: there is nothing to escape
    return Markup(f'<time datetime="{day}T{clock}Z" title="{day} {clock} UTC">{text}</time>')  # noqa: S704
