"""The digest of all that decides what a model or a pipeline answers, of the bytes that are on disk now."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from adapterhub.core.digests import Digest, Progress, canonical_json, digest_of
from adapterhub.core.errors import CouldNotTell, shown
from adapterhub.formats.base.weight_files import weight_files
from adapterhub.formats.base.weight_reader import digest_now, read_facts
from adapterhub.formats.diffusion.components import PIPELINE_FILE, all_folders

_TEMPLATES: Final = "additional_chat_templates"
"""The only folder below a model in which transformers looks."""

_OTHER_WEIGHTS: Final = frozenset(
    {".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".pt", ".pth", ".safetensors"}
)
"""Weights in formats that are never read, and tensor files that are not the model's."""


def state_digest(place: Path, *, cache_folder: Path | None, progress: Progress | None = None) -> Digest:
    """The digest of every tensor, buffers too, and of every file beside them: settings, tokenizer, chat templates.

    Whatever lies there counts, since no list of names is complete; names that begin with a dot and weights that are
    never read do not. What `cache_folder` knows is not read again.

    Raises:
        BaseNotFound, Malformed, CouldNotTell: as `weight_files` and `read_facts`.
    """
    is_pipeline = (place / PIPELINE_FILE).is_file()
    folders = all_folders(place) if is_pipeline else [place] if place.is_dir() else []
    weights = [file for folder in folders if any(folder.glob("*.safetensors")) for file in weight_files(folder)]
    read = read_facts(weights if folders else [place], cache_folder=cache_folder, progress=progress)
    found: list[list[object]] = [
        [_name(path, place), fact.name, fact.dtype, list(fact.shape), fact.sha256]
        for path, facts in read.items()
        for fact in facts
    ]
    beside = [place, *folders] if is_pipeline else [*folders, *(folder / _TEMPLATES for folder in folders)]
    try:
        files = {file for folder in beside if folder.is_dir() for file in folder.iterdir() if _counts(file)}
    except OSError as error:
        raise CouldNotTell(f"`{shown(str(place), 200)}` cannot be read: {error.strerror}") from None
    found += [[_name(path, place), digest_now(path, cache_folder=cache_folder)] for path in sorted(files)]
    return digest_of(canonical_json(found))


def _counts(path: Path) -> bool:
    """Whether a file beside the weights may decide an answer; an adapter there does, as transformers loads it."""
    is_other = path.suffix in _OTHER_WEIGHTS and not path.name.startswith("adapter")
    return not path.name.startswith(".") and not is_other and path.is_file()


def _name(path: Path, place: Path) -> str:
    return "" if path == place else path.relative_to(place).as_posix()
