"""The grammar of Hub repository ids, for every id that comes from a file or a server, and the header of a download."""

from __future__ import annotations

import re
from typing import Final

from adapterhub.core.errors import shown

_PART: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
COUNTER: Final = "x-hf-download-counter"
"""The header with which clients of the Hub say that a request belongs to a download."""
COUNTED: Final = "weights"
"""Its value where this very request stands for one download, as `adapt` sends it once a build."""
_HUB_ID: Final = re.compile(rf"(?:{_PART}/)?{_PART}")


def is_hub_id(text: str) -> bool:
    """Whether `text` is `org/model` or `model` as the Hub allows them: never a path, an option or a URL.

    Letters, digits and `._-`, at most 96 in a part, none of `.-` at its ends, and neither `--` nor `..` inside of it
    (the rule of `huggingface_hub.utils.validate_repo_id`).
    """
    return _HUB_ID.fullmatch(text) is not None and ".." not in text and "--" not in text


def parse_hub_id(text: str) -> str:
    """`text`, checked to be a Hub id.

    Raises:
        ValueError: it is not.
    """
    if not is_hub_id(text):
        raise ValueError(f"expected a Hub id such as org/model, got {shown(text)}")
    return text
