from __future__ import annotations

import json
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.core.errors import MalformedConfig
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.peft.fields import base_is_path, base_problem
from adapterhub.formats.peft.methods import METHODS
from adapterhub.formats.peft.patterns import Budget, FullPattern, KeyPatterns, PatternTooSlow, pattern_problem
from tests.support.shared_data import shared
from tests.support.wild import KEPT

MODULES = [
    "model.embed_tokens",
    *(f"model.layers.{i}.{part}" for i in (0, 1, 2, 11, 21) for part in (
        "self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.experts.3.up_proj", "input_layernorm",
    )),
    "lm_head", "score", "classifier.dense", "transformer.h.7.attn.c_attn", "lin0", "conv2d", "a.q_proj.b", "xq_proj",
]  # fmt: skip


def raw(**settings_: Any) -> bytes:
    value = {"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": 8, "lora_alpha": 16}
    value |= {"target_modules": ["q_proj"]} | settings_
    return json.dumps({key: item for key, item in value.items() if item is not ...}).encode()


def config(**settings_: Any) -> AdapterConfig:
    return AdapterConfig.parse(raw(**settings_), "adapter_config.json")


def refusal(data: bytes) -> MalformedConfig:
    with pytest.raises(MalformedConfig) as caught:
        AdapterConfig.parse(data, "adapter_config.json")
    return caught.value


def codes(read: AdapterConfig) -> list[str]:
    return [code for code, _ in read.notes]


# ------------------------------------------------------------ reading
def test_every_field_is_read() -> None:
    read = config(
        task_type="CAUSAL_LM", revision="main", use_rslora=True, bias="lora_only", modules_to_save=["score", "score"],
        rank_pattern={"v_proj": 4}, alpha_pattern={"v_proj": 2.5}, init_lora_weights="gaussian", layers_to_transform=3,
        layer_replication=[[0, 4], [2, 6]], trainable_token_indices={"embed_tokens": [1, 2]}, lora_dropout=0.1,
    )  # fmt: skip

    assert (read.r, read.lora_alpha, read.bias, read.revision) == (8, 16, "lora_only", "main")
    assert (read.modules_to_save, read.layers_to_transform) == (("score",), (3,))
    assert read.layer_replication == ((0, 4), (2, 6))
    assert read.trainable_token_indices == {"embed_tokens": (1, 2)}
    assert (read.extra, read.notes) == ({"lora_dropout": 0.1}, ())


def test_methods_name_every_variant() -> None:
    read = config(use_rslora=True, bias="all", rank_pattern={"q_proj": 2}, modules_to_save=["head"], use_qalora=True)

    assert read.methods() == ("LORA", "rslora", "bias=all", "rank_pattern", "modules_to_save", "qalora")


def test_unknown_keys_are_kept_and_noted() -> None:
    read = config(some_future_key=[1], peft_version="9.9")

    assert read.extra["some_future_key"] == [1]
    assert read.unknown_keys == ("some_future_key",)
    assert codes(read) == ["W_CONFIG_UNKNOWN_KEY"]


