"""What the site shows and in which order: `docs/index.md` is its map, and every page stays plain CommonMark.

The headings of the start page are the parts of the navigation, the pages below each in the order of their links. Each
part but the first is a page of the site, so that the sidebar shows its pages only when it is opened.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Final

import adapterhub

ROOT: Final = Path(__file__).resolve().parents[2]
DOCS: Final = ROOT / "docs"
START: Final = DOCS / "index.md"
BESIDE: Final = tuple(ROOT / f"{name}.md" for name in ("CONTRIBUTING", "SECURITY", "CHANGELOG"))
"""Pages of the repository's root, which the site puts beside its start page."""
API: Final = "reference/api"
_KEPT: Final = frozenset({".md", ".png", ".svg", ".json", ".yaml"})
_FENCE: Final = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
_LINK: Final = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")


def without_code(text: str) -> str:
    """Return a page's text without its fenced blocks, whose links are not links."""
    return _FENCE.sub("", text)


def every_page() -> list[Path]:
    """Return the pages that the site shows."""
    return [*sorted(DOCS.rglob("*.md")), *BESIDE]


def linked(page: Path, text: str) -> list[Path]:
    """Return the pages of the site that a `text` of this page links to, each once, in the order of the first link."""
    targets = [(page.parent / target).resolve() for target in _LINK.findall(without_code(text))]
    known = set(every_page())
    return [target for target in dict.fromkeys(targets) if target in known]


def parts() -> dict[str, list[Path]]:
    """Return the navigation: each heading of the start page with the pages that it is the first to link to."""
    seen = {START}
    found: dict[str, list[Path]] = {}
    for section in re.split(r"^#{2,3} ", START.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        title, _, text = section.partition("\n")
        pages = [page for page in linked(START, text) if page not in seen]
        seen.update(pages)
        if pages:
            found[title] = pages
    return found


def place(page: Path) -> Path:
    """Where a page or picture lies below the site's root."""
    return page.relative_to(DOCS if page.is_relative_to(DOCS) else ROOT)


def title_of(page: Path) -> str:
    """Return the first heading, without its mark."""
    return page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def first_sentence(page: Path) -> str:
    """Return the first sentence of a page's first paragraph, without links."""
    for paragraph in page.read_text(encoding="utf-8").split("\n\n")[1:]:
        plain = " ".join(re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", paragraph).split())
        if re.match(r"[\w*`(]", plain):
            return re.split(r"(?<=[.:!?]) (?=[A-Z`*])", plain)[0].rstrip(":.") + "."
    raise ValueError(f"{page}: no paragraph after the heading")


def stage(folder: Path) -> None:
    """Copy what the site is made of below `folder`, pages of the root beside the start page, links to fit."""
    files = [path for path in DOCS.rglob("*") if path.suffix in _KEPT]
    for path in (*files, *BESIDE):
        copy = folder / place(path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            copy.write_text(_moved(path), encoding="utf-8")
        else:
            shutil.copyfile(path, copy)
    for name, text in {f"{API}.rst": api_text(), **part_pages()}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def _moved(page: Path) -> str:
    """Return the text of a page with its links from its place on the site."""

    def from_there(match: re.Match[str]) -> str:
        target = (page.parent / match[1]).resolve()
        if not target.is_relative_to(ROOT) or not (target.is_relative_to(DOCS) or target in BESIDE):
            return match[1]
        return os.path.relpath(place(target), place(page).parent)

    return _LINK.sub(from_there, page.read_text(encoding="utf-8"))


def navigation() -> str:
    """Return the table of contents, as Sphinx wants it at the end of the start page: a collapsed entry per part."""
    first, *others = parts().items()
    names = [_name(page) for page in first[1]]
    return "\n".join(["```{toctree}", ":hidden:", "", *names, *(f"parts/{_slug(title)}" for title, _ in others), "```"])


def part_pages() -> dict[str, str]:
    """Return the page of each part but the first, which lists its pages: name to text."""
    found = {}
    for title, pages in list(parts().items())[1:]:
        names = [_name(page) for page in pages]
        rows = [f"- [{title_of(page)}](../{place(page).as_posix()}): {first_sentence(page)}" for page in pages]
        at = names.index("reference/python") + 1 if "reference/python" in names else 0
        names[at:at] = [API] * bool(at)
        entries = [f"../{name}" for name in names]
        found[f"parts/{_slug(title)}.md"] = "\n".join(
            [f"# {title}", "", *rows, "", "```{toctree}", ":hidden:", "", *entries, "```", ""]
        )
    return found


def _name(page: Path) -> str:
    return place(page).with_suffix("").as_posix()


def _slug(title: str) -> str:
    return title.lower().replace(" ", "-")


def api_text() -> str:
    """Return the page that prints the docstrings of every public name, for Sphinx's autodoc.

    Nothing heavy is imported.
    """
    text = (
        "Every name in ``adapterhub.__all__`` with its docstring. `The Python interface <python.html>`_ has examples."
    )
    blocks = ["Python docstrings\n=================", text]
    for name in adapterhub.__all__:
        if whole := adapterhub._MODULES_WHOLE.get(name):  # noqa: SLF001 - where the package keeps a module's place
            directive = [f".. automodule:: adapterhub.{whole}", "   :members:"]
        elif name[0].isupper():
            directive = [
                f".. autoclass:: adapterhub.{name}",
                "   :members:",
                "   :inherited-members: Exception, object",
            ]
        else:
            directive = [f".. autofunction:: adapterhub.{name}"]
        heading = f"``{name}``"
        blocks.append("\n".join([heading, "-" * len(heading), "", *directive]))
    return "\n\n".join(blocks) + "\n"


def llms_text() -> str:
    """`llms.txt`: the navigation with one sentence of each page, and links to the pages' Markdown."""
    summary = " ".join(START.read_text(encoding="utf-8").split("\n\n")[1].split())
    blocks = ["# adapterhub", "> " + re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", summary)]
    for title, pages in parts().items():
        rows = [f"- [{title_of(page)}]({place(page).as_posix()}): {first_sentence(page)}" for page in pages]
        blocks.append("\n".join([f"## {title}", "", *rows]))
    return "\n\n".join(blocks) + "\n"
