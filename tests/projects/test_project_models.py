"""What sync writes, on real models: PEFT loads it unchanged, and names of a project mean its locked builds in Python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel

import adapterhub
from adapterhub.core.specs import parse_name
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from adapterhub.projects.lock.lockfile import write_lock
from tests.support.command_line import Adapt
from tests.support.locks import entry_of, lock_of, sync
from tests.support.run_library import PROMPT, write_base
from tests.support.tiny_models import llama, logits, save_adapter

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT and transformers warn of much that is meant here


@dataclass(frozen=True)
class Work:
    """A project that locks version 1.0.0 under the name `mine`, and a library with the newer 2.0.0, too."""

    project: Path
    library: Library
    old: Path
    new: Path


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    library = Library(tmp_path / "home")
    record = library.bases.add(write_base(tmp_path / "base"), "base-7b")
    library.catalog.put_base(record)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    builds = []
    for seed, version in enumerate(("1.0.0", "2.0.0"), 1):
        folder = save_adapter(
            tmp_path / version, lambda: llama(initializer_range=0.4, max_position_embeddings=256), config, seed=seed
        )
        builds.append(library.add(folder, Description(name=parse_name("mine"), version=version), base=record).build)
    project = tmp_path / "project"
    project.mkdir()
    (project / "adapters.toml").write_text('[adapters]\nmine = "==1.0.0"\n')
    lock = lock_of(entry_of(builds[0]))
    write_lock(project, lock)
    sync(library, project, lock)
    monkeypatch.chdir(project)
    monkeypatch.setenv("ADAPTERHUB_HOME", str(library.root))
    return Work(project, library, builds[0].folder, builds[1].folder)


def base() -> torch.nn.Module:
    return llama(initializer_range=0.4, max_position_embeddings=256)


def test_peft_loads_what_sync_wrote_as_it_loads_the_librarys_folder(work):
    there = PeftModel.from_pretrained(base(), work.project / "adapters" / "mine").eval()
    here = PeftModel.from_pretrained(base(), work.old).eval()

    assert torch.equal(logits(there), logits(here))
    assert not torch.equal(logits(there), logits(base()))


def test_the_lines_for_peft_are_calls_that_work(work):
    model = PeftModel.from_pretrained(base(), work.old, adapter_name="first")

    for line in Adapt(work.project, str(work.library.root)).ok("list", "--format", "peft").splitlines():
        eval(line, {"model": model})  # noqa: S307 - our own line

    model.set_adapter("mine")
    assert torch.equal(logits(model.eval()), logits(PeftModel.from_pretrained(base(), work.old).eval()))


def test_attach_means_the_locked_build_by_a_bare_name_of_the_project(work, tmp_path, monkeypatch):
    with adapterhub.attach(base(), "mine") as attached:
        assert attached.adapters[0].label == "mine==1.0.0"
    with adapterhub.attach(base(), "mine>=1") as attached:
        assert attached.adapters[0].label == "mine==2.0.0"
    monkeypatch.chdir(tmp_path)
    with adapterhub.attach(base(), "mine") as attached:
        assert attached.adapters[0].label == "mine==2.0.0"


def test_run_means_the_same_and_says_so_once(work):
    adapt = Adapt(work.project, str(work.library.root))
    arguments = (PROMPT, "--max-new-tokens", "3")

    locked = adapt("run", "mine", *arguments)
    old = adapt("run", "mine==1.0.0", *arguments)
    new = adapt("run", "mine==2.0.0", *arguments)

    assert (locked.exit_code, locked.stdout) == (0, old.stdout)
    assert locked.stdout != new.stdout
    assert locked.stderr.count("as adapters.lock says") == 1
    assert "adapters.lock" not in old.stderr
