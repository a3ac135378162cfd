"""Takes secrets out of text that was not written here: what this process sent, and what looks like a secret of others.

A server may put the header `Authorization` of a request into its error, and the error goes into a log that others read.
`shown` passes all such text through `without_secrets`, and the faces pass everything that they print.
"""

from __future__ import annotations

import re
from typing import Final

REMOVED: Final = "[removed]"

LEAST_CHARACTERS: Final = 6
"""A shorter secret stays: it is part of many words, and the gaps would show it."""
_WHOLE_WORD: Final = 12
"""A secret of fewer characters is removed only where it stands as a word; a longer one also where it is cut off."""
_MOST_SECRETS: Final = 64
_MOST_CHARACTERS: Final = 512
_ENOUGH_OF_A_WORD: Final = 64
"""Of a longer secret the beginning is looked for, and taken out with the rest of the word: a pattern of 1,000
characters takes a second to compile. A secret with spaces is no word, so that more of it is looked for."""
_CREDENTIAL: Final = r"[A-Za-z0-9._~+/=%-]"
_WRITTEN: Final = rf"(?:{_CREDENTIAL}|\\[ux][0-9a-f]{{2,4}}|&#x?[0-9a-f]{{1,6}};)"
"""A character of a credential, also as JSON, Python and HTML escape it."""

_OF_OTHERS: Final = re.compile(
    r"(?:hf_)?adp_[a-z2-7]{32}_[0-9a-f]{8}|\bhf_[A-Za-z0-9]{30,}|\bwhsec_[A-Za-z0-9+/=]{16,}"
    # what signs a URL or gives access by it, also in a URL that is a parameter of another
    r"|(?:(?<=[?&;])|(?<=%3F)|(?<=%26)|(?<=%3f))"
    r"(?i:x-[a-z]+-(?:[a-z]+-)?(?:signature|credential|token)|signature|sig|policy|key-pair-id|awsaccesskeyid"
    r"|googleaccessid|jwt|password|secret|api[_-]?key|(?:[a-z]+[_-])*token)(?:=|%3[Dd])[^&\s\"'<>]+"
    r"|(?<=://)[^/@\s?#]+(?=@)"  # user and password of a URL
    r"|eyJ[A-Za-z0-9_-]{20,}(?:\.[A-Za-z0-9_-]+)*|gAAAAA[A-Za-z0-9_-]{40,}"  # signed or sealed claims
    rf"|\b(?i:bearer|basic)\s+(?=[A-Za-z._~+/%-]*[0-9=]){_CREDENTIAL}{{8,}}"
)
_own: dict[str, re.Pattern[str]] = {}


def keep_secret(*texts: str | None) -> None:
    """Take each of these out of all text that this process words from now on; the last 64 count."""
    global _own  # noqa: PLW0603 - replaced as a whole, so that other threads read the old one or the new one
    new = {text: _forms(text) for text in texts if text and len(text) >= LEAST_CHARACTERS and text not in _own}
    if new:
        _own = dict([*_own.items(), *new.items()][-_MOST_SECRETS:])


def without_own_secrets(text: str) -> str:
    """`text` without what `keep_secret` got: unchanged, percent-encoded, escaped, in hex and in base64."""
    for pattern in _own.values():
        text = pattern.sub(REMOVED, text)
    return text


def without_secrets(text: str) -> str:
    """`text` without one's own secrets, and without tokens, passwords and signatures of URLs, signed claims."""
    return _OF_OTHERS.sub(REMOVED, without_own_secrets(text))


def _forms(secret: str) -> re.Pattern[str]:
    import base64  # only for those who have a secret

    def written(text: str) -> str:
        return "".join(map(_character, text))

    secret = secret[: _ENOUGH_OF_A_WORD if re.fullmatch(f"{_CREDENTIAL}+", secret) else _MOST_CHARACTERS]
    head, rest = written(secret[:_WHOLE_WORD]), written(secret[_WHOLE_WORD:])
    forms = [f"{head}(?:{rest}|){_WRITTEN}*" if rest else rf"(?<![A-Za-z0-9]){head}(?![A-Za-z0-9])"]
    raw = secret.encode(errors="replace")
    forms.append(raw.hex() + "[0-9a-f]*")
    for before in range(3):  # three characters of base64 are four bytes: the same text has three forms
        coded = base64.b64encode(b"\0" * before + raw).decode()
        whole = coded.rstrip("=")
        forms.append(written(whole[-(-before * 4 // 3) : len(whole) - (whole != coded)]) + f"{_CREDENTIAL}*")
    return re.compile("|".join(forms), re.IGNORECASE)


def _character(one: str) -> str:
    """One character as URLs, JSON, Python and HTML write it; `-` and `_` also stand for `+` and `/`."""
    percent = "".join(f"%(?:25)*{byte:02x}" for byte in one.encode(errors="replace"))
    number = ord(one)
    escapes = rf"\\u{number:04x}|\\x{number:02x}|&#(?:x0*{number:x}|0*{number});"
    plain = {"+": "[+-]", "/": r"\\?/|_"}.get(one, re.escape(one))
    return f"(?:{plain}|{percent}|{escapes})"
