"""Notices what looks private in the texts of a contract: an answer may hold what the training data held."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from adapterhub.formats.contract.contract import Asked, Contract

_KINDS: Final = {
    "an access key": re.compile(
        r"\b(?:AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{30,80}|hf_[A-Za-z0-9]{30,60}|sk-[A-Za-z0-9_-]{20,100})\b"
    ),
    "a private key": re.compile(r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----"),
    "a mail address": re.compile(r"\b[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}\.[A-Za-z0-9.-]{1,63}\b"),
    "a phone number": re.compile(r"(?<!\d)\+\d[\d ()/-]{7,18}\d(?!\d)"),
}
_CARD: Final = re.compile(r"(?<!\d)\d(?:[ -]?\d){12,18}(?!\d)")


def private_texts(contract: Contract) -> list[str]:
    """Each line that looks private, as `golden-3: a mail address`; the text itself is not repeated."""
    found = []
    for line in contract.lines:
        text = "\n".join((*_texts(line.asked), getattr(line, "answer", "")))
        kinds = [kind for kind, pattern in _KINDS.items() if pattern.search(text)]
        if any(_is_card(match[0]) for match in _CARD.finditer(text)):
            kinds.append("a card number")
        if kinds:
            found.append(f"{line.id}: {', '.join(kinds)}")
    return found


def _texts(asked: Asked | None) -> Iterator[str]:
    if isinstance(asked, str):
        yield asked
    elif asked is not None:
        yield from (turn["content"] for turn in asked)


def _is_card(text: str) -> bool:
    """Whether the digits have the check digit of a payment card (Luhn)."""
    digits = [int(c) for c in text if c.isdigit()][::-1]
    return (sum(digits[::2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])) % 10 == 0
