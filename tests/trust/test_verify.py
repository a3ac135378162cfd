from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import adapterhub
from adapterhub.core.digests import digest_of
from adapterhub.core.disk.held_file import PIECE_BYTES
from adapterhub.core.errors import UsageProblem
from adapterhub.core.specs import parse_name
from adapterhub.formats.base.fingerprint import BaseHints, fingerprint_tensors
from adapterhub.formats.manifest import (
    CONFIG_FILE,
    MANIFEST_FILE,
    MEDIA_TYPES,
    WEIGHTS_FILE,
    BaseRef,
    FileEntry,
    Manifest,
)
from adapterhub.formats.modules import find_rule
from adapterhub.formats.naming.finding import NameRule
from adapterhub.formats.peft.methods import attaches
from adapterhub.formats.safetensors.header import TensorFacts
from adapterhub.trust.verify import Finding, Report, check_names, open_subject, verify, verify_folder
from tests.support.wild import wild
from tests.trust.verifying import (
    ATTENTION,
    HID,
    KV,
    RANK,
    Make,
    P,
    Tensors,
    attention,
    codes,
    facts,
    llama,
    messages,
    pair,
)


# ------------------------------------------------------------ report and facts
def test_a_good_adapter_is_ok_and_its_facts_are_known(make: Make) -> None:
    report = verify_folder(make(), base_tensors=llama())

    assert (report.status, codes(report)) == ("ok", [])
    assert report.facts is not None
    assert (report.facts.rank, report.facts.alpha, report.facts.target_modules) == (2, 4, ("q_proj", "v_proj"))
    assert (report.facts.modules, report.facts.ranks, report.facts.scales) == (4, ((2, 4),), ((2.0, 4),))
    assert (report.facts.dtype, report.facts.parameters) == ("float32", 2 * (2 * 16 + 16 + 8))


def test_without_a_base_the_question_stays_open(make: Make) -> None:
    report = verify_folder(make())

    assert (report.status, [f.code for f in report.unknowns]) == ("unknown", ["U_BASE"])
    assert "--base" in report.unknowns[0].hint


def test_the_scale_is_said_for_each_group_of_modules(make: Make) -> None:
    report = verify_folder(make(alpha_pattern={"v_proj": 8}, use_rslora=True))

    said = [f.message for f in report.notes if f.code == "N_SCALE"]
    assert said == ["scale 2.828 on 2 modules (alpha 4 / sqrt(2))", "scale 5.657 on 2 modules (alpha 8 / sqrt(2))"]


def test_rank_and_alpha_of_the_facts_are_the_largest(make: Make) -> None:
    tensors = pair("a.q_proj", rank=2) | pair("b.q_proj", rank=6)

    report = verify_folder(
        make(tensors, target_modules=["q_proj"], rank_pattern={"b.q_proj": 6}, alpha_pattern={"b.q_proj": 1})
    )

    assert report.facts is not None
    assert (codes(report), report.facts.rank, report.facts.alpha) == ([], 6, 4)


def test_a_report_says_everything_once_and_errors_first() -> None:
    note = Finding("N_X", "a", "m")
    error = Finding("E_X", "a", "m")

    report = Report.of([note, error, note])

    assert report.findings == (error, note)
    assert report.to_json()["findings"][0]["code"] == "E_X"


def test_every_check_keeps_the_contract(make: Make) -> None:
    import importlib

    subject, _ = open_subject(make(), base_tensors=llama())
    assert subject is not None
    for name in check_names():
        found = list(importlib.import_module(f"adapterhub.trust.verify.checks.{name}").check(subject))

        assert all(f.code[:2] in {"E_", "W_", "U_", "N_", "S_"} for f in found)
        assert all(f.severity in {"error", "warning", "unknown", "note"} for f in found)
        assert all("\n" not in f.message for f in found)


def test_checks_are_the_files_of_the_folder() -> None:
    expected = ("base", "config", "container", "contract", "dialect", "digests", "fit", "numbers", "pairing")
    expected += ("scale", "stated", "use", "variants")

    assert check_names() == expected


