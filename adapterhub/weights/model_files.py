"""The weight files of a registered model, compared with its record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from adapterhub.core.errors import BaseNotFound, CouldNotTell, Malformed, shown
from adapterhub.formats.base.weight_files import weight_files
from adapterhub.formats.safetensors.file import TensorFile, read_header
from adapterhub.formats.safetensors.header import BASE_LIMITS, TensorFacts
from adapterhub.library.bases.records import BaseRecord

TOKEN_EMBEDDINGS: Final = ("embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings", "tokens_embed")
"""Last names of the token embedding, whose weight an output head may share."""

CONV1D: Final = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})
CONV1D_TYPES: Final = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_decoder"})
"""Model types in which layers of those names are transformers' Conv1D, a linear layer stored as [in, out]."""


def model_files(record: BaseRecord) -> tuple[Path, tuple[TensorFile, ...], Mapping[str, TensorFacts]]:
    """Return the folder of a model, its weight files in order, and the facts of every tensor by name.

    Raises:
        BaseNotFound: the record names no folder.
        Malformed, MalformedTensorFile: not a complete model in safetensors.
        CouldNotTell: the files differ from the record.
    """
    if record.path is None:
        hint = "`adapt base add PATH` registers one"
        raise BaseNotFound(f"`{shown(record.label)}` has no folder on this machine", hint=hint)
    if record.components or (record.component and not record.path.is_dir()):
        raise Malformed(
            f"`{shown(record.label)}` is {'a pipeline' if record.components else 'part of one file'},"
            " expected the folder of one model",
            hint="save the pipeline with diffusers' `save_pretrained`, and give the folder of one component in it",
        )
    files = tuple(read_header(path, limits=BASE_LIMITS) for path in weight_files(record.path))
    facts = {fact.name: fact for fact in record.tensors}
    for file in files:
        for spec in file.tensors:
            known = facts.get(spec.name)
            if known is None or (known.dtype, known.shape) != (spec.dtype, spec.shape):
                path = shown(str(file.path), 200)
                raise CouldNotTell(
                    f"`{path}` changed after its fingerprint was made: `{shown(spec.name)}`",
                    hint="`adapt base remove NAME`, then `adapt base add FOLDER --as NAME`, registers it again",
                )
    return record.path, files, MappingProxyType(facts)
