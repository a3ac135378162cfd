"""The folder that the pages of `docs/` speak of: small models, adapters of all sorts, a library with one.

Everything is made with `tests/support/tiny.py` and through the library, without torch, once in a process.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from adapterhub.core.specs import AdapterSpec, parse_name
from adapterhub.formats.foreign.tables import SDXL
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.directory import PublishedDirectory
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from adapterhub.library.transfer import copy
from tests.support.foreign_files import flux, kohya, mlx
from tests.support.tiny import LAYERS, make_adapter, make_base

WIDTH = 32  # wide enough for the ranks of a merge to add up
HUB_ID = "acme/base-7b"


def make_sandbox(folder: Path, *, filled: bool) -> None:
    """The models and adapters; with `filled` also `./home`, where `base-7b` is registered and `legal-qa` is added."""
    shutil.copytree(_made_once(), folder, dirs_exist_ok=True, symlinks=True)
    if filled:
        library = Library(folder / "home")
        record = _register(library, folder / "models" / "base-7b")
        about = Description(name=parse_name("legal-qa"), version="1.0.0", task="legal-qa")
        library.add(folder / "out" / "legal-qa", about, base=record)


@functools.cache
def _made_once() -> Path:
    """What all sandboxes of a process are copies of."""
    folder = Path(tempfile.mkdtemp(prefix="sandbox-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    base = make_base(folder / "models" / "base-7b", width=WIDTH)
    _complete(base / "config.json")
    make_base(folder / "models" / "base-7b-fp16", width=WIDTH, dtype="f2")
    make_base(folder / "models" / "base-7b-chat", width=WIDTH, seed=1)
    make_base(folder / "models" / "other-7b", width=2 * WIDTH)
    _make_copies(folder / "models")
    make_adapter(folder / "out" / "legal-qa", width=WIDTH, base=HUB_ID, seed=1)
    summary = make_adapter(folder / "out" / "summarize", width=WIDTH, base=HUB_ID, seed=2)
    make_adapter(folder / "out" / "tables", width=WIDTH, base=HUB_ID, seed=3, modules=("q_proj", "k_proj", "v_proj"))
    _make_pipelines(folder)
    larger = make_adapter(folder / "out" / "summarize-r8", width=WIDTH, base=HUB_ID, seed=4, rank=8)
    _publish(folder, base, "published", [("summarize", "1.0.0", summary)])
    team = [("1.0.0", summary), ("1.1.0", summary), ("1.1.0", larger), ("2.0.0rc1", larger)]
    _publish(folder, base, "team", [("summarize", version, adapter) for version, adapter in team])
    _make_downloads(folder / "downloads")
    _make_loras(folder)
    return folder


def _make_loras(folder: Path) -> None:
    """LoRA files of other programs."""
    loras = folder / "loras"
    loras.mkdir()
    tags = json.dumps({"10_boats": {"wtrclr style": 20, "a boat": 12, "harbour": 3}})
    said = {"modelspec.title": "Watercolour", "ss_tag_frequency": tags}
    kohya(loras / "watercolour.safetensors", unet=SDXL, names="ldm", every=40, text="lora_te1", metadata=said)
    save_file(load_file(loras / "watercolour.safetensors"), loras / "watercolour-old.safetensors")
    flux(loras / "ink.safetensors")
    save_file({"emb_params": np.ones((2, 8), "f4")}, loras / "word.safetensors")
    mlx(folder / "mlx" / "json-mlx")


def _complete(config: Path) -> None:
    """Say what transformers needs to make a model of this size; it draws the weights that the folder does not hold."""
    sizes = {"intermediate_size": 2 * WIDTH, "num_attention_heads": 4, "eos_token_id": None, "pad_token_id": 0}
    config.write_text(json.dumps(json.loads(config.read_text()) | sizes))


def _make_copies(models: Path) -> None:
    """The base and its chat model in Q4_0 as one GGUF file each, and the base in a format that is not known."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    kind, heads = gguf.GGMLQuantizationType.Q4_0, 4
    for model in ("base-7b", "base-7b-chat"):
        writer = gguf.GGUFWriter(models / f"{model}-Q4_0.gguf", "llama")
        writer.add_embedding_length(WIDTH)
        writer.add_block_count(LAYERS)
        writer.add_head_count(heads)
        tensors = load_file(models / model / "model.safetensors")
        for name, tensor in tensors.items():
            rows = tensor
            if name.endswith(("q_proj.weight", "k_proj.weight")):  # llama.cpp's order
                rows = tensor.reshape(heads, 2, -1, WIDTH).swapaxes(1, 2).reshape(tensor.shape)
            called = names.get_name(name, try_suffixes=(".weight",))
            if rows.ndim > 1:
                writer.add_tensor(called, gguf.quants.quantize(rows, kind), raw_dtype=kind)
            else:
                writer.add_tensor(called, rows)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    (models / "base-7b-exl3").mkdir()
    trellis = {name.replace("weight", "trellis"): np.zeros((2, 2, 16), "i2") for name in tensors if "_proj" in name}
    kept = {name: tensor for name, tensor in tensors.items() if "_proj" not in name}
    save_file(kept | trellis, models / "base-7b-exl3" / "model.safetensors")
    stated = json.loads((models / "base-7b" / "config.json").read_text()) | {
        "quantization_config": {"quant_method": "exl3"}
    }
    (models / "base-7b-exl3" / "config.json").write_text(json.dumps(stated))