def test_opening_imports_no_numbers_package(make: Make) -> None:
    code = (
        "import sys, pathlib; from adapterhub.trust.verify import open_subject\n"
        f"open_subject(pathlib.Path({str(make())!r}))\n"
        "print([m for m in ('numpy', 'torch', 'regex', 'peft') if m in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------ files
def test_a_link_of_the_hub_cache_is_followed_to_its_blob(make: Make, tmp_path: Path) -> None:
    plain = make()
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "0ab" / "sub"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, name in enumerate((CONFIG_FILE, WEIGHTS_FILE)):
        (plain / name).rename(blobs / f"{number}")
        (snapshot / name).symlink_to(f"../../../blobs/{number}")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "hub")

    assert codes(verify_folder(snapshot)) == []
    assert codes(verify_folder(tmp_path / "elsewhere" / "snapshots" / "0ab" / "sub")) == []


@pytest.mark.parametrize(
    "target", ["../../secret", "../../other/x", "../../blobs/../../secret", "/etc/hostname", "loop"]
)
def test_any_other_link_out_is_refused(make: Make, tmp_path: Path, target: str) -> None:
    plain = make()
    snapshot = tmp_path / "hub" / "snapshots" / "0ab"
    snapshot.mkdir(parents=True)
    (tmp_path / "hub" / "blobs").mkdir()
    (tmp_path / "hub" / "secret").write_text("secret")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "hub" / "other").mkdir()
    (tmp_path / "hub" / "other" / "x").write_text("secret")
    (plain / CONFIG_FILE).rename(snapshot / CONFIG_FILE)
    (snapshot / WEIGHTS_FILE).symlink_to(WEIGHTS_FILE if target == "loop" else target)

    report = verify_folder(snapshot)

    assert codes(report, "error") == ["E_LINK"]
    assert report.facts is None


def test_a_link_inside_the_folder_is_followed(make: Make) -> None:
    folder = make()
    (folder / WEIGHTS_FILE).rename(folder / "step-100.safetensors")
    (folder / WEIGHTS_FILE).symlink_to("step-100.safetensors")

    assert codes(verify_folder(folder)) == []


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE, "README.md"])
def test_a_pipe_is_refused_without_waiting(make: Make, name: str) -> None:
    folder = make()
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)

    assert codes(verify_folder(folder), "error") == ["E_KIND"]


def test_what_lies_beside_is_named_and_never_opened(make: Make) -> None:
    folder = make()
    for name in ("optimizer.pt", "modeling_x.py", "tokenizer.json", "a\n\x1b[31mb.txt"):
        (folder / name).write_bytes(b"\x80\x02.")
        (folder / name).chmod(0)
    (folder / "sub").symlink_to("..")

    report = verify_folder(folder)

    assert codes(report) == []
    skipped = {f.code: f.where for f in report.notes if f.code.startswith("S_")}
    assert skipped == {
        "S_PICKLE": "`optimizer.pt`",
        "S_CODE": "`modeling_x.py`",
        "S_TEMPLATE": "`tokenizer.json`",
        "S_OTHER": "`a\\n\\x1b[31mb.txt`, `sub`",
    }


def test_names_that_differ_in_case_are_refused_where_they_matter(make: Make) -> None:
    folder = make()
    (folder / "Adapter_Config.json").write_text("{}")
    (folder / "X.txt").write_text("")
    (folder / "x.txt").write_text("")

    assert codes(verify_folder(folder), "error") == ["E_NAME"]


def test_a_pickle_alone_is_refused_with_the_way_to_convert_it(make: Make) -> None:
    folder = make()
    (folder / WEIGHTS_FILE).rename(folder / "adapter_model.bin")

    report = verify_folder(folder)

    assert codes(report, "error") == ["E_PICKLE"]
    assert "save_pretrained" in report.errors[0].hint


@pytest.mark.parametrize(
    ("start", "name", "code"),
    [
        (b"PK\x03\x04", "x.zip", "E_ARCHIVE"),
        (b"\x1f\x8b", "x.tgz", "E_ARCHIVE"),
        (b"PK\x03\x04", "adapter_model.bin", "E_PICKLE"),
        (b"\x80\x02.", "model", "E_PICKLE"),
        (b"{}", "adapter_config.json", "E_KIND"),
    ],
)
def test_a_file_in_place_of_a_folder_is_refused_by_its_kind(tmp_path: Path, start: bytes, name: str, code: str) -> None:
    (tmp_path / name).write_bytes(start + b"\0" * 600)

    assert codes(verify_folder(tmp_path / name)) == [code]


