"""Well-known families of base models, recognised by the names and sizes of an adapter's modules.

The table holds the sizes that the models' own configs give. It is a help: fine-tunes and other models may have the
same sizes, so a match is at most *likely*.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from adapterhub.formats.modules.places import place_of
from adapterhub.library.identify._orphan import Orphan
from adapterhub.library.identify._report import Match, Sureness
from adapterhub.library.identify.lora_files import family_of_images

_MOST_TOLD: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Models of one architecture and size. `stack` is how the name of what holds the layers ends.

    `sizes` are `(out, in)` of the modules of a layer, by the name behind the layer's number.
    """

    models: str
    stack: str
    layers: int
    sizes: Mapping[str, tuple[int, int]]


def layers_of(modules: Iterable[str]) -> int:
    """One more than the highest layer number among `modules`; 0 where none has any."""
    return max((place.layer + 1 for module in modules if (place := place_of(module)).layer is not None), default=0)


def family_matches(orphan: Orphan) -> Iterator[Match]:
    """Families that have every module that the orphan is on, in its size."""
    if orphan.reading is not None and (images := family_of_images(orphan.reading)):
        how = f"{len(orphan.reading.modules)} modules with the names and widths of its components"
        yield Match(what="family", name=images, sure="likely", how=how)
        return
    fitting = [family for family in FAMILIES if _has_all(family, orphan)]
    reached = layers_of(pair.module for pair in orphan.pairs)
    whole = [family for family in fitting if family.layers == reached]
    for family in (whole or fitting)[:_MOST_TOLD]:
        sure: Sureness = "likely" if len(whole) == 1 else "possible"
        how = f"{family.layers} layers with modules of these names and sizes"
        if not whole:
            how += f", of which it is on {reached}"
        elif len(whole) > 1:
            how += f"; one of {len(whole)} families that fit"
        yield Match(what="family", name=family.models, sure=sure, how=how)


def _has_all(family: Family, orphan: Orphan) -> bool:
    found = False
    for pair in orphan.pairs:
        assert pair.whole
        place = place_of(pair.module)
        stack, star, rest = place.kind.partition(".*.")
        if not star or place.layer is None:
            continue  # a head or an embedding: its size is the vocabulary's
        if place.layer >= family.layers or not f".{stack}".endswith(f".{family.stack}"):
            return False
        a, b = pair.whole
        if family.sizes.get(rest) != (b.shape[0], a.shape[1]):
            return False
        found = True
    return found


# ---------------------------------------------------------------- the table
def _llama(models: str, layers: int, hidden: int, q: int, kv: int, inner: int) -> Family:
    attention = {"q_proj": (q, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden), "o_proj": (hidden, q)}
    mlp = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    sizes = {f"self_attn.{n}": s for n, s in attention.items()} | {f"mlp.{n}": s for n, s in mlp.items()}
    return Family(models=models, stack="layers", layers=layers, sizes=MappingProxyType(sizes))


