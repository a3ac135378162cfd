"""Fingerprints of folders: what counts as a model's files, what the hints tell, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapterhub.core.digests import digest_of
from adapterhub.core.errors import BaseNotFound, CouldNotTell, Malformed, MalformedTensorFile
from adapterhub.formats.base.fingerprint import BaseHints
from adapterhub.formats.base.folders import files_digest, fingerprint_folder
from tests.support.fingerprinted import fingerprint, llama

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny-llama"
    llama().save_pretrained(folder)
    return folder


def test_hints_tell_what_the_files_say(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models--acme--tiny-llama" / "snapshots" / COMMIT
    shutil.copytree(base, folder)
    (folder / "tokenizer.json").write_bytes(b"{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ x }}"}))

    hints = fingerprint_folder(folder, cache_folder=None)[1]

    assert hints == BaseHints(
        hub_id="acme/tiny-llama",
        commit=COMMIT,
        model_type="llama",
        dtype="float32",
        parameters=llama().num_parameters(),
        hidden_size=64,
        layers=2,
        tokenizer_sha256=digest_of(b"{}"),
        chat_template_sha256=digest_of(b"{{ x }}"),
    )


def test_a_template_counts_the_same_in_a_file_of_its_own(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(base, folder)
    (folder / "chat_template.jinja").write_text("{{ x }}")

    hints = fingerprint_folder(folder, cache_folder=None)[1]

    assert hints.chat_template_sha256 == digest_of(b"{{ x }}")


@pytest.mark.parametrize("config", [b"", b"[]", b"\xff", b'{"model_type": 3, "hidden_size": "wide", "text_config": 1}'])
def test_odd_configs_leave_hints_unknown(base: Path, tmp_path: Path, config: bytes) -> None:
    shutil.copy(base / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_bytes(config)

    hints = fingerprint_folder(tmp_path, cache_folder=None, hub_id="acme/x")[1]

    assert hints == BaseHints(hub_id="acme/x", parameters=llama().num_parameters())


def test_links_of_a_hub_cache_are_followed_and_give_the_files_digest(base: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--acme--tiny-llama"
    snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    data = (base / "model.safetensors").read_bytes()
    name = hashlib.sha256(data).hexdigest()
    (blobs / name).write_bytes(data)
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{name}")

    found, hints, _ = fingerprint_folder(snapshot, cache_folder=None)

    assert found.weights == fingerprint(base).weights
    assert found.files == files_digest([("model.safetensors", name)])
    assert hints.hub_id == "acme/tiny-llama"


def test_the_single_file_goes_before_an_index_as_in_transformers(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "both"
    shutil.copytree(base, folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "gone.safetensors"}}))

    assert fingerprint(folder) == fingerprint(base)


def test_weights_under_another_name_are_found_and_adapters_left_out(base: Path, tmp_path: Path) -> None:
    shutil.copy(base / "model.safetensors", tmp_path / "weights.safetensors")
    save_file({"lora": torch.ones(1)}, tmp_path / "adapter_model.safetensors")

    assert fingerprint(tmp_path) == fingerprint(base)


@pytest.mark.parametrize("variant", ["fp16", "non_ema"])
def test_the_plain_file_of_diffusers_goes_before_its_variants(tmp_path: Path, variant: str) -> None:
    plain, other = {"w": torch.ones(2)}, {"w": torch.zeros(2)}
    save_file(plain, tmp_path / "diffusion_pytorch_model.safetensors")
    alone = fingerprint(tmp_path)
    file = tmp_path / f"diffusion_pytorch_model.{variant}.safetensors"
    save_file(other, file)

    assert fingerprint(tmp_path) == alone
    assert fingerprint(file).weights != alone.weights  # a variant is chosen by its file


def test_the_index_of_the_only_variant_names_the_files(tmp_path: Path) -> None:
    shards(tmp_path, "a", "b", "spare")
    write_index(
        tmp_path, {"a": "a.safetensors", "b": "b.safetensors"}, "diffusion_pytorch_model.safetensors.index.fp16.json"
    )

    assert sorted(fingerprint(tmp_path).samples) == ["a", "b"]


def write_index(folder: Path, places: object, name: str = "model.safetensors.index.json") -> None:
    (folder / name).write_text(json.dumps({"weight_map": places}))


def shards(folder: Path, *names: str) -> None:
    for name in names:
        save_file({name: torch.ones(2)}, folder / f"{name}.safetensors")


def missing_shard(folder: Path) -> None:
    shards(folder, "a")
    write_index(folder, {"a": "a.safetensors", "b": "b.safetensors", "c": "c.safetensors"})


def missing_shard_of_diffusers(folder: Path) -> None:
    shards(folder, "a")
    name = "diffusion_pytorch_model.safetensors.index.json"
    write_index(folder, {"a": "a.safetensors", "b": "b.safetensors"}, name)


def missing_number(folder: Path) -> None:
    shards(folder, "diffusion_pytorch_model-00002-of-00002")


def two_variants(folder: Path) -> None:
    shards(folder, "a")
    for variant in ("fp16", "non_ema"):
        write_index(folder, {"a": "a.safetensors"}, f"diffusion_pytorch_model.safetensors.index.{variant}.json")


def missing_tensor(folder: Path) -> None:
    shards(folder, "a")
    write_index(folder, {"a": "a.safetensors", "b": "a.safetensors"})


def escaping_index(folder: Path) -> None:
    write_index(folder, {"a": "../a.safetensors"})


def broken_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{")


def empty_index(folder: Path) -> None:
    write_index(folder, {})


def two_models(folder: Path) -> None:
    for name in ("one", "two"):
        save_file({"w": torch.ones(2)}, folder / f"{name}.safetensors")


def broken_link(folder: Path) -> None:
    (folder / "weights.safetensors").symlink_to("blobs/gone")


def pickle_only(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"PK")


def gguf_only(folder: Path) -> None:
    (folder / "model-Q4.gguf").write_bytes(b"GGUF")


def adapter_only(folder: Path) -> None:
    save_file({"w": torch.ones(2)}, folder / "adapter_model.safetensors")


def pipeline(folder: Path) -> None:
    (folder / "model_index.json").write_text("{}")


def hub_repository(folder: Path) -> None:
    (folder / "snapshots" / COMMIT).mkdir(parents=True)


def buffers_only(folder: Path) -> None:
    save_file({"position_ids": torch.ones(2)}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("make", "message", "hint"),
    [
        (missing_shard, "2 of 3 files that .* not there: `b.safetensors`, `c.safetensors`", "finish the download"),
        (missing_shard_of_diffusers, "1 of 2 files that .* not there: `b.safetensors`", "finish the download"),
        (missing_number, "1 of 2 files are not there: `.*00001-of-00002.safetensors`", "finish the download"),
        (two_variants, "holds 2 variants of a model, expected one: .*index.fp16.json", "keep the files of one"),
        (missing_tensor, "1 tensors that .* such as `b`", "download the folder again"),
        (escaping_index, "`../a.safetensors` is not the name of a safetensors file beside it", ""),
        (broken_index, "index.json: not JSON", ""),
        (empty_index, "expected an object `weight_map`", ""),
        (two_models, "tensor `w` is in `one.safetensors` and in `two.safetensors`", "keep the files of one model"),
        (broken_link, "links to files that are not there: `weights.safetensors`", "finish the download"),
        (pickle_only, r"holds pickles only \(`pytorch_model.bin`\)", "save_pretrained"),
        (gguf_only, "its header leads beyond byte 4", "the file is cut off"),
        (adapter_only, "holds an adapter", "`adapt add FOLDER`"),
        (pipeline, "pipeline of several models", "transformer"),
        (hub_repository, "repository in a Hub cache", f"snapshots/{COMMIT}`"),
        (buffers_only, "holds no weights", ""),
        (lambda folder: None, "holds no weights, expected `model.safetensors`", "save_pretrained"),  # noqa: ARG005
    ],
)
def test_a_folder_without_one_whole_model_is_refused(
    tmp_path: Path, make: Callable[[Path], None], message: str, hint: str
) -> None:
    make(tmp_path)

    with pytest.raises(Malformed, match=message) as caught:
        fingerprint(tmp_path)
    assert hint in caught.value.hint


def test_what_is_no_folder_is_refused(base: Path, tmp_path: Path) -> None:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")

    with pytest.raises(BaseNotFound, match="no such folder"):
        fingerprint(tmp_path / "nowhere")
    with pytest.raises(Malformed, match="its header leads beyond byte 4"):
        fingerprint(gguf)
    with pytest.raises(Malformed, match="is a file, expected the folder") as caught:
        fingerprint(base / "model.safetensors")
    assert caught.value.hint == f"give `{base}`"
    shards(tmp_path, "a-00001-of-00002")
    with pytest.raises(Malformed, match="is file 1 of 2 of a model"):
        fingerprint(tmp_path / "a-00001-of-00002.safetensors")


def test_a_folder_that_cannot_be_asked_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CouldNotTell, match="cannot be read: File name too long"):
        fingerprint(tmp_path / ("x" * 300))


def test_a_cut_off_file_is_refused(base: Path, tmp_path: Path) -> None:
    data = (base / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:-1])

    with pytest.raises(MalformedTensorFile, match="is cut off"):
        fingerprint(tmp_path)
