from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import GPT2Model, LlamaForCausalLM

from adapterhub.formats.base.comparison import compare
from adapterhub.formats.base.fingerprint import (
    BaseComparison,
    BaseFingerprint,
    BaseHints,
    BaseVerdict,
    fingerprint_tensors,
)
from adapterhub.formats.base.folders import files_digest, fingerprint_folder
from adapterhub.formats.safetensors.header import TensorFacts
from tests.support.fingerprinted import edited, fingerprint, gpt2, llama


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny-llama"
    llama().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gpt2_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny-gpt2"
    gpt2().save_pretrained(folder)
    return folder


def compared(a: Path, b: Path) -> BaseComparison:
    """The comparison of two folders, after a check that the verdict is the same the other way round."""
    (first, first_hints, _), (second, second_hints, _) = (fingerprint_folder(f, cache_folder=None) for f in (a, b))
    comparison = compare(first, second, hints=(first_hints, second_hints))
    assert comparison.verdict is compare(second, first).verdict
    return comparison


# ---------------------------------------------------------------- the five verdicts
def test_a_resharded_model_has_the_same_weights(base: Path, tmp_path: Path) -> None:
    LlamaForCausalLM.from_pretrained(base).save_pretrained(tmp_path, max_shard_size="100KB")

    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert fingerprint(base) == fingerprint(tmp_path)
    assert compared(base, tmp_path) == BaseComparison(verdict=BaseVerdict.SAME_WEIGHTS)


def test_a_saved_again_model_has_the_same_weights(base: Path, tmp_path: Path) -> None:
    LlamaForCausalLM.from_pretrained(base).save_pretrained(tmp_path)

    assert fingerprint(base) == fingerprint(tmp_path)


def test_a_model_with_renamed_keys_has_the_same_weights(base: Path, tmp_path: Path) -> None:
    renamed = edited(
        base, tmp_path / "renamed", lambda tensors: {f"language_{name}": tensor for name, tensor in tensors.items()}
    )

    comparison = compared(base, renamed)

    assert comparison.verdict is BaseVerdict.SAME_WEIGHTS
    assert any("`language_" in sentence for sentence in comparison.differences)
    assert fingerprint(base).structure != fingerprint(renamed).structure


def test_a_kept_tied_copy_changes_nothing(gpt2_base: Path, tmp_path: Path) -> None:
    tied = edited(
        gpt2_base, tmp_path / "tied", lambda tensors: tensors | {"lm_head.weight": tensors["transformer.wte.weight"]}
    )

    assert compared(gpt2_base, tied).verdict is BaseVerdict.SAME_WEIGHTS


def test_causal_masks_and_other_buffers_change_nothing(gpt2_base: Path, tmp_path: Path) -> None:
    def with_buffers(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        mask = torch.tril(torch.ones(32, 32, dtype=torch.uint8)).view(1, 1, 32, 32)
        return tensors | {
            "transformer.h.0.attn.bias": mask,
            "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
            "transformer.position_ids": torch.arange(32),
            "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        }

    folder = edited(gpt2_base, tmp_path / "old", with_buffers)

    assert fingerprint(gpt2_base) == fingerprint(folder)
    assert fingerprint_folder(gpt2_base, cache_folder=None)[1] == fingerprint_folder(folder, cache_folder=None)[1]


def test_a_bias_of_an_attention_layer_is_a_weight(gpt2_base: Path, tmp_path: Path) -> None:
    extra = edited(
        gpt2_base, tmp_path / "extra", lambda tensors: tensors | {"transformer.h.0.attn.bias": torch.ones(64)}
    )

    assert compared(gpt2_base, extra).verdict is not BaseVerdict.SAME_WEIGHTS


@pytest.mark.parametrize(
    ("first", "second"),
    [("float32", "bfloat16"), ("float32", "float16"), ("bfloat16", "float16"), ("float64", "bfloat16")],
)
def test_copies_in_another_precision_are_told(base: Path, tmp_path: Path, first: str, second: str) -> None:
    for dtype in (first, second):
        LlamaForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype)).save_pretrained(tmp_path / dtype)

    comparison = compared(tmp_path / first, tmp_path / second)

    assert comparison.verdict is BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION
    (sentence,) = comparison.differences
    assert sentence.startswith("21 of 21 tensors are ")


def test_a_half_precision_copy_saved_without_the_head_is_told(gpt2_base: Path, tmp_path: Path) -> None:
    GPT2Model.from_pretrained(gpt2_base, dtype=torch.bfloat16).save_pretrained(tmp_path)

    assert "h.0.ln_1.weight" in load_file(tmp_path / "model.safetensors")
    assert compared(gpt2_base, tmp_path).verdict is BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION


