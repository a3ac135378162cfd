"""What a user gives to `add`, as a PEFT folder: that folder itself, or one made of another program's file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from adapterhub.core.digests import Progress
from adapterhub.core.disk.files import ensure_there, read_json
from adapterhub.core.errors import AdapterHubError, MalformedTensorFile, reworded, shown
from adapterhub.formats.base.fingerprint import CONFIG_LIMIT_BYTES
from adapterhub.formats.dialects.gguf import Base as GgufBaseFacts
from adapterhub.formats.dialects.gguf import GgufAdapter
from adapterhub.formats.foreign.conversion import CONVERTER, Foreign, foreign, foreign_path
from adapterhub.formats.foreign.reading import ForeignHeader
from adapterhub.formats.foreign.telling import family_of_images
from adapterhub.formats.gguf.file import is_gguf
from adapterhub.library.bases.records import BaseRecord, Bases
from adapterhub.library.intake.description import Description
from adapterhub.library.intake.staging import refused
from adapterhub.library.store.blobs import Store
from adapterhub.trust.findings import Finding
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
        """Return the description completed by the original's header; the user's own words come first."""
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
    store: Store,
    path: Path,
    base: BaseRecord | None = None,
    progress: Progress | None = None,
    bases: Bases | None = None,
) -> Iterator[Ready]:
    """Provide the PEFT folder that `path` is or gives; a converted one is gone when the block ends.

    `base` gives the places of flattened names, and `bases` the bases that it is a copy of. `progress` gets the number
    of bytes that were converted.

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
        if is_gguf(weights):
            yield from _from_gguf(store, weights, base, bases)
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
        finding = Finding(error.code, shown(error.where), error.reason, hint=error.hint)
        raise refused(str(path), [finding]) from None
    yield Ready(folder=path, named_after=path)


def _converted(store: Store, path: Path, found: Foreign, progress: Progress | None) -> Iterator[Ready]:
    with store.staging() as staged:
        folder = staged / "peft"
        with store.os_errors_as_refusals():
            folder.mkdir()
            annotations = found.write(folder, progress)
        if family := family_of_images(found.reading, found.header.architecture):
            annotations["family"] = family
        stem = _named_after(path).name
        if not stem.isascii():  # an adapter's name is of ASCII, so that its own is kept beside it
            annotations.setdefault("title", stem)
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


def _from_gguf(store: Store, weights: Path, base: BaseRecord | None, bases: Bases | None) -> Iterator[Ready]:
    adapter = GgufAdapter.opened(weights)
    form = adapter.read(None if base is None else _gguf_base(base, bases))
    with store.staging() as staged:
        folder = staged / "peft"
        with store.os_errors_as_refusals():
            folder.mkdir()
            form.write(folder)
        origin = {
            "scheme": "gguf",
            "parts": [],
            "sha256": adapter.held.digest,
            "size_bytes": adapter.held.size_bytes,
            "exact": True,
            "converter": CONVERTER,
        }
        yield Ready(folder=folder, named_after=_named_after(weights), annotations={"origin": origin})


def _gguf_base(given: BaseRecord, bases: Bases | None) -> GgufBaseFacts:
    config: Any = None
    base = given if bases is None else bases.with_settings(given)
    if base.path is not None:
        with contextlib.suppress(OSError, ValueError):
            config = read_json(base.path / "config.json", CONFIG_LIMIT_BYTES, finite=False)
    known = config if isinstance(config, dict) else {"model_type": base.hints.model_type}
    facts = GgufBaseFacts(label=given.label, config=known, shapes=shapes_of(base), weights=base.fingerprint.weights)
    return facts if bases is None else replace(facts, stands_for=partial(bases.stands_for, base=base))


def shapes_of(base: BaseRecord | None) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a base's weights by the names of their modules."""
    facts = base.weights if base is not None else ()
    return {fact.name.removesuffix(".weight"): fact.shape for fact in facts if fact.name.endswith(".weight")}


def _named_after(path: Path) -> Path:
    if path.is_dir():
        return path
    here = path.parent.resolve()
    return here if path.stem in _NAMELESS else here / path.stem
