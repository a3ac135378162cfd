"""`adapt fuse`: the fused model is the base with the adapter attached, byte for byte where nothing changed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import adapterhub
from adapterhub.core.errors import (
    MergeRefused,
)
from adapterhub.core.specs import parse_name
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from adapterhub.weights.extract import ExtractOptions, extract
from adapterhub.weights.fuse import Fused, prepare, writing
from tests.support.adapter_folders import updates_in, write_folder
from tests.support.fuse_models import (
    DTYPES,
    EXPERTS,
    QV,
    Make,
    bits,
    dimensions,
    fuse,
    fused_in,
    gpt_oss,
    gpt_oss_square,
    large_base,
    loaded,
    same_numbers,
    save_adapter,
    save_base,
    tensors_in,
    tied,
    untied,
)
from tests.support.model_pairs import changed, low_rank, saved
from tests.support.renamed_families import FAMILIES, PIXELS
from tests.support.tiny_models import VOCABULARY, bert, convnet, gpt2, logits

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def fused(tmp_path: Path) -> Callable[..., Fused]:
    return partial(fused_in, tmp_path)


# ---------------------------------------------------------------- the same as PEFT
VARIANTS: dict[str, tuple[Make, dict[str, Any], int]] = {
    "LoRA": (untied, {"target_modules": [*QV, "down_proj"]}, 6),
    "every linear layer": (untied, {"target_modules": "all-linear"}, 14),
    "rsLoRA with patterns": (
        untied,
        {"target_modules": [*QV, "up_proj"], "use_rslora": True, "rank_pattern": {"v_proj": 2},
         "alpha_pattern": {"layers.1.self_attn.q_proj": 3}},
        6,
    ),
    "output head of its own": (untied, {"target_modules": ["lm_head", "q_proj"]}, 3),
    "embedding": (untied, {"target_modules": ["embed_tokens", "q_proj"]}, 3),
    "embedding of a model without a head": (bert, {"target_modules": ["word_embeddings", "query"]}, 3),
    "DoRA": (untied, {"target_modules": ["embed_tokens", "q_proj", "down_proj"], "use_dora": True}, 5),
    "Conv1D": (gpt2, {"target_modules": ["c_attn", "c_proj", "c_fc"]}, 8),
    "Conv1D with DoRA": (gpt2, {"target_modules": ["c_attn", "c_proj", "c_fc"], "use_dora": True}, 8),
    "Conv1D with lora_bias": (gpt2, {"target_modules": ["c_attn", "mlp.c_proj"], "lora_bias": True}, 8),
    "Conv2d": (convnet, {"target_modules": ["wide", "narrow", "head"]}, 3),
    "Conv2d with DoRA": (convnet, {"target_modules": ["wide", "narrow", "head"], "use_dora": True}, 3),
    "Conv2d with lora_bias": (convnet, {"target_modules": ["wide", "narrow"], "lora_bias": True}, 4),
    "Conv1d and Conv3d": (dimensions, {"target_modules": ["line", "space"]}, 2),
    "Conv1d and Conv3d with DoRA": (dimensions, {"target_modules": ["line", "space"], "use_dora": True}, 2),
    "every bias trained": (bert, {"target_modules": ["query", "value"], "bias": "all"}, 23),
    "biases of the targets trained": (bert, {"target_modules": ["query", "value"], "bias": "lora_only"}, 8),
    "both kinds of bias": (bert, {"target_modules": ["query"], "bias": "all", "lora_bias": True}, 21),
    "modules_to_save": (
        bert, {"target_modules": ["query"], "modules_to_save": ["classifier"], "task_type": "SEQ_CLS"}, 4
    ),
    "embedding and head saved": (untied, {"target_modules": QV, "modules_to_save": ["embed_tokens", "lm_head"]}, 6),
    "trained tokens": (untied, {"target_modules": QV, "trainable_token_indices": [40, 3, 9]}, 5),
    "trained tokens of a tied embedding": (tied, {"target_modules": QV, "trainable_token_indices": [40, 3, 9]}, 5),
    "experts": (gpt_oss, {"target_modules": ["q_proj"], "target_parameters": EXPERTS}, 6),
    "experts without their module": (
        gpt_oss, {"target_modules": ["q_proj"], "target_parameters": ["gate_up_proj", "down_proj"]}, 6
    ),
    "square experts beside others": (gpt_oss_square, {"target_modules": QV, "target_parameters": EXPERTS}, 8),
    "experts of several ranks": (
        gpt_oss, {"target_modules": [], "target_parameters": EXPERTS, "rank_pattern": {"experts.down_proj": 2}}, 4
    ),
    "a layer's weight as a parameter": (untied, {"target_modules": ["v_proj"], "target_parameters": ["q_proj.weight"]}, 4),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_the_fused_model_is_the_base_with_the_adapter_attached(
    name: str, tmp_path: Path, fused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "PIECE_NUMBERS", 150)  # so that these small matrices are many pieces
    make, lora, changed = VARIANTS[name]

    result = fused(make, **lora)

    attached = PeftModel.from_pretrained(make(), tmp_path / "adapter").eval()
    expected, before = logits(attached), logits(make())
    merged = PeftModel.from_pretrained(make(), tmp_path / "adapter").merge_and_unload().state_dict()
    out, base = tensors_in(tmp_path / "out"), tensors_in(tmp_path / "base")
    # float32 logits of a few units: 1e-5 is their rounding over two layers
    assert float((logits(loaded(tmp_path / "out", make)) - expected).abs().max()) < 1e-5
    assert float((expected - before).abs().max()) > 1e-3
    assert all(float((out[n] - merged[n]).abs().max()) < 2e-6 for n in out)
    names = {tensor.name for tensor in result.tensors}
    assert (len(names), result.copied) == (changed, len(base) - changed)
    assert all(torch.equal(bits(out[n]), bits(base[n])) for n in base.keys() - names)
    assert result.relative_error < 1e-6


def test_a_sum_of_adapters_is_exact(tmp_path: Path) -> None:
    library = Library(tmp_path / "home")
    library.bases.add(save_base(tmp_path / "base", untied), "base")
    folders = [
        save_adapter(tmp_path / "a", untied, seed=1, target_modules=["q_proj", "lm_head"]),
        save_adapter(tmp_path / "b", untied, seed=2, target_modules=["q_proj", "embed_tokens"], r=2, use_rslora=True),
    ]

    result = fuse(folders, tmp_path / "out", library=library, base="base", weights=[0.7, -0.3])

    base, out = tensors_in(tmp_path / "base"), tensors_in(tmp_path / "out")
    exact = {name: tensor.double() for name, tensor in base.items()}
    for folder, weight in zip(folders, (0.7, -0.3), strict=True):
        for module, update in updates_in(folder).items():
            exact[f"{module}.weight"] += weight * (update.T if "embed" in module else update)
    assert all(same_numbers(out[n], exact[n]) for n in base)
    assert [(a.weight, a.spec) for a in result.adapters] == [(0.7, str(folders[0])), (-0.3, str(folders[1]))]


@settings(max_examples=30)
@given(data=st.data())
def test_any_shapes_dtypes_ranks_and_weights_give_the_exact_sum_rounded_once(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("sum")
    sizes = st.integers(1, 9)
    shapes = {
        "layers.0.q_proj": data.draw(st.tuples(sizes, sizes)),
        "layers.0.embed": data.draw(st.tuples(sizes, sizes)),
        "layers.0.conv": data.draw(st.tuples(sizes, sizes, sizes, sizes)),
    }
    dtypes = data.draw(st.lists(st.sampled_from(DTYPES), min_size=3, max_size=3))
    generator = torch.Generator().manual_seed(0)
    base = {
        f"{m}.weight": torch.randn(s, generator=generator).to(d)
        for (m, s), d in zip(shapes.items(), dtypes, strict=True)
    }
    (root / "base").mkdir()
    save_file(base, root / "base" / "model.safetensors")
    folders, weights = [], []
    for i in range(data.draw(st.integers(1, 3))):
        modules = data.draw(st.lists(st.sampled_from(sorted(shapes)), min_size=1, unique=True))
        dtype, rank = data.draw(st.sampled_from(DTYPES)), data.draw(st.integers(1, 4))
        folder = write_folder(root / str(i), {m: shapes[m] for m in modules}, ranks=rank, seed=i, dtype=dtype)
        folders.append(folder)
        weights.append(data.draw(st.sampled_from([1.0, -0.3, 1e-6, 100.0])))

    result = fuse(folders, root / "out", library=root / "home", base=str(root / "base"), weights=weights)

    exact = {name: tensor.double() for name, tensor in base.items()}
    for folder, weight in zip(folders, weights, strict=True):
        for module, update in updates_in(folder).items():
            exact[f"{module}.weight"] += weight * (update.T if "embed" in module else update).reshape(shapes[module])
    out = tensors_in(root / "out")
    assert all(same_numbers(out[name], exact[name]) for name in base)
    assert {t.name for t in result.tensors} == {f"{m}.weight" for f in folders for m in updates_in(f)}


def test_a_weight_scales_the_update_of_one_adapter_and_zero_leaves_one_out(tmp_path: Path) -> None:
    library = Library(tmp_path / "home")
    library.bases.add(save_base(tmp_path / "base", bert), "base")
    one = save_adapter(tmp_path / "one", bert, target_modules=["query"], lora_bias=True)
    none = save_adapter(tmp_path / "none", bert, target_modules=["value"])

    result = fuse({one: 0.5, none: 0.0}, tmp_path / "out", library=library, base="base")

    base, out, factors = tensors_in(tmp_path / "base"), tensors_in(tmp_path / "out"), tensors_in(one)
    name = "bert.encoder.layer.0.attention.self.query"
    added = 0.5 * 1.5 * factors[f"base_model.model.{name}.lora_B.bias"].double()
    assert torch.equal(out[f"{name}.bias"], (base[f"{name}.bias"].double() + added).float())
    update = 0.5 * updates_in_bias_free(factors, name)
    assert torch.equal(out[f"{name}.weight"], (base[f"{name}.weight"].double() + update).float())
    assert len(result.tensors) == 4
    assert any("weight 0" in warning for warning in result.warnings)


def updates_in_bias_free(factors: dict[str, Tensor], name: str) -> Tensor:
    a, b = (factors[f"base_model.model.{name}.lora_{side}.weight"].double() for side in "AB")
    return 1.5 * b @ a


def test_names_may_differ_in_front(tmp_path: Path) -> None:
    # the base is saved without its head, as GPT-2 on the hub is: `h.0…` where the adapter has `transformer.h.0…`
    base = tmp_path / "base"
    gpt2().transformer.save_pretrained(base)
    adapter = save_adapter(tmp_path / "adapter", gpt2, target_modules=["c_attn", "c_proj"])

    result = fuse(adapter, tmp_path / "out", library=Library(tmp_path / "home"), base=str(base))

    attached = PeftModel.from_pretrained(gpt2(), adapter).eval()
    assert torch.allclose(logits(loaded(tmp_path / "out", gpt2)), logits(attached), atol=1e-5)
    assert result.tensors[0].name == "h.0.attn.c_attn.weight"


def test_names_may_be_those_of_another_release_of_transformers(tmp_path: Path) -> None:
    # files of ViT keep the names of transformers 4: `encoder.layer.0.attention.attention.query`
    base, vit = tmp_path / "base", FAMILIES["vit"].make
    vit().save_pretrained(base)
    adapter = save_adapter(tmp_path / "adapter", vit, target_modules=["q_proj", "fc1"])

    result = fuse(adapter, tmp_path / "out", library=Library(tmp_path / "home"), base=str(base))

    attached = PeftModel.from_pretrained(vit(), adapter).eval()
    model = type(vit()).from_pretrained(tmp_path / "out").eval()
    assert torch.allclose(model(PIXELS).logits, attached(pixel_values=PIXELS).logits, atol=1e-5)
    assert not torch.allclose(model(PIXELS).logits, vit()(PIXELS).logits, atol=1e-2)
    assert any("those of transformers 5" in warning for warning in result.warnings)


# ---------------------------------------------------------------- files
def test_shards_index_and_header_stay_those_of_the_base(tmp_path: Path) -> None:
    library = Library(tmp_path / "home")
    base = save_base(tmp_path / "base", untied, max_shard_size="12kB")
    library.bases.add(base, "base")
    adapter = save_adapter(tmp_path / "adapter", untied, target_modules=QV, layers_to_transform=[1])

    result = fuse(adapter, tmp_path / "out", library=library, base="base")

    files = sorted(p.name for p in base.glob("*.safetensors*"))
    assert len(files) > 4
    assert sorted(p.name for p in (tmp_path / "out").glob("*.safetensors*")) == files
    index = "model.safetensors.index.json"
    assert (tmp_path / "out" / index).read_bytes() == (base / index).read_bytes()
    places = json.loads((base / index).read_text())["weight_map"]
    touched = {places[tensor.name] for tensor in result.tensors}
    for file in set(places.values()):
        old, new = (base / file).read_bytes(), (tmp_path / "out" / file).read_bytes()
        length = 8 + int.from_bytes(old[:8], "little")
        assert (old[:length], old == new) == (new[:length], file not in touched)
    attached = PeftModel.from_pretrained(untied(), adapter)
    assert torch.allclose(logits(loaded(tmp_path / "out", untied)), logits(attached.eval()), atol=1e-5)


def test_config_tokenizer_and_terms_come_along_but_no_pickle_and_no_code(tmp_path: Path) -> None:
    library = Library(tmp_path / "home")
    base = save_base(tmp_path / "base", untied)
    config = json.loads((base / "config.json").read_text()) | {
        "auto_map": {"AutoModel": "modeling_odd.Odd", "AutoConfig": "acme/there--configuration.Config"}
    }
    (base / "config.json").write_text(json.dumps(config))
    kept = ["tokenizer.json", "chat_template.jinja", "LICENSE.txt", "generation_config.json", "code.tiktoken"]
    left = ["modeling_odd.py", "pytorch_model.bin", "README.md", "optimizer.pt", "training_args.bin", "secrets.env"]
    for name in (*kept, *left):
        (base / name).write_text(name)
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tools.jinja").write_text("tools")
    library.bases.add(base, "base")
    adapter = save_adapter(tmp_path / "adapter", untied, target_modules=QV)

    result = fuse(adapter, tmp_path / "out", library=library, base="base")

    out = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert out == {"model.safetensors", "config.json", "additional_chat_templates/tools.jinja", *kept}
    assert (tmp_path / "out" / "config.json").read_bytes() == (base / "config.json").read_bytes()
    assert [w for w in result.warnings if "modeling_odd.py" in w and "there" not in w]


def test_another_dtype_is_for_the_tensors_of_the_main_dtype(tmp_path: Path) -> None:
    library = Library(tmp_path / "home")
    base = save_base(tmp_path / "base", untied, torch.bfloat16, max_shard_size="12kB")
    norm = next(p for p in base.glob("*.safetensors") if "model.norm.weight" in load_file(p))
    tensors = load_file(norm)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].double()  # wider on purpose, as some models keep it
    save_file(tensors, norm, metadata={"format": "pt"})
    library.bases.add(base, "base")
    adapter = save_adapter(tmp_path / "adapter", untied, target_modules=QV)

    result = fuse(adapter, tmp_path / "out", library=library, base="base", dtype="float32")

    before, out = tensors_in(base), tensors_in(tmp_path / "out")
    assert {n: t.dtype for n, t in out.items()} == {
        n: torch.float64 if n == "model.norm.weight" else torch.float32 for n in before
    }
    exact = {n: t.double() for n, t in before.items()}
    for module, update in updates_in(adapter).items():
        exact[f"{module}.weight"] += update
    assert all(torch.equal(out[n].double(), exact[n].to(out[n].dtype).double()) for n in out)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in out.values())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    assert (result.copied, result.dtypes) == (1, ("float32",))


# ---------------------------------------------------------------- numbers
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0.002, 0.04])
def test_what_rounding_loses_is_what_a_dense_float64_computation_finds(
    dtype: torch.dtype, size: float, tmp_path: Path
) -> None:
    library = Library(tmp_path / "home")
    base = large_base(tmp_path / "base", dtype)
    shapes = {n.removesuffix(".weight"): tuple(t.shape) for n, t in tensors_in(base).items() if "proj" in n}
    adapter = write_folder(tmp_path / "adapter", shapes, ranks=3, lora_alpha=3 * 0.02 * size / 3**0.5 * 25)

    result = fuse(adapter, tmp_path / "out", library=library, base=str(base))

    before, out = tensors_in(base), tensors_in(tmp_path / "out")
    squares, moved, lost = [0.0, 0.0], 0, 0
    for tensor in result.tensors:
        update = updates_in(adapter)[tensor.name.removesuffix(".weight")]
        exact = before[tensor.name].double() + update
        stored = exact.to(dtype)
        error, norm = float((stored.double() - exact).norm()), float(update.norm())
        is_lost = (stored == before[tensor.name]) & (update != 0)
        assert same_numbers(out[tensor.name], exact)
        # where nothing is rounded, what is left is float64's own rounding of the sum
        assert tensor.relative_error == pytest.approx(error / norm, rel=1e-6, abs=1e-12)
        assert tensor.lost == pytest.approx(int(is_lost.sum()), abs=2)
        assert tensor.moved == pytest.approx(update.numel(), abs=2)
        squares = [squares[0] + error**2, squares[1] + norm**2]
        moved, lost = moved + tensor.moved, lost + tensor.lost
    assert result.relative_error == pytest.approx((squares[0] / squares[1]) ** 0.5, rel=1e-6, abs=1e-12)
    assert result.unchanged == lost / moved
    if dtype == torch.bfloat16:  # the size of the loss for updates of a fifth of a percent and of four percent
        assert (result.relative_error > 0.3) == (size == 0.002)


def test_threads_change_nothing(tmp_path: Path) -> None:
    library = Library(tmp_path / "home")
    base = large_base(tmp_path / "base", torch.bfloat16)
    adapter = write_folder(tmp_path / "adapter", {"layers.0.q_proj": (700, 900), "layers.0.k_proj": (901, 333)})
    results = []

    for threads in (1, 3):
        out = tmp_path / f"out{threads}"
        with prepare(adapter, out, library=library, base=str(base)) as fusion:
            results.append((fusion.write(threads=threads).tensors, (out / "model.safetensors").read_bytes()))

    assert results[0] == results[1]
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])


def test_an_untrained_adapter_loses_nothing(tmp_path: Path) -> None:
    library = Library(tmp_path / "home")
    base = save_base(tmp_path / "base", untied, torch.bfloat16)
    model = get_peft_model(untied(), LoraConfig(r=4, target_modules=QV))  # B is zero
    model.save_pretrained(tmp_path / "adapter")

    result = fuse(tmp_path / "adapter", tmp_path / "out", library=library, base=str(base))

    assert (result.relative_error, result.unchanged) == (0.0, 0.0)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()


def test_progress_adds_up_to_the_announced_size(tmp_path: Path) -> None:
    library = Library(tmp_path / "home")
    base = save_base(tmp_path / "base", untied, torch.bfloat16, max_shard_size="12kB")
    adapter = save_adapter(tmp_path / "adapter", untied, target_modules=QV)
    for dtype in (None, "float32"):
        steps: list[int] = []

        with prepare(adapter, tmp_path / f"out-{dtype}", library=library, base=str(base), dtype=dtype) as fusion:
            fusion.write(progress=steps.append)

        written = sum(p.stat().st_size for p in (tmp_path / f"out-{dtype}").glob("*.safetensors"))
        assert sum(steps) == fusion.size_bytes == written


def test_what_overflows_the_dtype_is_refused_by_name_and_leaves_nothing(tmp_path: Path) -> None:
    library = Library(tmp_path / "home")
    base = large_base(tmp_path / "base", torch.float16)
    adapter = write_folder(tmp_path / "adapter", {"layers.0.q_proj": (700, 900)}, lora_alpha=1e9)

    with pytest.raises(MergeRefused, match=r"layers\.0\.q_proj\.weight` is not finite in F16"):
        fuse(adapter, tmp_path / "out", library=library, base=str(base))

    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "base"]


# ---------------------------------------------------------------- tied, and still exact
def test_an_embedding_that_is_saved_with_its_tied_head_is_replaced(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", tied)
    adapter = save_adapter(tmp_path / "adapter", untied, target_modules=QV, modules_to_save=["embed_tokens", "lm_head"])
    tensors = tensors_in(adapter)
    tensors["base_model.model.lm_head.weight"] = tensors["base_model.model.model.embed_tokens.weight"].clone()
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})

    fuse(adapter, tmp_path / "out", library=Library(tmp_path / "home"), base=str(base))

    attached = PeftModel.from_pretrained(tied(), adapter).eval()
    assert torch.allclose(logits(loaded(tmp_path / "out", tied)), logits(attached), atol=1e-5)


@pytest.mark.parametrize("form", ["llama", "gpt2", "copied head", "resized", "bfloat16"])
def test_what_extract_makes_of_a_tied_model_fuses_back_into_it(form: str, tmp_path: Path) -> None:
    make = gpt2 if form == "gpt2" else tied
    table = "transformer.wte.weight" if form == "gpt2" else "model.embed_tokens.weight"
    changes = {table: low_rank(VOCABULARY, 32, 2)}
    folders = saved(make(), tmp_path / "base"), saved(changed(make(), changes), tmp_path / "tuned")
    for folder in folders if form == "copied head" else ():
        tensors = tensors_in(folder)
        save_file(tensors | {"lm_head.weight": tensors[table].clone()}, folder / "model.safetensors")
    library = Library(tmp_path / "home")
    base, tuned = map(library.bases.look, folders)
    options = ExtractOptions(rank=4, dtype="bfloat16" if form == "bfloat16" else None)
    extract(base, tuned, tmp_path / "adapter", options)
    adapter = tmp_path / "adapter"
    if form == "resized":
        adapter = tmp_path / "small"
        adapterhub.Library(tmp_path / "home").resize(tmp_path / "adapter", output=adapter, rank=3)

    fuse(adapter, tmp_path / "out", library=library, base=str(folders[0]))

    found, wanted = tensors_in(tmp_path / "out"), tensors_in(folders[1])
    assert found.keys() == wanted.keys()
    close = 4e-3 if form == "bfloat16" else 1e-6
    assert all(torch.allclose(found[name], wanted[name], atol=close) for name in wanted)
    assert not torch.allclose(found[table], tensors_in(folders[0])[table], atol=1e-2)
    if form == "copied head":
        assert torch.equal(found["lm_head.weight"], found[table])
    assert torch.allclose(
        logits(loaded(tmp_path / "out", make)),
        logits(changed(make(), changes)),
        atol=0.1 if form == "bfloat16" else 1e-4,
    )


def test_the_pairs_of_tied_places_add_up_for_several_adapters(tmp_path: Path) -> None:
    library, table = Library(tmp_path / "home"), "model.embed_tokens.weight"
    folder = saved(tied(), tmp_path / "base")
    updates = [low_rank(VOCABULARY, 32, 2, seed) for seed in (1, 2)]
    adapters = []
    for number, update in enumerate(updates):
        tuned = saved(changed(tied(), {table: update}), tmp_path / f"tuned{number}")
        adapters.append(tmp_path / f"adapter{number}")
        extract(library.bases.look(folder), library.bases.look(tuned), adapters[-1], ExtractOptions(rank=2))

    fuse(adapters, tmp_path / "out", library=library, base=str(folder), weights=[0.5, -2.0])

    wanted = tensors_in(folder)[table] + 0.5 * updates[0] - 2.0 * updates[1]
    assert torch.allclose(tensors_in(tmp_path / "out")[table], wanted, atol=1e-5)


def test_a_base_that_was_saved_untied_takes_what_was_made_for_the_tied_one(tmp_path: Path) -> None:
    library = Library(tmp_path / "home")
    record = library.bases.add(save_base(tmp_path / "base", tied), "tied")
    adapter = save_adapter(tmp_path / "adapter", tied, target_modules=["lm_head", "q_proj"])
    about = Description(name=parse_name("head"), version="1.0.0")
    library.add(adapter, about, base=record)
    model = tied()
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    model.save_pretrained(tmp_path / "free")

    fuse("head", tmp_path / "out", library=library, base=str(tmp_path / "free"))

    attached = PeftModel.from_pretrained(tied(), adapter).eval()
    assert torch.allclose(logits(loaded(tmp_path / "out", untied)), logits(attached), atol=1e-5)
