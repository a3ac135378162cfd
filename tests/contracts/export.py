"""What every export format must hold, run over every file of `adapterhub/inference/export/` by `tests/inference/test_export.py`.

A format means what PEFT means by the adapter, to the last bit that its dtype allows; it appears whole or not at all; and the
same adapter gives the same bytes. Each format has a reader here that knows nothing of how it was written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import resource
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from adapterhub.core.errors import AdapterHubError, Conflict, DiskFull, RefusedAdapter
from adapterhub.inference.export import Exported, export, forms, load
from adapterhub.library.library import Library
from tests.support.adapter_folders import error_of, updates_in, write_folder

HEADS, KEY_HEADS, SIZE = 4, 2, 32
SHAPES = {
    f"model.layers.{layer}.{module}": shape
    for layer in range(2)
    for module, shape in {
        "self_attn.q_proj": (SIZE, SIZE),
        "self_attn.k_proj": (SIZE // 2, SIZE),
        "self_attn.o_proj": (SIZE, SIZE),
        "mlp.down_proj": (SIZE, 48),
    }.items()
}
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.o_proj": "attn_output",
    "mlp.down_proj": "ffn_down",
}
CLOSE = 1e-6
"""Two roundings to float32 of numbers near 1."""


def make_base(folder: Path) -> Path:
    """A llama without a vocabulary to speak of."""
    generator = torch.Generator().manual_seed(7)
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    tensors = {f"{name}.weight": torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    tensors["model.embed_tokens.weight"] = torch.randn(16, SIZE, generator=generator)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "llama", "hidden_size": SIZE, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": HEADS, "num_key_value_heads": KEY_HEADS, "vocab_size": 16,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def library_with_base(tmp_path: Path) -> Library:
    library = Library(tmp_path / "home")
    library.bases.add(make_base(tmp_path / "base"), "tiny")
    return library


def written(tmp_path: Path, form: str, folder: Path, out: str = "out", **options: object) -> Exported:
    library = Library(tmp_path / "home")
    if not library.bases.aliases():
        library = library_with_base(tmp_path)
    if form == "ollama":
        options.setdefault("ollama_base", "tiny:latest")
    return export(folder, tmp_path / out, form=form, library=library, base="tiny", **options)  # type: ignore[arg-type]


# ---------------------------------------------------------------- readers
def read_gguf(path: Path) -> dict[str, Tensor]:
    """Every update as llama.cpp means it: alpha over rank unless alpha is 0, rows of q and k turned back."""
    reader = gguf.GGUFReader(path)
    kinds = [reader.fields[key].contents() for key in ("general.architecture", "general.type", "adapter.type")]
    assert kinds == ["llama", "adapter", "lora"]
    alpha = reader.fields["adapter.lora.alpha"].contents()
    found = {
        t.name: torch.from_numpy(np.array(gguf.quants.dequantize(t.data, t.tensor_type), np.float64))
        for t in reader.tensors
    }
    updates = {}
    for layer in range(2):
        for module, name in NAMES.items():
            tensor = f"blk.{layer}.{name}.weight"
            if f"{tensor}.lora_a" not in found:
                continue
            a, b = found.pop(f"{tensor}.lora_a"), found.pop(f"{tensor}.lora_b")
            update = b @ a * (alpha / a.shape[0] if alpha else 1)
            heads = {"attn_q": HEADS, "attn_k": KEY_HEADS}.get(name)
            if heads:
                half = update.shape[0] // heads // 2
                update = update.reshape(heads, half, 2, -1).transpose(1, 2).reshape(update.shape)
            updates[f"model.layers.{layer}.{module}"] = update
    assert found == {}
    return updates


def read_ollama(folder: Path) -> dict[str, Tensor]:
    lines = dict(line.split(" ", 1) for line in (folder / "Modelfile").read_text().splitlines())
    assert lines["FROM"] == "tiny:latest"
    return read_gguf(folder / lines["ADAPTER"])


def read_merged(folder: Path) -> dict[str, Tensor]:
    before, after = load_file(folder.parent / "base" / "model.safetensors"), load_file(folder / "model.safetensors")
    return {
        n.removesuffix(".weight"): after[n].double() - t.double()
        for n, t in before.items()
        if not torch.equal(after[n], t)
    }


def read_mlx(folder: Path) -> dict[str, Tensor]:
    """What mlx-lm computes: scale * (x @ lora_a) @ lora_b, with the scale of the config."""
    config = json.loads((folder / "adapter_config.json").read_text())["lora_parameters"]
    found = load_file(folder / "adapters.safetensors")
    return {
        name.removesuffix(".lora_a"): config["scale"] * (a.double() @ found[f"{name[:-1]}b"].double()).T
        for name, a in found.items()
        if name.endswith(".lora_a") and a.shape[1] == config["rank"]
    }


READERS: Mapping[str, Callable[[Path], dict[str, Tensor]]] = {
    "gguf": read_gguf,
    "merged": read_merged,
    "mlx": read_mlx,
    "ollama": read_ollama,
    "peft": updates_in,
    "peft@0.18": updates_in,
    "unsloth": updates_in,
    "unsloth@0.18": updates_in,
    "vllm": updates_in,
    "vllm@2d": updates_in,
}

PLAIN: list[dict[str, object]] = [
    {},
    {"use_rslora": True},
    {"ranks": {name: 1 + i % 5 for i, name in enumerate(SHAPES)}},
    {"alpha_pattern": {"q_proj": 3, r"layers\.1\.mlp\.down_proj": 0.5}},
    {"use_rslora": True, "ranks": {n: 1 + i % 3 for i, n in enumerate(SHAPES)}, "alpha_pattern": {"o_proj": 7}},
    {"dtype": torch.bfloat16, "lora_alpha": 5},
    {"dtype": torch.float16},
    {"ranks": 1},
]
"""Adapters that every format can carry."""


@contextlib.contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """The system refuses to write more into any file, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def digest_of_tree(path: Path) -> str:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    parts = [(p.relative_to(path).as_posix().encode(), p.read_bytes()) for p in files]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


