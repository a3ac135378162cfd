"""Adapters that must not reach a model, and that leave it as it was."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PromptTuningConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adapterhub.core.errors import (
    AdapterHubError,
    DigestMismatch,
    MalformedConfig,
    RefusedAdapter,
    UnsupportedAdapter,
)
from adapterhub.inference.bank import AdapterBank
from adapterhub.inference.loader import attach, base_digest
from adapterhub.inference.loader.injection import Fitting
from adapterhub.library.library import Library
from tests.support.tiny_models import VOCABULARY, convnet, llama, logits, save_adapter

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT and transformers warn of much that is meant here

PREFIX = "base_model.model."
LAYER = f"{PREFIX}model.layers.0.self_attn."
Tensors = dict[str, Tensor]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """A folder with its tensors changed by a function, and settings changed in its config."""

    def change(edit: Callable[[Tensors], object] | None = None, config: Any = None, **settings: Any) -> Path:
        config = config or LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
        folder = save_adapter(tmp_path / "adapter", llama, config, **settings)
        weights = folder / "adapter_model.safetensors"
        tensors = load_file(weights)
        if edit is not None:
            edit(tensors)
            save_file(tensors, weights, metadata={"format": "pt"})
        return folder

    return change


def refusal_of(folder: Path, library: Library, make_base: Callable[[], nn.Module] = llama) -> AdapterHubError:
    """The refusal of `attach`, which is also that of the bank and leaves the base and its modules unchanged."""
    model = make_base()
    before, modules = base_digest(model), [id(module) for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]

    with pytest.raises(AdapterHubError) as refusal:
        attach(model, folder, library=library)
    with AdapterBank(model, library=library) as bank, pytest.raises(type(refusal.value)) as from_bank:
        bank.load(folder)

    assert from_bank.value.message == refusal.value.message
    assert before == base_digest(model)
    assert modules == [id(module) for module in model.modules()]
    assert flags == [parameter.requires_grad for parameter in model.parameters()]
    assert "peft_config" not in vars(model)
    return refusal.value


# ---------------------------------------------------------------- tensors that must not reach the base
BASE_TENSORS = [
    "model.norm.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.self_attn.q_proj.base_layer.weight",
    "model.layers.0.self_attn.k_proj.weight",
    "lm_head.weight",
    "model.embed_tokens.weight",
    "model.embed_tokens.base_layer.weight",
]


@pytest.mark.parametrize("name", BASE_TENSORS)
def test_tensor_of_the_base_is_refused(name: str, make: Any, library: Library) -> None:
    shapes = {key: tensor.shape for key, tensor in llama().state_dict().items()}
    shape = shapes[name.replace(".base_layer", "")]

    refusal = refusal_of(make(lambda t: t.update({PREFIX + name: torch.full(shape, 7.0)})), library)

    assert isinstance(refusal, RefusedAdapter)
    assert any(code.startswith("E_") for code, _ in refusal.findings)


def test_copy_of_an_embedding_that_equals_the_bases_is_passed_over(make: Any, library: Library) -> None:
    embedding = llama().state_dict()["model.embed_tokens.weight"].clone()
    folder = make(lambda t: t.update({f"{PREFIX}model.embed_tokens.weight": embedding}))

    attached = attach(llama(), folder, library=library)

    assert any("a copy of the base's `model.embed_tokens.weight`" in warning for warning in attached.warnings)
    embeddings = attached.model.get_input_embeddings().weight
    assert torch.equal(embedding, embeddings)


def test_resized_embedding_is_refused(make: Any, library: Library) -> None:
    grown = torch.zeros(VOCABULARY + 2, 32)

    refusal = refusal_of(make(lambda t: t.update({f"{PREFIX}model.embed_tokens.weight": grown})), library)

    assert "embed_tokens" in refusal.message


def test_a_trained_bias_that_the_config_does_not_announce_is_refused(tmp_path: Path, library: Library) -> None:
    config = LoraConfig(r=2, target_modules=["wide"], bias="all")
    unannounced = save_adapter(tmp_path / "a", convnet, config, bias="none")
    of_another_module = save_adapter(tmp_path / "b", convnet, config, bias="lora_only")

    for folder in (unannounced, of_another_module):
        refusal = refusal_of(folder, library, convnet)

        assert ("E_BASE_WEIGHT" in str(refusal), "bias" in refusal.message) == (True, True)


def test_a_bias_of_another_shape_is_refused(tmp_path: Path, library: Library) -> None:
    folder = save_adapter(tmp_path / "a", convnet, LoraConfig(r=2, target_modules=["wide"], bias="all"))
    path = folder / "adapter_model.safetensors"
    save_file(load_file(path) | {f"{PREFIX}head.bias": torch.zeros(1)}, path, metadata={"format": "pt"})

    assert "`head.bias` has the shape [5], the adapter's [1]" in refusal_of(folder, library, convnet).message


@pytest.mark.parametrize(
    ("indices", "said"),
    [
        ([0, VOCABULARY], f"`model.embed_tokens` has {VOCABULARY} rows, and the adapter replaces row {VOCABULARY}"),
        ([0, 1, 2], "`model.embed_tokens` needs rows of the shape [3, 32], the adapter has [2, 32]"),
        ([1, 1], "`model.embed_tokens` needs rows of the shape [2, 32]"),
    ],
)
def test_rows_that_the_embedding_does_not_have_are_refused(
    indices: list[int], said: str, make: Any, library: Library
) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[0, 1])
    folder = make(config=config, trainable_token_indices=indices)

    assert said in refusal_of(folder, library).message


def test_two_adapters_with_other_rows_or_biases_do_not_add_up(tmp_path: Path, library: Library) -> None:
    options = {"r": 2, "target_modules": ["q_proj"]}
    rows = [
        save_adapter(
            tmp_path / f"rows{seed}", llama, LoraConfig(**options, trainable_token_indices=[0, seed]), seed=seed
        )
        for seed in (1, 2)
    ]
    biases = [
        save_adapter(tmp_path / f"bias{seed}", convnet, LoraConfig(r=2, target_modules=["wide"], bias="all"), seed=seed)
        for seed in (1, 2)
    ]
    path = biases[1] / "adapter_model.safetensors"
    save_file(load_file(path) | {f"{PREFIX}head.bias": torch.ones(5)}, path, metadata={"format": "pt"})

    for base, folders, said in ((llama, rows, "trainable_token_indices"), (convnet, biases, "`head.bias`")):
        with pytest.raises(AdapterHubError) as refusal:
            attach(base(), folders, library=library)

        assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_bdlora": {"nblocks": 2}}, "BD-LoRA"),
        ({"kasa_config": {"beta": 1e-4}}, "KaSA"),
        ({"monteclora_config": {"num_samples": 2}}, "MonteCLoRA"),
        ({"ensure_weight_tying": True}, "ensure_weight_tying"),
        ({"enable_lora": [True, False, True]}, "enable_lora"),
        ({"peft_type": "SHIRA"}, "has the type SHIRA"),
        ({"peft_type": "PREFIX_TUNING"}, "has the type PREFIX_TUNING"),
    ],
)
def test_what_never_attaches_is_named_before_its_tensors_are_looked_at(
    settings: dict[str, object], said: str, make: Any, library: Library
) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"])

    refusal = refusal_of(make(lambda t: t.update(stray=torch.ones(2)), config, **settings), library)

    assert isinstance(refusal, UnsupportedAdapter)
    assert said in str(refusal)


@pytest.mark.parametrize(
    "name",
    ["lora_A.weight", ".lora_A.weight", "model.__class__.lora_A.weight", "model.layers.0.self_attn.q_proj.forward",
     "model.layers.0.self_attn.q_proj.lora_A.weight.weight", "model.layers.0.self_attn.q_proj.lora_C.weight"],
)  # fmt: skip
def test_names_that_are_no_factor_of_a_module_are_refused(name: str, make: Any, library: Library) -> None:
    refusal_of(make(lambda t: t.update({PREFIX + name: torch.ones(4, 32)})), library)


def test_name_without_pefts_prefix_is_refused(make: Any, library: Library) -> None:
    refusal_of(make(lambda t: t.update({"model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(4, 32)})), library)


# ---------------------------------------------------------------- what is missing, or too much
@pytest.mark.parametrize("half", ["lora_A", "lora_B"])
def test_half_of_a_pair_is_refused(half: str, make: Any, library: Library) -> None:
    refusal = refusal_of(make(lambda t: t.pop(f"{LAYER}q_proj.{half}.weight")), library)

    assert isinstance(refusal, RefusedAdapter)


def test_layer_without_its_factors_is_refused(make: Any, library: Library) -> None:
    def cut(tensors: Tensors) -> None:
        for half in ("lora_A", "lora_B"):
            del tensors[f"{LAYER}q_proj.{half}.weight"]

    refusal = refusal_of(make(cut), library)

    assert "`model.layers.0.self_attn.q_proj`: the config targets it, but the file has no factors" in refusal.message


def test_truncated_file_is_refused(make: Any, library: Library) -> None:
    folder = make()
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])

    refusal_of(folder, library)


def test_file_cut_between_header_and_numbers_leaves_the_model_alone(make: Any, library: Library) -> None:
    from adapterhub.inference.loader.base import BaseModel
    from adapterhub.inference.loader.reading import read_contents
    from adapterhub.trust.verify import open_files

    folder = make()
    contents = read_contents(open_files(folder), "a", BaseModel(llama()))
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])

    last = max((spec for specs in contents.factors.values() for spec in specs.values()), key=lambda spec: spec.start)
    with pytest.raises(DigestMismatch):
        contents.read(last)


@pytest.mark.parametrize(
    "settings", [{}, {"use_dora": True}, {"lora_bias": True}, {"target_modules": ["embed_tokens"]}]
)
def test_a_plain_lora_has_the_places_that_each_tensor_would_find_alone(
    make: Any, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    from adapterhub.inference.loader import reading
    from adapterhub.inference.loader.base import BaseModel
    from adapterhub.trust.verify import open_files

    folder, base = (
        make(lambda _: None, LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"]} | settings)),
        llama(),
    )
    together = reading.read_contents(open_files(folder), "a", BaseModel(base))
    monkeypatch.setattr(reading, "_plain_factors", lambda _subject: None)
    alone = reading.read_contents(open_files(folder), "a", BaseModel(base))

    assert together.factors == alone.factors


def test_saved_module_without_its_tensors_is_refused(make: Any, library: Library) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["norm"])

    refusal = refusal_of(make(lambda t: t.pop(f"{PREFIX}model.norm.weight"), config), library)

    assert "`model.norm`: the config replaces it whole" in refusal.message


def test_saved_module_with_a_tensor_too_many_is_refused(make: Any, library: Library) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["norm"])

    refusal = refusal_of(make(lambda t: t.update({f"{PREFIX}model.norm.bias": torch.ones(32)}), config), library)

    assert "norm.bias" in refusal.message


def test_magnitudes_without_dora_are_refused(make: Any, library: Library) -> None:
    name = f"{LAYER}q_proj.lora_magnitude_vector"

    refusal = refusal_of(make(lambda t: t.update({name: torch.ones(32)})), library)

    assert isinstance(refusal, RefusedAdapter)
    assert refusal.findings[0][0] == "E_VARIANT"


def test_missing_magnitude_is_refused(make: Any, library: Library) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"], use_dora=True)

    refusal_of(make(lambda t: t.pop(f"{LAYER}q_proj.lora_magnitude_vector"), config), library)


@pytest.mark.parametrize(
    ("config", "name"),
    [(IA3Config(target_modules=["q_proj"], feedforward_modules=[]), "ia3_l"),
     (LoHaConfig(r=2, target_modules=["q_proj"]), "hada_w1_a")],
)  # fmt: skip
def test_missing_factor_of_another_method_is_refused(config: Any, name: str, make: Any, library: Library) -> None:
    def cut(tensors: Tensors) -> None:
        del tensors[f"{LAYER}q_proj.{name}"]

    refusal = refusal_of(make(cut, config), library)

    assert isinstance(refusal, RefusedAdapter)


def test_adapter_of_another_rank_than_its_config_is_refused(make: Any, library: Library) -> None:
    refusal_of(make(r=16), library)


# ---------------------------------------------------------------- what a config must not do
INITS = ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "some_new_one"]


@pytest.mark.parametrize("init", INITS)
def test_start_that_changed_the_base_is_refused_by_name(init: str, make: Any, library: Library) -> None:
    refusal = refusal_of(make(init_lora_weights=init), library)

    assert isinstance(refusal, UnsupportedAdapter)
    assert init in refusal.message


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [("layer_replication", [[0, 2], [1, 2]], "repeats layers"), ("alora_invocation_tokens", [1, 2], "aLoRA"),
     ("use_qalora", True, "QALoRA"),
     ("target_parameters", ["q_proj.weight"], "is a target itself, and so is its parameter"),
     ("ensure_weight_tying", True, "ties the factors")],
)  # fmt: skip
def test_variant_that_is_not_supported_is_named(
    setting: str, value: Any, said: str, make: Any, library: Library
) -> None:
    refusal = refusal_of(make(**{setting: value}), library)

    assert isinstance(refusal, UnsupportedAdapter)
    assert said in refusal.message


def test_method_that_is_not_supported_is_named(tmp_path: Path, library: Library) -> None:
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=4)
    get_peft_model(llama(), config).save_pretrained(tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "test/tiny"}))

    refusal = refusal_of(tmp_path / "a", library)

    assert "PROMPT_TUNING" in refusal.message


def test_pattern_of_a_file_never_reaches_pefts_matching(
    make: Any, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    import peft.tuners.tuners_utils as tuners

    config = LoraConfig(
        r=4, target_modules=r".*\.(q|v)_proj", rank_pattern={r"layers\.[01]\..*v_proj": 2}, alpha_pattern={"q_pro.": 3}
    )
    folder = make(None, config)
    seen: set[object] = set()
    original = tuners.check_target_module_exists

    def watch(config: Any, key: str) -> object:
        seen.add((type(config.target_modules), frozenset(config.rank_pattern), frozenset(config.alpha_pattern)))
        return original(config, key)

    monkeypatch.setattr(tuners, "check_target_module_exists", watch)
    attach(llama(), folder, library=library)

    names = frozenset(rf"model\.layers\.{i}\.self_attn\.v_proj" for i in (0, 1))
    assert {(set, names, frozenset())} == seen


def test_pattern_that_takes_too_long_is_refused(make: Any, library: Library) -> None:
    refusal = refusal_of(make(target_modules=r"((\w|\.)+)+!"), library)

    assert "target_modules" in refusal.message


@pytest.mark.parametrize(
    "settings",
    [{"auto_mapping": {"parent_library": "subprocess", "base_model_class": "Popen"}}, {"megatron_core": "os"},
     {"auto_map": {"AutoModel": "x.Y"}}],
)  # fmt: skip
def test_names_of_code_are_refused(settings: Any, make: Any, library: Library) -> None:
    refusal = refusal_of(make(**settings), library)

    assert isinstance(refusal, RefusedAdapter | MalformedConfig)


def test_model_class_that_a_config_names_is_never_imported(
    make: Any, library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "authors_model.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    folder = make(auto_mapping={"parent_library": "authors_model", "base_model_class": "Net"}, task_type=None)

    attached = attach(llama(), folder, library=library)

    assert "authors_model" not in sys.modules
    assert any("made for a model class of `authors_model`" in w for w in attached.adapters[0].warnings)


def test_numbers_that_are_not_finite_are_refused(make: Any, library: Library) -> None:
    refusal_of(make(lambda t: t[f"{LAYER}q_proj.lora_A.weight"].fill_(float("nan"))), library)


def test_pickle_beside_a_missing_file_is_not_opened(make: Any, library: Library) -> None:
    folder = make()
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"\x80\x02cos\nmkdir\nX\x0a\x00\x00\x00CANARY_RAN\x85R.")

    refusal_of(folder, library)

    assert not Path("CANARY_RAN").exists()


# ---------------------------------------------------------------- models
class WithAttention(nn.Module):
    """A model with torch's own attention layer, to whose weights PEFT writes on each call."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(8, 2)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.attention(x, x, x)[0])


