"""LoRA files by their headers: the program, the family of models, ranks, words that trigger them, and duplicates.

Reads the header of each file, and the numbers only of those that look like copies of another.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Annotated, Any, Final

from adapterhub.core.digests import Digest, Progress, hex_of
from adapterhub.core.disk.files import open_plain
from adapterhub.core.errors import CouldNotTell, MalformedTensorFile, shown
from adapterhub.formats.documented import Documented
from adapterhub.formats.foreign.conversion import foreign
from adapterhub.formats.foreign.reading import PEFT, Reading, read_metadata
from adapterhub.formats.foreign.telling import family_of_images
from adapterhub.formats.manifest import WEIGHTS_FILE
from adapterhub.formats.safetensors.file import read_header

_ENDING: Final = ".safetensors"
_MOST_FILES: Final = 100_000
_PIECE_BYTES: Final = 1 << 20
_SAMPLES: Final = 32
_SAMPLE_BYTES: Final = 64
_LEGACY_AT: Final = 1 << 20
_LEGACY_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraFile(Documented):
    """The facts in the header of one file. `problem` is why it would be refused, "" for one that `add` takes."""

    path: Annotated[Path, "a path on this machine"]
    program: Annotated[str, "the program whose names it has; empty where unknown"]
    family: Annotated[str, "the models that have its modules, by names and sizes; empty where unknown"]
    method: Annotated[str, "`LoRA`, `DoRA`, `LoHa` or `LoKr`; empty where unknown"]
    parts: Annotated[tuple[str, ...], "components of a pipeline, such as `unet`"]
    rank: Annotated[int | None, "the largest"]
    modules: int
    size_bytes: Annotated[int, "bytes"]
    title: str = ""
    triggers: Annotated[tuple[str, ...], "words that it may have been trained on, as its header says"] = ()
    adapter: Annotated[str | None, "the installed adapter that was made of it"] = None
    duplicate_of: Annotated[Path | None, "an earlier file with the same numbers"] = None
    problem: str = ""
    data_start: Annotated[int, "where the numbers begin"] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hashes(Documented):
    """The hashes that sites and programs have for one file."""

    sha256: Annotated[str, "of the whole file; the first 10 are Civitai's AutoV2"]
    data_sha256: Annotated[str, "of the bytes behind the header: kohya's `sshs_model_hash`; the first 12 are AutoV3"]
    legacy: Annotated[str, "of 64 KiB in the file, first 8: AutoV1; many files share it"]

    @property
    def names(self) -> tuple[tuple[str, str], ...]:
        """Each hash by the name that people know."""
        return (
            ("AutoV2", self.sha256[:10]),
            ("AutoV3", self.data_sha256[:12]),
            ("AutoV1", self.legacy),
            ("sshs_model_hash", self.data_sha256),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraFiles(Documented):
    """The files of a folder, by path."""

    files: tuple[LoraFile, ...]

    @property
    def duplicates(self) -> int:
        """Files with the numbers of an earlier one."""
        return sum(file.duplicate_of is not None for file in self.files)


def files_in(paths: Sequence[Path]) -> list[Path]:
    """Return the safetensors files among `paths` and in the folders among them, sorted.

    Raises:
        CouldNotTell: a folder cannot be listed, or holds too many files.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            found[path] = None
            continue
        for folder, inside, names in os.walk(path):
            inside.sort()
            found.update((Path(folder, name), None) for name in sorted(names) if name.lower().endswith(_ENDING))
            if len(found) > _MOST_FILES:
                raise CouldNotTell(
                    f"`{shown(str(path), 200)}` holds more than {_MOST_FILES} files", hint="name one of its folders"
                )
    return list(found)


def look_at(path: Path) -> LoraFile:
    """Identify one file by its header; never raises for its content."""
    size = path.stat().st_size if path.is_file() else 0
    nothing = LoraFile(
        path=path, program="", family="", method="", parts=(), rank=None, modules=0, size_bytes=size, problem="?"
    )
    try:
        with foreign(path) as found:
            if found is not None:
                header = found.header
                return replace(
                    _of_reading(nothing, found.reading, header.architecture),
                    title=header.title,
                    triggers=tuple(trigger.text for trigger in header.triggers),
                    data_start=found.file.header.data_start,
                )
        return _of_peft(nothing)
    except MalformedTensorFile as error:
        return replace(nothing, problem=f"[{error.code}] {error.reason}")
    except OSError as error:
        return replace(nothing, problem=f"cannot be read: {error.strerror}")


def _of_reading(nothing: LoraFile, reading: Reading, architecture: str) -> LoraFile:
    is_dora = any("lora_magnitude_vector" in module.slots for module in reading.modules)
    names = {"LORA": "DoRA" if is_dora else "LoRA", "LOHA": "LoHa", "LOKR": "LoKr"}
    return replace(
        nothing,
        program=reading.scheme,
        family=family_of_images(reading, architecture),
        method=names[reading.method],
        parts=tuple(part for part in reading.parts if part),
        rank=max(module.rank for module in reading.modules),
        modules=len(reading.modules),
        problem="",
    )