def test_a_missing_path_is_a_finding_and_what_is_no_path_is_refused(tmp_path: Path) -> None:
    assert codes(verify_folder(tmp_path / "nothing")) == ["E_KIND"]
    with pytest.raises(UsageProblem, match="`folder`"):
        adapterhub.verify_folder(Path("a\0b"))


@pytest.mark.parametrize(
    ("tensor", "named"),
    [
        ("lora_unet_down_blocks_0_attn1_to_k.lora_down.weight", "kohya"),
        ("unet.down_blocks.0.attn1.to_k.lora.down.weight", "diffusers"),
        ("model.layers.0.self_attn.q_proj.lora_a", "MLX"),
        ("w_a_000", "hand-written"),
        ("base_model.model.x.lora_A.weight", "under another name"),
        ("model.norm.weight", "no adapter"),
    ],
)
def test_weights_of_other_programs_are_named(tmp_path: Path, tensor: str, named: str) -> None:
    save_file({tensor: np.zeros((2, 2), "f4")}, tmp_path / "pytorch_lora_weights.safetensors")

    report = verify_folder(tmp_path)

    assert "E_UNSUPPORTED" in codes(report, "error")
    assert named in messages(report)


def test_a_pointer_in_place_of_weights_or_config_says_how_to_get_them(make: Make) -> None:
    folder = make()
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 7\n"
    (folder / WEIGHTS_FILE).write_text(pointer)
    (folder / CONFIG_FILE).write_text(pointer)

    report = verify_folder(folder)

    assert codes(report) == ["E_CONFIG", "E_CONTAINER"]
    assert all("git lfs pull" in f.hint for f in report.errors)
    assert all("a Git LFS pointer" in f.message for f in report.errors)


@pytest.mark.parametrize(
    "name",
    ["adapter_model.bin", "pytorch_adapter.bin", "adapters.npz", "weights.pt", "lora.safetensors", MANIFEST_FILE],
)
def test_a_pointer_is_named_as_one_under_every_name(make: Make, name: str) -> None:
    folder = make()
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 7\n"
    (folder / name).write_text(pointer)
    beside = verify_folder(folder)
    (folder / WEIGHTS_FILE).unlink()
    alone = verify_folder(folder)

    if name == MANIFEST_FILE:
        assert codes(beside) == ["E_MANIFEST"]
    else:
        assert [f.code for f in (*beside.errors, *beside.notes) if "PICKLE" in f.code] == []
        assert codes(alone) == ["E_CONTAINER"]
    [said] = [f for f in (*beside.errors, *alone.errors) if "a Git LFS pointer" in f.message][:1]
    assert "git lfs pull" in said.hint
    assert "pickle" not in messages(alone)
    assert "a Git LFS pointer" in messages(verify_folder(folder / name))


# ------------------------------------------------------------ config
def test_a_base_in_a_folder_needs_somebody_to_name_the_base(make: Make) -> None:
    folder = make(base_model_name_or_path="./llama")

    assert codes(verify_folder(folder)) == ["E_CONFIG"]
    assert codes(verify_folder(folder, base_tensors=llama())) == ["W_BASE_PATH"]
    assert codes(verify_folder(folder, base_named=True)) == ["W_BASE_PATH"]


# ------------------------------------------------------------ pairing
def test_what_has_no_place_is_refused_by_what_it_is(make: Make) -> None:
    one = np.ones((HID,), "f4")
    odd = {
        f"{P}model.norm.weight": one,
        f"{P}model.layers.0.self_attn.q_proj.lora_A.default.weight": np.ones((RANK, HID), "f4"),
        f"{P}model.layers.0.self_attn.q_proj.lora_C.weight": one,
        "model.layers.0.mlp.up_proj.weight": one,
    }

    report = verify_folder(make(attention() | odd))

    assert codes(report) == ["E_PAIR", "E_PAIR", "E_BASE_WEIGHT"]
    assert "`base_model.model.model.norm.weight`" in report.errors[2].message
    assert "`model.layers.0.mlp.up_proj.weight`" in report.errors[2].message


