"""A server whose user or project looks at tests serves what has a PASS on its base. Nothing is run here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from adapterhub.core.errors import NotAllowed, shown
from adapterhub.formats.contract.reader import Rules
from adapterhub.formats.contract.standards import Standards
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.library import Library
from adapterhub.library.passed import AskedBase, why_not_passed
from adapterhub.library.store.catalog import Installed

BuildGate = Callable[[Installed], tuple[str, ...]]
"""Looks at a build before an engine may read it: returns warnings, or raises if the build is not served."""


def no_gate(_build: Installed) -> tuple[str, ...]:
    """Lets every build through."""
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PassGate:
    """Lets a build through if it has a PASS that counts on `base`.

    Under the policy `warn` others come through with a warning, under `off` without a look.
    """

    library: Library
    base: BaseRecord
    standards: Standards
    rules: Callable[[], Rules | None]

    def __call__(self, build: Installed) -> tuple[str, ...]:
        """Look for a PASS.

        Raises:
            NotAllowed: under `require`, there is none that counts.
            NotFound, Malformed: the rules of the project cannot be read.
        """
        if self.standards.policy == "off":
            return ()
        rules = self.rules()
        base = partial(AskedBase.of, self.library, self.base)
        reason = why_not_passed(self.library, build, self.standards, base=base, rules=rules, is_merge=True)
        if reason is None or self.standards.policy == "warn":
            return (reason,) if reason else ()
        label = f"{build.full_name}=={build.manifest.version}"
        raise NotAllowed(
            f"`{shown(label, 200)}` is not served: {reason}",
            hint="`adapt serve --test` tests what it is given; `adapt test NAME --base BASE` tests a build alone",
        )
