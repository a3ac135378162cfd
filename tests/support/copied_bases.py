"""A tiny base, its copies of several kinds, and an adapter that was made for the base."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from adapterhub.library.bases.record import BaseRecord
from tests.formats.quantised.writers import as_gptq, plain
from tests.support.command_line import Adapt
from tests.support.copies import Tensors, in_float8
from tests.support.tiny_models import llama, save_adapter

WIDE = {"hidden_size": 64, "intermediate_size": 128, "tie_word_embeddings": False}


def tiny(seed: int = 1) -> torch.nn.Module:
    return llama(seed, **WIDE).to(torch.bfloat16)


def in_gptq(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """The tensors of a file, and what a program computes with."""
    files: Tensors = {}
    values: Tensors = {}
    for name, tensor in tensors.items():
        if not name.endswith("_proj.weight"):
            files[name] = values[name] = tensor
            continue
        grid = plain(tensor.double().numpy(), bits=8)
        files |= {name.replace("weight", key[2:]): part for key, part in as_gptq(grid).items()}
        values[name] = torch.from_numpy(grid.values)
    return files, values


def dequantised(tensors: Tensors) -> Tensors:
    return {
        name: tensor.float() * tensors[f"{name}_scale"] if f"{name}_scale" in tensors else tensor
        for name, tensor in tensors.items()
        if not name.endswith("_scale")
    }


class World:
    """Two homes: `adapt` has the bases and the adapter `a`; `away` has the adapter only. `run` are models in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.adapt = Adapt(folder)
        self.away = Adapt(folder, home="away")
        self.run: dict[str, Tensors] = {}
        tiny().save_pretrained(folder / "source")
        self.source = load_file(folder / "source" / "model.safetensors")
        self.save("source", self.source, self.source)
        self.save("wide", {name: tensor.float() for name, tensor in self.source.items()})
        tuned = {
            name: tensor * 1.1 if "layers.1.self_attn.q_proj" in name else tensor
            for name, tensor in self.source.items()
        }
        for name, tensors in (("fp8", self.source), ("tuned-fp8", tuned)):
            self.save(name, in_float8(tensors), dequantised(in_float8(tensors)))
        self.save("gptq", *in_gptq(self.source), quantization_config={"quant_method": "gptq", "bits": 8})
        unknown = {n: t for n, t in self.source.items() if not n.endswith("_proj.weight")}
        unknown["model.layers.0.self_attn.q_proj.trellis"] = torch.zeros(6, 10, dtype=torch.int16)
        self.save("exl3", unknown, quantization_config={"quant_method": "exl3"})
        save_adapter(folder / "a", tiny, LoraConfig(r=2, target_modules=["q_proj"]))
        for home in (self.adapt, self.away):
            home.ok("base", "add", "./source")
            home.ok("add", "./a", "--name", "a", "--base", "source")

    def save(self, name: str, files: Tensors, values: Tensors | None = None, **config: object) -> None:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        save_file({key: tensor.contiguous() for key, tensor in files.items()}, folder / "model.safetensors")
        stated = json.loads((self.folder / "source" / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(stated | config))
        self.run[name] = files if values is None else values

    def model(self, name: str) -> torch.nn.Module:
        """The model as a program runs it that reads the codes at once."""
        made = llama(5, **WIDE)
        made.load_state_dict({key: tensor.float() for key, tensor in self.run[name].items()})
        return made

    def record(self, name: str) -> BaseRecord:
        return self.adapt.library.bases.get(name)

    def listed(self, name: str) -> dict[str, object]:
        return next(row for row in self.adapt.json("base", "list") if row["alias"] == name)
