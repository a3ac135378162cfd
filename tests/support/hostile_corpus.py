"""Hostile adapters as jobs for `hostile_child`: `tests.bad_inputs` and `tests.support.hostile_kinds`, as folders and as builds."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bad_inputs import CASES, SECRET, write
from tests.support.hostile_kinds import KINDS, good

ROOT = Path(__file__).resolve().parent.parent.parent
WEIGHTS, CONFIG, MANIFEST = "adapter_model.safetensors", "adapter_config.json", "adapterhub.json"
MAX_S, MAX_MB = 2.0, 300.0


@dataclass(frozen=True)
class Case:
    """One hostile adapter and the verdicts that are right for it."""

    id: str
    path: Path
    verdicts: frozenset[str]
    code: str
    skip: tuple[str, ...] = field(default=())


def bad_inputs(out: Path) -> list[Case]:
    """The cases of `tests.bad_inputs`, written below the new folder `out`."""
    return [
        Case(id=name, path=path, verdicts=frozenset(CASES[name].verdicts), code=CASES[name].code, skip=CASES[name].skip)
        for name, path in write(out).items()
    ]


def own_kinds(out: Path) -> list[Case]:
    cases = []
    (out / "outside_secret.txt").parent.mkdir(parents=True, exist_ok=True)
    (out / "outside_secret.txt").write_text(SECRET)
    for number, kind in enumerate(KINDS, 1):
        folder = out / f"X{number:02}" / "adapter"
        path = kind.make(folder) or folder
        cases.append(Case(id=f"X{number:02}", path=path, verdicts=frozenset(kind.verdicts), code=kind.code))
    return cases


def as_build(case: Case, out: Path) -> Path:
    """The same files as a published build: with a manifest that tells the truth about them, links kept as they are."""
    name = case.id.lower()
    folder = out / case.id / name / "1.0.0"
    shutil.copytree(case.path, folder, symlinks=True, copy_function=_link)
    if (folder / MANIFEST).is_symlink():
        (folder / MANIFEST).unlink()
        (folder / MANIFEST).symlink_to(case.path / MANIFEST)
    if os.path.lexists(folder / MANIFEST):
        return out / case.id
    files = []
    for path in (WEIGHTS, CONFIG):
        there = (folder / path).is_file() and os.access(folder / path, os.R_OK)
        size = (folder / path).stat().st_size if there else 1
        digest = hashlib.sha256((folder / path).read_bytes() if there and size < 1 << 26 else b"")
        files.append({"path": path, "sha256": f"sha256:{digest.hexdigest()}", "size_bytes": size})
    value: dict[str, Any] = {"schema": "adapterhub/1", "name": name, "version": "1.0.0", "base": {}, "files": files}
    (folder / MANIFEST).write_text(json.dumps(value | {"method": [_method(folder)]}))
    return out / case.id


def _method(folder: Path) -> str:
    if not (folder / CONFIG).is_file() or (folder / CONFIG).stat().st_size > 1 << 23:
        return "LORA"
    try:
        return str(json.loads((folder / CONFIG).read_bytes()[: 1 << 20])["peft_type"])
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return "LORA"


def _link(source: str, target: str) -> None:
    os.link(source, target, follow_symlinks=False)


def run(
    verb: str, cases: list[tuple[str, Path]], folder: Path, base: Path, *, add_after_each: int = 1
) -> dict[str, dict[str, Any]]:
    """What `hostile_child` tells of each case, by id; the library is `folder/home`.

    After one in `add_after_each` of those that were refused, it adds a good adapter.
    """
    folder.mkdir()
    for name in ("tmp", "user"):
        (folder / name).mkdir()
    good(folder / "good")
    job = {
        "folder": str(folder), "base": "corpus-base", "base_folder": str(base), "good": str(folder / "good"),
        "missing": str(folder / "nothing-here"), "add_after_each": add_after_each,
        "cases": [{"id": name, "path": str(path), "name": name.lower()} for name, path in cases],
    }  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job))
    surroundings = os.environ | {
        "TMPDIR": str(folder / "tmp"), "HOME": str(folder / "user"), "XDG_CACHE_HOME": str(folder / "user"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "registry")]), "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",  # the first import of a module would count as a write
    }  # fmt: skip
    home = ["--root", str(folder / "home")]
    for command in (
        [sys.executable, "-m", "adapterhub.cli", "base", "add", str(base), "--as", "corpus-base", *home],
        [sys.executable, "-m", "tests.support.hostile_child", verb, str(folder / "job.json")],
    ):
        done = subprocess.run(command, env=surroundings, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"exit {done.returncode}: {done.stderr} {done.stdout[-500:]}"
    return {told["id"]: told for told in map(json.loads, done.stdout.splitlines())}


def make_base(folder: Path) -> Path:
    """The base that the corpus is for: width 64, two layers, values 32 wide."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
