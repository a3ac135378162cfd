"""Every finding of the checks on numbers, pairs and shapes: code, severity, place, words and hint, at its edge."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.formats.base.fingerprint import COPY_HINT
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.trust.verify import Finding, Report
from adapterhub.trust.verify.checks import scale as scales
from adapterhub.trust.verify.report import some
from tests.support.verify_world import P, make, pair, say, weight

DIVERGED = "the training diverged; take an earlier checkpoint"


def error(code: str, message: str, expected: str = "", hint: str = "", where: str = WEIGHTS_FILE) -> Finding:
    return Finding(code, where, message, expected=expected, hint=hint)


def other(code: str, message: str, hint: str = "", where: str = WEIGHTS_FILE) -> Finding:
    return Finding(code, where, message, hint=hint)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "adapter"


# ------------------------------------------------------------ the report
def test_some_names_are_listed_and_the_others_counted() -> None:
    assert some([]) == ""
    assert some("abc") == "`a`, `b`, `c`"
    assert some("abcd") == "`a`, `b`, `c` and 1 more"
    assert some("abcdef", 4) == "`a`, `b`, `c`, `d` and 2 more"
    assert some(["a\n"]) == "`a\\n`"


def test_a_finding_prints_what_it_has() -> None:
    assert str(error("E_X", "is bad", "good", "do", "file")) == "[E_X] file: is bad, expected good"
    assert str(error("E_X", "is bad", where="")) == "[E_X] is bad"
    assert error("E_X", "m", "e", "h", "w").to_json() == {
        "code": "E_X",
        "severity": "error",
        "where": "w",
        "message": "m",
        "expected": "e",
        "hint": "h",
    }


def test_a_report_is_ordered_by_severity_and_has_a_status() -> None:
    every = {made.severity: made for made in (other(f"{letter}_X", "m") for letter in "NWUE")}
    report = Report.of(every.values())

    assert [f.severity for f in report.findings] == ["error", "unknown", "warning", "note"]
    assert report.errors == (every["error"],)
    assert report.warnings == (every["warning"],)
    assert report.unknowns == (every["unknown"],)
    assert report.notes == (every["note"],)
    assert (report.status, report.facts) == ("failed", None)
    assert Report.of([every["unknown"], every["warning"]]).status == "unknown"
    assert Report.of([every["warning"], every["note"]]).status == "ok"
    assert Report.of([]).to_json() == {"status": "ok", "findings": [], "facts": None}
    same = [error("E_X", "m"), error("E_Y", "m"), error("E_X", "n"), error("E_X", "m", where="x"), error("E_X", "m")]
    assert len(Report.of(same).findings) == 4


# ------------------------------------------------------------ numbers
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("index", [0, 7, 15])
def test_a_number_that_is_none_is_told_with_its_place(folder: Path, odd: float, index: int) -> None:
    tensors = pair("q")
    tensors[f"{P}q.lora_A.weight"].flat[index] = odd
    tensors[f"{P}q.lora_A.weight"].flat[15] = odd

    assert say("numbers", make(folder, tensors)) == [
        error(
            "E_NONFINITE",
            f"`{P}q.lora_A.weight` holds NaN or infinity, first at element {index}",
            "finite numbers",
            DIVERGED,
        )
    ]


@pytest.mark.parametrize(("count", "more"), [(5, 0), (6, 1), (8, 3)])
def test_five_tensors_with_odd_numbers_are_named_and_the_others_counted(folder: Path, count: int, more: int) -> None:
    tensors = {}
    for n in range(count):
        tensors |= pair(f"{n}.q")
        tensors[f"{P}{n}.q.lora_A.weight"][0, 0] = math.nan

    found = say("numbers", make(folder, tensors))

    assert len(found) == 5 + bool(more)
    assert found[5:] == ([error("E_NONFINITE", f"{more} more tensors hold NaN or infinity")] if more else [])


@pytest.mark.parametrize(("half", "letter"), [("a", "A"), ("b", "B")])
def test_an_adapter_that_does_nothing_is_told(folder: Path, half: str, letter: str) -> None:
    hint = "it was saved before it was trained, or its weights were not gathered"
    zero = {half: 0.0}
    expected = other("W_NOOP", f"every lora_{letter} is zero: the adapter does nothing", hint)

    assert say("numbers", make(folder, pair("q", **zero) | pair("1.q", **zero))) == [expected]
    assert say("numbers", make(folder, pair("q", **zero) | pair("1.q"))) == []


def test_the_largest_number_of_float32_fits_and_more_does_not(folder: Path) -> None:
    tensors = {name: value.astype("f8") for name, value in pair("q").items()}
    name = f"{P}q.lora_A.weight"
    tensors[name][0, 0] = 3.4028234663852886e38
    assert say("numbers", make(folder, tensors)) == []
    tensors[name][0, 0] = -3.5e38
    tensors[f"{P}q.lora_B.weight"][0, 0] = 4e38

    assert say("numbers", make(folder, tensors)) == [
        error(
            "E_OVERFLOW",
            f"`{name}`, `{P}q.lora_B.weight` reach 4e+38, which is infinity in float32",
            "at most 3.403e+38",
            DIVERGED,
        )
    ]
    tensors[name][0, 0] = tensors[f"{P}q.lora_B.weight"][0, 0] = math.inf
    assert {finding.code for finding in say("numbers", make(folder, tensors))} == {"E_NONFINITE"}


def test_whole_numbers_are_no_weights(folder: Path) -> None:
    tensors = pair("q") | {f"{P}x.{n}": np.zeros(1, kind) for n, kind in enumerate(("i4", "u1"))}

    assert say("container", make(folder, tensors)) == [
        error("E_DTYPE", f"I32, U8 in `{P}x.0`, `{P}x.1`", "floating point numbers")
    ]
    assert say("container", make(folder)) == []


# ------------------------------------------------------------ the scale
def test_the_scale_of_each_group_is_noted(folder: Path) -> None:
    def note(message: str) -> Finding:
        return other("N_SCALE", message, where=CONFIG_FILE)

    assert say("scale", make(folder)) == [note("scale 2 on 1 module (alpha 4 / r 2)")]
    tensors = pair("0.q") | pair("1.q")
    assert say("scale", make(folder, tensors, use_rslora=True)) == [
        note("scale 2.828 on 2 modules (alpha 4 / sqrt(2))")
    ]


@pytest.mark.parametrize(("count", "more"), [(12, 0), (13, 1), (15, 3)])
def test_twelve_scales_are_noted_and_the_others_counted(folder: Path, count: int, more: int) -> None:
    tensors = {name: value for n in range(count) for name, value in pair(f"{n}.q").items()}

    found = say("scale", make(folder, tensors, alpha_pattern={f"{n}.q": n + 1 for n in range(count)}))

    assert len(found) == 12 + bool(more)
    assert found[12:] == ([other("N_SCALE", f"{more} more scales", where=CONFIG_FILE)] if more else [])


def halves(**fill: float) -> dict[str, np.ndarray]:
    return {name: value.astype("f2") for name, value in pair("q", **fill).items()}


def overflow(folder: Path, tensors: dict[str, np.ndarray], **settings: Any) -> list[Finding]:
    return [f for f in say("scale", make(folder, tensors, **settings)) if f.code != "N_SCALE"]


def test_an_update_that_its_dtype_cannot_hold_is_told(folder: Path) -> None:
    # two products of 128 * 256 make 65536, and 65504 is the most; the scale is 1
    text = "the update on `q` reaches 6.554e+04, which F16 cannot hold (at most 6.55e+04)"
    assert overflow(folder, halves(a=128, b=256), lora_alpha=2) == [other("W_OVERFLOW", text)]
    assert overflow(folder, halves(a=127.9375, b=256), lora_alpha=2) == []
    # a smaller scale comes too late, a greater one counts
    assert overflow(folder, halves(a=128, b=256), lora_alpha=1) == [other("W_OVERFLOW", text)]
    assert len(overflow(folder, halves(a=64, b=256), lora_alpha=4)) == 1
    assert overflow(folder, halves(a=64, b=255), lora_alpha=4) == []


def test_an_update_that_only_its_bound_cannot_hold_is_not_told(folder: Path) -> None:
    tensors = halves(a=128, b=0)
    tensors[f"{P}q.lora_B.weight"][3, 0] = 256

    assert overflow(folder, tensors, lora_alpha=2) == []


@pytest.mark.parametrize("name", ["_MAX_MULTIPLICATIONS", "_MAX_ELEMENTS"])
def test_an_update_too_large_to_compute_may_overflow(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (scales._MAX_MULTIPLICATIONS, scales._MAX_ELEMENTS) == (2_000_000_000, 16_000_000)
    needed = 16 * 8 if name == "_MAX_MULTIPLICATIONS" else 32
    monkeypatch.setattr(scales, name, needed)
    assert "reaches" in overflow(folder, halves(a=128, b=256), lora_alpha=2)[0].message
    monkeypatch.setattr(scales, name, needed - 1)

    text = "the update on `q` may overflow F16; it is too large to compute"
    assert overflow(folder, halves(a=128, b=256), lora_alpha=2) == [other("W_OVERFLOW", text)]


def test_only_the_first_update_that_overflows_is_told(folder: Path) -> None:
    tensors = {n.replace("q", f"{i}.q"): v for i in (0, 1) for n, v in halves(a=128, b=256).items()}

    assert ["`0.q`" in f.message for f in overflow(folder, tensors, lora_alpha=2)] == [True]


# ------------------------------------------------------------ pairs
def test_an_adapter_without_a_pair_is_refused(folder: Path) -> None:
    names = "tensors named `base_model.model.….lora_A.weight` and `lora_B`"

    found = say("pairing", make(folder, {"x": np.zeros((2, 2), "f4")}))

    assert found[0] == error("E_PAIR", "holds no LoRA pair", names)


@pytest.mark.parametrize(("kept", "lost"), [("A", "B"), ("B", "A")])
def test_half_a_pair_is_refused(folder: Path, kept: str, lost: str) -> None:
    tensors = {f"{P}q.lora_{kept}.weight": np.zeros((2, 2), "f4")}

    found = say("pairing", make(folder, tensors))

    assert found == [error("E_PAIR", f"lora_{kept} without lora_{lost} on `q`", "both halves of every pair")]


def test_a_part_without_matrices_is_refused(folder: Path) -> None:
    found = say("pairing", make(folder, {f"{P}q.lora_magnitude_vector": np.zeros(2, "f4")}, use_dora=True))

    assert found == [error("E_PAIR", "parts of a LoRA pair without its matrices on `q`")]


def shaped(a: tuple[int, ...], b: tuple[int, ...], module: str = "q") -> dict[str, np.ndarray]:
    return {f"{P}{module}.lora_A.weight": np.ones(a, "f4"), f"{P}{module}.lora_B.weight": np.ones(b, "f4")}


@pytest.mark.parametrize("shape", [(16,), (0, 8), (2, 0)])
def test_what_is_no_matrix_is_refused(folder: Path, shape: tuple[int, ...]) -> None:
    assert say("pairing", make(folder, shaped(shape, (8, 2)))) == [
        error(
            "E_SHAPE",
            f"not a matrix, or one with an empty side: `{P}q.lora_A.weight {list(shape)}`",
            "A [r, in] and B [out, r]",
            "a distributed trainer saved the weights before gathering its shards",
        )
    ]


@pytest.mark.parametrize(("a", "b"), [((2, 8, 3, 3), (8, 2)), ((2, 8), (8, 2, 1, 1)), ((2, 8, 3, 3), (8, 2, 1, 3))])
def test_halves_of_two_layouts_are_refused(folder: Path, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    assert say("pairing", make(folder, shaped(a, b))) == [
        error(
            "E_SHAPE",
            f"A and B do not fit together on `q (A {list(a)}, B {list(b)})`",
            "those of a matrix or a convolution",
        )
    ]


@pytest.mark.parametrize(
    ("a", "b"), [((2, 8), (8, 2)), ((2, 8, 3, 3), (8, 2, 1, 1)), ((4, 8, 3), (8, 2, 1)), ((2, 2), (2, 2))]
)
def test_the_layouts_of_matrices_and_convolutions_are_taken(
    folder: Path, a: tuple[int, ...], b: tuple[int, ...]
) -> None:
    assert say("pairing", make(folder, shaped(a, b), r=a[0])) == []


def test_ranks_that_differ_are_refused(folder: Path) -> None:
    assert say("pairing", make(folder, shaped((2, 8), (8, 4)))) == [
        error("E_RANK", "A and B differ in rank on `q (2 and 4)`")
    ]
    assert say("pairing", make(folder, shaped((4, 8), (8, 2)))) == [
        error("E_RANK", "A and B differ in rank on `q (4 and 2)`")
    ]
    tensors = shaped((3, 8), (8, 3)) | shaped((1, 8), (8, 1), "1.q") | shaped((3, 8), (8, 3), "2.q")
    assert say("pairing", make(folder, tensors)) == [
        error("E_RANK", "rank 1 on `1.q`", "rank 2, as adapter_config.json says"),
        error("E_RANK", "rank 3 on `2.q`, `q`", "rank 2, as adapter_config.json says"),
    ]


@pytest.mark.parametrize(("a", "b"), [((3, 2), (8, 3)), ((3, 8), (2, 3)), ((9, 4, 2), (9, 9, 1))])
def test_a_rank_larger_than_the_matrix_is_warned_of(folder: Path, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    message = "the rank is larger than the matrix on `q`; a lower rank can hold the same update"
    assert say("pairing", make(folder, shaped(a, b), r=a[0])) == [other("W_RANK", message)]


@pytest.mark.parametrize(("a", "b"), [((3, 3), (8, 3)), ((3, 8), (3, 3)), ((8, 4, 2), (8, 8, 1))])
def test_a_rank_of_just_the_matrix_is_taken(folder: Path, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    assert say("pairing", make(folder, shaped(a, b), r=a[0])) == []


@pytest.mark.parametrize(("numbers", "ok"), [(8, True), (7, False), (9, False)])
def test_a_vector_has_one_number_for_each_output(folder: Path, numbers: int, ok: bool) -> None:  # noqa: FBT001
    for name, settings in (("lora_magnitude_vector", {"use_dora": True}), ("lora_B.bias", {"lora_bias": True})):
        tensors = pair("q") | {f"{P}q.{name}": np.ones(numbers, "f4")}
        expected = error("E_SHAPE", f"not one number for each output: `{P}q.{name} [{numbers}]`")

        assert say("pairing", make(folder, tensors, **settings)) == ([] if ok else [expected])


def test_pairs_and_targets_that_do_not_meet_are_told(folder: Path) -> None:
    assert say("pairing", make(folder, pair("q") | pair("0.k"))) == [
        error(
            "E_PAIR",
            "pairs on `0.k`, which the config does not target: PEFT would silently ignore them",
            "modules that `target_modules` in adapter_config.json names",
        )
    ]
    assert say("pairing", make(folder, target_modules=["q", "v", "0.q"])) == [
        other(
            "W_TARGETS",
            "targets `v`, `0.q`, for which there are no weights",
            where=CONFIG_FILE,
        )
    ]
    assert say("pairing", make(folder, pair("0.k"), target_modules="all-linear")) == []


def test_tensors_that_have_no_place_are_refused(folder: Path) -> None:
    one = np.ones((2, 2), "f4")
    names = "one adapter in a file, as `save_pretrained` writes it"
    hint = "save the adapter again with PEFT, or name those modules in `modules_to_save`"
    memory = [f"{P}0.q.lora_A.{adapter}.weight" for adapter in ("first", "second")]

    assert say("pairing", make(folder, pair("q") | dict.fromkeys(memory, one))) == [
        error("E_PAIR", f"`{memory[0]}`, `{memory[1]}` are of several adapters in memory, by their names", names)
    ]
    assert say("pairing", make(folder, pair("q") | {"x.lora_C": one})) == [
        error("E_PAIR", "not tensors of a LoRA adapter: `x.lora_C`", f"`{P}….lora_A.weight` and such")
    ]
    trained = f"{P}x.trainable_tokens_delta"
    assert [f.code for f in say("pairing", make(folder, pair("q") | {trained: one}))] == ["E_PAIR"]
    assert say("pairing", make(folder, pair("q") | {f"{P}norm.weight": one, "k.default": one})) == [
        error(
            "E_BASE_WEIGHT",
            f"contains weights of the base model, which an adapter must not replace: `{P}norm.weight`, `k.default`",
            "`lora_` tensors, or modules that `modules_to_save` names",
            hint,
        )
    ]


def test_modules_shipped_whole_and_biases_are_warned_of(folder: Path) -> None:
    tensors = pair("q") | {f"{P}head.weight": np.ones((300, 2), "f4"), f"{P}head.bias": np.ones(300, "f4")}
    text = "contains `head` whole (3,600 bytes); they replace the base's while the adapter is on"
    assert say("pairing", make(folder, tensors, modules_to_save=["head"])) == [other("W_FULL_WEIGHT", text)]
    tensors = pair("q") | {f"{P}{name}.bias": np.ones(2, "f4") for name in ("a", "b")}
    text = "changes 2 biases of the base (`bias: all`), on or off"
    assert say("pairing", make(folder, tensors, bias="all")) == [other("W_BIAS", text)]


def test_another_method_is_known_by_its_tensors(folder: Path) -> None:
    tensors = {f"{P}q.hada_w1_a": np.ones((2, 2), "f4")}
    said = "tensors of LOHA are checked when it is attached, not here"
    assert say("pairing", make(folder, tensors, peft_type="LOHA", lora_alpha=...)) == [other("U_METHOD", said)]
    said = "no tensor belongs to LOHA, the method of the config; found "
    found = say("pairing", make(folder, peft_type="LOHA", lora_alpha=...))
    expected = f"`{P}q.lora_A.weight`, `{P}q.lora_B.weight`"
    assert found == [error("E_UNSUPPORTED", said + expected, "names with `hada_`")]


# ------------------------------------------------------------ variants
PARTS = "the config and the weights belong to different adapters, or an older PEFT saved them; save them again"


@pytest.mark.parametrize(
    ("name", "key", "what"),
    [
        ("lora_magnitude_vector", "use_dora", "DoRA's magnitudes"),
        ("lora_B.bias", "lora_bias", "a bias of B"),
    ],
)
def test_parts_of_a_variant_are_there_exactly_when_announced(folder: Path, name: str, key: str, what: str) -> None:
    having = pair("q") | {f"{P}q.{name}": np.ones(8, "f4")}
    said, silent = {key: True}, {key: False}

    assert say("variants", make(folder, having, **said)) == []
    assert say("variants", make(folder, **silent)) == []
    assert say("variants", make(folder, having, **silent)) == [
        error("E_VARIANT", f"holds {what} on `q`", f"none, since `{key}` is false in adapter_config.json", PARTS)
    ]
    assert say("variants", make(folder, having | pair("0.q"), **said)) == [
        error(
            "E_VARIANT",
            f"lacks {what} on `0.q`",
            f"one for each pair, since `{key}` is true in adapter_config.json",
            PARTS,
        )
    ]


@pytest.mark.parametrize("start", ["pissa", "PiSSA_niter_4", "olora", "corda", "loftq", "lora_ga"])
def test_a_start_that_changes_the_base_is_warned_of(folder: Path, start: str) -> None:
    [found] = say("variants", make(folder, init_lora_weights=start))

    message = (
        f"started from `{start}`, which changes the base before training: the update is not B @ A alone, "
        "and on the plain base the adapter acts differently than in training"
    )
    hint = "convert it with PEFT: `save_pretrained(path, path_initial_model_for_weight_conversion=…)`"
    assert found == other("W_INIT", message, hint, CONFIG_FILE)


@pytest.mark.parametrize("start", ["gaussian", "EVA", "orthogonal", "mica", True, False])
def test_a_start_that_leaves_the_base_is_passed_over(folder: Path, start: object) -> None:
    assert say("variants", make(folder, init_lora_weights=start)) == []


def test_a_start_of_a_later_peft_is_noted(folder: Path) -> None:
    message = "started from `later`, which PEFT 0.21 does not know; it affects training only"
    assert say("variants", make(folder, init_lora_weights="later")) == [other("N_INIT", message, where=CONFIG_FILE)]


# ------------------------------------------------------------ fit to the base
FIT = "give the base the adapter was trained on; `base_model_name_or_path` in its config names it"


def fit(folder: Path, *tensors: Any, **more: Any) -> list[Finding]:
    return say("fit", make(folder, **more), base_tensors=list(tensors))


def test_an_adapter_that_fits_its_base_has_no_findings(folder: Path) -> None:
    assert fit(folder, weight("q.weight", 8, 8)) == []
    assert say("fit", make(folder)) == []


def test_a_base_without_the_modules_is_another_base(folder: Path) -> None:
    tensors = pair("0.q") | pair("1.q")
    text = "the base lacks `1.q`: 1 of 2 modules are missing"
    assert fit(folder, weight("0.q.weight", 8, 8), tensors=tensors) == [error("E_BASE_MISMATCH", text, hint=FIT)]


@pytest.mark.parametrize("shape", [(8, 9), (9, 8), (8, 8, 1)])
def test_a_base_of_other_shapes_is_another_base(folder: Path, shape: tuple[int, ...]) -> None:
    text = f"made for other shapes: `q (A [2, 8], B [8, 2], base {list(shape)})`; 1 of 1 modules differ"
    assert fit(folder, weight("q.weight", *shape)) == [error("E_BASE_MISMATCH", text, hint=FIT)]


def test_a_turned_matrix_fits_only_where_the_config_or_the_name_says_so(folder: Path) -> None:
    tensors = pair("q", out=4)
    assert fit(folder, weight("q.weight", 4, 8), tensors=tensors) == []
    assert len(fit(folder, weight("q.weight", 8, 4), tensors=tensors)) == 1
    assert fit(folder, weight("q.weight", 8, 4), tensors=tensors, fan_in_fan_out=True) == []
    for name in ("c_attn", "c_proj", "c_fc", "q_attn"):
        made = pair(f"0.{name}", out=4)
        assert fit(folder, weight(f"0.{name}.weight", 8, 4), tensors=made, target_modules=[name]) == []


@pytest.mark.parametrize("dtype", ["U8", "I8", "I32", "U32", "I16", "U16"])
def test_a_packed_base_cannot_be_compared(folder: Path, dtype: str) -> None:
    text = "the base is quantised on `q`; shapes cannot be compared"
    assert fit(folder, weight("q.weight", 32, 1, dtype=dtype)) == [other("U_SHAPE", text)]


@pytest.mark.parametrize("tail", ["qweight", "weight_packed", "weight.absmax"])
def test_a_base_whose_weights_are_packed_under_another_name_cannot_be_compared(folder: Path, tail: str) -> None:
    text = "the base is quantised on `q`; shapes cannot be compared"
    found = fit(folder, weight(f"q.{tail}", 32, 1), weight("q.other", 1))
    assert found == [other("U_SHAPE", text)]


def test_targets_that_the_weights_leave_out_are_warned_of(folder: Path) -> None:
    base = [weight("q.weight", 8, 8), weight("1.q.weight", 8, 8), weight("2.q.weight", 8), weight("k.weight", 8, 8)]
    text = "targets 1 more modules of this base, for which there are no weights: `1.q`"
    assert fit(folder, *base) == [other("W_TARGETS", text, where=CONFIG_FILE)]
    assert fit(folder, *base, target_modules="all-linear") == []


def test_variants_that_rearrange_shapes_are_not_compared(folder: Path) -> None:
    text = "shapes or layers are rearranged by this variant; its fit to the base is not checked"
    expected = [other("U_SHAPE", text, where=CONFIG_FILE)]
    for settings in ({"use_bdlora": {"x": 1}}, {"use_qalora": True}, {"layer_replication": [[0, 1]]}):
        assert fit(folder, weight("q.weight", 9, 9), **settings) == expected


def test_modules_shipped_whole_have_the_shape_of_the_base(folder: Path) -> None:
    tensors = pair("q") | {f"{P}head.weight": np.ones((3, 2), "f4")}
    base = [weight("q.weight", 8, 8), weight("head.weight", 2, 3)]
    text = "contains modules of other shapes: `head.weight ([3, 2], base [2, 3])`"

    assert fit(folder, *base, tensors=tensors, modules_to_save=["head"]) == [error("E_BASE_MISMATCH", text, hint=FIT)]
    assert fit(folder, base[0], tensors=tensors, modules_to_save=["head"]) == []
    assert fit(folder, base[0], weight("head.weight", 3, 2), tensors=tensors, modules_to_save=["head"]) == []


def test_a_copy_of_a_base_weight_is_held_against_it(folder: Path) -> None:
    matrix = np.arange(6, dtype="f4").reshape(3, 2)
    sha256, name = hashlib.sha256(matrix.tobytes()).hexdigest(), f"{P}embed_tokens.weight"
    tensors = pair("q") | {name: matrix}

    def copied(*shape: int, **facts: str) -> list[Finding]:
        base = [weight("q.weight", 8, 8)]
        base += [weight("embed_tokens.weight", *shape, **facts)] if shape else []
        return fit(folder, *base, tensors=tensors)

    assert copied(3, 2, sha256=sha256) == [other("W_FULL_WEIGHT", f"contains `{name}`, a copy of the base's own")]
    differs = error(
        "E_BASE_WEIGHT",
        f"contains `{name}`, which differs from the base's and would replace it",
        hint="save the adapter again with `save_embedding_layers=False`",
    )
    assert copied(3, 2) == [differs]
    assert copied(2, 3, sha256=sha256) == [replace(differs, hint=COPY_HINT)]
    tell = "it cannot be compared with the base's"
    assert copied(3, 2, dtype="F16", sha256=sha256) == [
        other("U_BASE_WEIGHT", f"contains `{name}`, in F32 (the base has F16); {tell}")
    ]
    assert copied() == [other("U_BASE_WEIGHT", f"contains `{name}`, which the base does not have; {tell}")]
    assert say("fit", make(folder, tensors)) == [
        other(
            "U_BASE_WEIGHT",
            "contains `embed_tokens.weight`, which claims to be a copy of the base's; only a comparison with the base can tell",
            "give the base with `--base`",
        )
    ]


def test_a_head_that_is_the_input_embedding_is_warned_of(folder: Path) -> None:
    tensors = pair("lm_head", out=16)
    text = "`lm_head` is the input embedding too in this base; merging into it would change both"
    found = fit(folder, weight("embed_tokens.weight", 16, 8), tensors=tensors, target_modules=["lm_head"])
    assert found == [other("W_TIED", text)]
    both = [weight("embed_tokens.weight", 16, 8), weight("lm_head.weight", 16, 8)]
    assert fit(folder, *both, tensors=tensors, target_modules=["lm_head"]) == []


def test_other_module_names_of_the_base_are_noted(folder: Path) -> None:
    found = fit(folder, weight("model.q.weight", 8, 8))

    message = "its module names are those of another class of models: `q` is `model.q` in this base"
    assert found == [other("N_NAMES", message)]
