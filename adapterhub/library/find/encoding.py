"""The model that turns texts into vectors, where a library has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub.core.errors import NotFound
from adapterhub.core.extras import require
from adapterhub.library.find.meaning import Meaning, model_folder

if TYPE_CHECKING:
    from adapterhub.formats.meaning.encoder import Encoder
    from adapterhub.library.installed import InstalledBuilds


def encoder_of(library: InstalledBuilds) -> Encoder:
    """The encoder that a library has.

    Raises:
        MissingExtra: numpy or tokenizers are not installed.
        NotFound: the model is not set up.
        Conflict: the base that is the model was changed.
    """
    require("find", "routing")
    folder = model_folder(library.root, library.catalog.read(lambda index: index.bases()))
    if folder is None:
        raise NotFound("the model that compares texts is not here", hint="`adapt search --setup` gets it once, 84 MB")
    return Meaning(library, folder).encoder
