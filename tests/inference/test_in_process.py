"""`adapterhub.vllm`, with vLLM's class of requests from the stand-in (`tests/inference/engines` has the real model)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import adapterhub
from adapterhub.core.errors import BaseMismatch, NoCompatibleRelease, NotFound, StoreLocked, UsageProblem
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.installed import Added
from adapterhub.library.library import Library
from adapterhub.vllm_plugin import in_process
from tests.support.standin_vllm import importable
from tests.support.tiny import make_base

Add = Callable[..., Added]


@pytest.fixture(autouse=True)
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with importable(tmp_path / "vllm", monkeypatch):
        yield
    for provider in in_process._providers.values():
        provider.close()
    in_process._providers.clear()
    in_process._ids.clear()


def llm_of(folder: Path, max_rank: int = 16, *, has_lora: bool = True) -> Any:
    """What is read of a `vllm.LLM`."""
    lora = SimpleNamespace(max_lora_rank=max_rank) if has_lora else None
    config = SimpleNamespace(model_config=SimpleNamespace(model=str(folder), revision=None), lora_config=lora)
    return SimpleNamespace(llm_engine=SimpleNamespace(vllm_config=config))


def test_every_spelling_is_one_request_with_a_name_and_an_id_of_the_digest(
    tmp_path: Path, library: Library, base: BaseRecord, add: Add
) -> None:
    digest = add("legal-qa").build.manifest.digest
    llm = llm_of(tmp_path / "base")

    requests = [
        adapterhub.vllm.lora_request(name, llm, library=library)
        for name in ("legal-qa", "legal-qa>=1", "legal-qa==1.0")
    ]
    requests.append(adapterhub.vllm.lora_request("legal-qa", library=library))  # one base is registered

    assert {request.lora_name for request in requests} == {f"legal-qa==1.0.0#{digest[:19]}"}
    assert {request.lora_int_id for request in requests} == {int(digest[7:15], 16) % (2**31 - 1) + 1}
    assert all(Path(request.lora_path).name == digest.replace(":", "-") for request in requests)


def test_a_request_is_leased_until_it_is_released(library: Library, base: BaseRecord, add: Add) -> None:
    build = add("legal-qa").build
    request = adapterhub.vllm.lora_request("legal-qa", library=library.root)

    with pytest.raises(StoreLocked):
        library.remove([build])
    adapterhub.vllm.release(request)

    assert not Path(request.lora_path).exists()
    library.remove([build])


def test_two_digests_never_share_an_id(library: Library, base: BaseRecord, add: Add) -> None:
    digest = add("legal-qa").build.manifest.digest
    number = int(digest[7:15], 16) % (2**31 - 1) + 1
    in_process._ids[number] = "sha256:" + 64 * "0"

    assert adapterhub.vllm.lora_request("legal-qa", library=library).lora_int_id == number + 1


def test_what_the_model_cannot_take_is_refused(tmp_path: Path, library: Library, base: BaseRecord, add: Add) -> None:
    add("legal-qa", rank=8)
    other = make_base(tmp_path / "other", seed=1)

    with pytest.raises(NoCompatibleRelease, match="made for another base"):
        adapterhub.vllm.lora_request("legal-qa", llm_of(other), library=library)
    with pytest.raises(BaseMismatch, match="another base than the served one"):
        adapterhub.vllm.lora_request("legal-qa@base-7b", llm_of(other), library=library)
    with pytest.raises(NoCompatibleRelease, match="rank 8, at most 4 asked"):
        adapterhub.vllm.lora_request("legal-qa", llm_of(tmp_path / "base", max_rank=4), library=library)
    with pytest.raises(UsageProblem, match="without LoRA"):
        adapterhub.vllm.lora_request("legal-qa", llm_of(other, has_lora=False), library=library)
    library.bases.add(other, "other")
    with pytest.raises(UsageProblem, match="2 bases are registered"):
        adapterhub.vllm.lora_request("legal-qa", library=library)


def test_a_machine_without_vllm_is_told_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)

    with pytest.raises(NotFound, match="vLLM cannot be imported"):
        adapterhub.vllm.lora_request("legal-qa", library=tmp_path)


def test_the_name_of_the_module_imports_no_engine() -> None:
    code = "import sys, adapterhub; adapterhub.vllm; print([m for m in ('vllm', 'torch', 'numpy') if m in sys.modules])"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