def test_pairs_that_the_config_does_not_target_are_refused(make: Make) -> None:
    report = verify_folder(make(attention() | pair("model.layers.0.mlp.up_proj")))

    assert codes(report) == ["E_PAIR"]
    assert "`model.layers.0.mlp.up_proj`" in report.errors[0].message


def test_pairs_on_anything_are_taken_when_the_model_decides(make: Make) -> None:
    assert codes(verify_folder(make(pair("lin0"), target_modules="all-linear"))) == []
    assert codes(verify_folder(make(pair("lin0"), target_modules=None))) == []


def test_ranks_may_differ_only_as_the_config_says(make: Make) -> None:
    tensors = pair("a.q_proj", rank=2) | pair("b.q_proj", rank=3)

    assert codes(verify_folder(make(tensors, target_modules=["q_proj"]))) == ["E_RANK"]
    assert codes(verify_folder(make(tensors, target_modules=["q_proj"], rank_pattern={"b.q_proj": 3}))) == []


def test_heads_that_peft_trains_unasked_are_no_base_weights(make: Make) -> None:
    head = {f"{P}score.weight": np.ones((3, HID), "f4")}

    assert codes(verify_folder(make(attention() | head, task_type="SEQ_CLS"))) == ["W_FULL_WEIGHT"]
    assert codes(verify_folder(make(attention() | head, task_type="CAUSAL_LM"))) == ["E_BASE_WEIGHT"]


@pytest.mark.parametrize("infix", ["", ".modules_to_save", ".modules_to_save.default"])
def test_modules_to_save_are_known_in_every_form(make: Make, infix: str) -> None:
    head = {f"{P}lm_head{infix}.weight": np.ones((32, HID), "f4")}

    report = verify_folder(make(attention() | head, modules_to_save=["lm_head"]))

    assert codes(report) == ["W_FULL_WEIGHT"]
    assert "`lm_head`" in report.warnings[0].message


def test_biases_are_taken_only_when_the_config_says_so(make: Make) -> None:
    bias = {f"{P}{ATTENTION.format(0, 'q_proj')}.base_layer.bias": np.ones(HID, "f4")}
    other = {f"{P}model.layers.0.mlp.up_proj.bias": np.ones(HID, "f4")}

    assert codes(verify_folder(make(attention() | bias, bias="lora_only"))) == ["W_BIAS"]
    assert codes(verify_folder(make(attention() | bias | other, bias="all"))) == ["W_BIAS"]
    assert codes(verify_folder(make(attention() | other, bias="lora_only"))) == ["E_BASE_WEIGHT"]


def test_variants_must_be_announced_and_complete(make: Make) -> None:
    dora = {f"{P}{ATTENTION.format(i, m)}.lora_magnitude_vector{s}": np.ones(out, "f4")
            for i, s in ((0, ""), (1, ".weight")) for m, out in (("q_proj", HID), ("v_proj", KV))}  # fmt: skip
    bias = {f"{P}{ATTENTION.format(i, m)}.lora_B.bias": np.ones(out, "f4")
            for i in range(2) for m, out in (("q_proj", HID), ("v_proj", KV))}  # fmt: skip

    assert codes(verify_folder(make(attention() | dora, use_dora=True))) == []
    assert codes(verify_folder(make(attention() | dora))) == ["E_VARIANT"]
    assert codes(verify_folder(make(attention(), use_dora=True))) == ["E_VARIANT"]
    assert codes(verify_folder(make(attention() | bias, lora_bias=True))) == []
    assert codes(verify_folder(make(attention() | bias))) == ["E_VARIANT"]


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_16", "olora", "corda"])
def test_starts_that_change_the_base_are_warned_of(make: Make, start: str) -> None:
    assert codes(verify_folder(make(init_lora_weights=start))) == ["W_INIT"]


