"""all-MiniLM-L6-v2 in numpy: six layers of BERT that turn a text into a vector of 384 numbers.

The weights stay in the file, which is mapped: only the rows of words that occur are read. No torch and no transformers.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from adapterhub.formats.meaning.model import SIZE, TOKENIZER_FILE, WEIGHTS_FILE
from adapterhub.formats.safetensors.file import BASE_LIMITS, read_header

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

LAYERS: Final = 6
HEADS: Final = 12
MOST_TOKENS: Final = 256
"""The rest of a longer text does not count, as in the sentence-transformers release of the model."""

_EPSILON: Final = 1e-12  # of the layer norms
_SEEN_CHARACTERS: Final = 8000
# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: erf within 1.5e-7
_ERF: Final = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
_ERF_P: Final = 0.3275911


class Encoder:
    """The model whose checked files lie in `folder`; opening it costs about 0.1 CPU seconds."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self._words = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        self._words.no_padding()
        self._words.enable_truncation(MOST_TOKENS)
        with (folder / WEIGHTS_FILE).open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        tensors = read_header(folder / WEIGHTS_FILE, limits=BASE_LIMITS).tensors
        self._tensors = {
            t.name: np.frombuffer(mapped, "<f4", t.elements, t.start).reshape(t.shape)
            for t in tensors
            if t.dtype == "F32"
        }

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """One row for each text, [texts, 384], of unit length."""
        found = np.empty((len(texts), SIZE), np.float32)
        for at, text in enumerate(texts):
            found[at] = self._vector(self._words.encode(text[:_SEEN_CHARACTERS]).ids)
        return found

    def _vector(self, ids: list[int]) -> Vectors:
        t, n = self._tensors, len(ids)
        names = ("word", "position", "token_type")
        word, position, kind = (t[f"embeddings.{name}_embeddings.weight"] for name in names)
        x = self._norm(word[ids] + position[:n] + kind[0], "embeddings")
        for layer in range(LAYERS):
            at = f"encoder.layer.{layer}"
            q, k, v = (
                self._linear(x, f"{at}.attention.self.{name}").reshape(n, HEADS, -1).swapaxes(0, 1)
                for name in ("query", "key", "value")
            )
            near = q @ k.swapaxes(1, 2) / math.sqrt(SIZE // HEADS)  # [heads, tokens, tokens]
            near = np.exp(near - near.max(-1, keepdims=True))
            seen = (near / near.sum(-1, keepdims=True)) @ v
            seen = self._linear(seen.swapaxes(0, 1).reshape(n, SIZE), f"{at}.attention.output.dense")
            x = self._norm(seen + x, f"{at}.attention.output")
            wide = _gelu(self._linear(x, f"{at}.intermediate.dense"))
            x = self._norm(self._linear(wide, f"{at}.output.dense") + x, f"{at}.output")
        mean: Vectors = x.mean(0)
        unit: Vectors = mean / np.linalg.norm(mean)
        return unit

    def _linear(self, x: Vectors, name: str) -> Vectors:
        out: Vectors = x @ self._tensors[f"{name}.weight"].T + self._tensors[f"{name}.bias"]
        return out

    def _norm(self, x: Vectors, name: str) -> Vectors:
        x = x - x.mean(-1, keepdims=True)
        x /= np.sqrt((x * x).mean(-1, keepdims=True) + _EPSILON)
        out: Vectors = x * self._tensors[f"{name}.LayerNorm.weight"] + self._tensors[f"{name}.LayerNorm.bias"]
        return out


def _gelu(x: Vectors) -> Vectors:
    size = np.abs(x) * np.float32(math.sqrt(0.5))
    t = 1 / (1 + np.float32(_ERF_P) * size)
    sum_ = np.float32(_ERF[0])
    for factor in _ERF[1:]:
        sum_ = sum_ * t + np.float32(factor)
    out: Vectors = 0.5 * x * (1 + np.sign(x) * (1 - sum_ * t * np.exp(-size * size)))
    return out
