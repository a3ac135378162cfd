"""A library with adapters on a small base, and one bit of an object of it flipped: what tests of attacks share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.library.library import Library
from tests.support.command_line import Adapt
from tests.support.moved_bases import moved_copy
from tests.support.run_library import make_library
from tests.support.tiny_models import llama


def make_world(folder: Path) -> Adapt:
    """The command line in a folder with a library, a key, a recipe and examples."""
    adapt = Adapt(make_library(folder))
    adapt.ok("base", "add", moved_copy(folder / "base", folder / "next", 0.01), "--as", "next")
    adapt.ok("key", "new", "ana", "--unencrypted")
    digests = {one["name"]: one["digest"] for one in adapt.json("list")}
    inputs = "".join(
        f'[[inputs]]\nspec = "{name}==1.0.0"\nweight = 0.5\ndigest = "{digests[name]}"\n' for name in ("a", "b")
    )
    (folder / "recipe.toml").write_text(f'format = 1\nname = "again"\nmethod = "cat"\n\n{inputs}')
    line = json.dumps({"prompt": "a b", "completion": "c d"})
    (folder / "examples.jsonl").write_text(f"{line}\n{line}\n")
    return adapt


def base() -> Any:
    """The base of the library, in memory."""
    return llama(initializer_range=0.4, max_position_embeddings=256)


def folder_of(library: Library, name: str = "a") -> Path:
    return library.builds_named(name)[0].folder


def _in_the_numbers(raw: bytearray) -> int:
    return len(raw) - 2


def _in_the_header(raw: bytearray) -> int:
    return raw.index(b"q_proj")


def _in_alpha(raw: bytearray) -> int:
    return raw.index(b"16", raw.index(b'"lora_alpha"')) + 1  # 16 becomes 14 or so: sound, and another update


def _in_a_brace(raw: bytearray) -> int:
    return raw.index(b"{")


FLIPS: Mapping[str, tuple[str, Callable[[bytearray], int], int]] = {
    "weights": (WEIGHTS_FILE, _in_the_numbers, 0x40),
    "header": (WEIGHTS_FILE, _in_the_header, 1),
    "config": (CONFIG_FILE, _in_alpha, 2),
    "broken config": (CONFIG_FILE, _in_a_brace, 1),
}


@contextmanager
def flipped(folder: Path, what: str) -> Iterator[None]:
    """One bit of an object of the library is another one in the block."""
    name, place_in, bit = FLIPS[what]
    path = folder / name
    before, mode = path.read_bytes(), path.stat().st_mode
    raw = bytearray(before)
    raw[place_in(raw)] ^= bit
    path.chmod(0o644)
    try:
        path.write_bytes(raw)  # in place: every hard link of the object
        yield
    finally:
        path.write_bytes(before)
        path.chmod(mode)