@pytest.mark.parametrize(
    ("peft_type", "tensor", "expected"),
    [
        ("IA3", f"{P}lin0.ia3_l", ["U_METHOD"]),
        ("LOHA", f"{P}lin0.hada_w1_a", ["U_METHOD"]),
        ("VERA", f"{P}lin0.vera_lambda_b", ["U_METHOD"]),
        ("ADALORA", f"{P}lin0.lora_E", ["U_METHOD"]),
        ("PREFIX_TUNING", "prompt_embeddings", ["U_METHOD", "W_METHOD"]),
        ("BOFT", f"{P}lin0.boft_R", ["U_METHOD"]),
        ("PSOFT", f"{P}lin0.psoft_R", ["U_METHOD", "W_METHOD"]),
        ("PREFIX_TUNING", f"{P}lin0.lora_A.weight", ["E_UNSUPPORTED", "W_METHOD"]),
        ("LOKR", f"{P}lin0.ia3_l", ["E_UNSUPPORTED"]),
    ],
)
def test_other_methods_must_carry_their_own_names(make: Make, peft_type: str, tensor: str, expected: list[str]) -> None:
    report = verify_folder(make({tensor: np.ones((2, 2), "f4")}, peft_type=peft_type))

    assert codes(report) == expected


@pytest.mark.parametrize(
    ("excluded", "expected"),
    [
        (["k_proj"], []),
        (r".*\.k_proj", []),
        (["self_attn.k_proj"], []),
        (["o_proj"], ["W_TARGETS"]),
        (None, ["W_TARGETS"]),
    ],
)
def test_modules_that_are_excluded_need_no_weights(make: Make, excluded: Any, expected: list[str]) -> None:
    in_full = [f"model.layers.0.self_attn.{module}" for module in ("q_proj", "v_proj", "k_proj")]

    report = verify_folder(make(attention(1), target_modules=in_full, exclude_modules=excluded))

    assert codes(report) == expected


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kasa_config": {"beta": 1}}, "it cuts directions out of the base weights (KaSA)"),
        ({"alora_invocation_tokens": [1]}, None),
        ({"use_dora": False, "use_rslora": True}, None),
    ],
)
def test_variant_that_cannot_be_attached_is_warned_of(make: Make, settings: dict[str, Any], said: str | None) -> None:
    report = verify_folder(make(**settings))

    expected = [f"cannot be attached or run here: {said}"] if said else []
    assert [f.message for f in report.warnings if f.code == "W_METHOD"] == expected
    assert attaches(report.facts.methods if report.facts else ()) is not bool(said)


def test_other_methods_do_not_reach_the_base_either(make: Make) -> None:
    tensors = {f"{P}lin0.ia3_l": np.ones((2, 2), "f4"), f"{P}lin1.weight": np.ones((2, 2), "f4")}

    assert codes(verify_folder(make(tensors, peft_type="IA3"))) == ["E_BASE_WEIGHT", "U_METHOD"]


# ------------------------------------------------------------ fit to a base
def test_layers_and_shapes_that_the_base_lacks_are_counted(make: Make) -> None:
    report = verify_folder(make(attention(4)), base_tensors=llama(2))

    assert codes(report) == ["E_BASE_MISMATCH"]
    assert "4 of 8 modules are missing" in report.errors[0].message


def test_targets_of_the_base_that_were_left_out_are_warned_of(make: Make) -> None:
    report = verify_folder(make(attention(2)), base_tensors=llama(3))

    assert codes(report) == ["W_TARGETS"]
    assert "targets 2 more modules of this base" in report.warnings[0].message


@pytest.mark.parametrize(
    ("in_adapter", "in_base"),
    [("bert.encoder.layer", "encoder.layer"), ("transformer.h", "h"), ("layers", "model.layers"), ("model.layers", "language_model.model.layers")],
)  # fmt: skip
def test_names_may_differ_in_front_by_one_rule(make: Make, in_adapter: str, in_base: str) -> None:
    tensors = pair(f"{in_adapter}.0.q") | pair(f"{in_adapter}.1.q")
    base = [facts(f"{in_base}.{i}.q.weight", HID, HID) for i in range(2)]

    report = verify_folder(make(tensors, target_modules=["q"]), base_tensors=base)

    assert (report.status, codes(report)) == ("ok", [])
    assert "N_NAMES" in codes(report, "note")


def test_the_rule_that_changes_least_is_taken() -> None:
    modules = ["model.layers.0.q", "model.layers.1.q"]

    assert find_rule(modules, frozenset(modules)) == NameRule()
    assert find_rule(modules, frozenset({"layers.0.q", "layers.1.q", "x.layers.0.q", "x.layers.1.q"})) == NameRule(
        dropped="model."
    )
    assert find_rule(modules, frozenset({"other"})) == NameRule()


