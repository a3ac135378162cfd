"""The licences of an adapter and of all that it is made from, as values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from adapterhub.core.errors import shown
from adapterhub.formats.documented import Documented
from adapterhub.formats.licenses.expression import Expression
from adapterhub.formats.licenses.rules import Term


@dataclass(frozen=True, slots=True, kw_only=True)
class Part(Documented, keys="part=role name stated spdx", title="LicensePart"):
    """One part with a licence of its own: the adapter, a parent, the base. `stated` is the stated licence as text."""

    role: Annotated[str, "`adapter`, `base` or `parent`"]
    name: str
    stated: Annotated[str | None, "as stated by its author"]
    why_not: str = ""

    @property
    def expression(self) -> Expression | None:
        """What is stated, where that can be read."""
        return Expression.parse(self.stated) if self.stated else None

    @property
    def spdx(self) -> str | None:
        """The SPDX expression, where that can be read."""
        return self.expression.text if self.expression else None

    @property
    def title(self) -> str:
        """How findings call it."""
        return "the adapter itself" if self.role == "adapter" else f"{self.role} `{shown(self.name)}`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition(Documented, keys="spdx terms complete parts", title="License"):
    """The licences of all parts together; `whole` is None where none is known."""

    parts: tuple[Part, ...]
    whole: Expression | None
    unknown: tuple[Part, ...] = field(default=())

    @property
    def spdx(self) -> str | None:
        """An SPDX expression; None if no licence is known."""
        return self.whole.text if self.whole else None

    @property
    def terms(self) -> list[str]:
        """What the licences forbid or require."""
        known = self.whole.best.terms - {Term.UNKNOWN} if self.whole else frozenset()
        return sorted(term.name.lower() for term in known)

    @property
    def complete(self) -> bool:
        """Whether the licence of every part is known."""
        return not self.unknown and (self.whole is None or Term.UNKNOWN not in self.whole.best.terms)
