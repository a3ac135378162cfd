"""`adapt fuse` with a library: its base, its folder, the command, interrupted, and the real base."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers

from adapterhub.core.disk.files import new_folder
from adapterhub.core.errors import (
    BaseMismatch,
    BaseNotFound,
    Conflict,
    CouldNotTell,
    DiskFull,
    UsageProblem,
)
from adapterhub.core.specs import parse_name
from adapterhub.inference.loader import attach
from adapterhub.inference.loader.text import answer, load_base
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from adapterhub.weights.fuse import Fused, prepare
from tests.contracts.export import files_of_at_most
from tests.support.adapter_folders import write_folder
from tests.support.command_line import Adapt
from tests.support.fuse_models import (
    QV,
    SHIPPED,
    bits,
    fuse,
    fused_in,
    large_base,
    save_adapter,
    save_base,
    tensors_in,
    untied,
)
from tests.support.interrupting import adapt_interrupted_at
from tests.support.real_base import smollm2_base
from tests.support.tiny_models import llama


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT comments on fan_in_fan_out, tied embeddings and offline hub look-ups
        yield


@pytest.fixture
def fused(tmp_path: Path) -> Callable[..., Fused]:
    return partial(fused_in, tmp_path)


# ---------------------------------------------------------------- the base
@pytest.fixture
def installed(tmp_path: Path) -> Library:
    """A library with a base and an adapter made for it."""
    library = Library(tmp_path / "home")
    record = library.bases.add(save_base(tmp_path / "base", untied), "base-7b")
    adapter = save_adapter(tmp_path / "adapter", untied, target_modules=QV)
    library.add(adapter, Description(name=parse_name("legal-qa"), version="1.0.0"), base=record)
    return library


def test_the_base_of_an_installed_adapter_is_found(installed: Library, tmp_path: Path) -> None:
    result = fuse("legal-qa", tmp_path / "out", library=installed)

    assert (result.base, result.warnings) == ("base-7b", ())
    assert [(a.spec, a.digest is not None) for a in result.adapters] == [("legal-qa==1.0.0", True)]
    assert installed.bases.look(tmp_path / "out").fingerprint.weights != result.base_weights


def test_another_base_of_the_same_shapes_is_refused_unless_allowed(installed: Library, tmp_path: Path) -> None:
    other = str(save_base(tmp_path / "other", lambda: llama(7, tie_word_embeddings=False)))
    folder = next(installed.installed()).folder

    with pytest.raises(BaseMismatch, match="was made for base `base-7b`"):
        fuse(folder, tmp_path / "out", library=installed, base=other)
    result = fuse(folder, tmp_path / "out", library=installed, base=other, allow_base_mismatch=True)

    assert any("fused because the mismatch is allowed" in warning for warning in result.warnings)


def test_a_base_of_other_shapes_is_refused_whatever_is_allowed(installed: Library, tmp_path: Path) -> None:
    other = str(save_base(tmp_path / "other", lambda: llama(hidden_size=16, tie_word_embeddings=False)))
    folder = next(installed.installed()).folder

    with pytest.raises(BaseMismatch):
        fuse(folder, tmp_path / "out", library=installed, base=other, allow_base_mismatch=True)


def test_modules_that_the_base_lacks_are_named(tmp_path: Path) -> None:
    base = str(save_base(tmp_path / "base", lambda: llama(num_hidden_layers=1, tie_word_embeddings=False)))
    adapter = save_adapter(tmp_path / "adapter", untied, target_modules=QV)

    with pytest.raises(BaseMismatch, match=r"lacks 2 of 4 modules, such as `model\.layers\.1\.self_attn\.q_proj`"):
        fuse(adapter, tmp_path / "out", library=Library(tmp_path / "home"), base=base)


def test_shapes_that_differ_are_named(tmp_path: Path) -> None:
    base = str(save_base(tmp_path / "base", lambda: llama(hidden_size=16, tie_word_embeddings=False)))
    adapter = save_adapter(tmp_path / "adapter", untied, target_modules=["q_proj"])

    with pytest.raises(BaseMismatch, match=r"`model\.layers\.0\.self_attn\.q_proj` was made for a weight of shape"):
        fuse(adapter, tmp_path / "out", library=Library(tmp_path / "home"), base=base)


def test_a_base_that_changed_since_it_was_registered_is_refused(installed: Library, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "base")
    save_base(tmp_path / "base", lambda: llama(7, tie_word_embeddings=False))

    with pytest.raises(BaseMismatch, match=r"but `base-7b` was registered with"):
        fuse("legal-qa", tmp_path / "out", library=installed)


def test_a_base_that_is_not_here_is_named(installed: Library, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "base")

    with pytest.raises(BaseNotFound, match="`base-7b` are not on this machine"):
        fuse("legal-qa", tmp_path / "out", library=installed)


def test_another_precision_of_the_base_is_said(installed: Library, tmp_path: Path) -> None:
    half = str(save_base(tmp_path / "half", untied, torch.bfloat16))

    result = fuse("legal-qa", tmp_path / "out", library=installed, base=half)

    assert any("in another precision" in warning for warning in result.warnings)
    assert result.dtypes == ("bfloat16",)


# ---------------------------------------------------------------- the folder
def test_a_folder_that_is_taken_is_refused_and_an_empty_one_is_used(installed: Library, tmp_path: Path) -> None:
    taken, link, empty = tmp_path / "taken", tmp_path / "link", tmp_path / "empty"
    taken.mkdir()
    (taken / "mine").write_text("mine")
    empty.mkdir()
    link.symlink_to(empty)

    for folder in (taken, link, taken / "mine"):
        with pytest.raises(Conflict):
            fuse("legal-qa", folder, library=installed)
    fuse("legal-qa", empty, library=installed)

    assert (taken / "mine").read_text() == "mine"
    assert sorted(p.name for p in empty.iterdir()) == ["config.json", "generation_config.json", "model.safetensors"]


def test_too_little_room_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match="Nothing was written"), new_folder(tmp_path / "out", size_bytes=1 << 60):
        pytest.fail("the folder was given out")

    assert list(tmp_path.iterdir()) == []


def test_a_base_that_changes_meanwhile_is_told_and_leaves_nothing(installed: Library, tmp_path: Path) -> None:
    weights = tmp_path / "base" / "model.safetensors"

    with (
        prepare("legal-qa", tmp_path / "out", library=installed) as fusion,
        pytest.raises(CouldNotTell, match="changed"),
    ):
        fusion.write(progress=lambda _done: os.utime(weights))

    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "base", "home"]


def test_usage_problems(installed: Library, tmp_path: Path) -> None:
    for options in ({"dtype": "int8"}, {"weights": [0.0]}, {"weights": [float("nan")]}, {"weights": [1.0, 2.0]}):
        with pytest.raises(UsageProblem):
            fuse("legal-qa", tmp_path / "out", library=installed, **options)


# ---------------------------------------------------------------- the command
def test_the_command_says_what_was_written_and_what_was_lost(installed: Library, tmp_path: Path) -> None:
    half = save_base(tmp_path / "half", untied, torch.bfloat16)
    adapter = next(installed.installed()).folder
    arguments = ("fuse", adapter, "--base", half, "--root", installed.root)

    adapt = Adapt(tmp_path)
    text = adapt(*arguments, "-o", "one")
    document = adapt.json(*arguments, "-o", "two")
    again = adapt(*arguments, "-o", "two")

    assert text.exit_code == 0
    assert "fused into one" in text.stdout
    assert re.search(r"rounding lost 0\.0\d+ of the update, worst in model\.layers\.", text.stdout)
    assert "adapt base add one" in text.stderr
    assert (document["path"], document["files"], document["dtypes"], document["copied"]) == ("two", 1, ["bfloat16"], 17)
    assert len(document["tensors"]) == 4
    assert (again.exit_code, "Nothing was written" in again.stderr) == (15, True)


def test_a_large_loss_comes_with_advice(tmp_path: Path) -> None:
    base = large_base(tmp_path / "base", torch.bfloat16)
    adapter = write_folder(tmp_path / "adapter", {"layers.0.q_proj": (700, 900)}, lora_alpha=1e-4)

    done = Adapt(tmp_path)("fuse", adapter, "--base", base, "-o", "out", "--root", "home")

    assert done.exit_code == 0
    assert "use the adapter unfused" in done.stderr


def test_a_file_size_limit_is_told_plainly_and_leaves_nothing(installed: Library, tmp_path: Path) -> None:
    with files_of_at_most(20_000):
        done = Adapt(tmp_path)("fuse", "legal-qa", "-o", "out", "--root", installed.root)

    assert (done.exit_code, "Traceback" in done.stderr) == (14, False)
    assert "cannot be written" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "base", "home"]


def sparse_base(folder: Path, *, rows: int) -> Path:
    """A base of `rows` x 64 KiB in bfloat16, written as a hole: reading it costs no disk."""
    from adapterhub.formats.safetensors.file import header_bytes
    from adapterhub.formats.safetensors.header import TensorSpec

    folder.mkdir()
    shapes = {f"layers.{i}.up_proj.weight": (rows // 4, 1 << 15) for i in range(4)} | {"norm.weight": (8,)}
    specs = [TensorSpec.planned(name, "BF16", shape) for name, shape in shapes.items()]
    header = header_bytes(specs, {"format": "pt"})
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(header)
        stream.truncate(len(header) + sum(spec.size_bytes for spec in specs))
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_fuse_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    base = sparse_base(tmp_path / "base", rows=1 << 6)
    adapter = write_folder(tmp_path / "adapter", {f"layers.{i}.up_proj": (1 << 4, 1 << 15) for i in range(4)})
    (tmp_path / "made").mkdir()
    words = ("fuse", adapter, "--base", base, "-o", "made/out", "--root", "home")

    done = adapt_interrupted_at("adapterhub.weights.fuse.writing", "_write_at", number, *words, folder=tmp_path)

    assert done.exit_code == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "made").iterdir()) == []


MEASURE = """
import resource, sys
from pathlib import Path
from adapterhub.weights.fuse import prepare
base, adapter, out, home = sys.argv[1:]
def peak():  # of this process alone; getrusage has the memory of the process that began it, too
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
before = peak()
with prepare(Path(adapter), Path(out), library=home, base=base) as fusion:
    fused = fusion.write()
