"""A foreign file or folder as users name it: found, recognised, read, and written as a PEFT folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from adapterhub.core.digests import Progress, hex_of
from adapterhub.core.disk.files import read_json
from adapterhub.core.disk.inside import NO_LINK, LeadsOut, inside
from adapterhub.core.errors import MalformedTensorFile, shown
from adapterhub.core.limits import limits
from adapterhub.formats.foreign.conversion import OpenFile, ensure_one_kind, opened, write_folder
from adapterhub.formats.foreign.metadata import Header, read_metadata
from adapterhub.formats.foreign.reading import Reading
from adapterhub.formats.foreign.recognition import PEFT, recognise
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE

CONVERTER: Final = "1"
_ENDING: Final = ".safetensors"
MLX_WEIGHTS: Final = "adapters.safetensors"


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A foreign file that was understood; open while the block of `foreign` runs."""

    path: Path
    file: OpenFile
    reading: Reading
    header: Header

    def write(self, folder: Path, progress: Progress | None = None) -> dict[str, Any]:
        """Write the PEFT folder into `folder`, and return what a manifest's `annotations` keep of the original.

        Raises:
            MalformedTensorFile: the file changed meanwhile.
            OSError: the folder cannot be written.
        """
        digests = write_folder(self.file, self.reading, folder, progress)
        origin: dict[str, Any] = {
            "scheme": self.reading.scheme,
            "parts": [part for part in self.reading.parts if part],
            "sha256": digests.whole,
            "data_sha256": digests.data,
            "size_bytes": digests.size_bytes,
            "data_bytes": digests.size_bytes - self.file.header.data_start,
            "exact": self.reading.is_exact,
            "converter": CONVERTER,
            "spelling": {**self.reading.spelling, **self.reading.unused_alphas(), **self._alphas()},
        }
        return {"origin": origin, **self.header.annotations()}

    def _alphas(self) -> dict[str, Any]:
        """How the file writes its alphas, where it writes all in one way; nothing where it has none."""
        kinds = {(s.dtype, s.shape) for s in self.file.header.tensors if s.name.endswith(".alpha")}
        if len(kinds) != 1:
            return {}
        dtype, shape = kinds.pop()
        return {"alpha": {"dtype": dtype, "shape": list(shape)}}

    def hash_note(self, data_sha256: str) -> str:
        """A note where the header states another hash of its data than it has; "" otherwise."""
        stated = self.header.stated_hash
        if not stated or stated == hex_of(data_sha256):  # type: ignore[arg-type]  # a digest
            return ""
        return f"its header states the hash {stated[:12]}, the data has {hex_of(data_sha256)[:12]}"  # type: ignore[arg-type]


def foreign_path(path: Path) -> Path | None:
    """The foreign weights that `path` may be: a file, or the only weights of a folder that is not PEFT's; else None.

    Raises:
        MalformedTensorFile: E_CONFLICT for a folder of several files that it could be.
    """
    if path.is_file():
        return None if path.name == WEIGHTS_FILE and (path.parent / CONFIG_FILE).is_file() else path
    if not path.is_dir() or (path / WEIGHTS_FILE).exists():
        return None
    if (path / MLX_WEIGHTS).is_file():  # beside the checkpoints of the same training
        return path / MLX_WEIGHTS
    found = sorted(p for p in path.iterdir() if p.name.endswith(_ENDING) and p.is_file())
    if len(found) > 1:
        few = ", ".join(f"`{shown(p.name)}`" for p in found[:4])
        raise MalformedTensorFile(
            str(path),
            f"holds {len(found)} files that may be adapters ({few}{', …' if len(found) > 4 else ''})",  # noqa: PLR2004
            code="E_CONFLICT",
            hint="give one of them, or all: `adapt add FOLDER/*.safetensors`",
        )
    return found[0] if found else None


@contextmanager
def foreign(path: Path, base: Mapping[str, tuple[int, ...]] | None = None) -> Iterator[Foreign | None]:
    """The foreign LoRA in a file, read and checked; None where its names are PEFT's or of nothing known.

    `base`: the shapes of the base's weights by the names of its modules.

    Raises:
        MalformedTensorFile: the file is damaged, of a kind that is not taken, or no adapter as a whole.
    """
    with opened(path) as file:
        scheme = recognise((spec.name for spec in file.header.tensors), file.where)
        if scheme is None or scheme.key == PEFT:
            yield None
            return
        config = _config_beside(path) if scheme.key == "mlx" else None
        source = file.source(config, base or {})
        reader = import_module(f"adapterhub.formats.foreign.programs.{scheme.reader}")
        reading: Reading = reader.read(source)
        ensure_one_kind(source, reading)
        yield Foreign(path=path, file=file, reading=reading, header=read_metadata(file.header.metadata))


def _config_beside(path: Path) -> Mapping[str, Any] | None:
    """MLX's config beside the weights.

    Raises:
        MalformedTensorFile: E_CONFIG or E_LINK; it is there and no JSON object, or a link out of the folder.
    """
    try:
        value = read_json(inside(path.parent, CONFIG_FILE), limits().config_bytes)
    except FileNotFoundError:
        return None
    except LeadsOut as error:
        raise MalformedTensorFile(CONFIG_FILE, error.strerror, code="E_LINK", hint=NO_LINK) from None
    except (OSError, ValueError) as error:
        raise MalformedTensorFile(CONFIG_FILE, shown(str(error)), code="E_CONFIG") from None
    if not isinstance(value, dict):
        raise MalformedTensorFile(CONFIG_FILE, f"holds {shown(value, 40)}, expected an object", code="E_CONFIG")
    return value
