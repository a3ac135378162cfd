"""Installed names that are easily confused: one may be an imitation of the other."""

from __future__ import annotations

from collections.abc import Iterator

from adapterhub.core.errors import shown
from adapterhub.core.lookalike import fold, is_one_edit_apart
from adapterhub.formats.manifest import MANIFEST_FILE
from adapterhub.library.audit._subject import Subject, Surroundings
from adapterhub.trust.verify import Finding


def check(subject: Subject, around: Surroundings) -> Iterator[Finding]:
    """One finding for each installed name that folds to the same, or is one edit away."""
    name = subject.target.name
    others = sorted({build.full_name for build in around.installed} - {name})
    for other in others if name else ():
        if fold(name) == fold(other):
            how = "which reads the same: case, `-_.`, 0 and O, 1 and l and I are easily mistaken"
        elif is_one_edit_apart(name, other):
            how = "which differs by one character"
        else:
            continue
        message = f"`{shown(name)}` looks like `{shown(other)}`, {how}"
        hint = (
            "make sure that both are meant; `adapt show NAME` tells where each belongs, `adapt remove` takes one away"
        )
        yield Finding(code="W_LOOK_ALIKE", severity="warning", where=MANIFEST_FILE, message=message, hint=hint)