print(peak() - before, fused.size_bytes)
"""


def test_memory_is_far_below_the_size_of_the_base(tmp_path: Path) -> None:
    base = sparse_base(tmp_path / "base", rows=1 << 12)
    adapter = write_folder(tmp_path / "adapter", {f"layers.{i}.up_proj": (1 << 10, 1 << 15) for i in range(4)}, ranks=8)

    arguments = [str(base), str(adapter), str(tmp_path / "out"), str(tmp_path / "home")]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=True, env=os.environ
    )

    more, size = map(int, done.stdout.split())
    assert size > 250e6
    assert more < 100e6


# ---------------------------------------------------------------- the real base
@pytest.mark.exhaustive
def test_the_real_base_answers_fused_as_it_does_with_the_adapter_attached(tmp_path: Path) -> None:
    sentence = "Priya wants 5 lamps for 30 dollars."
    library = Library(tmp_path / "home")
    record = library.bases.add(smollm2_base(), "smol")
    library.add(SHIPPED / "json", Description(name=parse_name("json"), version="1.0.0"), base=record)

    result = fuse("json@smol", tmp_path / "out", library=library)

    base, tokenizer = load_base(smollm2_base(), dtype="float32")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")(sentence, return_tensors="pt")
    with torch.no_grad():
        ours = model(**tokens).logits
    with attach(base, "json@smol", library=library) as attached, torch.no_grad():
        theirs = attached.model(**tokens).logits
        text = answer(attached.model, tokenizer, sentence, max_new_tokens=40)
    assert answer(model, tokenizer, sentence, max_new_tokens=40) == text
    # float32 sums in another order: 1e-4 on logits of about 20
    assert torch.allclose(ours, theirs, atol=1e-4, rtol=1e-4)
    before, after = tensors_in(smollm2_base()), tensors_in(tmp_path / "out")
    changed = {tensor.name for tensor in result.tensors}
    assert (len(changed), result.copied) == (60, 212)
    assert all(torch.equal(bits(after[n]), bits(before[n])) == (n not in changed) for n in before)
    assert result.relative_error < 1e-5
