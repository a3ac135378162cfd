"""The look of the values: Jinja's templates, and the JSON of the same value."""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime, timezone
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from adapterhub.core.display import size_text
from adapterhub.pages.cards import card_html
from adapterhub.pages.visible import visible

STATIC_PATH: Final = "/static/pages"
MEDIA_TYPES: Final = MappingProxyType(
    {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".txt": "text/plain"}
)
_UNITS: Final = (("year", 31_557_600), ("month", 2_629_800), ("day", 86_400), ("hour", 3600), ("minute", 60))


@functools.cache
def static_files() -> Mapping[str, bytes]:
    """The style sheets and scripts by name."""
    folder = files("adapterhub.pages") / "static"
    return MappingProxyType({entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()})


@functools.cache
def static_url(name: str) -> str:
    """The address of a static file; it changes with the bytes, so that browsers may keep them."""
    return f"{STATIC_PATH}/{name}?v={hashlib.sha256(static_files()[name]).hexdigest()[:12]}"


def render(template: str, context: Mapping[str, Any]) -> str:
    """The text of a template."""
    return _environment().get_template(template).render(context)


def read_templates() -> None:
    """Compile every template, which takes 0.2 s of CPU in all."""
    for name in _environment().list_templates():
        _environment().get_template(name)


def twin(value: object) -> str:
    """The JSON of a page's value, with the same names."""
    assert is_dataclass(value)
    assert not isinstance(value, type)
    # surrogates have no bytes: escaped, any text can be sent
    return json.dumps(value, default=_fields, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _fields(value: Any) -> dict[str, object]:  # noqa: ANN401 - a dataclass
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
        "card": card_html,
        "count": lambda number: f"{number:,}",
        "day": lambda at_ms: _moment(at_ms).strftime("%Y-%m-%d"),
        "instant": lambda at_ms: _moment(at_ms).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "in_path": lambda text: quote(text, safe=""),
        "size": size_text,
    }
    made.globals |= {"static_url": static_url}
    return made


def _shown(value: object) -> object:
    """What an expression of a template puts into the page: no mark of direction gets there unseen."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _moment(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, tz=timezone.utc)


def ago(at_ms: int) -> Markup:
    """A time (milliseconds since 1970) as `3 hours ago`, with the whole time in the title."""
    age_s = time.time() - at_ms / 1000
    name, length_s = next((unit for unit in _UNITS if age_s >= unit[1]), ("", 1))
    number = int(age_s // length_s)
    text = f"{number} {name}{'s' if number > 1 else ''} ago" if name else "just now"
    moment = _moment(at_ms)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        moment.strftime("%Y-%m-%dT%H:%M:%SZ"), moment.strftime("%Y-%m-%d %H:%M:%S UTC"), text
    )
