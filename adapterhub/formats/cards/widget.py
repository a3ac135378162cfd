"""The examples of a model card, from a public contract: what the adapter was asked, and what it answered."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapterhub.core.errors import AdapterHubError
from adapterhub.formats.manifest import CONTRACT_FILE

if TYPE_CHECKING:
    from adapterhub.formats.contract.contract import Contract

_SHOWN: Final = 2
_MOST_CHARACTERS: Final = 2000
"""A longer example is left out: a hub shows all of it."""


def widget_of(contract: Contract) -> list[dict[str, Any]]:
    """The first two goldens as entries of the card's `widget`; empty for digests, and where no text is written.

    A hub sends `text` unchanged, so the prompt's frame is in it; it puts `messages` into the base's chat template.
    """
    from adapterhub.formats.contract.contract import WRITERS

    if contract.visibility != "public" or contract.kind not in WRITERS:
        return []
    form, found = contract.prompt, []
    for golden in contract.distinct:
        if golden.asked is None or len(str(golden.asked)) + len(golden.answer) > _MOST_CHARACTERS:
            continue
        if form.form == "chat":
            asked: dict[str, Any] = {"messages": [dict(turn) for turn in form.turns(golden.asked)]}
        elif isinstance(golden.asked, str):
            asked = {"text": form.frame(golden.asked)}
        else:
            continue
        found.append({**asked, "output": {"text": golden.answer}})
    return found[:_SHOWN]


def contract_shown(folder: Path) -> Contract | None:
    """The contract in a folder, for its card; None without a sound one, which other checks refuse."""
    if not os.path.lexists(folder / CONTRACT_FILE):  # as most are: the reader is not imported
        return None
    from adapterhub.formats.contract.reader import contract_in

    with contextlib.suppress(AdapterHubError):
        return contract_in(folder)
    return None
