"""Sphinx's settings for the site; `python -m docs.website` gives it the pages."""

import os
import sys
from html import escape
from pathlib import Path
from typing import Any

from pygments.lexers import JsonLexer
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import adapterhub  # noqa: E402 - the root of the repository stands on the path now
from docs.website import pages  # noqa: E402 - as above
from docs.website.readme import REPOSITORY  # noqa: E402 - as above

project = "adapterhub"
release = adapterhub.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
html_theme = "furo"
html_title = f"adapterhub {release}"
html_logo = html_favicon = "static/logo.svg"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_extra_path = ["404.html"]
html_search_scorer = str(ROOT / "docs" / "website" / "scorer.js")
html_theme_options = (
    {"source_repository": os.environ[REPOSITORY], "source_branch": "main", "source_directory": "docs/"}
    if os.environ.get(REPOSITORY)
    else {}
)
copybutton_exclude = ".linenos, .gp, .go"  # neither prompts nor output
html_copy_source = False
html_show_copyright = False
default_role = "code"  # docstrings write `name`, as Markdown does
myst_heading_anchors = 6
suppress_warnings = ["myst.header"]  # the glossary's terms are headings of the third level
autodoc_mock_imports = ["cma", "gguf", "numpy", "peft", "torch", "transformers", "vllm"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True


def add_navigation(_app: Sphinx, name: str, source: list[str]) -> None:
    """Add the table of contents for Sphinx to the start page."""
    if name == "index":
        source[0] += f"\n{pages.navigation()}\n"


def add_description(_app: Sphinx, name: str, _template: str, context: dict[str, Any], _doctree: object) -> None:
    """Give a page the description that search engines and chats show: its first sentence."""
    page = next((page for page in pages.every_page() if pages.place(page).with_suffix("").as_posix() == name), None)
    said = escape(pages.first_sentence(page)) if page else "The documentation of adapterhub"
    title = escape(str(context.get("title", project)))
    context["metatags"] = context.get("metatags", "") + (
        f'<meta name="description" content="{said}"><meta property="og:title" content="{title}">'
        f'<meta property="og:description" content="{said}"><meta property="og:type" content="article">'
    )


def setup(app: Sphinx) -> None:
    """Register the lexer and the hooks that the settings cannot express."""
    app.add_lexer("jsonl", JsonLexer)
    app.connect("html-page-context", add_description)
    app.connect("source-read", add_navigation)