def test_every_problem_is_reported_at_once() -> None:
    error = refusal(raw(r="8", lora_alpha=True, target_modules=7, bias="some"))

    assert [
        word in error.reason for word in ('`r` is "8"', "`lora_alpha` is true", "`target_modules` is 7", "`bias`")
    ] == [True] * 4


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not JSON"),
        (b"[8]", "expected an object"),
        (b'{"r":1,"r":2}', "`r` is given twice"),
        (b'{"r":NaN}', "NaN"),
        (b'{"r":1e400}', "out of range"),
        (b'{"a":' * 99_999, "nested"),
        (b'{"a":"\xe9"}', "UTF-8"),
        (b"{" + b" " * (1 << 20), "1048576"),
        (raw(peft_type=...), "`peft_type` is missing"),
        (raw(r=0), "from 1 to 4096"),
        (raw(r=4097), "from 1 to 4096"),
        (raw(r=8.0), "8.0"),
        (raw(lora_alpha=10**400), "finite"),
        (raw(lora_alpha=[1]), "finite"),
        (raw(target_modules=[]), "at least one module"),
        (raw(target_modules=[1]), "list of names"),
        (raw(target_modules=["a\nb"]), "list of names"),
        (raw(target_modules=""), "one pattern"),
        (raw(rank_pattern=[8]), "object from module names"),
        (raw(rank_pattern={"a": 0}), "for `a` is 0"),
        (raw(rank_pattern={"a": True}), "true"),
        (raw(alpha_pattern={"a": "1"}), '"1"'),
        (raw(use_dora="yes"), "true or false"),
        (raw(use_dora=2), "true or false"),
        (raw(modules_to_save="score"), "list of names"),
        (raw(layers_to_transform=[-1]), "natural numbers"),
        (raw(layers_pattern="h"), "without"),
        (raw(target_modules="q.*", layers_to_transform=[1]), "list of names"),
        (raw(layer_replication=[[1]]), "pairs"),
        (raw(bias="lora"), "lora_only"),
        (raw(use_dora=True, lora_bias=True), "exclude each other"),
        (raw(revision="--upload-pack=x"), "revision"),
        (raw(task_type=3), "text"),
        (raw(base_model_name_or_path=["a"]), "text"),
        (raw(base_model_name_or_path="a\x1b[31mb"), "text"),
    ],
)
def test_refuses_a_malformed_config_and_says_why(data: bytes, said: str) -> None:
    error = refusal(data)

    assert (error.code, said in error.reason) == ("E_CONFIG", True), error.reason
    assert error.message.isprintable()


def test_defaults_of_peft_are_filled_in_with_a_note() -> None:
    read = config(r=..., lora_alpha=None)

    assert (read.r, read.lora_alpha) == (8, 8)
    assert codes(read) == ["W_CONFIG_DEFAULT", "W_CONFIG_DEFAULT"]


def test_zero_and_negative_alpha_are_noted_wherever_they_stand() -> None:
    assert codes(config(lora_alpha=0)) == ["W_ALPHA"]
    assert codes(config(lora_alpha=-1, alpha_pattern={"v_proj": 0})) == ["W_ALPHA", "W_ALPHA"]


def test_booleans_spelled_as_numbers_are_read_with_a_note() -> None:
    read = config(use_rslora=1, use_dora=0, init_lora_weights=1)

    assert (read.use_rslora, read.use_dora, read.init_lora_weights) == (True, False, True)
    assert set(codes(read)) == {"W_CONFIG_TYPE"}


def test_a_task_type_in_full_is_accepted_and_the_right_word_offered() -> None:
    read = config(task_type="SEQUENCE_CLASSIFICATION")

    assert read.task_type == "SEQUENCE_CLASSIFICATION"
    assert "did you mean SEQ_CLS?" in dict(read.notes)["W_TASK_TYPE"]


@pytest.mark.parametrize("peft_type", [name for name, method in METHODS.items() if method.released])
def test_every_method_peft_ever_had_is_readable(peft_type: str) -> None:
    read = config(peft_type=peft_type, init_r=12, num_virtual_tokens=20)

    assert read.methods()[0] == peft_type
    assert read.extra["init_r"] == 12


@pytest.mark.parametrize("peft_type", ["FINEGATES", "UILINLORA"])
def test_a_method_that_no_release_of_peft_has_is_refused_by_name(peft_type: str) -> None:
    with pytest.raises(MalformedConfig) as refused:
        config(peft_type=peft_type)

    assert refused.value.code == "E_UNSUPPORTED"
    assert refused.value.reason == f"`peft_type` is {peft_type}, which no release of PEFT can load"


def test_all_methods_of_the_installed_peft_are_known() -> None:
    from peft import PeftType

    assert {t.value for t in PeftType} - set(METHODS) == set()


