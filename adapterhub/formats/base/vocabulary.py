"""Names of the tensors that have one row for each token: input embeddings and output heads."""

from __future__ import annotations

from typing import Final

OUTPUT_HEADS: Final = ("lm_head", "embed_out", "output")

EMBEDDINGS: Final = frozenset(
    {"embed_tokens", "wte", "word_embeddings", "embed_in", "shared", "tok_embeddings", *OUTPUT_HEADS}
)
"""Names of input embeddings and output heads, which PEFT may copy into an adapter (`save_embedding_layers`)."""

_INNER: Final = ("lm_head.decoder.weight", "lm_head.decoder.bias", "predictions.decoder.weight")
_INNER_BIASES: Final = ("predictions.decoder.bias", "predictions.bias")


def is_vocabulary(tensor: str) -> bool:
    """Whether `tensor`, by its name, has one row for each token, so that its shape changes with the vocabulary."""
    return is_embedding(tensor.rpartition(".")[0]) or f".{tensor}".endswith(
        tuple(f".{end}" for end in (*_INNER, *_INNER_BIASES))
    )


def is_embedding(module: str) -> bool:
    """Whether `module`, by the last part of its name, is an input embedding or an output head."""
    return module.rpartition(".")[2] in EMBEDDINGS


COPY_HINT: Final = (
    "PEFT copies the embeddings of a base whose vocabulary was resized: save the adapter again with"
    " `save_embedding_layers=False`, or use the resized base (`adapt base add` registers it)"
)
"""The remedy for a copy of an embedding in an adapter that has another shape than in the base."""


def resize_hint(module: str, needed: tuple[int, ...], found: tuple[int, ...]) -> str:
    """The remedy for a tensor of shape `found` for `module`, whose shape must be `needed`.

    Empty unless `module` is an embedding and the shapes differ in one dimension, the number of tokens.
    """
    if len(needed) != len(found) or not is_embedding(module):
        return ""
    apart = [pair for pair in zip(needed, found, strict=True) if pair[0] != pair[1]]
    if len(apart) != 1:
        return ""
    here, there = apart[0]
    return (
        f"it was trained with {there:,} tokens, and this base has {here:,}: use the base after"
        f" `model.resize_token_embeddings({there})` (`adapt base add` registers it once it is saved)"
    )
