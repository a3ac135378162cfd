"""A library on the real base, and a directory of published builds beside it, some of which must never be served."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from adapterhub.core.digests import digest_of
from adapterhub.core.disk.files import digest_of_file
from adapterhub.core.specs import parse_name
from adapterhub.formats.manifest import MANIFEST_FILE, WEIGHTS_FILE
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import Installed
from tests.inference.engines.variants import write_variant
from tests.support.real_base import smollm2_base


@dataclass(frozen=True)
class ServedLibrary:
    """`folders` has what PEFT saved, by name; `published` is for ADAPTERHUB_SOURCES."""

    root: Path
    library: Library
    record: BaseRecord
    folders: dict[str, Path]

    @property
    def home(self) -> Path:
        return self.library.root

    @property
    def published(self) -> Path:
        return self.root / "published"

    def add(self, name: str, config: Mapping[str, Any], *, seed: int = 1, base: BaseRecord | None = None) -> None:
        folder = write_variant(self.root / "peft" / name, config, seed=seed)
        self.folders[name] = folder
        self.library.add(folder, Description(name=parse_name(name), version="1.0.0"), base=base or self.record)

    def add_versions(self, name: str, count: int, config: Mapping[str, Any], *, seed: int) -> list[Installed]:
        """Versions 1.0, 1.1 and so on, oldest first; `folders` has each under `NAME-NUMBER`."""
        for number in range(count):
            folder = write_variant(self.root / "peft" / f"{name}-{number}", config, seed=seed + number)
            self.folders[f"{name}-{number}"] = folder
            about = Description(name=parse_name(name), version=f"1.{number}")
            self.library.add(folder, about, base=self.record)
        return sorted(self.library.builds_named(name), key=lambda build: build.manifest.version)

    def publish(self, name: str, config: Mapping[str, Any], *, seed: int = 1) -> Path:
        """A build that is in the directory only."""
        elsewhere = Library(self.root / "elsewhere")
        folder = write_variant(self.root / "peft" / name, config, seed=seed)
        self.folders[name] = folder
        added = elsewhere.add(folder, Description(name=parse_name(name), version="1.0.0"), base=self.record)
        place = self.published / name / "1.0.0"
        shutil.copytree(added.build.folder, place)
        return place


def make_served_library(root: Path) -> ServedLibrary:
    library = Library(root / "home")
    record = library.bases.add(smollm2_base(), "smol")
    library.catalog.put_base(record)
    return ServedLibrary(root, library, record, {})


def spoil(place: Path) -> None:
    """One NaN in the weights of a published build, and a manifest that vouches for it."""
    weights = place / WEIGHTS_FILE
    tensors = load_file(weights)
    first = min(tensors)
    tensors[first] = tensors[first].clone()
    tensors[first].view(-1)[0] = torch.nan
    weights.unlink()  # a hard link into a library
    save_file(tensors, weights, metadata={"format": "pt"})
    manifest = json.loads((place / MANIFEST_FILE).read_bytes())
    digest, size = digest_of_file(weights)
    for entry in manifest["files"]:
        if entry["path"] == WEIGHTS_FILE:
            entry |= {"sha256": digest, "size_bytes": size}
    (place / MANIFEST_FILE).unlink()
    (place / MANIFEST_FILE).write_text(json.dumps(manifest))


def other_training(record: BaseRecord) -> BaseRecord:
    """A base of the same shapes with other numbers, as another training run gives."""
    samples = {name: (dtype, bytes(255 - b for b in raw)) for name, (dtype, raw) in record.fingerprint.samples.items()}
    other = replace(
        record.fingerprint,
        weights=digest_of(b"other weights"),
        tensors=digest_of(b"other"),
        samples=samples,
        files=None,
    )
    return replace(record, alias="other", fingerprint=other)