def test_an_unknown_method_is_refused_by_name() -> None:
    error = refusal(raw(peft_type="LOAR"))

    assert (error.code, "LOAR" in error.reason, "LORA?" in error.reason) == ("E_UNSUPPORTED", True, True)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"fine_tune_type": "lora", "model": "m", "lora_parameters": {"rank": 8}}, "MLX"),
        ({"lora_layers": 16, "iters": 100}, "MLX"),
        ({"version": "adapters.1.0.1", "model_type": "bert"}, "AdapterHub's `adapters`"),
        ({"config": {}, "model_class": "BertAdapterModel"}, "AdapterHub's `adapters`"),
    ],
)
def test_configs_of_other_programs_are_named(value: dict[str, Any], named: str) -> None:
    error = refusal(json.dumps(value).encode())

    assert (error.code, named in error.reason, bool(error.hint)) == ("E_UNSUPPORTED", True, True)


# ------------------------------------------------------------ names in a config
@pytest.mark.parametrize(
    "base",
    [
        "../x",
        "a/../../b",
        "file:///etc/passwd",
        "https://x/y",
        "--trust-remote-code",
        "-x",
        "/etc/passwd",
        "/proc/self/mem",
        "/./etc//shadow",
        "//host/share",
        "\\\\host\\share",
        "..\\x",
        "s3://bucket/x",
    ],
)
def test_bases_that_lead_elsewhere_are_refused(base: str) -> None:
    error = refusal(raw(base_model_name_or_path=base))

    assert (error.code, base_problem(base) != "") == ("E_CONFIG", True)


@pytest.mark.parametrize(
    "base", ["./models/llama", "/home/me/llama", "models/llama/7b", "C:\\models\\x", "~/m", "my model"]
)
def test_a_base_in_a_folder_is_noted(base: str) -> None:
    read = config(base_model_name_or_path=base)

    assert (read.base_is_path, codes(read)) == (True, ["W_BASE_PATH"])


@pytest.mark.parametrize("base", ["gpt2", "meta-llama/Llama-2-7b-hf", "test/tiny", "Qwen/Qwen3.5-4B", "_x/y"])
def test_a_hub_id_is_no_path(base: str) -> None:
    assert (base_is_path(base), base_problem(base), codes(config(base_model_name_or_path=base))) == (False, "", [])


@pytest.mark.parametrize("base", [None, "", ...])
def test_a_missing_base_is_noted(base: object) -> None:
    assert codes(config(base_model_name_or_path=base)) == ["W_BASE_MISSING"]


@pytest.mark.parametrize(
    "settings_",
    [
        {"auto_mapping": {"parent_library": "subprocess", "base_model_class": "Popen"}},
        {
            "auto_mapping": {"parent_library": "subprocess", "base_model_class": "Popen"},
            "base_model_name_or_path": None,
        },
        {"auto_mapping": {"parent_library": "os.path", "base_model_class": "M"}, "base_model_name_or_path": ""},
        {"auto_mapping": {"parent_library": "transformers; import os", "base_model_class": "M"}},
        {"auto_mapping": {"parent_library": "open_clip..model", "base_model_class": "M"}},
        {"auto_mapping": {"parent_library": "../open_clip", "base_model_class": "M"}},
        {"auto_mapping": {"parent_library": ["open_clip"], "base_model_class": "M"}},
        {"auto_mapping": {"parent_library": "transformers.x", "loader": "y"}},
        {"auto_mapping": "os"},
        {"megatron_core": "os"},
        {"megatron_core": "megatronevil.core"},
        {"auto_map": {"AutoModel": "modeling_x.M"}},
        {"trust_remote_code": True},
        {"_attn_implementation_internal": "evil/kernels"},
    ],
)
def test_code_named_by_a_config_is_refused(settings_: dict[str, Any]) -> None:
    assert refusal(raw(**settings_)).code == "E_CODE"


@pytest.mark.parametrize(
    "settings_",
    [
        {"auto_mapping": None},
        {
            "auto_mapping": {
                "parent_library": "transformers.models.opt.modeling_opt",
                "base_model_class": "OPTForCausalLM",
            }
        },
        {"auto_mapping": {"parent_library": "transformers_modules.org.repo.modeling_x", "base_model_class": "X"}},
        {"auto_mapping": {"parent_library": "__main__", "base_model_class": "MLP"}},
        {"megatron_core": "megatron.core"},
    ],
)
def test_what_peft_writes_for_models_of_its_libraries_is_accepted(settings_: dict[str, Any]) -> None:
    assert codes(config(**settings_)) == []


