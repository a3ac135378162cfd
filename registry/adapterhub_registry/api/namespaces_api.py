"""The routes of the line of text about a namespace."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import StringConstraints

from adapterhub.formats.administration import MOST_ABOUT, NamespaceAbout
from adapterhub_registry.api.adapt_models import MISSING, TOO_LARGE, ApiQuestion, NamePart, adapt_router, problems
from adapterhub_registry.api.context import CallerOf, RegistryOf
from adapterhub_registry.api.members_api import manager_of
from adapterhub_registry.api.tests_api import has_visible
from adapterhub_registry.repos.abouts import about_of, change_about

_WRITING: Final = {**MISSING, **problems({403: "The token does not administer the namespace"}), **TOO_LARGE}

router = adapt_router()


class AboutRequest(ApiQuestion):
    """One line about a namespace; an empty one removes it."""

    about: Annotated[str, StringConstraints(max_length=MOST_ABOUT)]


@router.get("/namespaces/{namespace}", responses=MISSING)
def show_about(registry: RegistryOf, caller: CallerOf, namespace: NamePart) -> NamespaceAbout:
    """Return the line about a namespace; one of which the caller sees no repository looks as if it had none."""
    registry.repos.check_may_read(caller)
    with registry.db.read() as connection:
        if caller.owns(namespace) or has_visible(registry, connection, caller, namespace):
            return about_of(connection, namespace)
    return NamespaceAbout(namespace=namespace)


@router.put("/namespaces/{namespace}", responses=_WRITING)
def set_about(registry: RegistryOf, caller: CallerOf, namespace: NamePart, wanted: AboutRequest) -> NamespaceAbout:
    """Change the line about a namespace, at most 200 characters; this needs a token that administers all of it."""
    manager_of(registry, caller, namespace)
    with registry.db.begin() as connection:
        return change_about(connection, namespace, wanted.about, by=caller.by)
