"""A LoRA that was merged into a model comes out again, whatever the model is made of."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM

from adapterhub.core.errors import BaseMismatch
from adapterhub.core.specs import parse_name
from adapterhub.inference.loader import attach
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from adapterhub.weights.extract import ExtractOptions, extract, extract_into_library, model_record
from tests.support.adapter_folders import error_of, updates_in
from tests.support.model_pairs import (
    ATTENTION,
    LAYERS,
    MLP,
    changed,
    difference_of,
    drop,
    edit,
    fused,
    look,
    low_rank,
    merged_pair,
    rename,
    run,
    saved,
    tensors_of,
    tuned_from,
    write_model,
)
from tests.support.tiny_models import gpt2, llama, logits, plain_peft, save_adapter


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, Path, Path]:
    return merged_pair(tmp_path_factory.mktemp("pair"))


def test_a_merged_lora_comes_out_again(tmp_path, pair):
    base, adapter, tuned = pair

    result = run(tmp_path, base, tuned, rank=4)

    assert result.ranks == {4: 14}
    # float32 weights hold the update to 2^-24 of themselves, and it is about as large as they are
    assert error_of(updates_in(tmp_path / "out"), updates_in(adapter)) < 1e-5
    assert result.relative_error < 1e-5


def test_peft_gives_the_tuned_models_logits(tmp_path, pair):
    base, adapter, tuned = pair

    run(tmp_path, base, tuned, rank=4)

    expected = logits(fused(llama, adapter))
    assert torch.allclose(logits(plain_peft(llama, tmp_path / "out")), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(llama()), expected, atol=1e-2)


def test_targets_are_short_names_and_scale_is_one(tmp_path, pair):
    base, _, tuned = pair

    run(tmp_path, base, tuned, rank=4)

    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert sorted([*ATTENTION, *MLP]) == config["target_modules"]
    assert tuple(config[k] for k in ("r", "lora_alpha", "rank_pattern", "alpha_pattern")) == (4, 4, {}, {})
    assert tuple(config[k] for k in ("task_type", "base_model_name_or_path", "fan_in_fan_out")) == (
        "CAUSAL_LM",
        None,
        False,
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_error_told_is_that_of_the_stored_factors(tmp_path, pair, dtype):
    base, _, tuned = pair
    exact = difference_of(base, tuned)

    result = run(tmp_path, base, tuned, rank=2, dtype=dtype)

    found = updates_in(tmp_path / "out")
    errors = {m: float((found[m] - exact[m]).norm() / exact[m].norm()) for m in found}
    assert {getattr(torch, dtype)} == {t.dtype for t in tensors_of(tmp_path / "out").values()}
    assert pytest.approx(error_of(found, {m: exact[m] for m in found}), rel=1e-3) == result.relative_error
    assert pytest.approx(max(errors.values()), rel=1e-3) == result.worst_error
    assert errors[result.worst_module] == max(errors.values())


def test_a_cut_is_within_a_percent_of_the_best_one(tmp_path, pair):
    base, _, tuned = pair
    exact = difference_of(base, tuned)

    run(tmp_path, base, tuned, rank=2)

    for module, update in updates_in(tmp_path / "out").items():
        best = torch.linalg.svdvals(exact[module])[2:].norm()
        assert float((update - exact[module]).norm()) <= 1.01 * float(best)


def test_energy_gives_each_module_the_rank_it_needs(tmp_path):
    base = saved(llama(), tmp_path / "base")
    names = {
        "model.layers.0.self_attn.q_proj.weight": low_rank(32, 32, 1),
        "model.layers.1.self_attn.q_proj.weight": low_rank(32, 32, 3),
        "model.layers.1.mlp.up_proj.weight": low_rank(48, 32, 2),
    }
    tuned = saved(changed(llama(), names), tmp_path / "tuned")

    result = run(tmp_path, base, tuned, energy=1 - 1e-8)

    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    a_factors = {k: t for k, t in tensors_of(tmp_path / "out").items() if "lora_A" in k}
    assert result.ranks == {1: 1, 2: 1, 3: 1}
    assert sorted(t.shape[0] for t in a_factors.values()) == [1, 2, 3]
    # `q_proj` of every layer changed, `up_proj` of one
    assert config["target_modules"] == ["model.layers.1.mlp.up_proj", "q_proj"]
    assert result.relative_error < 1e-4
    assert result.unchanged == len(load_file(base / "model.safetensors")) - 3
    expected = logits(changed(llama(), names))
    assert torch.allclose(logits(plain_peft(llama, tmp_path / "out")), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("max_error", [0.5, 0.2, 0.05])
def test_max_error_holds_in_every_module_with_the_smallest_rank(tmp_path, pair, max_error):
    base, _, tuned = pair
    exact = difference_of(base, tuned)

    run(tmp_path, base, tuned, max_error=max_error)

    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    ranks = {}
    for module, update in updates_in(tmp_path / "out").items():
        assert float((update - exact[module]).norm() / exact[module].norm()) <= max_error * (1 + 1e-6)
        values = torch.linalg.svdvals(exact[module])
        tails = values.square().flip(0).cumsum(0).flip(0).sqrt()
        ranks[module] = max(1, int((tails > max_error * tails[0]).sum()))
    stored = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): t.shape[0]
        for name, t in tensors_of(tmp_path / "out").items()
        if name.endswith("lora_A.weight")
    }
    assert ranks == stored
    assert config["r"] in ranks.values()


def test_a_bfloat16_pair_comes_out_to_within_its_rounding(tmp_path, pair):
    _, adapter, _ = pair
    base = saved(llama().bfloat16(), tmp_path / "base")

    def half():
        return llama().bfloat16()

    tuned = saved(fused(half, adapter), tmp_path / "tuned")

    result = run(tmp_path, base, tuned, rank=4)

    assert {torch.bfloat16} == {t.dtype for t in load_file(tuned / "model.safetensors").values()}
    # the tuned weights are rounded to 8 bits, and the update is about as large as they are
    assert error_of(updates_in(tmp_path / "out"), updates_in(adapter)) < 0.01
    assert result.warnings == ()


def test_another_precision_of_the_tuned_model_is_no_change_where_nothing_changed(tmp_path, pair):
    base, adapter, _ = pair
    model = fused(llama, adapter)
    tuned = saved(model.bfloat16(), tmp_path / "tuned")

    result = run(tmp_path, base, tuned, rank=4)

    assert result.ranks == {4: 14}
    assert result.unchanged == len(load_file(base / "model.safetensors")) - 14
    assert result.left_out == ()
    assert any("two precisions" in w for w in result.warnings)
    assert error_of(updates_in(tmp_path / "out"), updates_in(adapter)) < 0.01


def test_shards_are_read_where_the_index_says(tmp_path, pair):
    _, adapter, _ = pair
    base = saved(llama(), tmp_path / "base", max_shard_size="20KB")
    tuned = saved(fused(llama, adapter), tmp_path / "tuned", max_shard_size="31KB")

    run(tmp_path, base, tuned, rank=4)

    assert len(list(base.glob("*.safetensors"))) > len(list(tuned.glob("*.safetensors"))) > 2
    assert error_of(updates_in(tmp_path / "out"), updates_in(adapter)) < 1e-5


def test_conv1d_weights_are_turned(tmp_path):
    targets = ["c_attn", "c_proj", "c_fc"]
    config = LoraConfig(r=3, lora_alpha=6, target_modules=targets, fan_in_fan_out=True, task_type="CAUSAL_LM")
    adapter = save_adapter(tmp_path / "adapter", gpt2, config)
    base, tuned = saved(gpt2(), tmp_path / "base"), saved(fused(gpt2, adapter), tmp_path / "tuned")

    result = run(tmp_path, base, tuned, rank=3)

    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (sorted(targets), True) == (written["target_modules"], written["fan_in_fan_out"])
    assert result.ranks == {3: 8}
    assert error_of(updates_in(tmp_path / "out"), updates_in(adapter)) < 1e-5
    expected = logits(fused(gpt2, adapter))
    assert torch.allclose(logits(plain_peft(gpt2, tmp_path / "out")), expected, atol=1e-4, rtol=1e-4)


def test_a_base_saved_without_its_head_pairs_up_with_a_tuned_model_that_has_it(tmp_path):
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    adapter = save_adapter(tmp_path / "adapter", gpt2, config)
    base, tuned = saved(gpt2(), tmp_path / "base"), saved(fused(gpt2, adapter), tmp_path / "tuned")
    rename(base, lambda name: name.removeprefix("transformer."))  # as the files on the Hub are

    run(tmp_path, base, tuned, rank=3)
    rename(tuned, lambda name: name.removeprefix("transformer."))
    run(tmp_path, base, tuned, rank=3, out="both-bare")

    assert error_of(updates_in(tmp_path / "out"), updates_in(adapter)) < 1e-5
    assert error_of(updates_in(tmp_path / "both-bare"), updates_in(adapter)) < 1e-5


@pytest.mark.parametrize(("options", "warned"), [({"rank": 2}, False), ({"energy": 0.6}, True)])
def test_experts_get_factors_as_the_files_name_them(tmp_path, options, warned):
    base = saved(mixtral(), tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    names = [name for name in tensors if ".experts." in name]
    edit(saved(mixtral(), tmp_path / "tuned"), {n: low_rank(*tensors[n].shape, 2, seed=i) for i, n in enumerate(names)})

    result = run(tmp_path, base, tmp_path / "tuned", **options)

    assert sum(result.ranks.values()) == len(names) == 2 * 4 * 3
    assert any("experts" in warning for warning in result.warnings) == warned
    if not warned:  # PEFT stacks the experts' factors, as transformers does with their weights
        found = logits(plain_peft(mixtral, tmp_path / "out"))
        assert torch.allclose(found, logits(tuned_from(tmp_path / "tuned")), atol=1e-4, rtol=1e-4)


def mixtral() -> MixtralForCausalLM:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    return MixtralForCausalLM(config).eval()


def test_embeddings_and_an_untied_head_get_factors(tmp_path):
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["embed_tokens", "lm_head", "v_proj"], task_type="CAUSAL_LM")
    adapter = save_adapter(tmp_path / "adapter", llama, config)
    drop(adapter, "base_layer")
    base, tuned = saved(llama(), tmp_path / "base"), saved(fused(llama, adapter), tmp_path / "tuned")

    run(tmp_path, base, tuned, rank=4)

    names = set(tensors_of(tmp_path / "out"))
    assert "base_model.model.model.embed_tokens.lora_embedding_A" in names
    assert "base_model.model.lm_head.lora_A.weight" in names
    assert error_of(updates_in(tmp_path / "out"), updates_in(adapter)) < 1e-5
    expected = logits(fused(llama, adapter))
    assert torch.allclose(logits(plain_peft(llama, tmp_path / "out")), expected, atol=1e-4, rtol=1e-4)


def test_a_tied_embedding_gives_factors_to_both_of_its_uses(tmp_path):
    def tied():
        return llama(tie_word_embeddings=True)

    names = {"model.embed_tokens.weight": low_rank(64, 32, 2)}
    base, tuned = saved(tied(), tmp_path / "base"), saved(changed(tied(), names), tmp_path / "tuned")
    assert "lm_head.weight" not in load_file(tuned / "model.safetensors")

    result = run(tmp_path, base, tuned, rank=2)

    assert result.ranks == {2: 2}
    found = updates_in(tmp_path / "out")
    assert torch.equal(found["lm_head"], found["model.embed_tokens"].T)
    expected = logits(changed(tied(), names))
    assert torch.allclose(logits(plain_peft(tied, tmp_path / "out")), expected, atol=1e-4, rtol=1e-4)


def test_a_head_that_was_untied_and_tuned_is_compared_with_the_embedding_it_was(tmp_path):
    def tied():
        return llama(tie_word_embeddings=True)

    base = saved(tied(), tmp_path / "base")
    head = {"lm_head.weight": low_rank(64, 32, 2)}
    own = tied().state_dict()
    model = llama(tie_word_embeddings=False)
    model.load_state_dict(own)
    tuned = saved(changed(model, head), tmp_path / "tuned")

    run(tmp_path, base, tuned, rank=2)

    found = updates_in(tmp_path / "out")
    assert set(found) == {"lm_head"}
    assert torch.allclose(found["lm_head"], head["lm_head.weight"].double(), atol=1e-5)
    assert torch.allclose(logits(plain_peft(tied, tmp_path / "out")), logits(tuned_from(tuned)), atol=1e-4, rtol=1e-4)


def test_a_copy_of_a_tied_head_in_the_file_is_decomposed_once(tmp_path):
    names = {"model.embed_tokens.weight": low_rank(64, 32, 2)}

    def tied():
        return llama(tie_word_embeddings=True)

    base, tuned = saved(tied(), tmp_path / "base"), saved(changed(tied(), names), tmp_path / "tuned")
    for folder in (base, tuned):
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    calls: list[tuple[int, int]] = []

    extract(look(base), look(tuned), tmp_path / "out", ExtractOptions(rank=2), progress=lambda *a: calls.append(a))

    found = updates_in(tmp_path / "out")
    assert calls == [(1, 1)]
    assert torch.equal(found["lm_head"], found["model.embed_tokens"].T)


def test_a_tied_gpt2_gets_turned_and_straight_factors(tmp_path):
    names = {"transformer.wte.weight": low_rank(64, 32, 2), "transformer.h.0.attn.c_attn.weight": low_rank(32, 96, 2)}
    base, tuned = saved(gpt2(), tmp_path / "base"), saved(changed(gpt2(), names), tmp_path / "tuned")

    run(tmp_path, base, tuned, rank=2)

    assert set(updates_in(tmp_path / "out")) == {"lm_head", "transformer.wte", "transformer.h.0.attn.c_attn"}
    expected = logits(changed(gpt2(), names))
    assert torch.allclose(logits(plain_peft(gpt2, tmp_path / "out")), expected, atol=1e-4, rtol=1e-4)


def test_a_head_saved_beside_an_unchanged_embedding_it_equals_is_no_change(tmp_path):
    def tied():
        return llama(tie_word_embeddings=True)

    base = saved(tied(), tmp_path / "base")
    tuned = saved(changed(tied(), {"model.layers.0.mlp.up_proj.weight": low_rank(48, 32, 2)}), tmp_path / "tuned")
    tensors = load_file(tuned / "model.safetensors")
    edit(tuned, {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})

    result = run(tmp_path, base, tuned, rank=2)

    assert (result.ranks, result.warnings, result.left_out) == ({2: 1}, (), ())


# ---------------------------------------------------------------- in a library
@pytest.fixture
def library_with_base(tmp_path, pair) -> tuple[Library, BaseRecord]:
    library = Library(tmp_path / "home")
    record = library.bases.add(pair[0], "base-7b")
    library.catalog.put_base(record)
    return library, record


def test_what_is_installed_is_made_for_the_base_and_remembers_the_tuned_model(tmp_path, pair, library_with_base):
    library, record = library_with_base
    tuned = library.bases.look(pair[2])
    about = Description(name=parse_name("legal"), version="1.2.0", task="legal-qa")

    added, result = extract_into_library(library, record, tuned, about, ExtractOptions(rank=4))

    manifest = added.build.manifest
    assert record.fingerprint == manifest.base.fingerprint
    assert {
        "method": "extract",
        "options": {"rank": 4},
        "dtype": "float32",
        "base": record.fingerprint.weights,
        "tuned": tuned.fingerprint.weights,
    } == dict(manifest.recipe)
    assert pytest.approx(result.relative_error, rel=1e-2) == manifest.metrics["extract_relative_error"]
    assert (manifest.task, manifest.rank, library.verify_build(added.build).status) == ("legal-qa", 4, "ok")


def test_an_extraction_gives_the_same_bytes_every_time(tmp_path, pair, library_with_base):
    library, record = library_with_base
    tuned = library.bases.look(pair[2])
    about = Description(name=parse_name("legal"), version="1.0.0")

    first, _ = extract_into_library(library, record, tuned, about, ExtractOptions(energy=0.9))
    second, _ = extract_into_library(library, record, tuned, about, ExtractOptions(energy=0.9))

    assert (first.created, second.created) == (True, False)


def test_a_tied_pair_attaches_with_the_tuned_models_logits(tmp_path):
    def tied():
        return llama(tie_word_embeddings=True)

    names = {
        "model.embed_tokens.weight": low_rank(64, 32, 2),
        "model.layers.0.mlp.up_proj.weight": low_rank(48, 32, 2, seed=1),
        "model.norm.weight": torch.ones(32),
    }
    library = Library(tmp_path / "home")
    record = library.bases.add(saved(tied(), tmp_path / "base"), "tied")
    tuned = library.bases.look(saved(changed(tied(), names), tmp_path / "tuned"))
    about = Description(name=parse_name("legal"), version="1.0.0")

    extract_into_library(library, record, tuned, about, ExtractOptions(rank=2, save_rest=True))

    with attach(tied(), "legal", library=library, base="tied") as attached:
        found = logits(attached.model)
    assert torch.allclose(found, logits(changed(tied(), names)), atol=1e-4, rtol=1e-4)


def test_a_registered_base_whose_files_changed_is_refused(tmp_path, pair, library_with_base):
    library, _ = library_with_base
    folder = write_model(tmp_path / "moving", LAYERS)
    library.bases.add(folder, "moving")
    edit(folder, {"norm.weight": torch.ones(8)})

    with pytest.raises(BaseMismatch, match="but `moving` was registered with"):
        model_record(library.bases, "moving")


MEMORY = """
import resource, sys
from pathlib import Path
from adapterhub.weights.extract import ExtractOptions, extract
from adapterhub.library.library import Library
from adapterhub.inference.loader import attach
bases = Library(Path(sys.argv[1])).bases
base, tuned = bases.look(Path(sys.argv[2])), bases.look(Path(sys.argv[3]))
extract(base, tuned, Path(sys.argv[4]), ExtractOptions(rank=4))  # what torch and LAPACK set up stays
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
extract(bases.look(Path(sys.argv[5])), bases.look(Path(sys.argv[6])), Path(sys.argv[7]), ExtractOptions(rank=4))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_memory_is_that_of_one_weight_whatever_the_size_of_the_model(tmp_path):
    small = {f"layers.{i}.q.weight": (1024, 1024) for i in range(2)}
    large = {f"layers.{i}.q.weight": (1024, 1024) for i in range(16)}
    update = low_rank(1024, 1024, 4)
    places = []
    for name, shapes in (("small", small), ("large", large)):
        base, tuned = (write_model(tmp_path / name / which, shapes) for which in ("base", "tuned"))
        edit(tuned, dict.fromkeys(shapes, update))
        places += [str(base), str(tuned), str(tmp_path / name / "out")]

    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "home"), *places], capture_output=True, text=True, check=True
    )

    # the models of 16 weights are 64 MB each; beyond what two weights of 4 MB needed, next to nothing may come
    assert int(done.stdout) < 16e6
