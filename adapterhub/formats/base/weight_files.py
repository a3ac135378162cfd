"""The weight files in a base's folder: those that transformers or diffusers would load, safetensors only."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NoReturn

from adapterhub.core.disk.files import read_json
from adapterhub.core.disk.inside import NO_LINK, LeadsOut, inside
from adapterhub.core.disk.nearest import ensure_there
from adapterhub.core.errors import BaseNotFound, CouldNotTell, Malformed, shown
from adapterhub.formats.safetensors.kinds import POINTER, is_pointer

TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
)
"""Names under which tokenizers are saved beside a model."""

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILES: Final = (SINGLE_FILE, "diffusion_pytorch_model.safetensors")
"""The names under which transformers and diffusers save a whole model; each has an index of the same name."""

_SHARD: Final = re.compile(r"(?P<set>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors", re.ASCII)
INDEX_LIMIT_BYTES: Final = 256 << 20  # the index of the largest public model (DeepSeek-V3, 91,991 tensors) is 9 MB
_LISTED = 8


def weight_files(place: Path) -> tuple[Path, ...]:
    """The weight files of the model in the folder `place`, sorted by name; links are not resolved.

    As in transformers and diffusers, the first match wins: `model.safetensors`, the files that its index names, the
    same two for `diffusion_pytorch_model.safetensors`, the files of the only index of a variant (`.fp16.`), else every
    `*.safetensors` whose name does not begin with `adapter`. `place` may also be one file of another name.

    Raises:
        BaseNotFound: there is no such folder or file.
        Malformed: no weights in safetensors, a missing file of the index, a link out of the folder, or a pipeline of
            several models.
        CouldNotTell: the folder cannot be read.
    """
    try:
        found = _weight_files(place)
        for path in found:
            inside(path.parent, path.name)
    except LeadsOut as error:
        hint = f"{NO_LINK}, or give the folder that it leads to"
        raise Malformed(f"`{shown(str(error.filename), 200)}` {error.strerror}", hint=hint) from None
    except OSError as error:
        raise CouldNotTell(f"`{shown(str(place), 200)}` cannot be read: {error.strerror}") from None
    return found


def _weight_files(folder: Path) -> tuple[Path, ...]:
    if folder.suffix == ".safetensors" and folder.name not in SINGLE_FILES and folder.is_file():
        return _one_file(folder)
    if not folder.is_dir():
        _refuse_what_is_no_folder(folder)
    if (folder / "model_index.json").is_file():
        raise Malformed(
            f"`{folder}` is a pipeline of several models (it has a `model_index.json`), expected one model",
            hint="give the folder of one model in it, such as `transformer` or `unet`",
        )
    index = index_of(folder)
    if index is not None:
        return _files_of_index(folder, index)
    single = next((folder / name for name in SINGLE_FILES if (folder / name).is_file()), None)
    if single is not None:
        return (single,)
    found = sorted(folder.glob("*.safetensors"))
    weights = tuple(path for path in found if not path.name.startswith("adapter"))
    broken = [path.name for path in weights if not path.is_file()]
    if broken:
        _refuse_missing(folder, broken, "it has links to files that are not there")
    _check_shards(folder, weights)
    return weights or _refuse_without_weights(folder, has_adapter=bool(found))


def index_of(folder: Path) -> Path | None:
    """The index that names the weight files in `folder`; None where one file holds them all, or no index is there.

    Raises:
        Malformed: there are only indexes of variants, and several of them.
    """
    for name in SINGLE_FILES:
        if (folder / name).is_file():
            return None
        if (folder / f"{name}.index.json").is_file():
            return folder / f"{name}.index.json"
    variants = sorted(path for name in SINGLE_FILES for path in folder.glob(f"{name}.index.*.json"))
    if len(variants) > 1:
        listed = ", ".join(f"`{shown(path.name)}`" for path in variants[:_LISTED])
        raise Malformed(
            f"`{folder}` holds {len(variants)} variants of a model, expected one: {listed}",
            hint="keep the files of one variant there, or download the plain ones",
        )
    return variants[0] if variants else None


def indexed_tensors(path: Path) -> dict[str, str]:
    """The file of each tensor, by name, from the index `path`.

    Raises:
        Malformed: the file is not an index, or names a file outside its folder.
    """
    try:
        value = read_json(path, INDEX_LIMIT_BYTES)
    except (ValueError, OSError) as error:
        raise Malformed(f"{path}: {error}") from None
    places = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise Malformed(f"{path}: expected an object `weight_map` that gives the file of each tensor")
    for name in dict.fromkeys(places.values()):
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name or not name.endswith(".safetensors"):
            raise Malformed(f"{path}: `{shown(name)}` is not the name of a safetensors file beside it")
    return places


def _files_of_index(folder: Path, index: Path) -> tuple[Path, ...]:
    names = sorted(set(indexed_tensors(index).values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        _refuse_missing(
            folder, missing, f"{len(missing)} of {len(names)} files that `{index.name}` names are not there"
        )
    return tuple(folder / name for name in names)


def _one_file(path: Path) -> tuple[Path, ...]:
    """A file that is a whole model; a shard of one is refused."""
    shard = _SHARD.fullmatch(path.name)
    if shard is not None and int(shard["count"]) > 1:
        raise Malformed(
            f"`{path}` is file {int(shard['number'])} of {int(shard['count'])} of a model, expected a whole model",
            hint=f"give the folder `{path.parent}`",
        )
    return (path,)


def _check_shards(folder: Path, weights: Iterable[Path]) -> None:
    """Raise if files without an index are numbered, and some of the numbers are missing."""
    names = {path.name for path in weights}
    for match in filter(None, map(_SHARD.fullmatch, sorted(names))):
        count = int(match["count"])
        every = [f"{match['set']}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
        missing = [name for name in every if name not in names]
        if missing:
            _refuse_missing(folder, missing, f"{len(missing)} of {count} files are not there")


def _refuse_missing(folder: Path, names: list[str], reason: str) -> NoReturn:
    listed = ", ".join(f"`{shown(name)}`" for name in names[:_LISTED])
    rest = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    raise Malformed(f"`{folder}` is incomplete: {reason}: {listed}{rest}", hint="finish the download and try again")


def _refuse_what_is_no_folder(folder: Path) -> NoReturn:
    ensure_there(folder, BaseNotFound, hint="`adapt base list` lists the registered bases")
    if not folder.exists():
        raise BaseNotFound(f"`{shown(str(folder), 200)}` is a link that leads nowhere", hint="give the model's folder")
    if folder.suffix == ".gguf":
        raise Malformed(
            f"`{folder}` is a GGUF file, expected the folder of a model in safetensors",
            hint="give the folder that the GGUF was converted from; adapters are made for that model",
        )
    raise Malformed(f"`{folder}` is a file, expected the folder of a model", hint=f"give `{folder.parent}`")


def _refuse_without_weights(folder: Path, *, has_adapter: bool) -> NoReturn:
    if has_adapter or (folder / "adapter_config.json").is_file():
        raise Malformed(
            f"`{folder}` holds an adapter, expected the model it runs on",
            hint="give the base model's folder; `adapt add FOLDER` takes an adapter",
        )
    if any(folder.glob("*.gguf")):
        raise Malformed(
            f"`{folder}` holds GGUF files only, expected a model in safetensors",
            hint="give the folder that the GGUF was converted from; adapters are made for that model",
        )
    kinds = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.safetensors")
    pointers = sorted(path.name for kind in kinds for path in folder.glob(kind) if is_pointer(path))
    if pointers:
        raise Malformed(f"`{folder}`: `{shown(pointers[0])}` is {POINTER.name}", hint=POINTER.hint)
    pickles = sorted(path.name for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(kind))
    if pickles:
        raise Malformed(
            f"`{folder}` holds pickles only (`{shown(pickles[0])}`), which can run code when they are opened;"
            " only safetensors is read",
            hint='convert it where you trust it: `python -c "from transformers import AutoModelForCausalLM as M;'
            f" M.from_pretrained('{folder}').save_pretrained('{folder}-safetensors')\"`",
        )
    commits = sorted(folder.glob("snapshots/*/"))
    if commits:
        raise Malformed(
            f"`{folder}` is a repository in a Hub cache, expected one commit of it", hint=f"give `{commits[-1]}`"
        )
    raise Malformed(
        f"`{folder}` holds no weights, expected `{SINGLE_FILE}` or `{INDEX_FILE}` and the files it names",
        hint="give the folder that `save_pretrained` wrote or `hf download` printed",
    )
