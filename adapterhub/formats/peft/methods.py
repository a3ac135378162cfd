"""The tuner methods and the variants of LoRA, one row each: every other module reads them here.

A new row makes a method known to configs, to the sorting of tensors, to `verify` and to refusals. To attach it as well,
give the row its `factors` and write a maker for it in `inference/loader/injection.py`, where torch and PEFT are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftMethod:
    """One `peft_type`.

    `marks`: a part of each tensor's name begins with one of them, or has one after `_`; empty when that is not known.
    `factors`: PEFT's names for the tensors of one module; empty for a method that cannot be attached here.
    `shared`: tensors that modules share and that stand beside the model in the file (`base_model.vera_A`), or the first
    part of the names of several (`base_model.tinylora_v.0`).
    `adds`: the update is added to the module's output, so several can be added up with weights.
    `merges`: files of this method can be merged. `released`: some release of PEFT can load it.
    """

    marks: tuple[str, ...]
    factors: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    adds: bool = False
    merges: bool = False
    released: bool = True

    @property
    def indices(self) -> tuple[str, ...]:
        """The factors that are whole numbers: which entries of a weight are trained."""
        return tuple(name for name in self.factors if name.endswith("_indices"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One setting that changes what a LoRA adapter is.

    `what`: the end of a refusal, after "it" or the adapter's name. `label`: its name among the methods of a manifest,
    "" for the settings that `AdapterConfig.methods` names itself. `merging`: `alike` when all adapters must have the
    same setting. `changes_update`: the update of a module is not `scale * B A`. `reshapes`: its factors are not [r, in]
    and [out, r]. `marks`: the names of its own tensors begin with one of them; a plain LoRA has none.
    """

    what: str
    label: str = ""
    attaches: bool = False
    fuses: bool = False
    merging: Literal["never", "alike", "always"] = "never"
    changes_update: bool = False
    reshapes: bool = False
    marks: tuple[str, ...] = ()


_PROMPTS: Final = PeftMethod(marks=("prompt_embeddings", "prefix_task_cols", "prefix_task_rows"))


def _named(peft_type: str) -> tuple[str, PeftMethod]:
    """Return a method whose tensors carry its own name."""
    return peft_type, PeftMethod(marks=(f"{peft_type.lower()}_",))


def _layered(*factors: str, shared: tuple[str, ...] = ()) -> PeftMethod:
    """Return a method whose factors are in PEFT's layers, which are built from the settings of its file."""
    mark = factors[0].partition("_")[0] + "_"
    return PeftMethod(marks=("ln_tuning_",) if mark == "ln_" else (mark,), factors=factors, shared=shared)