@pytest.mark.parametrize("layers", [(1, 2), (5,)])
def test_no_rule_takes_one_layer_for_another(make: Make, layers: tuple[int, ...]) -> None:
    tensors: Tensors = {}
    for layer in layers:
        tensors |= pair(ATTENTION.format(layer, "q_proj"))

    report = verify_folder(make(tensors, target_modules=["q_proj"]), base_tensors=llama(2))

    assert f"1 of {len(layers)} modules are missing" in messages(report)


def test_no_rule_leads_to_where_other_modules_are() -> None:
    base = frozenset({"model.layers.0.q", "model.layers.1.q"})

    assert find_rule(["model.layers%2f.0.q", "model.layers.1.q"], base) == NameRule()
    assert find_rule(["model.layers%2f.0.q", "model.layers%2f.1.q"], base) != NameRule()


def test_a_number_in_front_of_every_name_may_go() -> None:
    modules = ["0.auto_model.encoder.layer.0.q", "0.auto_model.encoder.layer.1.q"]

    assert find_rule(modules, frozenset({"encoder.layer.0.q", "encoder.layer.1.q"})) == NameRule(
        dropped="0.auto_model."
    )


def test_a_rule_and_its_inverse_agree() -> None:
    rule = NameRule(dropped="bert.", added="x.y.")

    assert rule.apply("bert.encoder.q") == "x.y.encoder.q"
    assert rule.undo("x.y.encoder.q") == "bert.encoder.q"


def test_conv1d_of_gpt2_stores_its_weight_turned(make: Make) -> None:
    tensors = pair("transformer.h.0.attn.c_attn", out=3 * HID)
    base = [facts("h.0.attn.c_attn.weight", HID, 3 * HID)]

    assert codes(verify_folder(make(tensors, target_modules=["c_attn"]), base_tensors=base)) == []
    assert codes(verify_folder(make(pair("up", out=3 * HID), target_modules=["up"]), base_tensors=[facts("up.weight", HID, 3 * HID)])) == ["E_BASE_MISMATCH"]  # fmt: skip
    assert codes(verify_folder(make(pair("up", out=3 * HID), target_modules=["up"], fan_in_fan_out=True), base_tensors=[facts("up.weight", HID, 3 * HID)])) == []  # fmt: skip


def test_convolutions_and_embeddings_fit_by_their_own_layout(make: Make) -> None:
    conv = {
        f"{P}conv2d.lora_A.weight": np.ones((RANK, 5, 3, 3), "f4"),
        f"{P}conv2d.lora_B.weight": np.ones((10, RANK, 1, 1), "f4"),
    }
    embedding = {
        f"{P}wte.lora_embedding_A": np.ones((RANK, 32), "f4"),
        f"{P}wte.lora_embedding_B": np.ones((HID, RANK), "f4"),
    }
    base = [facts("conv2d.weight", 10, 5, 3, 3), facts("wte.weight", 32, HID)]
    folder = make(conv | embedding, target_modules=["conv2d", "wte"])

    assert codes(verify_folder(folder, base_tensors=base)) == []
    wrong = [facts("conv2d.weight", 10, 5, 1, 1), facts("wte.weight", 33, HID)]
    report = verify_folder(folder, base_tensors=wrong)
    assert "2 of 2 modules differ" in messages(report)


def test_a_head_that_the_base_ties_to_its_embedding_is_found(make: Make) -> None:
    report = verify_folder(make(attention() | pair("lm_head", out=32), target_modules=["q_proj", "v_proj", "lm_head"]),
                           base_tensors=llama())  # fmt: skip

    assert codes(report) == ["W_TIED"]


def test_a_quantised_base_cannot_be_compared(make: Make) -> None:
    base = [
        facts(f"{ATTENTION.format(i, m)}.qweight", 4, 4, dtype="I32") for i in range(2) for m in ("q_proj", "v_proj")
    ]

    assert codes(verify_folder(make(), base_tensors=base)) == ["U_SHAPE"]


