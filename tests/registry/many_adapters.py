"""Folders of many small adapters, as an import finds them: each with a manifest, a config and weights of its own."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Final

from adapterhub.core.digests import digest_of
from adapterhub.core.specs import parse_name
from adapterhub.formats.manifest import (
    CONFIG_FILE,
    MANIFEST_FILE,
    MEDIA_TYPES,
    WEIGHTS_FILE,
    BaseRef,
    FileEntry,
    Manifest,
)

TASKS: Final = ("legal-qa", "summarize", "translate", "triage", "sql", "extract", "classify", "rewrite", "chat", "code")
CONFIG: Final = json.dumps(
    {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "org/base",
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["q_proj", "v_proj"],
    }
).encode()


def weights(number: int, layers: int = 2) -> bytes:
    """Tensors of rank 8 and width 1 in `layers` layers, whose first value is the number."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for layer in range(layers):
        for module in ("q_proj", "v_proj"):
            for part, shape in (("A", [8, 1]), ("B", [1, 8])):
                name = f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_{part}.weight"
                header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + 32]}
                at += 32
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw + struct.pack("<f", number) + bytes(at - 4)


def write(folder: Path, number: int, *, name: str = "", version: str = "1.0.0", layers: int = 2) -> Path:
    """Write one adapter into a folder; its name is that of the folder unless another is given."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {CONFIG_FILE: CONFIG, WEIGHTS_FILE: weights(number, layers)}
    entries = tuple(
        FileEntry(path=path, sha256=digest_of(raw), size_bytes=len(raw), media_type=MEDIA_TYPES[path])
        for path, raw in contents.items()
    )
    manifest = Manifest(
        name=parse_name(name or folder.name),
        version=version,
        base=BaseRef(),
        method=("LORA",),
        files=entries,
        task=TASKS[number % len(TASKS)],
        description=f"Answers number {number} for {TASKS[number % len(TASKS)]}, trained on corpus {number % 977}.",
        rank=8,
        alpha=16.0,
        target_modules=("q_proj", "v_proj"),
        dtype="F32",
        parameters=32 * layers,
    )
    for path, raw in {**contents, MANIFEST_FILE: manifest.to_bytes()}.items():
        (folder / path).write_bytes(raw)
    return folder


def write_many(root: Path, count: int, *, start: int = 0, spaces: int = 500, layers: int = 2) -> Path:
    """Write `count` adapters into `root/teamN/TASK-N`."""
    for number in range(start, start + count):
        write(root / f"team{number % spaces}" / f"{TASKS[number % len(TASKS)]}-{number}", number, layers=layers)
    return root
