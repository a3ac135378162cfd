"""The README as the package index shows it: without pictures and relative links, which lead nowhere there.

hatchling reads this file when it makes a wheel or a source archive (`tool.hatch.metadata.hooks.custom`).
"""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

_PICTURE = re.compile(r"!\[[^\]]*\]\((?!https:)[^)]*\)")
_LINK = re.compile(r"\[([^\]]+)\]\((?!https:)[^)]*\)")


def for_index(text: str) -> str:
    """The text with what each relative link says in its place; paragraphs and tables with pictures are gone."""
    paragraphs = [part for part in text.split("\n\n") if not _PICTURE.search(part)]
    return _LINK.sub(r"\1", "\n\n".join(paragraphs))


class Readme(MetadataHookInterface):
    """Gives the project's metadata that text."""

    def update(self, metadata: dict[str, object]) -> None:
        """Set `readme`."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": for_index(text)}
