"""The files of a fused model besides its weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from adapterhub.core.disk.files import read_json
from adapterhub.core.disk.inside import NO_LINK, LeadsOut, inside
from adapterhub.core.errors import Malformed, shown
from adapterhub.formats.base.hints import CONFIG_LIMIT_BYTES
from adapterhub.formats.base.weight_files import INDEX_LIMIT_BYTES, TOKENIZER_FILES, index_of
from adapterhub.weights.fuse._model import CONFIG_FILE, Model

_COPIED: Final = (
    "config.json",
    "generation_config.json",
    *TOKENIZER_FILES,
    "source.spm",
    "target.spm",
    "sentencepiece.model",
    "sentencepiece.bpe.model",
    "*.tiktoken",
    # chat template
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    # pictures and sound
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    # terms, which also apply to a model made from the base
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)
"""Files to copy from a base. No others, because loading the result could run a pickle or a Python file."""

_NAMING_CODE: Final = (CONFIG_FILE, "tokenizer_config.json", "processor_config.json")
_DTYPE_KEYS: Final = ("dtype", "torch_dtype")


def side_files(model: Model) -> list[Path]:
    """The files besides the weights to copy, relative to the base's folder."""
    paths = {path for pattern in _COPIED for path in model.folder.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(model.folder) for path in paths)


def copy_side_files(model: Model, folder: Path, dtype: str | None) -> None:
    """Copy the side files; `dtype` (torch's name) replaces the dtype in the config.

    Raises:
        Malformed: one is a link out of the base's folder.
    """
    for name in side_files(model):
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(_inside(model.folder, str(name)), target)
    if dtype is not None and (folder / CONFIG_FILE).exists():
        text = json.dumps(_with_dtype(model.config, dtype), indent=2, sort_keys=True)
        (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def copy_index(model: Model, folder: Path, size_bytes: int | None) -> None:
    """Copy the index of a sharded base; `size_bytes` is the new size of the weights, if it changed."""
    path = index_of(model.folder)
    if path is None:
        return
    if size_bytes is None:
        shutil.copyfile(_inside(path.parent, path.name), folder / path.name)
        return
    index = read_json(_inside(path.parent, path.name), INDEX_LIMIT_BYTES)
    metadata = index.get("metadata")
    index["metadata"] = (metadata if isinstance(metadata, dict) else {}) | {"total_size": size_bytes}
    (folder / path.name).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _inside(folder: Path, name: str) -> Path:
    try:
        return inside(folder, name)
    except LeadsOut as error:
        raise Malformed(f"`{shown(str(error.filename), 200)}` {error.strerror}", hint=NO_LINK) from None


def code_remarks(model: Model) -> Sequence[str]:
    """A remark on code that the base's configs name, since it is not copied."""
    files = sorted({file for name in _NAMING_CODE for file in _code_files(model.folder / name)})
    if not files:
        return ()
    listed = ", ".join(f"`{shown(file)}`" for file in files)
    return (
        f"the base's config names code ({listed}), which was not copied; if the model needs it, review and copy it",
    )


def _code_files(path: Path) -> Iterator[str]:
    try:
        named = read_json(path, CONFIG_LIMIT_BYTES, finite=False).get("auto_map")
    except (OSError, ValueError, AttributeError):
        return
    values = named.values() if isinstance(named, dict) else ()
    for value in [item for group in values for item in (group if isinstance(group, list) else [group])]:
        if isinstance(value, str) and "--" not in value:  # `repo--file` names code in another repository
            yield value.partition(".")[0] + ".py"


def _with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The config with `dtype` in place of every dtype, also in nested configs."""
    changed: dict[str, Any] = {}
    for key, value in config.items():
        if key in _DTYPE_KEYS and isinstance(value, str):
            changed[key] = dtype
        else:
            changed[key] = _with_dtype(value, dtype) if isinstance(value, dict) else value
    return changed
