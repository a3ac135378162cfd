"""The small values that several pages show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Tone = Literal["good", "bad", "plain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A text and the address that it leads to, which begins with `/`."""

    text: str
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Badge:
    """One fact in two words, such as `signed` with the signer in `detail`; `tone` gives its colour."""

    text: str
    detail: str = ""
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snippet:
    """Lines to copy, for one program."""

    program: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewer:
    """Who looks at a page; `name` is None without a sign-in. `is_admin` may administer the whole home."""

    name: str | None = None
    is_admin: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A page that cannot be shown: the status of HTTP, and why, in words that give nothing away."""

    status: int
    title: str
    message: str
