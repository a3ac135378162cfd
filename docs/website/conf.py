"""Sphinx's settings for the site; `python -m docs.website` gives it the pages."""

import sys
from pathlib import Path

from pygments.lexers import JsonLexer
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from docs.website import pages  # noqa: E402 - the root of the repository stands on the path now

project = "adapterhub"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "adapterhub"
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
    """The start page says what belongs where; Sphinx reads it as a table of contents."""
    if name == "index":
        source[0] += f"\n{pages.navigation()}\n"


def setup(app: Sphinx) -> None:
    """What the settings cannot say."""
    app.add_lexer("jsonl", JsonLexer)
    app.connect("source-read", add_navigation)