@pytest.mark.parametrize("base", ["org/base", None, ""])
@pytest.mark.parametrize("library", ["gliner2.model", "open_clip.transformer", "segment_anything", "test_regression"])
def test_a_model_class_of_any_other_package_is_accepted_with_a_note(library: str, base: str | None) -> None:
    read = config(auto_mapping={"parent_library": library, "base_model_class": "M"}, base_model_name_or_path=base)

    assert codes(read) == (["W_AUTO_MAPPING"] if base else ["W_AUTO_MAPPING", "W_BASE_MISSING"])


# ------------------------------------------------------------ patterns
@pytest.mark.parametrize(
    "pattern",
    [
        r"((\w|\.)+)+!",
        "(a|a)+!",
        "(a|aa)*b",
        "(a*)*",
        "(a?a?)*b",
        "(.*a){12}",
        ".*.*.*x",
        r"\w*\d*.*x",
        "a?" * 30,
        r"\w{0,16}" * 6,
        ".*a" * 9,
        r"(a)\1",
        "(?P<x>a)(?P=x)",
        "(?x) a",
        "(?:foo){e<=1}",
        "[[:alpha:]]",
        "(",
        "a**",
        "*a",
        "[a",
        "(?(1)a|b)",
        "(" * 60 + ")" * 60,
        "((a|a))*b",
        "(x(a|a))*b",
        "(a|a)" * 30 + "!",
        r"(?:\w|.){16}" * 2 + "!",
        "(?i)" + "(Q|q)" * 20 + "!",
        (r"\w?" * 12 + "x") * 2 + "!",
        "(^){99999999}",
        "(?:x{0}){99999999}q",
        r"\b{99999999}",
    ],
)
def test_patterns_that_could_run_forever_are_refused(pattern: str) -> None:
    started = time.thread_time()

    assert refusal(raw(target_modules=pattern)).code == "E_REGEX"
    assert time.thread_time() - started < 0.5


@pytest.mark.parametrize(
    "key", ["rank_pattern", "alpha_pattern", "exclude_modules", "modules_to_save", "layers_pattern"]
)
def test_every_field_that_peft_runs_as_a_pattern_is_checked(key: str) -> None:
    bomb: Any = (
        {"(a+)+": 4} if key in ("rank_pattern", "alpha_pattern") else ["(a+)+"] if key == "modules_to_save" else "(a+)+"
    )

    assert refusal(raw(**{key: bomb, "layers_to_transform": [1]})).code == "E_REGEX"


HONEST = [
    r".*\.self_attn\.(q|v)_proj",
    r"^(?!.*vision).*(?:q_proj|v_proj).*$",
    r".*decoder.*(SelfAttention|EncDecAttention).*(q|v)$",
    r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|up_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|up_proj)))",
    r"model\.layers\.(1[0-9]|2[0-9])\.mlp\.(up|down)_proj",
    r"(?i).*Q_PROJ",
    r"model.layers.\d+.self_attn.[qv]_proj",
    r".*\.\d{1,2}\.(?:self_attn|mlp)\.(?:q_proj|q_a|up_proj|up|k_proj|fc1|fc2|fc)(?:_layer)?",
    "lin0",
]


@pytest.mark.parametrize("pattern", HONEST)
def test_honest_patterns_match_as_re_does(pattern: str) -> None:
    matching = FullPattern(pattern, Budget())

    assert pattern_problem(pattern) == ""
    assert [m for m in MODULES if matching.matches(m)] == [m for m in MODULES if re.fullmatch(pattern, m)]


def test_matching_stops_when_its_time_is_used_up() -> None:
    matching = FullPattern(r"(?:\w|\w\w)+\W", Budget(0.05))  # made by hand: parsing would not let it in

    with pytest.raises(PatternTooSlow):
        matching.matches("a" * 60)


def test_a_config_whose_time_is_used_up_is_refused_by_code() -> None:
    read = config(target_modules=".*q_proj", rank_pattern={".*v_proj": 4})
    read._matchers.rank._budget.left_s = 0.0  # one budget for all patterns of a config

    for ask in (read.targets, read.rank_of):
        with pytest.raises(MalformedConfig) as caught:
            ask("model.layers.0.self_attn.q_proj")

        assert caught.value.code == "E_REGEX"