def test_a_copy_of_the_embedding_is_harmless_only_when_it_is_one(make: Make) -> None:
    weight = np.ones((32, HID), "f4")
    update = {f"{P}model.embed_tokens.lora_embedding_A": np.ones((RANK, 32), "f4"),
              f"{P}model.embed_tokens.lora_embedding_B": np.ones((HID, RANK), "f4"),
              f"{P}model.embed_tokens.base_layer.weight": weight}  # fmt: skip
    folder = make(update, target_modules=["embed_tokens"])

    def base(dtype: str, data: bytes) -> list[TensorFacts]:
        return [facts("model.embed_tokens.weight", 32, HID, dtype=dtype, data=data)]

    assert codes(verify_folder(folder)) == ["U_BASE_WEIGHT"]
    assert codes(verify_folder(folder, base_tensors=base("F32", weight.tobytes()))) == ["W_FULL_WEIGHT"]
    assert codes(verify_folder(folder, base_tensors=base("F32", b"other"))) == ["E_BASE_WEIGHT"]
    assert codes(verify_folder(folder, base_tensors=base("BF16", b"other"))) == ["U_BASE_WEIGHT"]


def test_saved_modules_of_another_shape_do_not_fit(make: Make) -> None:
    head = {f"{P}lm_head.weight": np.ones((33, HID), "f4")}
    folder = make(attention() | head, modules_to_save=["lm_head"])

    assert codes(verify_folder(folder, base_tensors=[*llama(), facts("lm_head.weight", 32, HID)]), "error") == [
        "E_BASE_MISMATCH"
    ]


# ------------------------------------------------------------ base and digests
def manifest_of(folder: Path, base: BaseRef) -> Manifest:
    def entry(name: str) -> FileEntry:
        raw = (folder / name).read_bytes()
        return FileEntry(path=name, sha256=digest_of(raw), size_bytes=len(raw), media_type=MEDIA_TYPES[name])

    files = (entry(CONFIG_FILE), entry(WEIGHTS_FILE))
    return Manifest(name=parse_name("x"), version="1.0.0", base=base, method=("LORA",), files=files)


def test_another_base_than_the_manifests_is_refused(make: Make) -> None:
    folder, mine = make(), llama()
    other = [facts(t.name, *t.shape, data=b"other" + t.name.encode()) for t in mine]
    manifest = manifest_of(folder, BaseRef(fingerprint=fingerprint_tensors(other)))

    same = manifest_of(folder, BaseRef(fingerprint=fingerprint_tensors(mine)))
    assert codes(verify_folder(folder, base_tensors=mine, manifest=manifest)) == ["E_BASE_MISMATCH"]
    assert codes(verify_folder(folder, base_tensors=mine, manifest=same)) == []


def test_a_manifest_without_fingerprint_leaves_the_question_open(make: Make) -> None:
    folder = make()

    report = verify_folder(folder, base_tensors=llama(), manifest=manifest_of(folder, BaseRef(hints=BaseHints())))

    assert (report.status, codes(report)) == ("unknown", ["U_BASE"])


def test_a_claimed_base_hash_must_be_that_of_the_base(make: Make) -> None:
    mine = fingerprint_tensors(llama())

    assert codes(verify_folder(make(base_model_hash=mine.weights), base_tensors=llama())) == []
    assert codes(verify_folder(make(base_model_hash=mine.weights))) == ["U_BASE"]
    assert codes(verify_folder(make(base_model_hash="sha256:" + "0" * 64), base_tensors=llama())) == ["E_BASE_MISMATCH"]
    assert codes(verify_folder(make(base_model_hash="md5:1"))) == ["E_CONFIG"]


def test_every_changed_or_missing_file_is_found_by_its_digest(make: Make) -> None:
    folder = make()
    manifest = manifest_of(folder, BaseRef())
    raw = bytearray((folder / WEIGHTS_FILE).read_bytes())
    raw[-1] ^= 1
    (folder / WEIGHTS_FILE).write_bytes(raw)
    (folder / CONFIG_FILE).write_bytes((folder / CONFIG_FILE).read_bytes() + b" ")

    report = verify_folder(folder, manifest=manifest)

    assert codes(report) == ["E_DIGEST", "E_DIGEST"]
    assert {f.where for f in report.errors} == {CONFIG_FILE, WEIGHTS_FILE}


