"""The README as the package index shows it, and the addresses there.

hatchling reads this file when it makes a wheel or a source archive (`tool.hatch.metadata.hooks.custom`). The workflow
of a release sets ADAPTERHUB_REPOSITORY to the repository's address; without it, a link into the repository is text.
"""

import os
import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

REPOSITORY = "ADAPTERHUB_REPOSITORY"
_CHECKOUT = re.compile(r"<!-- checkout -->\n.*?<!-- end -->\n", re.DOTALL)
_PICTURE = re.compile(r"!\[[^\]]*\]\((?!https:)[^)]*\)")
_LINK = re.compile(r"\[([^\]]+)\]\((?!https:)([^)]*)\)")


def for_index(text: str, repository: str = "") -> str:
    """Return the text without pictures and parts for a checkout; links lead into the repository, if it is known."""
    parts = _CHECKOUT.sub("", text).split("\n\n")
    kept = "\n\n".join(part for part in parts if not _PICTURE.search(part))
    return _LINK.sub(rf"[\1]({repository}/blob/main/\2)" if repository else r"\1", kept)


class Readme(MetadataHookInterface):
    """Fills in the description and the addresses of the project."""

    def update(self, metadata: dict[str, object]) -> None:
        """Set `readme` and `urls`."""
        repository = os.environ.get(REPOSITORY, "").rstrip("/")
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": for_index(text, repository)}
        pages = {"Documentation": "docs/index.md", "Changelog": "CHANGELOG.md"}
        metadata["urls"] = (
            {"Source": repository, "Issues": f"{repository}/issues"}
            | {name: f"{repository}/blob/main/{page}" for name, page in pages.items()}
            if repository
            else {}
        )
