"""Look at the built site: links, what comes from another host, its size, and what its search finds first."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urldefrag

_LOADED: Final = {"src", "srcset", "poster", "data"}
_FAR: Final = re.compile(r"(?:[a-z]+:)?//", re.IGNORECASE)
_FAR_IN_STYLE: Final = re.compile(r"""(?:url\(|@import)\s*["']?\s*((?:https?:)?//[^"')\s]+)""", re.IGNORECASE)

LARGEST: Final = 10_000_000
"""Bytes of the whole site."""
ANSWERS: Final = {
    "install": "how-to/install",
    "merge": "how-to/merge",
    "vllm": "how-to/serve",
    "verify": "how-to/refused",
    "lora": "how-to/add",
    "transformers": "how-to/transformers-peft-vllm",
    "publish": "how-to/publish",
    "registry": "how-to/registry",
    "ci": "how-to/scripts",
    "python": "reference/python",
    "limits": "explanation/limits",
    "identifies": "explanation/base-identity",
}
"""The page that the search has to find first for each word."""


class _Page(HTMLParser):
    """What a page links to, loads and can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key in {"id", "name"} and value:
                self.names.add(value)
            elif value and (key in _LOADED or (tag in {"link", "image", "use"} and key.endswith("href"))):
                self.loads.add(value)
            elif value and key == "href":
                self.links.add(value)


def problems(site: Path) -> list[str]:
    """Links of the built pages that lead nowhere, and fonts, scripts, styles and pictures of other hosts."""
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site)
        found += [f"{name}: loads {target}" for target in sorted(page.loads) if _FAR.match(target)]
        for target in sorted(page.links | page.loads):
            if re.match(r"[a-z]+:|//", target, re.IGNORECASE):
                continue
            file, anchor = urldefrag(target)
            place = (path.parent / unquote(file.partition("?")[0])).resolve() if file else path
            known = pages.get(place)
            if not place.is_file() or (anchor and known and unquote(anchor) not in known.names):
                found.append(f"{name}: {target} leads nowhere")
    for path in [p for p in sorted(site.rglob("*")) if p.suffix in {".css", ".svg", ".html"}]:
        targets = sorted(set(_FAR_IN_STYLE.findall(path.read_text(encoding="utf-8"))))
        found += [f"{path.relative_to(site)}: loads {target}" for target in targets]
    return found


def too_large(site: Path) -> list[str]:
    """Return a problem if all files together have more bytes than the site may have."""
    size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    return [f"the site has {size:,} bytes, at most {LARGEST:,} are allowed"] if size > LARGEST else []


def wrong_answers(site: Path) -> list[str]:
    """Return the words for which the site's own search, run by node, finds another page first."""
    node = shutil.which("node")
    if node is None:
        return []
    script = Path(__file__).with_name("search.js")
    done = subprocess.run(  # noqa: S603 - our own script
        [node, str(script), str(site), *ANSWERS], check=True, capture_output=True, text=True
    )
    found = json.loads(done.stdout)
    return [
        f"search: `{word}` finds {found[word]} first, expected {page}"
        for word, page in ANSWERS.items()
        if found[word] != page
    ]