@pytest.mark.parametrize("harm", ["none", "a flipped bit", "a number that is none"])
def test_weights_in_memory_that_are_hashed_meanwhile_are_judged_as_those_on_the_disk(make: Make, harm: str) -> None:
    tensors = attention() | pair("wide.q_proj", out=PIECE_BYTES // 4)
    if harm == "a number that is none":
        tensors[f"{P}wide.q_proj.lora_B.weight"][-1, -1] = np.nan
    folder = make(tensors)
    manifest = manifest_of(folder, BaseRef())
    if harm == "a flipped bit":
        raw = bytearray((folder / WEIGHTS_FILE).read_bytes())
        raw[-1] ^= 1
        (folder / WEIGHTS_FILE).write_bytes(raw)

    subject, seen = open_subject(folder, manifest=manifest, in_memory=memoryview(bytearray(16 * PIECE_BYTES)))
    assert subject is not None
    report = verify(subject, seen=seen)

    assert subject.held.is_loaded
    assert report == verify_folder(folder, manifest=manifest)
    assert report.status == ("unknown" if harm == "none" else "failed")


def test_the_folders_own_manifest_is_checked(make: Make) -> None:
    folder = make()
    (folder / "adapterhub.json").write_bytes(manifest_of(folder, BaseRef()).to_bytes())
    assert codes(verify_folder(folder)) == []

    (folder / "adapterhub.json").write_text("{}")
    assert set(codes(verify_folder(folder))) == {"E_MANIFEST"}


# ------------------------------------------------------------ toys of 2023
@pytest.mark.parametrize(
    ("toy", "warned"), [("lora_mlp", []), ("lora_conv2d", []), ("lora_mlp_modules_to_save", ["W_FULL_WEIGHT"])]
)
def test_peft_toys_of_2023_pass_once_converted(toy: str, warned: list[str]) -> None:
    folder = wild(f"huggingface__peft/28fe1f1/tests/regression/{toy}/0.6.1")
    base = [facts("lin0.weight", *((2, 10) if "conv" in toy else (20, 10))), facts("lin1.weight", 2, 20)]
    base += [facts("conv2d.weight", 10, 5, 3, 3)] if "conv" in toy else []

    report = verify_folder(folder, base_tensors=base)

    assert report.errors == ()
    assert sorted(codes(report)) == sorted([*warned, "W_AUTO_MAPPING", "W_BASE_MISSING"])


def test_pairs_on_parameters_of_experts_are_told_from_strays(make: Make) -> None:
    experts = "model.layers.0.mlp.experts"
    tensors = pair(experts, rank=3 * RANK) | pair(f"{experts}.base_layer", rank=3 * RANK) | attention(1)
    folder = make(
        tensors, target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], peft_version="0.21.2"
    )

    assert codes(verify_folder(folder)) == []
    assert codes(verify_folder(folder, base_tensors=llama(1))) == ["U_SHAPE"]
    assert codes(verify_folder(make(tensors))) == ["E_RANK", "E_PAIR"]


def test_the_rank_of_a_parameter_is_looked_up_under_its_name(make: Make) -> None:
    experts = "model.layers.0.mlp.experts"
    tensors = pair(experts, rank=3 * RANK) | pair(f"{experts}.base_layer", rank=3 * RANK)
    targets = {
        "target_modules": [],
        "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
        "peft_version": "0.21.2",
    }
    patterns = {f"{experts}.{name}": RANK for name in ("gate_up_proj", "down_proj")}

    said = {"r": 4 * RANK, "lora_alpha": 4 * RANK, "rank_pattern": patterns, "alpha_pattern": patterns}

    assert codes(verify_folder(make(tensors, **targets, **said))) == []
    assert codes(verify_folder(make(tensors, **targets, **said | {"rank_pattern": {}}))) == ["E_RANK"]


def test_the_layers_inside_of_a_layer_go_by_its_name(make: Make) -> None:
    tensors = pair("attn", out=24, width=8) | pair("attn.base_layer.out_proj", out=8, width=8)

    assert codes(verify_folder(make(tensors, target_modules=["attn"]))) == []
    assert codes(verify_folder(make(tensors, target_modules=["attn"], rank_pattern={"attn": RANK}, r=2 * RANK))) == []
