"""`adapterhub.Library`: one library, with a function for everything that the command line does with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub.api.aliases import WithAliases
from adapterhub.api.checking import Checking
from adapterhub.api.contracts.testing import WithContracts
from adapterhub.api.find.methods import WithFinding
from adapterhub.api.inspecting import WithInspection
from adapterhub.api.installing import WithInstalling
from adapterhub.api.models import WithModels
from adapterhub.api.publishing import WithPublishing
from adapterhub.api.searching import Searching
from adapterhub.api.upkeep import WithUpkeep
from adapterhub.api.weights import WithWeights
from adapterhub.library import library as local

if TYPE_CHECKING:
    from adapterhub.projects.session import Session


class Library(  # what it can do, by subject
    Searching,
    Checking,
    WithInstalling,
    WithAliases,
    WithInspection,
    WithPublishing,
    WithWeights,
    WithModels,
    WithContracts,
    WithFinding,
    WithUpkeep,
):
    """The library in a folder; `Library.default()` is that of the command line.

    Making one costs nothing and writes nothing. Threads may share it. `on_progress` is called with a `ProgressEvent`
    while files are copied or modules are merged; notes and warnings go to the logger `adapterhub`.

    Example:
        >>> import adapterhub
        >>> library = adapterhub.Library("home")
        >>> "legal-qa@base-7b" in library
        True
        >>> library["legal-qa"]
        <Adapter legal-qa 1.0.0 rank 4 for base-7b, ...>
    """


def library_of(session: Session) -> Library:
    """Return the library of a session that is there, such as that of a command."""
    library = Library.__new__(Library)
    local.Library.__init__(library, session.root)
    library.session = session
    session.bind(library)
    return library