def test_torchs_attention_layer_is_refused_since_peft_writes_to_it(tmp_path: Path, library: Library) -> None:
    folder = save_adapter(tmp_path / "a", WithAttention, LoraConfig(r=2, target_modules=["attention", "last"]))

    refusal = refusal_of(folder, library, WithAttention)

    assert "`attention` is torch's MultiheadAttention" in refusal.message


def test_module_that_peft_has_no_layer_for_is_refused(make: Any, library: Library) -> None:
    def rename(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[
                name.replace("self_attn.q_proj", "input_layernorm").replace("self_attn.v_proj", "input_layernorm")
            ] = tensors.pop(name)

    refusal = refusal_of(make(rename, target_modules=["input_layernorm"]), library)

    assert isinstance(refusal, AdapterHubError)


def test_hint_tells_of_the_same_layers_inside_another_class(make: Any, library: Library) -> None:
    refusal = refusal_of(make(), library, lambda: llama().model)

    assert "with or without a head" in refusal.hint


def test_refused_adapter_does_not_spoil_the_next_attach(make: Any, library: Library, tmp_path: Path) -> None:
    model = llama()
    bad = make(lambda t: t.pop(f"{LAYER}q_proj.lora_B.weight"))
    good = save_adapter(tmp_path / "good", llama, LoraConfig(r=4, target_modules=["q_proj"]))

    with pytest.raises(RefusedAdapter):
        attach(model, {good: 0.5, bad: 0.5}, library=library)
    attached = attach(model, good, library=library)

    assert torch.equal(logits(attach(llama(), good, library=library).model), logits(attached.model))


def test_what_has_no_tensor_is_listed_in_the_order_of_names() -> None:
    slots = {f"slot_{letter}": (1,) for letter in "gcaiebhdf"}
    fitting = Fitting("a")
    fitting.matched("m", {}, slots)

    with pytest.raises(RefusedAdapter) as refusal:
        fitting.ensure_fit()

    assert [text for _, text in refusal.value.findings] == [f"`m` has no tensor `{slot}`" for slot in sorted(slots)]