NOT_ALL = frozenset({"comfyui", "diffusers", "kohya", "tinker"})
"""Formats that cannot hold every plain adapter of a language model: `test_export_programs.py` holds those for image
pipelines, `tests/dialects/test_written.py` that of Tinker, whose config has one rank and alpha for all modules."""


@pytest.mark.parametrize("form", [form for form in forms() if form not in NOT_ALL])
class ExportContract:
    """Subclass it in a test module to run it."""

    def test_docstring_names_it(self, form: str) -> None:
        assert (load(form).__doc__ or "").startswith(f"`{form}`: ")

    @pytest.mark.parametrize("options", PLAIN, ids=str)
    def test_means_what_peft_means(self, form: str, options: dict[str, object], tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "adapter", SHAPES, **options)  # type: ignore[arg-type]

        written(tmp_path, form, folder)

        assert form in READERS, f"a new format needs a reader in {__file__}"
        assert error_of(READERS[form](tmp_path / "out"), updates_in(folder)) < CLOSE

    def test_same_adapter_same_bytes(self, form: str, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "adapter", SHAPES, use_rslora=True)

        written(tmp_path, form, folder, out="a")
        written(tmp_path, form, folder, out="b")

        assert digest_of_tree(tmp_path / "a") == digest_of_tree(tmp_path / "b")

    def test_names_everything_it_wrote(self, form: str, tmp_path: Path) -> None:
        exported = written(tmp_path, form, write_folder(tmp_path / "adapter", SHAPES))

        out = tmp_path / "out"
        assert {out} if out.is_file() else {p for p in out.rglob("*") if p.is_file()} == set(exported.paths)
        assert exported.size_bytes <= sum(path.stat().st_size for path in exported.paths)

    def test_never_writes_over_something(self, form: str, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "adapter", SHAPES)
        (tmp_path / "out").write_text("mine")

        with pytest.raises(Conflict):
            written(tmp_path, form, folder)

        assert (tmp_path / "out").read_text() == "mine"

    def test_refuses_numbers_that_are_not_finite_and_leaves_nothing(self, form: str, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "adapter", SHAPES)
        path = folder / "adapter_model.safetensors"
        raw = bytearray(path.read_bytes())
        raw[-4:] = b"\x00\x00\xc0\x7f"
        path.write_bytes(raw)

        with pytest.raises(RefusedAdapter, match="E_NONFINITE"):
            written(tmp_path, form, folder)

        assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "base", "home"]

    def test_an_interruption_leaves_nothing(self, form: str, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "adapter", SHAPES)

        def stop(_done: int, _total: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            written(tmp_path, form, folder, progress=stop)

        assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "base", "home"]

    def test_a_full_disk_is_told_and_nothing_is_left(self, form: str, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "adapter", SHAPES, ranks=32)
        library_with_base(tmp_path)

        with files_of_at_most(20_000), pytest.raises(DiskFull, match=r"out` cannot be written: File too large"):
            written(tmp_path, form, folder)

        assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "base", "home"]

    def test_never_replaces_the_folder_one_is_in(
        self, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = write_folder(tmp_path / "adapter", SHAPES)
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")

        with pytest.raises(Conflict, match="the folder you are in"):
            written(tmp_path, form, folder, out="here")

        assert list((tmp_path / "here").iterdir()) == []

    def test_a_folder_that_cannot_be_made_is_told(self, form: str, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "adapter", SHAPES)
        (tmp_path / "file").write_text("")

        with pytest.raises(AdapterHubError, match="cannot be written"):
            written(tmp_path, form, folder, out="file/out")
