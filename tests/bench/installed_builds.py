"""Real installed builds in any number: folders of links, manifests, the index, the sketches; a millisecond for each."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
from safetensors.numpy import save_file

from adapterhub.api.library import Library
from adapterhub.core.disk.files import make_folder
from adapterhub.core.specs import parse_name
from adapterhub.formats.manifest import MANIFEST_FILE
from adapterhub.library.find.sketching import sketches
from adapterhub.library.store.catalog import Installed, base_row_of, row_of
from adapterhub.library.store.rows import BuildRow, PlaceRow, SketchRow

Kind = Literal["names", "versions", "twins"]
"""All builds under names of their own; all under one name; all under one name, and with the update of the first."""

WIDTH: Final = 512
LAYERS: Final = 16
_MODULES: Final = ("q_proj", "k_proj", "v_proj", "o_proj")
_RANK: Final = 4


def write_base(folder: Path, number: int = 0) -> Path:
    """A base of 16 layers of width 512, with the four weights of attention only; another number makes another base."""
    folder.mkdir(parents=True)
    tensors = {
        f"model.{module}.weight": np.full((WIDTH, WIDTH), at + 64 * number, "f2")
        for at, module in enumerate(_modules())
    }
    save_file(tensors, folder / "model.safetensors")
    config = {"model_type": "llama", "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "vocab_size": WIDTH}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_adapter(folder: Path, seed: int) -> Path:
    """An adapter of 1 MB: rank 4 in float32 on all the weights of that base."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    tensors = {}
    for module in _modules():
        for factor, shape in (("A", (_RANK, WIDTH)), ("B", (WIDTH, _RANK))):
            name = f"base_model.model.model.{module}.lora_{factor}.weight"
            tensors[name] = random.standard_normal(shape, "f4")
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": _RANK, "lora_alpha": 8, "bias": "none"}
    config |= {"base_model_name_or_path": "bench/llama", "target_modules": list(_MODULES)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def _modules() -> list[str]:
    return [f"layers.{layer}.self_attn.{module}" for layer in range(LAYERS) for module in _MODULES]


def fill(home: Path, count: int, kind: Kind) -> Library:
    """A library of `count` builds of 1 MB for one base; they share the files of the first, and what differs is named."""
    library = Library(home)
    folder = home.parent / f"{home.name}-made"
    base = library.add_base(write_base(folder / "base"), "base-7b")
    library.add(write_adapter(folder / "first", 0), name="agent", version="0.0.1", base=base, description="An agent.")
    multiply(library, count, kind)
    return library


def multiply(library: Library, count: int, kind: Kind) -> None:
    """Make `count` builds of the only one that a library has."""
    home = library.root
    [first] = library.installed()
    [sketch] = sketches(library)[0].values()
    rows, made = [row_of(first, home)], [sketch]
    for row, one in _built(library, first, sketch, count - 1, kind):
        rows.append(row)
        made.append(one)
    records = library.bases.list()
    bases = [base_row_of(record) for record in records]
    of_names = {(home / row.folder).parent for row in rows}
    places = [
        PlaceRow(place.relative_to(home).as_posix(), place.stat().st_mtime_ns)
        for place in (*of_names, *{place.parent for place in of_names})
    ]
    library.catalog.index.rebuild(rows, bases, (), made, places)


def _built(
    library: Library, first: Installed, sketch: SketchRow, count: int, kind: Kind
) -> Iterator[tuple[BuildRow, SketchRow]]:
    row = row_of(first, library.root)
    links = [(library.store.blob_path(entry.sha256), entry.path) for entry in first.manifest.files]
    for number in range(count):
        name, version = (
            (parse_name(f"agent-{number}"), "1.0.0") if kind == "names" else (first.manifest.name, f"1.0.{number}")
        )
        manifest = replace(first.manifest, name=name, version=version)
        place = library.root / "adapters" / first.folder.parent.parent.name / name / f"{version}-r{manifest.rank}"
        make_folder(place)
        object_file = library.store.manifest_path(manifest.digest)
        object_file.write_bytes(manifest.to_bytes())
        for source, target in links:
            link(source, place / target)
        os.link(object_file, place / MANIFEST_FILE)
        below = place.relative_to(library.root).as_posix()
        numbers = sketch.sketch if kind == "twins" else os.urandom(len(sketch.sketch))
        yield (
            row._replace(
                digest=manifest.digest, name=name, version=version, folder=below, added_at=row.added_at + number
            ),
            sketch._replace(digest=manifest.digest, sketch=numbers),
        )


def link(source: Path, target: Path) -> None:
    """Link a blob; where a file may have no more names, as beyond 65,000 on ext4, a copy takes its place."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno != errno.EMLINK:
            raise
        fresh = source.with_name(f"{source.name}.copy")
        shutil.copy2(source, fresh)
        fresh.replace(source)
        os.link(source, target)
