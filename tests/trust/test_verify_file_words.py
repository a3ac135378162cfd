"""Every finding on the files of a folder, its manifest and its base: code, severity, place, words and hint."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from adapterhub.core.digests import digest_of
from adapterhub.core.disk.files import digest_of_file
from adapterhub.core.disk.held_file import REPAIR_HINT
from adapterhub.core.errors import DigestMismatch, MalformedManifest, RefusedAdapter
from adapterhub.core.limits import Limits, use_limits
from adapterhub.core.specs import parse_name
from adapterhub.formats.base.fingerprint import fingerprint_tensors
from adapterhub.formats.manifest import (
    CONFIG_FILE,
    MANIFEST_FILE,
    MEDIA_TYPES,
    WEIGHTS_FILE,
    BaseRef,
    FileEntry,
    Manifest,
)
from adapterhub.trust.verify import Finding, ensure_undamaged, manifest_in, open_files, open_subject, verify_folder
from adapterhub.trust.verify.report import CONVERTED, NO_PEFT, RENAME
from adapterhub.trust.verify.subject import as_floats, kind_of_name, list_folder, safe_listing
from tests.support.verify_world import make, pair, say, weight

CONVERT = (
    "if you trust it, convert it: load it with PEFT on its base in isolation, call "
    "`save_pretrained(folder)`, and use that folder"
)
GIVE = "give the folder that `save_pretrained` wrote"


def error(code: str, where: str, message: str, expected: str = "", hint: str = "") -> Finding:
    return Finding(code, where, message, expected=expected, hint=hint)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "adapter"


def errors(folder: Path) -> list[Finding]:
    return [f for f in list_folder(folder).findings if f.severity == "error"]


# ------------------------------------------------------------ what a folder holds
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((f"X{e}", "S_PICKLE") for e in (".bin", ".PT", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill")),
        *((f"x{e}", "S_PICKLE") for e in (".npy", ".npz", ".h5")),
        *((f"x{e}", "S_CODE") for e in (".py", ".PYC", ".so", ".sh", ".dll", ".dylib", ".exe", ".js", ".ipynb")),
        *((f"x{e}", "S_CODE") for e in (".bat", ".ps1", ".whl")),
        ("config.json", "S_CODE"),
        ("x.jinja", "S_TEMPLATE"),
        *((n, "S_TEMPLATE") for n in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")),
        *((n, "S_TEMPLATE") for n in ("special_tokens_map.json", "added_tokens.json", "vocab.txt", "merges.txt")),
        *((n, "S_TEMPLATE") for n in ("spiece.model", "chat_template.json")),
        ("xconfig.json", "S_OTHER"),
        ("x.txt", "S_OTHER"),
        ("py", "S_OTHER"),
    ],
)
def test_a_file_that_is_not_taken_is_sorted_by_its_name(name: str, kind: str) -> None:
    assert kind_of_name(name) == kind


def test_what_is_not_taken_is_noted_up_to_six_names(folder: Path) -> None:
    make(folder)
    for n in range(7):
        for ending in (".bin", ".py", ".jinja", ".txt"):
            (folder / f"{n}{ending}").touch()

    def names(ending: str) -> str:
        return ", ".join(f"`{n}{ending}`" for n in range(6)) + " and 1 more"

    listing = list_folder(folder)
    assert list(listing.findings) == [
        Finding("S_PICKLE", names(".bin"), "can run code when opened; never opened"),
        Finding("S_CODE", names(".py"), "can hold or name code; never opened"),
        Finding("S_TEMPLATE", names(".jinja"), "tokenizer and chat template are the base's; not taken as files"),
        Finding("S_OTHER", names(".txt"), "not part of an adapter; not taken"),
    ]
    assert (len(listing.others), sorted(listing.taken)) == (28, [CONFIG_FILE, WEIGHTS_FILE])


def test_a_folder_may_hold_just_as_many_entries_as_the_limit(folder: Path) -> None:
    make(folder)
    use_limits(Limits(entries=2))
    assert errors(folder) == []
    (folder / "x").touch()
    assert errors(folder) == [error("E_LIMIT", "adapter", "holds more than 2 entries")]


def test_what_is_no_folder_is_told_by_what_it_is(tmp_path: Path) -> None:
    def found(name: str, data: bytes) -> Finding:
        (tmp_path / name).write_bytes(data)
        [told] = list_folder(tmp_path / name).findings
        return told

    pickle = "is a pickle, which is never opened"
    assert found("x.pt", b"PK\x03\x04") == error("E_PICKLE", "x.pt", pickle, hint=CONVERT)
    assert found("x.bin", b"") == error("E_PICKLE", "x.bin", pickle, hint=CONVERT)
    assert found("x", b"\x80\x02") == error("E_PICKLE", "x", pickle, hint=CONVERT)
    assert found("x.zip", b"PK\x03\x04") == error(
        "E_ARCHIVE",
        "x.zip",
        "is a zip archive (as `torch.save` writes); archives are not unpacked",
        hint="unpack it yourself, look at what is inside, and give the folder",
    )
    assert found("x.txt", b"text") == error(
        "E_KIND", "x.txt", "is a file; an adapter is a folder", hint="give the folder that holds it"
    )
    assert found("y.txt", b"GGUF").code == "E_KIND"
    os.mkfifo(tmp_path / "pipe")
    assert errors(tmp_path / "pipe") == [error("E_KIND", "pipe", "is neither a folder nor a file")]
    missing = "cannot be inspected: No such file or directory"
    assert errors(tmp_path / "gone") == [error("E_KIND", "gone", missing)]
    assert errors(tmp_path / "a\0b")[0].message == "cannot be inspected: no file can have this name"


def test_names_that_are_one_file_elsewhere_are_refused(folder: Path) -> None:
    make(folder)
    for name in ("Adapter_Config.json", "x", "X"):
        (folder / name).touch()

    assert errors(folder) == [
        error(
            "E_NAME",
            "`Adapter_Config.json`, `adapter_config.json`",
            "are the same file on systems that ignore case",
            hint="rename or delete one of them",
        )
    ]


def test_links_and_odd_kinds_are_refused(folder: Path, tmp_path: Path) -> None:
    make(folder)
    (tmp_path / "outside").touch()
    for name, target in (("README.md", "../outside"), ("LICENSE", "nowhere")):
        (folder / name).symlink_to(target)
    (folder / MANIFEST_FILE).mkdir()
    os.mkfifo(folder / "model.sig")

    assert errors(folder) == [
        error("E_LINK", "LICENSE", "leads nowhere: No such file or directory"),
        error(
            "E_LINK",
            "README.md",
            "is a link out of its folder, to ../outside",
            "a plain file",
            "replace the link with the file",
        ),
        error("E_KIND", MANIFEST_FILE, "is a folder", "a plain file"),
        error("E_KIND", "model.sig", "is a pipe, socket or device", "a plain file"),
    ]


def test_a_text_may_be_just_as_large_as_the_limit(folder: Path) -> None:
    make(folder)
    use_limits(Limits(text_bytes=4))
    (folder / "LICENSE").write_bytes(b"1234")
    assert errors(folder) == []
    (folder / "LICENSE").write_bytes(b"12345")
    assert errors(folder) == [
        error("E_LIMIT", "LICENSE", "holds 5 bytes, expected at most 4", hint="remove or shorten it")
    ]


@pytest.mark.parametrize(("name", "limit"), [(CONFIG_FILE, "config_bytes"), (WEIGHTS_FILE, "file_bytes")])
def test_a_safe_listing_holds_each_file_to_its_limit(folder: Path, name: str, limit: str) -> None:
    make(folder)
    size = (folder / name).stat().st_size
    use_limits(Limits(**{limit: size}))
    assert safe_listing(folder).taken[name].size_bytes == size
    use_limits(Limits(**{limit: size - 1}))

    with pytest.raises(RefusedAdapter) as told:
        safe_listing(folder)

    assert told.value.hint == "remove or shorten it"
    text = str(told.value)
    assert f"`{folder}` is not read. Nothing was changed" in text
    assert f"{name}: holds {size} bytes, expected at most {size - 1}" in text
    assert "[E_LIMIT]" not in text.replace(f"[E_LIMIT] {name}", "")


def test_a_safe_listing_passes_over_what_is_only_missing(folder: Path, tmp_path: Path) -> None:
    folder.mkdir()
    assert dict(safe_listing(folder).taken) == {}
    (folder / CONFIG_FILE).mkdir()
    with pytest.raises(RefusedAdapter) as told:
        safe_listing(folder)
    assert told.value.hint == "`adapt verify FOLDER` shows every finding"


def test_missing_files_are_told_by_what_is_there(folder: Path) -> None:
    folder.mkdir()
    config = error(
        "E_CONFIG",
        CONFIG_FILE,
        "is missing",
        "the settings PEFT writes beside the weights",
        f"{GIVE}; weights do not give rank, alpha and targets",
    )
    assert errors(folder) == [config, error("E_CONTAINER", WEIGHTS_FILE, "is missing", WEIGHTS_FILE, GIVE)]
    (folder / "b.pt").touch()
    pickle = "is a pickle, which is never opened, and there are no other weights"
    assert errors(folder) == [config, error("E_PICKLE", "`b.pt`", pickle, WEIGHTS_FILE, CONVERT)]
    (folder / "adapter_model.bin").touch()
    assert errors(folder)[1].where == "`adapter_model.bin`"


@pytest.mark.parametrize(
    ("name", "tensor", "code", "message", "hint"),
    [
        ("adapters.npz", None, "E_UNSUPPORTED", "is a LoRA of Apple's MLX in a numpy archive, not PEFT's weights", ""),
        (
            "pytorch_adapter.bin",
            None,
            "E_PICKLE",
            "is a pickle of AdapterHub's `adapters` library, which is never opened",
            "",
        ),
        *(
            ("x.safetensors", tensor, "E_UNSUPPORTED", f"holds {kind}, not PEFT's weights", hint)
            for tensor, kind, hint in (
                (
                    "lora_unet_a.lora_down.weight",
                    "a LoRA of an image model in the names of kohya's sd-scripts",
                    CONVERTED,
                ),
                ("unet.a.lora.down.weight", "a LoRA of an image model in the names of diffusers", CONVERTED),
                ("a.lora_a", "a LoRA of Apple's MLX", CONVERTED),
                ("w_a_1", "a LoRA of a hand-written kind that does not name its modules", ""),
                ("base_model.model.x", "PEFT weights under another name", RENAME),
                ("x", "no adapter in PEFT's names", ""),
            )
        ),
    ],
)
def test_weights_of_other_programs_are_named(
    folder: Path, name: str, tensor: str | None, code: str, message: str, hint: str
) -> None:
    folder.mkdir()
    save_file({tensor or "x": np.ones(1, "f4")}, folder / name)

    found = errors(folder)

    assert found[0] == error(code, name, message, hint=hint or NO_PEFT)
    assert [f.code for f in found[1:]] == (["E_CONFIG"] if hint == RENAME else [])


def test_eight_files_are_looked_at_for_other_weights(folder: Path) -> None:
    folder.mkdir()
    for n in range(8):
        (folder / f"{n}.safetensors").write_bytes(b"damaged")
    save_file({"x": np.ones(1, "f4")}, folder / "9.safetensors")
    assert [f.code for f in errors(folder)] == ["E_CONFIG", "E_CONTAINER"]
    (folder / "0.safetensors").unlink()
    assert errors(folder)[0].where == "9.safetensors"


# ------------------------------------------------------------ the config
def test_notes_of_the_config_have_their_severity(folder: Path) -> None:
    made = make(folder, base_model_name_or_path="/home/x/base", r=..., new_key=1, use_dora=0)
    found = {f.code: f for f in say("config", made)}

    assert (found["W_CONFIG_UNKNOWN_KEY"].severity, found["W_CONFIG_TYPE"].severity) == ("note", "note")
    assert (found["W_CONFIG_DEFAULT"].severity, found["W_CONFIG_DEFAULT"].where) == ("warning", CONFIG_FILE)
    path = "`base_model_name_or_path` is /home/x/base, a folder of its author's machine"
    hint = "`adapt base add PATH --as NAME` registers the folder it was trained from; `--base NAME` names it, "
    hint += "and `add --no-base` leaves it unknown"
    assert found["E_CONFIG"] == error("E_CONFIG", CONFIG_FILE, path, "a hub id such as org/model", hint)
    named = {f.code: f for f in say("config", made, base_named=True)}
    assert "E_CONFIG" not in named
    assert (named["W_BASE_PATH"].severity, named["W_BASE_PATH"].message) == ("warning", path)
    assert "W_BASE_PATH" in {f.code for f in say("config", made, base_tensors=[weight("q.weight", 8, 8)])}
    text = "the config leaves the targets to the model's type; the tensors show which modules they are"
    assert say("config", make(folder, target_modules="all-linear")) == [Finding("N_TARGETS", CONFIG_FILE, text)]


@pytest.mark.parametrize("over", [0, 1])
def test_a_config_may_be_just_as_large_as_the_limit(folder: Path, over: int) -> None:
    size = (make(folder) / CONFIG_FILE).stat().st_size
    use_limits(Limits(config_bytes=size - over))
    subject, seen = open_subject(folder)

    assert (subject is None) is bool(over)
    assert seen == (
        [error("E_CONFIG", CONFIG_FILE, f"holds {size} bytes, expected at most {size - 1}")] if over else []
    )


def test_a_config_of_another_kind_is_named(folder: Path) -> None:
    (make(folder) / CONFIG_FILE).write_bytes(b"GGUF")

    subject, seen = open_subject(folder)

    hint = "`adapt add FILE.gguf --base BASE` reads a LoRA"
    assert (subject, seen) == (None, [error("E_CONFIG", CONFIG_FILE, "is not JSON but a GGUF file", hint=hint)])


# ------------------------------------------------------------ the manifest
def manifest_of(folder: Path, **fields: Any) -> Manifest:
    files = []
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        digest, size = digest_of_file(folder / name)
        files.append(FileEntry(path=name, sha256=digest, size_bytes=size, media_type=MEDIA_TYPES[name]))
    value: dict[str, Any] = {"name": parse_name("x"), "version": "1.0.0", "base": BaseRef(), "method": ("LORA",)}
    return Manifest(**(value | {"files": tuple(files)} | fields))


def test_files_are_held_against_the_manifest(folder: Path) -> None:
    whole = manifest_of(make(folder))
    assert say("digests", folder) == []
    assert say("digests", folder, manifest=whole) == []
    config, weights = whole.files

    def found(*files: FileEntry) -> list[Finding]:
        return say("digests", folder, manifest=replace(whole, files=files))

    zero = digest_of(b"other")
    assert found(replace(config, sha256=zero), weights) == [
        error("E_DIGEST", CONFIG_FILE, f"is {config.sha256}", zero, REPAIR_HINT)
    ]
    size = weights.size_bytes
    assert found(replace(weights, size_bytes=size + 1)) == [
        error("E_DIGEST", WEIGHTS_FILE, f"holds {size} bytes", f"{size + 1} bytes as the manifest says", REPAIR_HINT)
    ]
    assert found(replace(config, path="LICENSE"), replace(config, path="NOTICE")) == [
        error("E_DIGEST", "LICENSE", "is missing", config.sha256, REPAIR_HINT),
        error("E_DIGEST", "NOTICE", "is missing", config.sha256, REPAIR_HINT),
    ]


def test_damage_is_refused_with_both_digests() -> None:
    ensure_undamaged([], "x/")
    ensure_undamaged([error("E_OTHER", "w", "is bad")], "x/")
    damage = [error("E_OTHER", "w", "m"), error("E_DIGEST", "f", "is abc", "def", "do"), error("E_DIGEST", "g", "m")]

    with pytest.raises(DigestMismatch) as told:
        ensure_undamaged(damage, "x/")

    assert (told.value.where, told.value.expected, told.value.actual) == ("x/f", "def", "abc")
    assert told.value.hint == "do"


@pytest.mark.parametrize(
    ("fields", "message", "expected"),
    [
        ({"method": ("LOHA",)}, "states the method LOHA", "LORA"),
        ({"rank": 4}, "states rank 4", "2, the rank of its tensors"),
        ({"alpha": 8.0}, "states alpha 8.0", "4, the alpha of its config"),
        ({"dtype": "float16"}, "states dtype float16", "float32, the dtype of its tensors"),
        ({"parameters": 33}, "states 33 parameters", "32, the size of its tensors"),
        ({"target_modules": ("q", "v")}, "states the targets `v`", "only `q`"),
        ({"method": ()}, "", ""),
        ({"rank": 2, "alpha": 4.0, "dtype": "float32", "parameters": 32, "target_modules": ("q",)}, "", ""),
        ({}, "", ""),
    ],
)
def test_what_a_manifest_states_is_held_against_the_tensors(
    folder: Path, fields: dict[str, Any], message: str, expected: str
) -> None:
    found = say("stated", folder, manifest=manifest_of(make(folder), **fields))
    hint = "the manifest and the weights belong to different adapters; ask the publisher"

    assert found == ([error("E_MANIFEST", MANIFEST_FILE, message, expected, hint)] if message else [])


def test_a_manifest_that_cannot_be_read_is_told(folder: Path) -> None:
    make(folder)
    assert manifest_in(folder) is None
    (folder / MANIFEST_FILE).write_bytes(b"{}")
    report = verify_folder(folder)
    assert {f.where for f in report.errors} == {MANIFEST_FILE}
    assert {f.code for f in report.errors} == {"E_MANIFEST"}
    (folder / MANIFEST_FILE).unlink()
    (folder / MANIFEST_FILE).mkdir()
    with pytest.raises(MalformedManifest, match="is a folder"):
        manifest_in(folder)
    (folder / MANIFEST_FILE).rmdir()
    written = manifest_of(folder)
    (folder / MANIFEST_FILE).write_bytes(written.to_bytes())
    assert manifest_in(folder) == written


def test_opened_files_are_held_to_their_digests(folder: Path) -> None:
    made = manifest_of(make(folder))
    assert open_files(folder).config.r == 2
    (folder / MANIFEST_FILE).write_bytes(made.to_bytes())
    assert open_files(folder, in_memory=True).weights.tensors
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        expected = made.digests | {name: digest_of(b"other")}
        with pytest.raises(DigestMismatch) as told:
            open_files(folder, expected)
        assert (told.value.expected, told.value.actual) == (digest_of(b"other"), made.digests[name])
        assert told.value.hint == REPAIR_HINT
    with pytest.raises(DigestMismatch) as told:
        open_files(folder, {"LICENSE": digest_of(b"x")})
    assert told.value.actual == "no file (No such file or directory)"
    assert (told.value.where, told.value.hint) == (str(folder / "LICENSE"), REPAIR_HINT)


# ------------------------------------------------------------ the base
FORCE = (
    "get the adapter that was made for this base; `adapt install --allow-base-mismatch` overrides where shapes agree"
)


def test_without_a_base_nothing_is_compared(folder: Path) -> None:
    assert say("base", make(folder)) == [
        Finding(
            "U_BASE",
            "",
            "not compared with a base: none was given, or the one it was made for is not registered here",
            hint="`--base BASE` names one; `adapt base add PATH` registers it",
        )
    ]


def test_a_base_is_held_against_the_manifest(folder: Path) -> None:
    mine = fingerprint_tensors([weight("q.weight", 8, 8)])
    made = manifest_of(make(folder), base=BaseRef(fingerprint=mine))
    given = fingerprint_tensors([weight("k.weight", 9, 9, sha256="1" * 64)])

    assert say("base", folder, manifest=made, base_fingerprint=mine) == []
    assert say("base", folder, base_fingerprint=mine) == []
    [found] = say("base", folder, manifest=made, base_fingerprint=given)
    assert found.message.startswith("was made for another base: ")
    assert found == error("E_BASE_MISMATCH", MANIFEST_FILE, found.message, f"base {given.weights[7:19]}", FORCE)
    assert say("base", folder, manifest=manifest_of(folder), base_fingerprint=mine) == [
        Finding("U_BASE", MANIFEST_FILE, "declares no fingerprint of its base, so only shapes can be compared")
    ]


@pytest.mark.parametrize("key", ["base_model_hash", "base_model_sha256", "base_sha256"])
def test_a_hash_that_the_config_claims_is_held_against_the_base(folder: Path, key: str) -> None:
    given = fingerprint_tensors([weight("q.weight", 8, 8)])
    for claim in (given.weights, given.weights[7:], given.tensors, given.structure):
        assert say("base", make(folder, **{key: claim}), base_fingerprint=given) == []
    other = digest_of(b"other")
    assert say("base", make(folder, **{key: other}), base_fingerprint=given) == [
        error("E_BASE_MISMATCH", CONFIG_FILE, f"`{key}` is {other}, which is another base", given.weights, FORCE)
    ]
    assert say("base", folder)[0] == Finding(
        "U_BASE", CONFIG_FILE, f"`{key}` names the base it needs; none was given for comparison"
    )
    assert say("base", make(folder, **{key: "short"}), base_fingerprint=given) == [
        error("E_CONFIG", CONFIG_FILE, f"`{key}` is short", "sha256:<64 lower-case hex digits>")
    ]


# ------------------------------------------------------------ numbers as stored
def test_each_dtype_is_read_as_its_numbers() -> None:
    assert as_floats(np.array([1.5, -2.0], "<f8").tobytes(), "F64").dtype == np.dtype("f8")
    for dtype, code in (("F64", "<f8"), ("F32", "<f4"), ("F16", "<f2")):
        assert as_floats(np.array([1.5, -2.0], code).tobytes(), dtype).tolist() == [1.5, -2.0]
    assert as_floats(b"\xc0\x3f\x00\xc0", "BF16").tolist() == [1.5, -2.0]
    e4m3 = {0x38: 1.0, 0xB8: -1.0, 0x7E: 448.0, 0x01: 2.0**-9, 0x08: 2.0**-6, 0x00: 0.0, 0x3C: 1.5}
    assert as_floats(bytes(e4m3), "F8_E4M3").tolist() == list(e4m3.values())
    e5m2 = {0x3C: 1.0, 0xBC: -1.0, 0x7B: 57344.0, 0x01: 2.0**-16, 0x04: 2.0**-14, 0x00: 0.0, 0x3E: 1.5}
    assert as_floats(bytes(e5m2), "F8_E5M2").tolist() == list(e5m2.values())


@pytest.mark.parametrize(
    ("dtype", "last", "largest"),
    [
        ("F8_E4M3", 0x7E, 448.0),
        ("F8_E5M2", 0x7B, 57344.0),
        ("BF16", 0x7F7F, 3.3895313892515355e38),
        ("F16", 0x7BFF, 65504.0),
    ],
)
def test_the_last_code_of_a_dtype_is_finite_and_the_next_is_not(
    folder: Path, dtype: str, last: int, largest: float
) -> None:
    make(folder)
    width = 1 if dtype.startswith("F8") else 2
    for code, odd in ((last, None), (last | 1 << 8 * width - 1, None), (last + 1, 1)):
        raw = (0).to_bytes(width, "little") + code.to_bytes(width, "little")
        header = json.dumps({"x": {"dtype": dtype, "shape": [2], "data_offsets": [0, 2 * width]}}).encode()
        (folder / WEIGHTS_FILE).write_bytes(len(header).to_bytes(8, "little") + header + raw)
        subject, _ = open_subject(folder)
        assert subject is not None
        numbers = subject.numbers["x"]
        assert (numbers.odd, numbers.largest) == (odd, float("inf") if odd else largest)


def test_the_facts_of_an_adapter_are_those_of_its_tensors(folder: Path) -> None:
    tensors = pair("0.q") | pair("1.q") | pair("v", rank=3) | pair("k.base_layer")
    settings = {"target_modules": ["k", "q", "v"], "rank_pattern": {"v": 3}, "alpha_pattern": {"v": 1}}

    report = verify_folder(make(folder, tensors, **settings))

    assert report.facts is not None
    found = report.facts.to_json()
    assert found == {
        "peft_type": "LORA",
        "methods": list(report.facts.methods),
        "rank": 3,
        "alpha": 4,
        "target_modules": ["k", "q", "v"],
        "modules": 4,
        "ranks": [[2, 3], [3, 1]],
        "scales": [[2.0, 3], [1 / 3, 1]],
        "dtype": "float32",
        "parameters": 144,
    }
