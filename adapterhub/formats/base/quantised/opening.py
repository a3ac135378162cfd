"""Opens a model in its files, whichever format they have."""

from __future__ import annotations

from pathlib import Path

from adapterhub.core.disk.files import read_json
from adapterhub.formats.base.fingerprint import CONFIG_LIMIT_BYTES
from adapterhub.formats.base.quantised.files import FileReader
from adapterhub.formats.base.quantised.gguf_model import gguf_model
from adapterhub.formats.base.quantised.model import FileModel, model_of
from adapterhub.formats.base.weight_files import weight_files
from adapterhub.formats.safetensors.file import read_header
from adapterhub.formats.safetensors.header import BASE_LIMITS


def opened(place: Path) -> FileModel:
    """Return the model in the folder or file `place`.

    Raises:
        BaseNotFound: there is no such folder or file.
        Malformed, MalformedTensorFile: a file breaks its format, or tensors are not as their format needs.
    """
    files = weight_files(place)
    if files[0].suffix == ".gguf":
        return gguf_model(files[0])
    headers = {path: read_header(path, limits=BASE_LIMITS) for path in files}
    tensors = {spec.name: (path, spec) for path, header in headers.items() for spec in header.tensors}
    try:
        config = read_json((place if place.is_dir() else place.parent) / "config.json", CONFIG_LIMIT_BYTES)
    except (OSError, ValueError):
        config = {}
    return model_of(str(place), FileReader(tensors), config if isinstance(config, dict) else {})
