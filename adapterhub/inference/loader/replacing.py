"""Biases and rows of an embedding that an adapter trained: they take the place of the base's while it is attached.

The base's own parameters are not written to. A module uses another parameter until `detach`, which puts its own back.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from adapterhub.core.errors import BaseMismatch, UnsupportedAdapter, shown
from adapterhub.inference.loader.base.model import BaseModel
from adapterhub.inference.loader.reading.contents import LISTED, AdapterContents
from adapterhub.weights.lowrank.algebra import MATRIX_NDIM


def check_replacements(contents: AdapterContents, base: BaseModel) -> None:
    """Raise unless the trained biases and rows of the adapter fit the base, and nothing else of it is on them.

    Raises:
        UnsupportedAdapter: the config does not announce a bias, or the adapter changes one module in two ways.
        BaseMismatch: the base lacks a module or rows, or has other shapes.
    """
    label = shown(contents.label)
    unclear = list(_in_two_ways(contents))
    if unclear:
        raise UnsupportedAdapter(f"`{label}` cannot be attached here", unclear[:LISTED])
    misfits = [*_bias_misfits(contents, base), *_row_misfits(contents, base)]
    if misfits:
        raise BaseMismatch("\n".join([f"`{label}` does not fit this model", *(f"  {m}" for m in misfits[:LISTED])]))


def replace_in(base: BaseModel, contents: AdapterContents) -> None:
    """Let the base use the adapter's biases and rows, after `check_replacements`."""
    for name, spec in contents.biases.items():
        module, _, key = name.rpartition(".")
        base.replace(module, key, contents.read(spec).to(_parameter(base, name)))
    for name, spec in contents.rows.items():
        weight = _parameter(base, f"{name}.weight")
        places = torch.tensor(contents.trained_rows(name), device=weight.device)
        changed = weight.detach().index_copy(0, places, contents.read(spec).to(weight))
        for each in (name, *_tied_to(name, contents, base)):
            base.replace(each, "weight", changed)


def _tied_to(name: str, contents: AdapterContents, base: BaseModel) -> list[str]:
    """Other modules with the weight of the input embedding `name`, such as a tied head: PEFT changes them as well."""
    embedding, weight = base.modules[name], base.modules[name].weight
    if name not in base.embeddings or not isinstance(embedding, nn.Embedding):
        return []
    return [
        other
        for other, module in base.modules.items()
        if module is not embedding and getattr(module, "weight", None) is weight and other not in contents.rows
    ]


def _in_two_ways(contents: AdapterContents) -> Iterator[str]:
    if contents.config.bias.endswith("_only"):
        for name in contents.biases:
            if name.rpartition(".")[0] not in contents.factors:
                yield f"`{shown(name)}` is a bias of a module that it does not target (bias {contents.config.bias})"
    for name in sorted(contents.rows.keys() & contents.factors.keys()):
        yield f"`{shown(name)}` has factors, and rows of it are replaced (trainable_token_indices)"


def _bias_misfits(contents: AdapterContents, base: BaseModel) -> Iterator[str]:
    for name, spec in contents.biases.items():
        here = tuple(_parameter(base, name).shape)
        if here != spec.shape:
            yield f"`{shown(name)}` has the shape {list(here)}, the adapter's {list(spec.shape)}"


def _row_misfits(contents: AdapterContents, base: BaseModel) -> Iterator[str]:
    for name, spec in contents.rows.items():
        rows = contents.trained_rows(name)
        weight = getattr(base.modules.get(name), "weight", None)
        if not isinstance(weight, torch.Tensor) or weight.ndim != MATRIX_NDIM or not weight.is_floating_point():
            yield f"`{shown(name)}` is no embedding here, but the adapter replaces rows of it"
        elif spec.shape != (len(rows), weight.shape[1]) or len(set(rows)) != len(rows):
            wanted = [len(rows), weight.shape[1]]
            yield f"`{shown(name)}` needs rows of the shape {wanted}, the adapter has {list(spec.shape)}"
        elif max(rows, default=0) >= weight.shape[0]:
            yield f"`{shown(name)}` has {weight.shape[0]} rows, and the adapter replaces row {max(rows)}"


def _parameter(base: BaseModel, name: str) -> torch.Tensor:
    module, _, key = name.rpartition(".")
    parameter: torch.Tensor = getattr(base.modules[module], key)
    return parameter
