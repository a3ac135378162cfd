"""The line of text about a namespace, on its page."""

from __future__ import annotations

import unicodedata
from typing import Final

from sqlalchemy import bindparam, delete, insert, select
from sqlalchemy.engine import Connection

from adapterhub.core.errors import UsageProblem, shown
from adapterhub.formats.administration import MOST_ABOUT, NamespaceAbout
from adapterhub_registry.access.audit import By, log_change
from adapterhub_registry.database.account_tables import abouts
from adapterhub_registry.database.db import lock_name
from adapterhub_registry.database.prepared import PreparedSql
from adapterhub_registry.names import PART

_ABOUT: Final = PreparedSql(select(abouts).where(abouts.c.namespace == bindparam("namespace")))
_HIDDEN: Final = frozenset({"Cc", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Classes of characters that end a line, or that no reader sees."""
_TURNING: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the direction of the text after them."""


def about_of(connection: Connection, namespace: str) -> NamespaceAbout:
    """Return the line about a namespace; an empty one if no one wrote any."""
    row = _ABOUT.first(connection, namespace=namespace)
    return NamespaceAbout(namespace=namespace, about=row.about if row else "")


def change_about(connection: Connection, namespace: str, text: str, *, by: By) -> NamespaceAbout:
    """Write the line about a namespace; an empty text removes it.

    Raises:
        UsageProblem: an invalid namespace, or a text that is not one line of at most 200 visible characters.
    """
    if not PART.fullmatch(namespace):
        raise UsageProblem(f"namespace `{shown(namespace)}`: expected a name such as `acme`; nothing was changed")
    wanted = NamespaceAbout(namespace=namespace, about=_line(text))
    lock_name(connection, f"about {namespace}")
    if wanted != about_of(connection, namespace):
        connection.execute(delete(abouts).where(abouts.c.namespace == namespace))
        if wanted.about:
            connection.execute(insert(abouts).values(namespace=namespace, about=wanted.about))
        log_change(connection, by, "about", f"{namespace}: {wanted.about or 'removed'}", repo=namespace)
    return wanted


def _line(text: str) -> str:
    text = unicodedata.normalize("NFC", text).strip()
    if any(unicodedata.category(one) in _HIDDEN or one in _TURNING for one in text):
        raise UsageProblem(
            "the text about a namespace has a line break or a hidden character; nothing was changed",
            hint="expected one line of plain text",
        )
    if len(text) > MOST_ABOUT:
        raise UsageProblem(
            f"the text about a namespace has {len(text)} characters, expected at most {MOST_ABOUT}; nothing was changed"
        )
    return text
