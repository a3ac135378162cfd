"""Names of new adapters when `-o` gives none, made from the names of their parents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adapterhub.core.errors import SpecError, UsageProblem

_HINT = "`-o NAME` adds the result to the library, `-o ./folder` writes it to a folder"


def name_of_label(label: str) -> str:
    """The bare name in `acme/legal-qa==1.0.0` or a Hub id, or the last part of a folder's path."""
    from adapterhub.core.specs import names_folder

    if names_folder(label):
        return Path(label).expanduser().resolve().name.lower()
    return label.partition("==")[0].rpartition("/")[2].lower()


def default_name(labels: Sequence[str], ending: str = "") -> str:
    """A name for a result made from the adapters or models `labels`: their names and `ending`, joined by `-`.

    Raises:
        UsageProblem: the joined name is invalid, or equals the name of a parent.
    """
    from adapterhub.core.specs import parse_name

    parts = [name_of_label(label) for label in labels]
    name = "-".join([*parts, ending] if ending else parts)
    try:
        if name in parts:
            raise UsageProblem("the result needs a name", hint=_HINT)
        return parse_name(name)
    except SpecError as error:
        raise UsageProblem(f"the result needs a name: {error.message}", hint=_HINT) from None