def _phi(models: str, layers: int, hidden: int, qkv: int, inner: int) -> Family:
    sizes = {
        "self_attn.qkv_proj": (qkv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_up_proj": (2 * inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    return Family(models=models, stack="layers", layers=layers, sizes=MappingProxyType(sizes))


def _mixtral(models: str, layers: int, hidden: int, kv: int, inner: int) -> Family:
    attention = _llama("", layers, hidden, hidden, kv, inner).sizes
    experts = {f"block_sparse_moe.experts.*.{n}": (inner, hidden) for n in ("w1", "w3")}
    experts["block_sparse_moe.experts.*.w2"] = (hidden, inner)
    sizes = {name: size for name, size in attention.items() if name.startswith("self_attn")} | experts
    return Family(models=models, stack="layers", layers=layers, sizes=MappingProxyType(sizes))


def _even(models: str, stack: str, layers: int, hidden: int, names: Mapping[str, tuple[int, int]]) -> Family:
    """Sizes as multiples of the hidden size."""
    sizes = {name: (out * hidden, into * hidden) for name, (out, into) in names.items()}
    return Family(models=models, stack=stack, layers=layers, sizes=MappingProxyType(sizes))


_GPT2: Final = {"attn.c_attn": (3, 1), "attn.c_proj": (1, 1), "mlp.c_fc": (4, 1), "mlp.c_proj": (1, 4)}
_NEOX: Final = {
    "attention.query_key_value": (3, 1),
    "attention.dense": (1, 1),
    "mlp.dense_h_to_4h": (4, 1),
    "mlp.dense_4h_to_h": (1, 4),
}
_BLOOM: Final = {
    "self_attention.query_key_value": (3, 1),
    "self_attention.dense": (1, 1),
    "mlp.dense_h_to_4h": (4, 1),
    "mlp.dense_4h_to_h": (1, 4),
}
_OPT: Final = {
    **{f"self_attn.{n}": (1, 1) for n in ("q_proj", "k_proj", "v_proj", "out_proj")},
    "fc1": (4, 1),
    "fc2": (1, 4),
}
_BERT: Final = {
    **{f"attention.self.{n}": (1, 1) for n in ("query", "key", "value")},
    "attention.output.dense": (1, 1),
    "intermediate.dense": (4, 1),
    "output.dense": (1, 4),
}
_DISTILBERT: Final = {
    **{f"attention.{n}": (1, 1) for n in ("q_lin", "k_lin", "v_lin", "out_lin")},
    "ffn.lin1": (4, 1),
    "ffn.lin2": (1, 4),
}
_PHI2: Final = {
    **{f"self_attn.{n}": (1, 1) for n in ("q_proj", "k_proj", "v_proj", "dense")},
    "mlp.fc1": (4, 1),
    "mlp.fc2": (1, 4),
}

FAMILIES: Final[tuple[Family, ...]] = (
    # models, layers, hidden, width of q, width of k and v, inner
    _llama("Llama 7B, Llama 2 7B", 32, 4096, 4096, 4096, 11008),
    _llama("Llama 13B, Llama 2 13B", 40, 5120, 5120, 5120, 13824),
    _llama("Llama 30B", 60, 6656, 6656, 6656, 17920),
    _llama("Llama 65B", 80, 8192, 8192, 8192, 22016),
    _llama("Llama 2 70B, Llama 3 70B", 80, 8192, 8192, 1024, 28672),
    _llama("Code Llama 34B", 48, 8192, 8192, 1024, 22016),
    _llama("Llama 3 8B, Mistral 7B", 32, 4096, 4096, 1024, 14336),
    _llama("Llama 3.2 1B", 16, 2048, 2048, 512, 8192),
    _llama("Llama 3.2 3B", 28, 3072, 3072, 1024, 8192),
    _llama("TinyLlama 1.1B", 22, 2048, 2048, 256, 5632),
    _llama("SmolLM2 135M", 30, 576, 576, 192, 1536),
    _llama("SmolLM2 360M", 32, 960, 960, 320, 2560),
    _llama("SmolLM2 1.7B", 24, 2048, 2048, 2048, 8192),
    _llama("Qwen2 0.5B, Qwen2.5 0.5B", 24, 896, 896, 128, 4864),
    _llama("Qwen2 1.5B, Qwen2.5 1.5B", 28, 1536, 1536, 256, 8960),
    _llama("Qwen2.5 3B", 36, 2048, 2048, 256, 11008),
    _llama("Qwen2 7B, Qwen2.5 7B", 28, 3584, 3584, 512, 18944),
    _llama("Qwen2.5 14B", 48, 5120, 5120, 1024, 13824),
    _llama("Qwen2.5 32B", 64, 5120, 5120, 1024, 27648),
    _llama("Qwen2 72B, Qwen2.5 72B", 80, 8192, 8192, 1024, 29568),
    _llama("Qwen3 0.6B", 28, 1024, 2048, 1024, 3072),
    _llama("Qwen3 1.7B", 28, 2048, 2048, 1024, 6144),
    _llama("Qwen3 4B", 36, 2560, 4096, 1024, 9728),
    _llama("Qwen3 8B", 36, 4096, 4096, 1024, 12288),
    _llama("Qwen3 14B", 40, 5120, 5120, 1024, 17408),
    _llama("Qwen3 32B", 64, 5120, 8192, 1024, 25600),
    _llama("Gemma 2B", 18, 2048, 2048, 256, 16384),
    _llama("Gemma 7B", 28, 3072, 4096, 4096, 24576),
    _llama("Gemma 2 2B", 26, 2304, 2048, 1024, 9216),
    _llama("Gemma 2 9B", 42, 3584, 4096, 2048, 14336),
    _llama("Gemma 2 27B", 46, 4608, 4096, 2048, 36864),
    _llama("Gemma 3 1B", 26, 1152, 1024, 256, 6912),
    _llama("Gemma 3 4B", 34, 2560, 2048, 1024, 10240),
    _llama("Gemma 3 12B", 48, 3840, 4096, 2048, 15360),
    _llama("Gemma 3 27B", 62, 5376, 4096, 2048, 21504),
    _llama("Mistral NeMo 12B", 40, 5120, 4096, 1024, 14336),
    _llama("Mistral Small 24B", 40, 5120, 4096, 1024, 32768),
    _llama("Yi 6B", 32, 4096, 4096, 512, 11008),
    _llama("Yi 34B", 60, 7168, 7168, 1024, 20480),
    _mixtral("Mixtral 8x7B", 32, 4096, 1024, 14336),
    # models, layers, hidden, width of qkv, inner
    _phi("Phi-3 mini", 32, 3072, 9216, 8192),
    _phi("Phi-4", 40, 5120, 7680, 17920),
    _even("Phi-2", "layers", 32, 2560, _PHI2),
    # models, stack, layers, hidden
    _even("GPT-2", "h", 12, 768, _GPT2),
    _even("GPT-2 medium", "h", 24, 1024, _GPT2),
    _even("GPT-2 large", "h", 36, 1280, _GPT2),
    _even("GPT-2 XL", "h", 48, 1600, _GPT2),
    _even("Pythia 70M", "layers", 6, 512, _NEOX),
    _even("Pythia 160M", "layers", 12, 768, _NEOX),
    _even("Pythia 410M", "layers", 24, 1024, _NEOX),
    _even("Pythia 1B", "layers", 16, 2048, _NEOX),
    _even("Pythia 1.4B", "layers", 24, 2048, _NEOX),
    _even("Pythia 2.8B", "layers", 32, 2560, _NEOX),
    _even("Pythia 6.9B", "layers", 32, 4096, _NEOX),
    _even("Pythia 12B", "layers", 36, 5120, _NEOX),
    _even("BLOOM 560M", "h", 24, 1024, _BLOOM),
    _even("BLOOM 1.1B", "h", 24, 1536, _BLOOM),
    _even("BLOOM 1.7B", "h", 24, 2048, _BLOOM),
    _even("BLOOM 3B", "h", 30, 2560, _BLOOM),
    _even("BLOOM 7.1B", "h", 30, 4096, _BLOOM),
    _even("OPT 125M", "decoder.layers", 12, 768, _OPT),
    _even("OPT 1.3B", "decoder.layers", 24, 2048, _OPT),
    _even("OPT 2.7B", "decoder.layers", 32, 2560, _OPT),
    _even("OPT 6.7B", "decoder.layers", 32, 4096, _OPT),
    _even("OPT 13B", "decoder.layers", 40, 5120, _OPT),
    _even("BERT base, RoBERTa base", "encoder.layer", 12, 768, _BERT),
    _even("BERT large, RoBERTa large", "encoder.layer", 24, 1024, _BERT),
    _even("DistilBERT base", "transformer.layer", 6, 768, _DISTILBERT),
)
"""Every family of the table."""
