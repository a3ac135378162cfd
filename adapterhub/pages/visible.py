"""Shows characters that are made to deceive: those that turn text around, and control characters."""

from __future__ import annotations

import re
from typing import Final

_UNSEEN: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def visible(text: str) -> str:
    """`text` with marks of direction, control and zero-width characters written as their escapes; line ends stay.

    Half of a pair of UTF-16, which has no bytes in UTF-8, becomes U+FFFD.
    """
    if text.isascii() and text.isprintable():
        return text
    text = _SURROGATE.sub("\ufffd", text.replace("\r\n", "\n"))
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