_METHODS: Final[dict[str, PeftMethod]] = {
    "LORA": PeftMethod(
        marks=("lora_",),
        factors=("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"),
        adds=True,
        merges=True,
    ),
    "ADALORA": PeftMethod(marks=("lora_",), factors=("lora_A", "lora_B", "lora_E"), adds=True, merges=True),
    "IA3": PeftMethod(marks=("ia3_",), factors=("ia3_l",)),
    "LOHA": PeftMethod(
        marks=("hada_",),
        factors=("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
        adds=True,
        merges=True,
    ),
    "LOKR": PeftMethod(
        marks=("lokr_",),
        factors=("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
        adds=True,
        merges=True,
    ),
    "VERA": PeftMethod(marks=("vera_",), factors=("vera_lambda_b", "vera_lambda_d"), shared=("vera_A", "vera_B")),
    "BEFT": _layered("beft_bias"),
    "BOFT": _layered("boft_R", "boft_s"),
    "C3A": _layered("c3a_kernel"),
    "DEFT": _layered("deft_P", "deft_R"),
    "DELORA": _layered("delora_A", "delora_B", "delora_lambda", "delora_w_norm"),
    "FOURIERFT": _layered("fourierft_spectrum"),
    "GLORA": _layered("glora_A", "glora_B", "glora_C", "glora_D", "glora_E"),
    "GRALORA": _layered("gralora_A", "gralora_B", "gralora_A_general", "gralora_B_general"),
    "HIRA": _layered("hira_A", "hira_B", "hira_embedding_A", "hira_embedding_B"),
    "HRA": _layered("hra_u"),
    "LILY": _layered("lily_A", "lily_B", "lily_router"),
    "LN_TUNING": _layered("ln_tuning_layers"),
    "MISS": _layered("miss_block"),
    "OFT": _layered("oft_R", "oft_embedding_R"),
    "PEANUT": _layered("peanut_A", "peanut_B", "peanut_encoders", "peanut_decoders"),
    "PVERA": _layered("pvera_lambda_b", "pvera_lambda_d", shared=("pvera_A", "pvera_B")),
    "RANDLORA": _layered(
        "randlora_lambda", "randlora_gamma", "randlora_A", "randlora_B", shared=("randlora_A", "randlora_B")
    ),
    "ROAD": _layered("road_theta", "road_alpha"),
    "SHIRA": _layered("shira_weight", "shira_indices"),
    "SUPERTUNING": _layered("supertuning_values", "supertuning_indices", "supertuning_lora_A", "supertuning_lora_B"),
    "TINYLORA": _layered("tinylora_A", "tinylora_B", "tinylora_P", shared=("tinylora_v",)),
    "VBLORA": _layered("vblora_logits_A", "vblora_logits_B", shared=("vblora_vector_bank",)),
    "WAVEFT": _layered("waveft_spectrum"),
    **dict(map(_named, ("ADAMSS", "BONE", "FROD", "OSF", "POLY", "PSOFT", "UNILORA"))),
    "ADAPTION_PROMPT": PeftMethod(marks=("adaption_",)),
    "CARTRIDGE": _PROMPTS,
    "CPT": _PROMPTS,
    "FINEGATES": PeftMethod(marks=(), released=False),
    "MULTITASK_PROMPT_TUNING": _PROMPTS,
    "P_TUNING": _PROMPTS,
    "PREFIX_TUNING": _PROMPTS,
    "PROMPT_TUNING": _PROMPTS,
    "SHADOW": PeftMethod(marks=()),
    "TRAINABLE_TOKENS": PeftMethod(marks=("trainable_tokens_", "token_adapter")),
    "UILINLORA": PeftMethod(marks=("uilinlora_",), released=False),
    "XLORA": PeftMethod(marks=("xlora",)),
}
METHODS: Final[Mapping[str, PeftMethod]] = MappingProxyType(_METHODS)
"""Every `peft_type` that a PEFT release or its repository ever had."""

VARIANTS: Final[Mapping[str, Variant]] = MappingProxyType(
    {
        "use_bdlora": Variant(
            what="has block-diagonal factors (BD-LoRA)", label="bdlora", changes_update=True, reshapes=True
        ),
        "use_qalora": Variant(what="pools its inputs (QALoRA)", label="qalora", changes_update=True, reshapes=True),
        "kasa_config": Variant(
            what="cuts directions out of the base weights (KaSA)",
            label="kasa",
            changes_update=True,
            marks=("lora_diag",),
        ),
        "velora_config": Variant(
            what="compresses its inputs (VeLoRA)",
            label="velora",
            attaches=True,  # compresses them for the backward pass only
            fuses=True,
            merging="always",
            marks=("lora_velora_embed",),
        ),
        "monteclora_config": Variant(
            what="samples its weights (MonteCLoRA)",
            label="monteclora",
            changes_update=True,
            marks=("lora_monteclora_sampler",),
        ),
        "arrow_config": Variant(what="routes between other adapters (Arrow)", label="arrow", marks=("lora_arrow",)),
        "enable_lora": Variant(
            what="has pairs for parts of fused layers (enable_lora), which no release of PEFT since 0.3 loads",
            changes_update=True,
            reshapes=True,
        ),
        "use_dora": Variant(
            what="uses DoRA, whose magnitudes do not add up", attaches=True, fuses=True, changes_update=True
        ),
        "alora_invocation_tokens": Variant(
            what="is switched on by tokens in the prompt (aLoRA)", attaches=True, merging="alike"
        ),
        "layer_replication": Variant(what="repeats layers of the base (layer_replication)", merging="alike"),
        "trainable_token_indices": Variant(
            what="replaces rows of the embedding (trainable_token_indices)",
            attaches=True,
            fuses=True,
            merging="always",
        ),
        "megatron_config": Variant(what="is made for Megatron's parallel layers"),
        "ensure_weight_tying": Variant(what="ties the factors of two layers to each other (ensure_weight_tying)"),
    }
)
"""By the key of the config. The order is that of the names in a manifest's `method`."""

_OWN_LABELS: Final = {
    "use_dora": "dora",
    "alora_invocation_tokens": "alora",
    "trainable_token_indices": "trainable_tokens",
}
"""The names in a manifest's `method` of the variants without a label, where they differ from the key."""


def attaches(methods: Sequence[str]) -> bool:
    """Whether an adapter with the `method` of a manifest can be put on a model here; True for an unknown method."""
    method = METHODS.get(methods[0]) if methods else None
    kept_out = {one.label or _OWN_LABELS.get(key, key) for key, one in VARIANTS.items() if not one.attaches}
    return (method is None or bool(method.factors)) and kept_out.isdisjoint(methods[1:])


ADALORA_MARGIN: Final = 1e-5
"""PEFT divides AdaLoRA's update by the first rank of the training (`init_r`) plus this number."""

CONVERTIBLE_STARTS: Final = ("pissa", "olora", "corda", "lora_ga")
"""Initialisations that change the base, and that PEFT can convert to a plain LoRA where the adapter was trained."""

BASE_CHANGING_STARTS: Final = (*CONVERTIBLE_STARTS, "loftq")
"""How the names of initialisations begin that change the base weights: the update is relative to those."""

HARMLESS_STARTS: Final = ("gaussian", "eva", "orthogonal", "mica")
"""Initialisations that leave the base unchanged."""