KEYS = [
    "q_proj",
    "v_proj",
    "self_attn.q_proj",
    "0.self_attn.q_proj",
    "a.b",
    "x.a_b",
    "l.yers",
    "layers.1.+",
    "q.proj",
    "model.layers.2.mlp.up_proj",
    "layers\\.\\d+\\.mlp.*",
    "lm_head",
    "h.7.attn.c_attn",
    "(q|v)_proj",
    r"^q_proj",
    r"^model\.layers\.2\.mlp\.up_proj",
    r"^x\.a_b",
    r"^q\-proj",
    "^a.b",
]
keys = st.lists(st.sampled_from(KEYS), max_size=6, unique=True)
module_names = st.sampled_from([*MODULES, "x.a_b", "a_b", "a.b", "layers", "model.layers.1.x", "q_proj", "q-proj"])


@given(keys, module_names)
@settings(max_examples=400)
def test_pattern_keys_apply_as_in_peft(pattern_keys: list[str], module: str) -> None:
    from peft.utils.other import get_pattern_key

    found = KeyPatterns(pattern_keys, Budget()).first(module)

    assert (found or module) == get_pattern_key(pattern_keys, module)


def test_a_thousand_anchored_names_are_read_but_not_as_many_patterns() -> None:
    names = [rf"^down_blocks\.0\.attentions\.{n}\.proj_out" for n in range(1000)]
    config = {"peft_type": "LORA", "r": 2, "target_modules": ["proj_out"], "rank_pattern": dict.fromkeys(names, 4)}

    read = AdapterConfig.parse(json.dumps(config).encode(), "c")

    assert [read.rank_of(f"{above}down_blocks.0.attentions.7.proj_out") for above in ("", "x.")] == [4, 2]
    config["rank_pattern"] = {f"{name}.*": 4 for name in names}
    with pytest.raises(MalformedConfig, match="1000 patterns that are no names, expected at most 256"):
        AdapterConfig.parse(json.dumps(config).encode(), "c")


