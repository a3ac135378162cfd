"""A model in GGUF, beside any source: under names of transformers, which files of llama.cpp do not have."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adapterhub.core.errors import CouldNotTell, shown
from adapterhub.formats.base.quantised.files import FileReader
from adapterhub.formats.base.quantised.gguf import gguf_weights, source_names
from adapterhub.formats.base.quantised.model import FileModel
from adapterhub.formats.base.quantised.weight import Weight
from adapterhub.formats.gguf.file import GgufModel, read_gguf_model
from adapterhub.formats.gguf.names import names_of

_LAYERS: Final = "model.layers.{bid}."
_USUAL: Final = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "self_attn.qkv_proj",
    "self_attn.q_norm", "self_attn.k_norm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "mlp.gate_up_proj",
    "mlp.gate", "mlp.experts.gate_proj", "mlp.experts.up_proj", "mlp.experts.down_proj", "input_layernorm",
    "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
)  # fmt: skip
"""What most models of transformers call the parts of a layer."""
_OUTSIDE_OF_LAYERS: Final = ("model.embed_tokens", "model.norm", "lm_head")
_STACK: Final = re.compile(r"(?P<front>.+\.experts)\.(?P<leaf>\w+)\.weight")
_BLOCK: Final = re.compile(r"blk\.(?P<number>\d+)\.(?P<rest>.+)")


@dataclass(frozen=True, kw_only=True)
class GgufCopy(FileModel):
    """`weights` have usual names of transformers, one for each tensor of the file; `weights_for` knows all others."""

    file: GgufModel

    def weights_for(self, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Weight]:
        """As the converter of llama.cpp names and changes the tensors of a source."""
        return gguf_weights(self.file, shapes, shapes).weights

    def left_out(self, names: Collection[str]) -> Collection[str]:
        """Return the parts that no file of this architecture holds, such as a vision tower."""
        return gguf_weights(self.file, names).absent


def gguf_model(path: Path) -> GgufCopy:
    """Return the model in a GGUF file, or in the set of files of which it is one.

    Raises:
        MalformedTensorFile, Malformed: a file breaks its format, or does not fit its own metadata.
    """
    file = read_gguf_model(path)
    reader = FileReader(file.tensors)
    try:
        weights = gguf_weights(file, source_names(file) or usual_names(file)).weights
    except CouldNotTell:
        unknown = f"GGUF of {shown(file.architecture, 40)}"
        return GgufCopy(reader=reader, weights={}, quantised={}, unknown=unknown, file=file)
    return GgufCopy(reader=reader, weights=weights, quantised=weights, naming=f"gguf:{file.architecture}", file=file)


def usual_names(file: GgufModel) -> Iterator[str]:
    """Yield a name of transformers for each tensor of a file whose architecture has no known names."""
    spellings: dict[str, list[str]] = {}
    for name, gguf in names_of(file.architecture).items():
        spellings.setdefault(gguf, []).append(name)
    for tensor, (_, spec) in file.tensors.items():
        stem, _, suffix = tensor.rpartition(".")
        block = _BLOCK.fullmatch(stem)
        known = spellings.get(f"blk.{{bid}}.{block['rest']}" if block else stem)
        if not known:
            continue
        name = _usual(known).replace("{bid}", block["number"] if block else "") + f".{suffix}"
        stack = _STACK.fullmatch(name)
        if stack is None:
            yield name
        else:
            yield from (f"{stack['front']}.{expert}.{stack['leaf']}.weight" for expert in range(spec.shape[0]))


def _usual(names: list[str]) -> str:
    for name in (*(_LAYERS + end for end in _USUAL), *_OUTSIDE_OF_LAYERS):
        if name in names:
            return name
    return min(names, key=lambda name: (not name.startswith(_LAYERS), name.startswith("blk."), len(name), name))
