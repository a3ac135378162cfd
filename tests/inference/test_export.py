"""Exports: the contract over every format, what each refuses, what it says, and what the command prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig
from safetensors.torch import load_file, save_file
from transformers import Gemma3Config, Gemma3ForCausalLM, Gemma3ForConditionalGeneration, Gemma3TextConfig

pytest.register_assert_rewrite("tests.contracts.export")

from adapterhub.core.arguments import ExportFormat  # noqa: E402
from adapterhub.core.errors import (  # noqa: E402
    BaseNotFound,
    Conflict,
    Incompatible,
    Malformed,
    MergeRefused,
    RefusedAdapter,
    UnsupportedAdapter,
    UsageProblem,
)
from adapterhub.formats.engines import BaseFacts, judge  # noqa: E402
from adapterhub.formats.peft.config import AdapterConfig  # noqa: E402
from adapterhub.formats.safetensors.file import read_header  # noqa: E402
from adapterhub.inference.export import export, forms  # noqa: E402
from adapterhub.library.library import Library  # noqa: E402
from adapterhub.trust.verify import read_headers  # noqa: E402
from tests.contracts.export import SHAPES, ExportContract, library_with_base, make_base, read_gguf, written  # noqa: E402
from tests.support.adapter_folders import PREFIX, error_of, updates_in, write_folder  # noqa: E402
from tests.support.command_line import Adapt  # noqa: E402
from tests.support.tiny_models import IDS, llama, logits, plain_peft, save_adapter  # noqa: E402


class TestFormats(ExportContract):
    """The contract, over every format there is."""


def test_the_command_knows_every_format() -> None:
    assert forms() == get_args(ExportFormat)


def test_formats_are_listed_without_being_imported() -> None:
    code = "import sys, adapterhub.inference.export as e; print([n for n in e.forms() if f'adapterhub.inference.export.{n}' in sys.modules])"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# ---------------------------------------------------------------- refusals
def dora(folder: Path) -> Path:
    config = LoraConfig(r=2, target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM")
    return save_adapter(folder, llama, config)


def test_what_gguf_cannot_carry_is_refused_by_name(tmp_path: Path) -> None:
    library = Library(tmp_path / "home")
    llama().save_pretrained(tmp_path / "base")
    library.bases.add(tmp_path / "base", "tiny")

    with pytest.raises(UnsupportedAdapter, match=r"use_dora: true.*magnitudes"):
        export(dora(tmp_path / "adapter"), tmp_path / "out.gguf", form="gguf", library=library, base="tiny")

    assert not (tmp_path / "out.gguf").exists()


QV = ["q_proj", "v_proj"]
TIED = "embedding, tied"
OTHER_WAYS: dict[str, tuple[PeftConfig, str]] = {
    "dora": (LoraConfig(r=2, target_modules=QV, use_dora=True), "format merged"),
    "modules_to_save": (LoraConfig(r=2, target_modules=QV, modules_to_save=["norm"]), "format merged"),
    "lora_bias": (LoraConfig(r=2, target_modules=QV, lora_bias=True), "use it with PEFT on its base"),
    "alora": (LoraConfig(r=2, target_modules=QV, alora_invocation_tokens=[5, 6], task_type="CAUSAL_LM"), "use it with PEFT on its base"),
    "ia3": (IA3Config(target_modules=QV, feedforward_modules=[]), "adapt resize NAME --to lora"),
    TIED: (LoraConfig(r=2, target_modules=[*QV, "embed_tokens"]), "use it with PEFT on its base"),
    "pissa": (LoraConfig(r=2, target_modules=QV, init_lora_weights="pissa"), "path_initial_model_for_weight_conversion"),
}  # fmt: skip

CAN = ((TIED, "peft"), ("alora", "gguf"))


@pytest.mark.parametrize(
    ("variant", "form"),
    [(variant, form) for variant in OTHER_WAYS for form in ("gguf", "peft") if (variant, form) not in CAN],
)
def test_a_refusal_hints_at_what_can_be_done(variant: str, form: str, tmp_path: Path) -> None:
    config, expected = OTHER_WAYS[variant]
    base = lambda: llama(tie_word_embeddings=True)  # noqa: E731
    base().save_pretrained(tmp_path / "base")
    folder = save_adapter(tmp_path / "adapter", base, config)
    where = {"library": tmp_path / "home", "base": str(tmp_path / "base")}

    with pytest.raises(UnsupportedAdapter) as caught:
        export(folder, tmp_path / "out", form=form, **where)  # type: ignore[arg-type]

    assert expected in caught.value.hint
    if "merged" in expected:
        export(folder, tmp_path / "out", form="merged", **where)  # type: ignore[arg-type]
    else:
        with pytest.raises(MergeRefused):
            export(folder, tmp_path / "out", form="merged", **where)  # type: ignore[arg-type]


def test_gguf_takes_no_folder_for_its_file(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()

    with pytest.raises(Conflict, match="exists"):
        written(tmp_path, "gguf", write_folder(tmp_path / "adapter", SHAPES))


def test_a_base_without_a_type_is_told(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    del config["model_type"]
    (base / "config.json").write_text(json.dumps(config))

    with pytest.raises(Malformed, match="has no `model_type`"):
        export(
            write_folder(tmp_path / "a", SHAPES), tmp_path / "o", form="gguf", library=tmp_path / "h", base=str(base)
        )


def test_every_module_without_a_tensor_in_gguf_is_named(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    odd = {f"model.layers.{i}.self_attn.gate": (8, 32) for i in range(2)}
    save_file(tensors | {f"{n}.weight": torch.ones(s) for n, s in odd.items()}, base / "model.safetensors")
    folder = write_folder(tmp_path / "adapter", SHAPES | odd)

    with pytest.raises(UnsupportedAdapter) as caught:
        export(folder, tmp_path / "out", form="gguf", library=tmp_path / "home", base=str(base))

    assert [name in str(caught.value) for name in odd] == [True, True]


def test_gguf_asks_for_a_base(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "adapter", SHAPES)

    with pytest.raises(BaseNotFound, match="does not declare its base"):
        export(folder, tmp_path / "out", form="gguf", library=tmp_path / "home")


def test_a_base_of_an_unknown_type_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    config = json.loads((base / "config.json").read_text()) | {"model_type": "falcon"}
    (base / "config.json").write_text(json.dumps(config))

    with pytest.raises(UnsupportedAdapter, match="a base of type `falcon`"):
        export(
            write_folder(tmp_path / "a", SHAPES), tmp_path / "out", form="gguf", library=tmp_path / "h", base=str(base)
        )


def test_plain_peft_refuses_what_is_more_than_plain(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedAdapter, match="DoRA: `use_dora: true`"):
        export(dora(tmp_path / "adapter"), tmp_path / "out", form="peft", library=tmp_path / "home")


def test_vllm_refuses_what_vllm_refuses(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedAdapter, match="vLLM does not read DoRA"):
        export(dora(tmp_path / "adapter"), tmp_path / "out", form="vllm", library=tmp_path / "home")


def test_vllm_takes_no_dtype(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="keeps the author's numbers"):
        written(tmp_path, "vllm", write_folder(tmp_path / "adapter", SHAPES), dtype="float16")


def test_ollama_asks_for_its_name_of_the_base(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="name for the base is missing"):
        written(tmp_path, "ollama", write_folder(tmp_path / "adapter", SHAPES), ollama_base="")


def test_an_update_too_large_for_the_dtype_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "adapter", SHAPES, lora_alpha=1e6)

    with pytest.raises(Incompatible, match="too large for float16"):
        written(tmp_path, "gguf", folder, dtype="float16")

    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- what is written
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_gguf_in_every_dtype_is_rounded_once(dtype: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "adapter", SHAPES, use_rslora=True)

    written(tmp_path, "gguf", folder, dtype=dtype)

    unit = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}[dtype]
    exact = updates_in(folder)
    for module, update in read_gguf(tmp_path / "out").items():
        assert float((update - exact[module]).norm() / exact[module].norm()) < 4 * unit


def test_gguf_does_not_tell_whose_folder_it_comes_from(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "secret" / "adapter", SHAPES)

    written(tmp_path, "gguf", folder)

    assert b"secret" not in (tmp_path / "out").read_bytes()


def test_gguf_says_where_it_comes_from(tmp_path: Path) -> None:
    import gguf

    from adapterhub.core.specs import parse_name
    from adapterhub.library.intake.description import Description

    library = library_with_base(tmp_path)
    about = Description(name=parse_name("legal-qa"), version="1.2.0", task="legal-qa")
    added = library.add(write_folder(tmp_path / "adapter", SHAPES), about, base=library.bases.get("tiny"))

    export("legal-qa", tmp_path / "out.gguf", form="gguf", library=library)

    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    said = {k: fields[k].contents() for k in fields if k.startswith(("adapter", "general.name"))}
    assert {
        "adapter.type": "lora", "adapter.lora.alpha": 0.0, "adapter.lora.task_name": "legal-qa",
        "general.name": "legal-qa 1.2.0", "adapterhub.manifest": added.build.manifest.digest,
        "adapterhub.base.weights": library.bases.get("tiny").fingerprint.weights,
    } == said  # fmt: skip


def test_plain_peft_is_read_by_every_engine(tmp_path: Path) -> None:
    ranks = {name: 1 + i % 3 for i, name in enumerate(SHAPES)}
    folder = write_folder(tmp_path / "adapter", SHAPES, ranks=ranks, use_rslora=True, alpha_pattern={"o_proj": 7})
    only = {"q_proj", "k_proj", "o_proj", "down_proj"}

    written(tmp_path, "peft", folder)

    raw = (tmp_path / "out" / "adapter_config.json").read_bytes()
    config, weights = AdapterConfig.parse(raw, "out"), read_header(tmp_path / "out" / "adapter_model.safetensors")
    assert (3, 3.0, set(config.target_modules or ())) == (config.r, config.lora_alpha, only)
    assert {t: judge(t, config, weights).ok for t in ("llama.cpp", "peft", "tgi", "vllm")} == dict.fromkeys(
        ("llama.cpp", "peft", "tgi", "vllm"), True
    )
    assert all(reason.feature == "layers" for reason in judge("sglang", config, weights).reasons)  # it has no v_proj


@pytest.mark.parametrize(("alpha", "expected"), [(1, torch.float32), (4, torch.float16), (8, torch.float16)])
def test_plain_peft_stays_in_float16_where_that_loses_nothing(
    alpha: int, expected: torch.dtype, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "adapter", SHAPES, dtype=torch.float16, lora_alpha=alpha)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({n: t * 1e-4 if ".lora_B." in n else t for n, t in tensors.items()}, path, metadata={"format": "pt"})

    written(tmp_path, "peft", folder)

    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {expected}
    assert error_of(updates_in(tmp_path / "out"), updates_in(folder)) < 1e-7


def test_plain_peft_of_an_adapter_in_some_layers_stays_in_them(tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], layers_to_transform=[1], task_type="CAUSAL_LM")
    folder = save_adapter(tmp_path / "adapter", llama, config)

    export(folder, tmp_path / "out", form="peft", library=tmp_path / "home")

    assert torch.allclose(logits(plain_peft(llama, tmp_path / "out")), logits(plain_peft(llama, folder)), atol=1e-5)


def test_vllm_folder_keeps_the_authors_bytes(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "adapter", SHAPES, use_rslora=True)

    exported = written(tmp_path, "vllm", folder)

    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert exported.flags == ("--enable-lora", "--max-lora-rank", "8")


def test_vllm_folder_leaves_out_copies_of_base_weights(tmp_path: Path) -> None:
    embedding = load_file(make_base(tmp_path / "base") / "model.safetensors")["model.embed_tokens.weight"]
    folder = write_folder(tmp_path / "adapter", SHAPES, extra={f"{PREFIX}model.embed_tokens.weight": embedding})

    export(folder, tmp_path / "out", form="vllm", library=tmp_path / "home", base=str(tmp_path / "base"))
    with pytest.raises(RefusedAdapter, match="may be a copy"):
        export(folder, tmp_path / "none", form="vllm", library=tmp_path / "home")

    assert f"{PREFIX}model.embed_tokens.weight" not in load_file(tmp_path / "out" / "adapter_model.safetensors")


def test_merged_is_base_and_adapter(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "base")
    folder = dora(tmp_path / "adapter")

    export(folder, tmp_path / "out", form="merged", library=tmp_path / "home", base=str(tmp_path / "base"))

    from transformers import AutoModelForCausalLM

    fused = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.allclose(fused(IDS).logits, logits(plain_peft(llama, folder)), atol=1e-5)


def test_memory_grows_with_a_module_not_with_the_adapter(tmp_path: Path) -> None:
    layers = {f"model.layers.{i}.mlp.down_proj": (2048, 2048) for i in range(26)}
    folder = write_folder(tmp_path / "adapter", layers, ranks=64)
    small = write_folder(tmp_path / "small", SHAPES)  # what is needed once: imports, caches
    code = (
        "from pathlib import Path; from adapterhub.inference.export import export, load; load('peft');"
        "peak = lambda: int(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0]);"
        f"export(Path({str(small)!r}), Path({str(tmp_path / 'first')!r}), form='peft', library={str(tmp_path / 'h')!r});"
        "before = peak();"
        f"export(Path({str(folder)!r}), Path({str(tmp_path / 'out')!r}), form='peft', library={str(tmp_path / 'h')!r});"
        "print(peak() - before)"
    )

    grown_kb = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    assert (tmp_path / "out" / "adapter_model.safetensors").stat().st_size > 25e6
    assert grown_kb < 16e3  # one module has 1 MB, with its float64 3; the pass of `verify` has a buffer of 8


# ---------------------------------------------------------------- the command
def test_command_reports_and_hints(tmp_path: Path) -> None:
    make_base(tmp_path / "base")
    write_folder(tmp_path / "adapter", SHAPES)
    adapt = Adapt(tmp_path)
    asked = ("export", "./adapter", "--format", "gguf", "-o", "a.gguf", "--base", "./base")

    document = adapt.json(*asked)
    refusal = adapt.fails(15, *asked)

    assert (document["format"], document["paths"], document["flags"]) == ("gguf", ["a.gguf"], ["--lora", "a.gguf"])
    assert "`a.gguf` exists. Nothing was written" in refusal


def test_vllm_folder_has_the_names_of_a_wrapper_for_an_adapter_of_its_text_model(tmp_path: Path) -> None:
    sizes = {
        "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8,
        "num_attention_heads": 2, "num_key_value_heads": 1,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    wrapper = Gemma3Config(text_config=sizes, vision_config=vision, mm_tokens_per_image=4)
    Gemma3ForConditionalGeneration(wrapper).save_pretrained(tmp_path / "base")
    library = Library(tmp_path / "home")
    library.bases.add(tmp_path / "base", "wrapper")
    config = LoraConfig(r=2, target_modules=QV)
    folder = save_adapter(tmp_path / "adapter", lambda: Gemma3ForCausalLM(Gemma3TextConfig(**sizes)), config)

    exported = export(folder, tmp_path / "out", form="vllm", library=library, base="wrapper")

    before, after = (load_file(place / "adapter_model.safetensors") for place in (folder, tmp_path / "out"))
    assert len(before) == len(after)
    for name, tensor in after.items():
        assert ".language_model." in name
        assert torch.equal(tensor, before[f"{PREFIX}model.layers.{name.partition('.layers.')[2]}"])
    assert any("names of the base's files" in note for note in exported.notes)
    facts = BaseFacts.from_config(json.loads((tmp_path / "base" / "config.json").read_text()))
    said = [
        judge(f"vllm@{version}", *headers, base=facts).ok
        for place in (folder, tmp_path / "out")
        if (headers := read_headers(place)) is not None
        for version in ("0.32", "0.33")
    ]
    assert said == [False, True, True, True]