TABLE: list[dict[str, Any]] = [
    {"target_modules": ["q_proj"]},
    {"target_modules": ["q_proj", "lm_head", "model.layers.0.mlp.up_proj"]},
    {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
    {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [3, 11]},
    {"target_modules": ["q_proj"], "layers_to_transform": 0},
    {"target_modules": ["q_proj"], "layers_to_transform": []},
    {"target_modules": ["q_proj", "c_attn"], "layers_to_transform": [1, 7], "layers_pattern": "layers"},
    {"target_modules": ["q_proj", "c_attn"], "layers_to_transform": [1, 7], "layers_pattern": ["h", "layers"]},
    {"target_modules": ["model.layers.21.self_attn.q_proj"], "layers_to_transform": [0]},
    {"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["layers.1.mlp.up_proj", "experts.3.up_proj"]},
    {"target_modules": ["q_proj", "up_proj"], "exclude_modules": r".*\.[12]\..*"},
    {"target_modules": ["classifier", "dense", "score", "q_proj"], "modules_to_save": ["classifier", "score"]},
    {"target_modules": r".*\.(q|v)_proj"},
    {"target_modules": "lin0"},
    {"target_modules": None, "target_parameters": ["mlp.experts.up"]},
]


@pytest.mark.parametrize("settings_", TABLE)
def test_targets_are_those_of_peft(settings_: dict[str, Any]) -> None:
    from peft.tuners.tuners_utils import check_target_module_exists

    given_ = {"exclude_modules": None, "modules_to_save": None, "layers_to_transform": None, "layers_pattern": None,
              "target_parameters": None} | settings_  # fmt: skip
    read = config(**settings_)

    theirs = [m for m in MODULES if check_target_module_exists(SimpleNamespace(**given_), m)]
    assert [m for m in MODULES if read.targets(m)] == theirs


def test_targets_left_to_the_model_are_all_but_the_excluded() -> None:
    read = config(target_modules="All-Linear", exclude_modules=["lm_head"], modules_to_save=["score"])

    assert (read.targets_all, read.targets("lin0"), read.targets("lm_head"), read.targets("score")) == (
        True,
        True,
        False,
        False,
    )


def test_rank_alpha_and_scale_follow_the_patterns() -> None:
    read = config(
        rank_pattern={"v_proj": 4, r"layers\.[01]\..*": 16},
        alpha_pattern={"layers.1.self_attn.q_proj": 3.0},
        use_rslora=True,
    )

    assert [read.rank_of(f"model.layers.{i}.self_attn.{p}") for i in (0, 2) for p in ("q_proj", "v_proj")] == [
        16,
        4,
        8,
        4,
    ]
    assert read.alpha_of("model.layers.1.self_attn.q_proj") == 3.0
    assert read.scaling_of("model.layers.2.self_attn.v_proj") == 16 / 2


def test_scale_is_that_of_a_layer_made_by_peft() -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    for use_rslora in (False, True):
        model = torch.nn.ModuleDict({"q": torch.nn.Linear(4, 4), "k": torch.nn.Linear(4, 4)})
        made = {
            "r": 8,
            "lora_alpha": 12,
            "target_modules": ["q", "k"],
            "rank_pattern": {"q": 3},
            "alpha_pattern": {"k": 5},
        }
        theirs = get_peft_model(model, LoraConfig(**made, use_rslora=use_rslora)).base_model.model
        read = config(**made, use_rslora=use_rslora)

        assert {m: read.scaling_of(m) for m in ("q", "k")} == {m: theirs[m].scaling["default"] for m in ("q", "k")}


# ------------------------------------------------------------ the wild
def configs_in(collection: Path) -> list[Path]:
    return sorted(collection.rglob("adapter_config.json"))


def refused_in(collection: Path) -> dict[str, str | None]:
    refused = {}
    for path in configs_in(collection):
        try:
            AdapterConfig.parse(path.read_bytes(), "adapter_config.json")
        except MalformedConfig as error:
            refused[path.relative_to(collection).parts[0]] = error.code
    return refused


def test_wild_configs_are_read() -> None:
    assert len(configs_in(KEPT)) == 205
    assert refused_in(KEPT) == {"huggingface__peft": "E_UNSUPPORTED"}  # FINEGATES, of an unreleased PEFT


def test_wild_configs_of_the_whole_collection_are_read_or_named_and_mean_what_peft_makes_of_them() -> None:
    collection = shared("wild")

    assert refused_in(collection) == {
        "AnHu2410__MD_crosslingual": "E_UNSUPPORTED",
        "huggingface__peft": "E_UNSUPPORTED",
        "kilojoules__REDKWEEN": "E_UNSUPPORTED",
        "softwarewrighter__engram-poc": "E_UNSUPPORTED",
    }
    assert differing_from_peft(configs_in(collection)) == []


def test_wild_configs_mean_what_peft_makes_of_them() -> None:
    assert differing_from_peft(configs_in(KEPT)) == []


def differing_from_peft(configs: list[Path]) -> list[tuple[Path, str]]:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.other import get_pattern_key

    modules = [
        *MODULES,
        "bert.encoder.layer.3.attention.self.query",
        "h.1.attn.c_attn",
        "decoder.block.0.layer.1.EncDecAttention.q",
    ]
    differing = []
    for path in configs:
        value = json.loads(path.read_bytes())
        if value.get("peft_type") != "LORA":
            continue
        read = AdapterConfig.parse(path.read_bytes(), "adapter_config.json")
        known = set(LoraConfig.__dataclass_fields__)
        task = {"task_type": None} if read.task_type == "SEQUENCE_CLASSIFICATION" else {}
        theirs = LoraConfig(**{k: v for k, v in value.items() if k in known and k != "loftq_config"} | task)
        for module in modules:
            rank = (theirs.rank_pattern or {}).get(
                get_pattern_key((theirs.rank_pattern or {}).keys(), module), theirs.r
            )
            same_target = read.targets_all or read.targets(module) == bool(check_target_module_exists(theirs, module))
            if read.rank_of(module) != rank or not same_target:
                differing.append((path, module))

    return differing