def _register(library: Library, base: Path) -> BaseRecord:
    record = library.bases.add(base, "base-7b")
    library.catalog.put_base(record)
    return record


def _publish(folder: Path, base: Path, place: str, builds: list[tuple[str, str, Path]]) -> None:
    author = Library(folder / f".author-of-{place}")
    record = _register(author, base)
    for name, version, adapter in builds:
        about = Description(name=parse_name(name), version=version, task="summaries")
        author.add(adapter, about, base=record, variant=True)
    for release in author.releases(AdapterSpec.parse(builds[0][0])):
        copy(release, author, PublishedDirectory(folder / place))


_UNET = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
_LDM = "input_blocks.1.1.transformer_blocks.0.attn1"
_TEXT = "text_model.encoder.layers.0.self_attn"


def _make_pipelines(folder: Path) -> None:
    """A pipeline of a few tensors in a folder and in one file, a fine-tune of it, and adapters for it."""
    random = np.random.default_rng(7)
    heads = {name: random.normal(size=(WIDTH, WIDTH)).astype("f4") for name in ("to_q", "to_v", "q_proj", "v_proj")}
    for name, shift in (("sdxl", 0), ("pony", 1)):
        place = folder / "models" / name
        parts = {"unet": (_UNET, ("to_q", "to_v")), "text_encoder": (_TEXT, ("q_proj", "v_proj"))}
        for component, (prefix, names) in parts.items():
            (place / component).mkdir(parents=True)
            file = "diffusion_pytorch_model" if component == "unet" else "model"
            tensors = {f"{prefix}.{n}.weight": heads[n] + np.float32(shift) for n in names}
            save_file(tensors, place / component / f"{file}.safetensors")
        index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
        index["text_encoder"] = ["transformers", "CLIPTextModel"]
        (place / "model_index.json").write_text(json.dumps(index))
    ldm = {f"model.diffusion_model.{_LDM}.{n}.weight": heads[n] for n in ("to_q", "to_v")}
    clip = {f"cond_stage_model.transformer.{_TEXT}.{n}.weight": heads[n] for n in ("q_proj", "v_proj")}
    half = {name: value.astype("f2") for name, value in (ldm | clip).items()}
    (folder / "checkpoints").mkdir()
    save_file(half, folder / "checkpoints" / "sdxl-fp16.safetensors")
    for name, modules in (
        ("ink", [f"{_UNET}.to_q"]),
        ("watercolour", [f"unet.{_UNET}.to_q", f"text_encoder.{_TEXT}.q_proj"]),
    ):
        place = folder / "out" / name
        place.mkdir(parents=True)
        tensors = {
            f"base_model.model.{module}.lora_{factor}.weight": random.normal(size=shape).astype("f4")
            for module in modules
            for factor, shape in (("A", (4, WIDTH)), ("B", (WIDTH, 4)))
        }
        save_file(tensors, place / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": modules}
        (place / "adapter_config.json").write_text(json.dumps(config))


def _make_downloads(downloads: Path) -> None:
    """Adapters that are refused, each for one reason, and some that declare too little."""

    def adapter(name: str, **options: object) -> Path:
        options = {"width": WIDTH, "base": HUB_ID, "seed": 5} | options
        return make_adapter(downloads / name, **options)  # type: ignore[arg-type]

    def edit_tensors(folder: Path, **replaced: np.ndarray | None) -> None:
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path) | replaced
        save_file({name: value for name, value in tensors.items() if value is not None}, path)

    adapter("no-base")
    adapter("other-machine", base="/home/ana/models/base-7b")
    adapter("made-for-other", width=2 * WIDTH)
    adapter("with-code", auto_map={"AutoModel": "model.Adapter"})
    (adapter("pickled") / "adapter_model.safetensors").rename(downloads / "pickled" / "adapter_model.bin")
    (downloads / "pickled" / "adapter_model.bin").write_bytes(b"\x80\x02}q\x00.")
    module = "base_model.model.model.layers.0.self_attn"
    first = f"{module}.q_proj.lora_A.weight"
    edit_tensors(adapter("diverged"), **{first: np.full((4, WIDTH), np.nan, "f4")})
    edit_tensors(adapter("half-a-pair"), **{first: None})
    edit_tensors(adapter("whole-weight"), **{f"{module}.k_proj.weight": np.ones((WIDTH, WIDTH), "f4")})
    magnitudes = {
        f"base_model.model.model.layers.{i}.self_attn.{m}.lora_magnitude_vector": np.ones(WIDTH, "f4")
        for i in range(2)
        for m in ("q_proj", "v_proj")
    }
    edit_tensors(adapter("dora", use_dora=True), **magnitudes)
    config = adapter("wrong-rank") / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 8}))
    adapter("damaged")
    (downloads / "damaged" / "adapter_model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    unknown = Library(downloads.parent / ".author-of-unnamed")
    about = Description(name=parse_name("extract"), version="1.0.0", task="extraction")
    unknown.add(downloads / "no-base", about)
    copy(unknown.releases(AdapterSpec.parse("extract"))[0], unknown, PublishedDirectory(downloads.parent / "team"))