def test_a_half_precision_copy_that_keeps_a_tied_copy_is_told(gpt2_base: Path, tmp_path: Path) -> None:
    half = edited(
        gpt2_base,
        tmp_path / "half",
        lambda tensors: {
            name: tensor.half()
            for name, tensor in (tensors | {"lm_head.weight": tensors["transformer.wte.weight"]}).items()
        },
    )

    assert compared(gpt2_base, half).verdict is BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_training_step_keeps_only_the_shapes(base: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    model = LlamaForCausalLM.from_pretrained(base)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tokens = torch.arange(32).view(2, 16)
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    model.to(dtype).save_pretrained(tmp_path)

    comparison = compared(base, tmp_path)

    assert comparison.verdict is BaseVerdict.SAME_SHAPES
    assert " of 336 sampled values differ, for example in `" in comparison.differences[0]


def test_one_changed_number_between_the_samples_is_seen(base: Path, tmp_path: Path) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors["model.norm.weight"][1] += 1e-3  # element 1 of 64 is no sample
        return tensors

    comparison = compared(base, edited(base, tmp_path / "edited", edit))

    assert comparison.verdict is BaseVerdict.SAME_SHAPES
    assert comparison.differences == ("all 336 sampled values agree, but the digests do not: others differ",)


@pytest.mark.parametrize("is_renamed", [False, True])
def test_another_shape_of_one_tensor_is_no_resized_vocabulary_and_no_other_value(
    is_renamed, base: Path, tmp_path: Path
) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = "model.layers.0.self_attn.q_proj.weight"
        tensors[name] = tensors[name].reshape(-1, tensors[name].shape[0] // 2).contiguous()
        if is_renamed:
            tensors = {f"model.{key}": tensor for key, tensor in tensors.items()}
        return tensors

    comparison = compared(base, edited(base, tmp_path / "edited", edit))

    assert comparison.verdict is BaseVerdict.DIFFERENT
    assert not any("agree" in text or "tokens" in text for text in comparison.differences)
    assert is_renamed or "not all have the same shape" in comparison.differences[-1]


def test_another_model_is_different_and_the_facts_say_why(base: Path, gpt2_base: Path) -> None:
    comparison = compared(base, gpt2_base)

    assert comparison.verdict is BaseVerdict.DIFFERENT
    assert "model_type is llama in the first, gpt2 in the second" in comparison.differences
    assert any(sentence.startswith("parameters is 115,") for sentence in comparison.differences)


def test_another_width_is_different(base: Path, tmp_path: Path) -> None:
    llama(intermediate_size=192).save_pretrained(tmp_path)

    comparison = compared(base, tmp_path)

    assert comparison.verdict is BaseVerdict.DIFFERENT
    assert "the tensors have the same names, but not all have the same shape" in comparison.differences


def test_another_depth_is_different(base: Path, tmp_path: Path) -> None:
    llama(num_hidden_layers=3).save_pretrained(tmp_path)

    comparison = compared(base, tmp_path)

    assert comparison.verdict is BaseVerdict.DIFFERENT
    assert "layers is 2 in the first, 3 in the second" in comparison.differences
    assert "21 tensors in the first, 30 in the second" in comparison.differences


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_grown_by_repeating_its_own_layer_is_different(base: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    def grow(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        last = {n.replace("layers.1.", "layers.2."): t for n, t in tensors.items() if "layers.1." in n}
        return {name: tensor.to(dtype) for name, tensor in (tensors | last).items()}

    grown = edited(base, tmp_path / "grown", grow)

    assert compared(base, grown).verdict is BaseVerdict.DIFFERENT


def test_a_model_with_exchanged_layers_has_only_the_same_shapes(base: Path, tmp_path: Path) -> None:
    other = {"layers.0.": "layers.1.", "layers.1.": "layers.0."}
    exchanged = edited(
        base,
        tmp_path / "exchanged",
        lambda tensors: {
            next((n.replace(a, b) for a, b in other.items() if a in n), n): tensor for n, tensor in tensors.items()
        },
    )

    assert fingerprint(base).tensors == fingerprint(exchanged).tensors
    assert compared(base, exchanged).verdict is BaseVerdict.SAME_SHAPES


def test_nothing_declared_is_unknown(base: Path) -> None:
    known = fingerprint(base)

    assert compare(None, known).verdict is BaseVerdict.UNKNOWN
    assert compare(known, None).differences == ("the second base has no known fingerprint",)
    assert compare(None, None).differences == ("neither base has a known fingerprint",)


def test_other_values_and_what_is_not_proved_forbid_to_attach() -> None:
    assert {verdict for verdict in BaseVerdict if not verdict.allows_attach} == {
        BaseVerdict.SAME_SHAPES,
        BaseVerdict.DIFFERENT,
        BaseVerdict.LIKELY_SAME_QUANTISED,
        BaseVerdict.CANNOT_TELL,
    }


# ---------------------------------------------------------------- the fields
def facts(name: str = "w", dtype: str = "F32", shape: tuple[int, ...] = (1,), value: bytes = b"abcd") -> TensorFacts:
    return TensorFacts(
        name=name, dtype=dtype, shape=shape, sha256=hashlib.sha256(value).hexdigest(), samples=value[:4] * 16
    )


def sha256_of_json(value: object) -> str:
    """RFC 8785 of ASCII lists, text and small integers is what this writes."""
    return "sha256:" + hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()


def test_the_digests_are_those_of_the_documented_lists() -> None:
    first, second, copy = facts("b", shape=(2, 3)), facts("a", "BF16", (4,), b"efgh"), facts("c", shape=(2, 3))

    found = fingerprint_tensors([first, second, copy])

    rows = [["a", "BF16", [4], second.sha256], ["b", "F32", [2, 3], first.sha256], ["c", "F32", [2, 3], copy.sha256]]
    assert found.weights == sha256_of_json(rows)
    assert found.tensors == sha256_of_json([row[1:] for row in rows[:2]])
    assert found.structure == sha256_of_json([[row[0], row[2]] for row in rows])
    assert found.to_json()["samples"]["a"].startswith("BF16:")


@given(order=st.permutations(["a", "b.c", "b", "ü", "\U0001d7d9", "\uffff"]))
def test_the_order_of_tensors_does_not_matter(order: list[str]) -> None:
    assert fingerprint_tensors(map(facts, order)) == fingerprint_tensors(map(facts, sorted(order)))


def test_large_models_keep_four_samples_a_tensor() -> None:
    many = fingerprint_tensors(facts(f"w.{n}") for n in range(4097))
    few = fingerprint_tensors(facts(f"w.{n}") for n in range(4096))

    assert {len(raw) for _, raw in many.samples.values()} == {4 * 4}
    assert {len(raw) for _, raw in few.samples.values()} == {16 * 4}


@pytest.mark.parametrize("given", [[], [facts("x.position_ids")], [facts("w"), facts("w", value=b"efgh")]])
def test_no_weights_and_names_given_twice_are_refused(given: list[TensorFacts]) -> None:
    with pytest.raises(ValueError, match=r"no weights|given twice"):
        fingerprint_tensors(given)


def test_json_round_trip(base: Path) -> None:
    found, hints, _ = fingerprint_folder(base, cache_folder=None)

    text = json.dumps(found.to_json() | {"hints": hints.to_json()})

    assert BaseFingerprint.from_json(json.loads(text)) == found
    assert BaseHints.from_json(json.loads(text)["hints"]) == hints


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": "sha256:12"}, "base.weights: expected sha256:<64"),
        ({"structure": None}, "base.structure: expected sha256:<64"),
        ({"files": 3}, "base.files: expected sha256:<64"),
        ({"samples": []}, "base.samples: expected object, got list"),
        ({"samples": {"w": "BF99:AAAA"}}, r"base.samples\[w\]: expected <dtype>:<base64>, got BF99:AAAA"),
        ({"samples": {"w": 1}}, r"base.samples\[w\]: expected <dtype>:<base64>"),
        ({"samples": {"w": "BF16:A*"}}, r"base.samples\[w\]: not base64"),
        ({"samples": {"w": "F32:AAAA"}}, r"base.samples\[w\]: expected at most 16 numbers of F32, got 3 bytes"),
        ({"samples": {"w": "U8:" + "A" * 24}}, r"base.samples\[w\]: expected at most 16 numbers of U8, got 18 bytes"),
    ],
)
def test_wrong_json_names_the_place(change: dict[str, object], message: str) -> None:
    value = fingerprint_tensors([facts()]).to_json() | change

    with pytest.raises(ValueError, match=message):
        BaseFingerprint.from_json(value)


@pytest.mark.parametrize(
    "value", [None, [], {"parameters": "many"}, {"hub_id": 3}, {"layers": True}, {"tokenizer_sha256": "abc"}]
)
def test_wrong_hints_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="hints"):
        BaseHints.from_json(value)


def test_files_digest_ignores_order_and_checks_its_entries() -> None:
    entries = [("b.safetensors", "0" * 64), ("a.safetensors", "1" * 64)]

    assert files_digest(entries) == files_digest(entries[::-1])
    assert files_digest(entries) == sha256_of_json([["a.safetensors", "1" * 64], ["b.safetensors", "0" * 64]])
    for wrong in ([], [("a", "0")]):
        with pytest.raises(ValueError, match=r"listed|expected sha256"):
            files_digest(wrong)


def test_samples_that_are_missing_prove_nothing() -> None:
    whole = fingerprint_tensors([facts()])
    emptied = BaseFingerprint.from_json(
        fingerprint_tensors([facts(dtype="BF16", value=b"ab")]).to_json() | {"samples": {"w": "BF16:"}}
    )

    assert compare(whole, emptied).verdict is BaseVerdict.SAME_SHAPES