def _of_peft(nothing: LoraFile) -> LoraFile:
    """Return a file in PEFT's names, or none known here."""
    header = read_header(nothing.path)
    factors = [spec for spec in header.tensors if ".lora_A." in f"{spec.name}."]
    if not any(spec.name.startswith("base_model.model.") for spec in header.tensors):
        return replace(nothing, problem="its names are those of no program known here", data_start=header.data_start)
    is_whole = nothing.path.name == WEIGHTS_FILE and nothing.path.with_name("adapter_config.json").is_file()
    said = read_metadata(header.metadata)
    return replace(
        nothing,
        program=PEFT,
        method="LoRA" if factors else "",
        rank=max((spec.shape[0] for spec in factors if spec.shape), default=None),
        modules=len(factors),
        triggers=tuple(trigger.text for trigger in said.triggers),
        problem="" if is_whole else f"PEFT's weights without a config beside them, or not named `{WEIGHTS_FILE}`",
        data_start=header.data_start,
    )


# ---------------------------------------------------------------- hashes and duplicates
def hashes_of(path: Path, progress: Progress | None = None) -> Hashes:
    """Every hash of a safetensors file; reads it whole.

    Raises:
        OSError: it cannot be read.
        MalformedTensorFile: its header breaks the format.
    """
    start = read_header(path).data_start
    with open_plain(path) as stream:
        whole = hashlib.sha256(stream.read(start))
        data = hashlib.sha256()
        while piece := stream.read(_PIECE_BYTES):
            whole.update(piece)
            data.update(piece)
            if progress is not None:
                progress(len(piece))
        stream.seek(_LEGACY_AT)
        legacy = hashlib.sha256(stream.read(_LEGACY_BYTES)).hexdigest()[:8]
    return Hashes(sha256=whole.hexdigest(), data_sha256=data.hexdigest(), legacy=legacy)


def list_files(paths: Sequence[Path], origins: Mapping[str, Any], progress: Progress | None = None) -> LoraFiles:
    """Identify each file, the copies of others among them, and the installed ones.

    `origins` has the name of the adapter by the data hash of the file that it was made of, as `by_origin` gives it.
    `progress` gets 1 for each file.

    Raises:
        CouldNotTell: as `files_in`.
    """
    rows = []
    for path in files_in(paths):
        rows.append(look_at(path))
        if progress is not None:
            progress(1)
    sizes: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        if row.data_start:
            sizes.setdefault(row.size_bytes - row.data_start, []).append(number)
    installed = {int(size) for size in origins.get("sizes", ())}
    for size, numbers in sizes.items():
        groups: dict[bytes, list[int]] = {}
        for number in numbers:
            if len(numbers) > 1 or size in installed:
                groups.setdefault(_samples(rows[number]), []).append(number)
        for same in groups.values():
            if len(same) > 1 or size in installed:
                _compare(rows, same, origins)
    return LoraFiles(files=tuple(rows))


def _compare(rows: list[LoraFile], numbers: Sequence[int], origins: Mapping[str, Any]) -> None:
    first: dict[str, Path] = {}
    for number in numbers:
        row = rows[number]
        try:
            digest = _data_digest(row)
        except OSError as error:
            rows[number] = replace(row, problem=f"cannot be read: {error.strerror}")
            continue
        earlier = first.setdefault(digest, row.path)
        rows[number] = replace(
            row,
            duplicate_of=earlier if earlier != row.path else None,
            adapter=origins.get("names", {}).get(f"sha256:{digest}"),
        )


def _samples(row: LoraFile) -> bytes:
    """Return a few bytes of its numbers: equal for copies, and different for nearly all others."""
    found = bytearray()
    try:
        with open_plain(row.path) as stream:
            span = row.size_bytes - row.data_start
            for n in range(_SAMPLES):
                stream.seek(row.data_start + span * n // _SAMPLES)
                found += stream.read(_SAMPLE_BYTES)
    except OSError:
        return b""
    return bytes(found)


def _data_digest(row: LoraFile) -> str:
    with open_plain(row.path) as stream:
        stream.seek(row.data_start)
        return _digest(stream)


def _digest(stream: IO[bytes]) -> str:
    hasher = hashlib.sha256()
    while piece := stream.read(_PIECE_BYTES):
        hasher.update(piece)
    return hasher.hexdigest()


def by_origin(named: Iterator[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the names of adapters by the data hash of their originals, from their names and `annotations.origin`."""
    names: dict[str, str] = {}
    sizes: set[int] = set()
    for name, origin in named:
        digest = origin.get("data_sha256")
        if isinstance(digest, str):
            names.setdefault(digest, name)
            if type(origin.get("data_bytes")) is int:
                sizes.add(origin["data_bytes"])
    return {"names": names, "sizes": sizes}


def matches_hash(text: str, origin: Mapping[str, Any]) -> str:
    """Return which hash of an original begins with `text`, in words; "" for none."""
    for key, what in (("sha256", "AutoV2"), ("data_sha256", "AutoV3")):
        digest = origin.get(key)
        if isinstance(digest, str) and hex_of(Digest(digest)).startswith(text):
            return f"the {'file' if key == 'sha256' else 'data'} that it was made of has this hash ({what})"
    return ""


def is_hash(text: str) -> bool:
    """Return whether an argument can be a hash of a file: 10 to 64 hexadecimal digits."""
    return 10 <= len(text) <= 64 and set(text.lower()) <= set("0123456789abcdef")
