"""What a user gives to `add`, as a PEFT folder: that folder itself, or one made of another program's file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from adapterhub.core.digests import Progress
from adapterhub.core.disk.files import ensure_there
from adapterhub.core.errors import AdapterHubError, MalformedTensorFile, reworded, shown
from adapterhub.formats.foreign.conversion import Foreign, foreign, foreign_path
from adapterhub.formats.foreign.reading import ForeignHeader
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.intake.description import Description
from adapterhub.library.intake.staging import refused
from adapterhub.library.store.blobs import Store
from adapterhub.trust.verify import Finding
from adapterhub.trust.verify.subject import list_folder

_BETTER_REFUSED: Final = frozenset({"E_PICKLE", "E_ARCHIVE"})
_NAMELESS: Final = frozenset({"pytorch_lora_weights", "adapters", "adapter_model", "lora", "model"})
"""Names that programs give to every file; the folder's says more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A PEFT folder to add. `named_after` is the path whose name the adapter gets where the user gives none."""

    folder: Path
    named_after: Path
    annotations: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    header: ForeignHeader = field(default_factory=ForeignHeader)
    notes: tuple[str, ...] = ()

    @property
    def is_converted(self) -> bool:
        """Whether the folder was made of another program's file."""
        return bool(self.annotations)

    def described(self, about: Description) -> Description:
        """The description with what the original says; the user's own words come first."""
        if not self.is_converted:
            return about
        return replace(
            about,
            description=about.description or self.header.description,
            license=about.license or self.header.license,
            annotations={**self.annotations, **about.annotations},
        )


@contextmanager
def peft_folder(
    store: Store, path: Path, base: BaseRecord | None = None, progress: Progress | None = None
) -> Iterator[Ready]:
    """The PEFT folder that `path` is or gives; a converted one is gone when the block ends.

    `base` says where flattened names belong. `progress` gets the number of bytes that were converted.

    Raises:
        AdapterNotFound: nothing is at `path`.
        RefusedAdapter: a foreign file that is damaged, of a kind that is not taken, or no adapter as a whole.
    """
    ensure_there(path, hint="give a folder that PEFT's `save_pretrained` wrote, or a LoRA file")
    try:
        weights = foreign_path(path)
        if weights is None:
            yield Ready(folder=path, named_after=path)
            return
        shapes = shapes_of(base)
        with foreign(weights, shapes) as found:
            if found is not None:
                yield from _converted(store, path, found, progress)
                return
    except MalformedTensorFile as error:
        if error.code == "E_CONTAINER" and any(f.code in _BETTER_REFUSED for f in list_folder(path).findings):
            yield Ready(folder=path, named_after=path)
            return
        finding = Finding(
            code=error.code, severity="error", where=shown(error.where), message=error.reason, hint=error.hint
        )
        raise refused(str(path), [finding]) from None
    yield Ready(folder=path, named_after=path)


def _converted(store: Store, path: Path, found: Foreign, progress: Progress | None) -> Iterator[Ready]:
    with store.staging() as staged:
        folder = staged / "peft"
        with store.os_errors_as_refusals():
            folder.mkdir()
            annotations = found.write(folder, progress)
        note = found.hash_note(annotations["origin"]["data_sha256"])
        notes = (*found.reading.notes, *([note] if note else []))
        ready = Ready(
            folder=folder,
            named_after=_named_after(path),
            annotations=annotations,
            header=found.header,
            notes=tuple(f"`{shown(path.name)}`: {text}" for text in notes),
        )
        try:
            yield ready
        except AdapterHubError as error:
            raise reworded(error, error.message.replace(str(folder), shown(str(path), 200))) from error.__cause__


def shapes_of(base: BaseRecord | None) -> dict[str, tuple[int, ...]]:
    """The shapes of a base's weights by the names of their modules."""
    facts = base.tensors if base is not None else ()
    return {fact.name.removesuffix(".weight"): fact.shape for fact in facts if fact.name.endswith(".weight")}


def _named_after(path: Path) -> Path:
    if path.is_dir():
        return path
    here = path.parent.resolve()
    return here if path.stem in _NAMELESS else here / path.stem
