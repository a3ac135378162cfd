"""Write the tutorial as a notebook: `python -m docs.notebook [FILE]`, by default `train-and-serve.ipynb` here.

The page is the only source. Text becomes Markdown cells; a file that the page says to save becomes a `%%writefile`
cell; commands become `%%bash` cells, in the background where they end with `&`, and an `export` sets the variable for
all cells.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

PAGE: Final = Path(__file__).resolve().parent / "tutorial" / "train-and-serve.md"
_BLOCK: Final = re.compile(r"^```(?P<language>\w+)\n(?P<text>.*?)^```\n", re.MULTILINE | re.DOTALL)
_SAVED: Final = re.compile(r"[Ss]ave th(?:is|ese)\b[^.]* as `(?P<name>[\w.]+)`")
_EXPORT: Final = re.compile(r"^export (\w+)=(.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the page: `kind` is `text`, `file` (with its `name`), `commands`, or `shown` for what is not run."""

    kind: str
    text: str
    name: str = ""


def parts(page: Path = PAGE) -> Iterator[Part]:
    """Yield the pieces of the page, in order."""
    text, at = page.read_text(encoding="utf-8"), 0
    for block in _BLOCK.finditer(text):
        before = text[at : block.start()]
        yield Part("text", before)
        saved = _SAVED.search(before.rstrip().rsplit("\n\n", 1)[-1])
        if block["language"] == "sh":
            yield Part("commands", block["text"])
        elif saved and block["language"] in {"python", "jsonl", "toml"}:
            yield Part("file", block["text"], saved["name"])
        else:
            yield Part("shown", block[0])
        at = block.end()
    yield Part("text", text[at:])


def cells() -> Iterator[dict[str, Any]]:
    """Yield the cells of the notebook."""
    for part in parts():
        text = part.text.strip("\n")
        if part.kind in {"text", "shown"} and text:
            yield {"cell_type": "markdown", "metadata": {}, "source": text}
        elif part.kind == "file":
            yield _code(f"%%writefile {part.name}\n{text}")
        elif part.kind == "commands":
            for name, value in _EXPORT.findall(text):
                made = value.replace("$PWD", "{os.getcwd()}")
                yield _code(f'import os\n\nos.environ["{name}"] = f"{made}"')
            rest = _EXPORT.sub("", text).strip()
            if rest:
                yield _code(
                    f"%%bash --bg\n{rest.removesuffix('&').strip()}" if rest.endswith("&") else f"%%bash\n{rest}"
                )


def _code(text: str) -> dict[str, Any]:
    return {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": text}


def notebook() -> dict[str, Any]:
    """Return the notebook as JSON (nbformat 4.5)."""
    made = [{"id": f"cell-{number}", **cell} for number, cell in enumerate(cells(), 1)]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "train-and-serve.ipynb")
    target.write_text(json.dumps(notebook(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
