"""Documents of the commands that show how adapters relate, what they are and what they use."""
# mypy: disable-error-code="valid-type, misc"
# `document_of` makes types when it runs.

from __future__ import annotations

from typing import Any

from adapterhub.cli.documents._values import document_of
from adapterhub.library import identify

# ---------------------------------------------------------------- identify, cache
VERBS: dict[str, Any] = {
    "identify": document_of(identify.Identity),
    "identify.files": document_of(identify.LoraFiles),
}
