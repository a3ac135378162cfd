"""Names of new adapters where `-o` gives none: those of what they are made of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.core.errors import SpecError, UsageProblem

if TYPE_CHECKING:
    from collections.abc import Sequence

_HINT = "`-o NAME` adds it to the library, `-o ./folder` writes it"


def name_of_label(label: str) -> str:
    """The bare name in `acme/legal-qa==1.0.0` or a Hub id, or the last part of a folder's path."""
    from adapterhub.core.specs import names_folder

    if names_folder(label):
        return Path(label).expanduser().resolve().name.lower()
    return label.partition("==")[0].rpartition("/")[2].lower()


def default_name(labels: Sequence[str], ending: str = "") -> str:
    """A name for what is made of the adapters or models `labels`: their names and `ending`, joined by `-`.

    Raises:
        UsageProblem: that is no name, or the name of one of them.
    """
    from adapterhub.core.specs import parse_name

    parts = [name_of_label(label) for label in labels]
    name = "-".join([*parts, ending] if ending else parts)
    try:
        if name in parts:
            raise UsageProblem("no name for the result", hint=_HINT)
        return parse_name(name)
    except SpecError as error:
        raise UsageProblem(f"no name for the result: {error.message}", hint=_HINT) from None
