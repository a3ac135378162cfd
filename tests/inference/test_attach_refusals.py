"""Adapters that must not reach a model, and that leave it as it was."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

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
from tests.support.bank_adapters import hooks_of
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
    with AdapterBank(model, library=library) as bank:
        held = (hooks_of(model), bank.names, bank.stats)
        with pytest.raises(type(refusal.value)) as from_bank:
            bank.load(folder)
        assert held == (hooks_of(model), bank.names, bank.stats)

    assert from_bank.value.message == refusal.value.message
    assert before == base_digest(model)
    assert modules == [id(module) for module in model.modules()]
    assert flags == [parameter.requires_grad for parameter in model.parameters()]
    assert "peft_config" not in vars(model)
    return refusal.value


# ---------------------------------------------------------------- refused by name
class Bad(NamedTuple):
    """What is wrong with a folder, and what its refusal says."""

    said: str
    edit: Callable[[Tensors], object] | None = None
    config: Any = None
    settings: Mapping[str, Any] = MappingProxyType({})
    error: Any = RefusedAdapter


def put(name: str, tensor: Tensor) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: tensor})


def cut(*names: str) -> Callable[[Tensors], object]:
    return lambda tensors: [tensors.pop(name) for name in names]


SHAPES = {key: tensor.shape for key, tensor in llama().state_dict().items()}
QUERY = {"r": 4, "target_modules": ["q_proj"]}
SAVED = LoraConfig(**QUERY, modules_to_save=["norm"])
ROWS = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[0, 1])
CODE = {
    "auto_mapping": {"parent_library": "subprocess", "base_model_class": "Popen"}, "megatron_core": "os",
    "auto_map": {"AutoModel": "x.Y"},
}  # fmt: skip
NEVER: dict[str, tuple[str, object]] = {
    "BD-LoRA": ("use_bdlora", {"nblocks": 2}), "KaSA": ("kasa_config", {"beta": 1e-4}),
    "MonteCLoRA": ("monteclora_config", {"num_samples": 2}), "enable_lora": ("enable_lora", [True, False, True]),
    "has the type PSOFT": ("peft_type", "PSOFT"), "has the type PREFIX_TUNING": ("peft_type", "PREFIX_TUNING"),
    "repeats layers": ("layer_replication", [[0, 2], [1, 2]]),
    "QALoRA": ("use_qalora", True), "ties the factors": ("ensure_weight_tying", True),
}  # fmt: skip
"""What never attaches, which is named before the tensors are looked at."""

CASES: dict[str, Bad] = {
    **{
        f"the base's {name}": Bad("E_", put(PREFIX + name, torch.full(SHAPES[name.replace(".base_layer", "")], 7.0)))
        for name in (
            "model.norm.weight", "model.layers.0.self_attn.q_proj.weight", "lm_head.weight", "model.embed_tokens.weight",
            "model.layers.0.self_attn.q_proj.base_layer.weight", "model.layers.0.self_attn.k_proj.weight",
            "model.embed_tokens.base_layer.weight",
        )
    },
    **{
        f"no factor: {name}": Bad("", put(name, torch.ones(4, 32)), error=AdapterHubError)
        for name in (
            "model.layers.0.self_attn.q_proj.lora_A.weight", f"{PREFIX}lora_A.weight", f"{PREFIX}.lora_A.weight",
            f"{PREFIX}model.__class__.lora_A.weight", f"{LAYER}q_proj.forward", f"{LAYER}q_proj.lora_A.weight.weight",
            f"{LAYER}q_proj.lora_C.weight",
        )
    },
    **{
        said: Bad(said, put("stray", torch.ones(2)), None, dict([setting]), UnsupportedAdapter)
        for said, setting in NEVER.items()
    },
    **{
        init: Bad(init, None, None, {"init_lora_weights": init}, UnsupportedAdapter)
        for init in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "some_new_one")
    },
    **{key: Bad("", None, None, {key: value}, (RefusedAdapter, MalformedConfig)) for key, value in CODE.items()},
    "resized": Bad(
        "embed_tokens", put(f"{PREFIX}model.embed_tokens.weight", torch.zeros(VOCABULARY + 2, 32)), error=AdapterHubError
    ),
    "A without B": Bad("E_PAIR", cut(f"{LAYER}q_proj.lora_B.weight")),
    "B without A": Bad("E_PAIR", cut(f"{LAYER}q_proj.lora_A.weight")),
    "a layer without factors": Bad(
        "`model.layers.0.self_attn.q_proj`: the config targets it, but the file has no factors",
        cut(*(f"{LAYER}q_proj.{half}.weight" for half in ("lora_A", "lora_B"))),
    ),
    "not saved": Bad("`model.norm`: the config replaces it whole", cut(f"{PREFIX}model.norm.weight"), SAVED),
    "saved too much": Bad("norm.bias", put(f"{PREFIX}model.norm.bias", torch.ones(32)), SAVED, error=AdapterHubError),
    "magnitudes": Bad("E_VARIANT", put(f"{LAYER}q_proj.lora_magnitude_vector", torch.ones(32))),
    "no magnitude": Bad(
        "", cut(f"{LAYER}q_proj.lora_magnitude_vector"), LoraConfig(**QUERY, use_dora=True), error=AdapterHubError
    ),
    "ia3": Bad("", cut(f"{LAYER}q_proj.ia3_l"), IA3Config(target_modules=["q_proj"], feedforward_modules=[])),
    "loha": Bad("", cut(f"{LAYER}q_proj.hada_w1_a"), LoHaConfig(r=2, target_modules=["q_proj"])),
    "another rank": Bad("", None, None, {"r": 16}, AdapterHubError),
    "a parameter of a target": Bad(
        "is a target itself, and so is its parameter", None, None, {"target_parameters": ["q_proj.weight"]}, UnsupportedAdapter,
    ),
    "a slow pattern": Bad("target_modules", None, None, {"target_modules": r"((\w|\.)+)+!"}, AdapterHubError),
    "not a number": Bad("", lambda tensors: tensors[f"{LAYER}q_proj.lora_A.weight"].fill_(float("nan"))),
    **{
        said: Bad(said, None, ROWS, {"trainable_token_indices": rows}, AdapterHubError)
        for rows, said in (
            ([0, VOCABULARY], f"`model.embed_tokens` has {VOCABULARY} rows, and the adapter replaces row {VOCABULARY}"),
            ([0, 1, 2], "`model.embed_tokens` needs rows of the shape [3, 32], the adapter has [2, 32]"),
            ([1, 1], "`model.embed_tokens` needs rows of the shape [2, 32]"),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_must_not_reach_a_model_is_refused(case: str, make: Any, library: Library) -> None:
    said, edit, config, settings, error = CASES[case]

    refusal = refusal_of(make(edit, config, **settings), library)

    assert isinstance(refusal, error)
    assert said in str(refusal)


def test_copy_of_an_embedding_that_equals_the_bases_is_passed_over(make: Any, library: Library) -> None:
    embedding = llama().state_dict()["model.embed_tokens.weight"].clone()
    folder = make(lambda t: t.update({f"{PREFIX}model.embed_tokens.weight": embedding}))

    attached = attach(llama(), folder, library=library)

    assert any("a copy of the base's `model.embed_tokens.weight`" in warning for warning in attached.warnings)
    embeddings = attached.model.get_input_embeddings().weight
    assert torch.equal(embedding, embeddings)


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


# ---------------------------------------------------------------- what is missing, or too much
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


# ---------------------------------------------------------------- what a config must not do
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


def test_model_class_that_a_config_names_is_never_imported(
    make: Any, library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "authors_model.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    folder = make(auto_mapping={"parent_library": "authors_model", "base_model_class": "Net"}, task_type=None)

    attached = attach(llama(), folder, library=library)

    assert "authors_model" not in sys.modules
    assert any("made for a model class of `authors_model`" in w for w in attached.adapters[0].warnings)


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


def test_the_same_layers_inside_another_class_are_found(make: Any, library: Library) -> None:
    ids, folder = torch.arange(6)[None], make()
    with_head = attach(llama(), folder, library=library)
    expected = with_head.model(ids, output_hidden_states=True).hidden_states[-1]

    attached = attach(llama().model, folder, library=library)

    assert torch.equal(expected, attached.model(ids).last_hidden_state)
    assert not torch.equal(expected, llama().model(ids).last_hidden_state)
    assert "`model.layers.0.self_attn.q_proj` is `layers.0.self_attn.q_proj` in this base" in attached.explain()


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
