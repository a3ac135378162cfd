"""The derived record of a build: equal to the figures of torch, bounded for hostile weights, and small."""

from __future__ import annotations

import json
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from threadpoolctl import threadpool_info, threadpool_limits

from adapterhub.formats.derived.algebra import ArrayUpdate, Sample
from adapterhub.formats.derived.deriving import derive
from adapterhub.formats.derived.likeness import NUMBERS, Sketch, cosines, placed, sketch_of
from adapterhub.formats.derived.record import DerivedRecord
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.safetensors.file import read_header
from adapterhub.weights.lowrank.factors import AdapterFactors
from tests.support.adapter_folders import PREFIX, updates_in, write_folder
from tests.support.disguises import opened

Q, V = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"
MIXED = {Q: (24, 16), V: (12, 16), "model.embed_tokens": (40, 16), "vision.conv": (10, 6, 3, 3)}


def record_of(folder: Path, **options: Any) -> DerivedRecord:
    weights = folder / "adapter_model.safetensors"
    config = AdapterConfig.parse((folder / "adapter_config.json").read_bytes(), "config")
    raw = memoryview(weights.read_bytes())
    digests = {"weights_digest": f"sha256:{'1' * 64}", "config_digest": f"sha256:{'2' * 64}"}
    return derive(config, read_header(weights), lambda start, end: raw[start:end], **digests | options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float16, "use_rslora": True},
        {"ranks": {n: i + 2 for i, n in enumerate(MIXED)}},
    ],
    ids=["float32", "bfloat16", "float16 and rslora", "rank pattern"],
)
def test_every_figure_is_that_of_the_dense_update(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = write_folder(tmp_path / "a", MIXED, seed=1, **options)
    dense = updates_in(folder)

    record = record_of(folder)

    assert {module.name for module in record.modules} == dense.keys()
    for module in record.modules:
        values = torch.linalg.svdvals(dense[module.name])
        shares = values[: module.rank] / values[: module.rank].sum()
        assert module.values == pytest.approx(values[: module.rank].tolist(), rel=1e-5)
        assert module.norm == pytest.approx(float(dense[module.name].norm()), rel=1e-5)
        assert module.effective_rank == pytest.approx(float(torch.exp(-(shares * shares.log()).sum())), rel=1e-5)
    assert record.norm == pytest.approx(float(torch.cat([u.flatten() for u in dense.values()]).norm()), rel=1e-5)
    assert DerivedRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_experts_count_as_one_update_of_all_their_parts(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts"
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(6, 5, generator=generator), torch.randn(7, 6, generator=generator)  # 3 experts of rank 2
    tensors = {f"{PREFIX}{name}.lora_A.weight": a, f"{PREFIX}{name}.lora_B.weight": b}
    folder = write_folder(
        tmp_path / "a", {}, ranks=2, extra=tensors, target_modules=["q"], target_parameters=["mlp.experts.gate"]
    )

    [module] = record_of(folder).modules

    dense = [2 * b[:, expert::3].double() @ a[2 * expert : 2 * expert + 2].double() for expert in range(3)]
    expected = torch.cat([torch.linalg.svdvals(update)[:2] for update in dense]).sort(descending=True).values
    assert (module.parts, module.rank) == (3, 2)
    assert module.values == pytest.approx(expected.tolist(), rel=1e-5)


def test_adalora_counts_with_its_singular_values(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"A": (4, 16), "B": (24, 4), "E": (4, 1)}
    parts = {side: torch.randn(shape, generator=generator) for side, shape in shapes.items()}
    tensors = {f"{PREFIX}{Q}.lora_{side}": tensor for side, tensor in parts.items()}
    folder = write_folder(tmp_path / "a", {}, extra=tensors, peft_type="ADALORA", init_r=4, target_modules=["q_proj"])

    [module] = record_of(folder).modules

    with AdapterFactors(folder) as factors:
        update = factors.read(Q)
    expected = torch.linalg.svdvals(update.scale * (update.b.double() @ update.a.double()))[:4]
    assert module.values == pytest.approx(expected.tolist(), rel=1e-5)


def _hada(*shapes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    names = ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")
    return {f"hada_{name}": shape for name, shape in zip(names, shapes, strict=False)}


@pytest.mark.parametrize(
    ("kind", "shapes", "rank"),
    [
        ("LOHA", _hada((24, 3), (3, 16), (24, 3), (3, 16)), 9),
        ("LOHA", _hada((12, 5), (5, 16), (12, 5), (5, 16)), 12),
        ("LOHA", _hada((3, 24), (3, 4), (3, 24), (3, 4), (3, 3, 3, 3), (3, 3, 3, 3)), 9),
        ("LOKR", {"lokr_w1": (4, 3), "lokr_w2_a": (6, 2), "lokr_w2_b": (2, 5)}, 6),
        ("LOKR", {"lokr_w1_a": (4, 2), "lokr_w1_b": (2, 3), "lokr_w2": (6, 5, 3, 3)}, 12),
        ("LOKR", {"lokr_w1": (4, 3), "lokr_w2_a": (2, 6), "lokr_w2_b": (2, 5), "lokr_t2": (2, 2, 3, 3)}, 6),
        ("LOKR", {"lokr_w1": (4, 3), "lokr_w2": (6, 5, 3)}, 24),
    ],
)
def test_products_count_as_the_update_that_peft_multiplies_out(
    tmp_path: Path, kind: str, shapes: dict[str, tuple[int, ...]], rank: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {f"{PREFIX}{Q}.{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    folder = write_folder(tmp_path / "a", {}, extra=tensors, peft_type=kind, alpha=6, r=3, target_modules=["q_proj"])
    sketch = Sketch()

    [module] = record_of(folder, sketch=sketch).modules

    with AdapterFactors(folder) as factors:
        update = factors.read(Q)
    dense = update.scale * (update.b @ update.a)
    values = torch.linalg.svdvals(dense)
    values = values[values > 1e-6 * values[0]]
    shares = values / values.sum()
    assert (module.rank, module.reason) == (rank, "")
    assert module.values == pytest.approx(values[:16].tolist(), rel=1e-5)
    assert module.norm == pytest.approx(float(dense.norm()), rel=1e-5)
    assert module.effective_rank == pytest.approx(float(torch.exp(-(shares * shares.log()).sum())), rel=1e-5)
    whole = Sketch()
    whole.add(Q, [ArrayUpdate(a=dense.numpy(), b=np.eye(len(dense)))])
    assert cosines([sketch.packed(), whole.packed()])[0, 1] > 0.999


def test_a_kronecker_product_of_any_rank_has_figures_and_a_large_hadamard_product_a_reason(tmp_path: Path) -> None:
    half = torch.randn(48, 48, generator=torch.Generator().manual_seed(0))
    lokr = {f"{PREFIX}{Q}.lokr_w1": half, f"{PREFIX}{Q}.lokr_w2": half.clone()}
    folder = write_folder(tmp_path / "a", {}, extra=lokr, peft_type="LOKR", alpha=3, r=3, target_modules=["q_proj"])
    sketch = Sketch()
    [module] = record_of(folder, sketch=sketch).modules
    assert (module.rank, module.reason, sketch.packed()) == (2304, "", b"")
    assert module.norm == pytest.approx(float(half.double().norm() ** 2), rel=1e-5)

    shapes = _hada((2000, 40), (40, 2000), (2000, 40), (40, 2000))
    loha = {f"{PREFIX}{Q}.{name}": torch.ones(shape) for name, shape in shapes.items()}
    folder = write_folder(tmp_path / "b", {}, extra=loha, peft_type="LOHA", alpha=3, r=40, target_modules=["q_proj"])
    [module] = record_of(folder).modules
    assert (module.norm, module.reason) == (None, "rank 1600, computed up to 1024")

    huge = {name: tensor.double() * 1e100 for name, tensor in lokr.items()}
    folder = write_folder(tmp_path / "c", {}, extra=huge, peft_type="LOKR", alpha=3, r=3, target_modules=["q_proj"])
    assert record_of(folder).modules[0].reason == "holds numbers that are too large to be measured"


@pytest.mark.parametrize(("out", "width", "size"), [(300, 5000, 256), (40, 3000, 32), (8, 9, 256)])
def test_the_sample_is_the_one_that_torch_draws(out: int, width: int, size: int) -> None:
    sample = Sample.of("model.layers.3.q", out, width, size)

    generator = torch.Generator().manual_seed(zlib.crc32(b"model.layers.3.q"))
    drawn = [
        torch.randperm(n, generator=generator)[:size].sort().values if n > size else torch.arange(n)
        for n in (out, width)
    ]
    assert [sample.rows.tolist(), sample.columns.tolist()] == [one.tolist() for one in drawn]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"peft_type": "IA3"}, "not for this method: IA3"),
        ({"use_dora": True}, "DoRA"),
        ({"init_lora_weights": "pissa"}, "may change the base"),
        ({"r": 5}, "expected rank 5"),
    ],
    ids=["other method", "DoRA", "changed base", "wrong rank"],
)
def test_a_record_says_why_it_has_no_figures(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    record = record_of(write_folder(tmp_path / "a", {Q: (24, 16)}, **options))

    assert reason in record.reason
    assert (record.modules, record.norm) == ((), None)


def test_hostile_numbers_have_a_reason_and_leave_the_other_modules_their_figures(tmp_path: Path) -> None:
    shapes = {"nan": (8, 8), "huge": (8, 8), "wide": (8, 8), "fine": (8, 8)}
    folder = write_folder(tmp_path / "a", shapes, ranks={n: 1500 if n == "wide" else 2 for n in shapes})
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors[f"{PREFIX}nan.lora_A.weight"][0, 3] = torch.nan
    tensors[f"{PREFIX}huge.lora_A.weight"] = tensors[f"{PREFIX}huge.lora_A.weight"].double() * 1e200
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    record = record_of(folder)

    reasons = {module.name: module.reason for module in record.modules}
    assert reasons == {
        "fine": "",
        "huge": "holds numbers that are too large to be measured",
        "nan": "holds NaN or infinite numbers",
        "wide": "rank 1500, computed up to 1024",
    }
    assert record.norm == next(module.norm for module in record.modules if module.name == "fine")
    assert {module.reason for module in record_of(folder, time_s=-1).modules} == {"the time for this adapter was over"}


def test_memory_is_that_of_one_module_and_the_record_is_small(tmp_path: Path) -> None:
    # dense, one module would take 128 MB in float32 and its update as much again
    folder = write_folder(
        tmp_path / "a", {f"layers.{i}.q": (4096, 8192) for i in range(6)}, ranks=8, dtype=torch.bfloat16
    )
    record_of(folder)  # what numpy keeps is there
    tracemalloc.start()

    record = record_of(folder)

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 48 << 20
    assert len(json.dumps(record.to_json())) < 6 * 512 + 1024


def test_sketches_tell_near_adapters_from_others(tmp_path: Path) -> None:
    shapes = {f"model.layers.{i}.q": (64, 48) for i in range(8)}
    folders = [write_folder(tmp_path / str(seed), shapes, seed=seed) for seed in (1, 2, 3)]
    tensors = load_file(folders[0] / "adapter_model.safetensors")
    near = {
        name: t + 0.1 * torch.randn(t.shape, generator=torch.Generator().manual_seed(9)) / t.shape[-1] ** 0.5
        for name, t in tensors.items()
    }
    folders.append(write_folder(tmp_path / "near", {}, extra=near, target_modules=["q"]))
    exact = torch.stack([torch.cat([u.flatten() for u in updates_in(f).values()]) for f in folders])
    exact = torch.nn.functional.normalize(exact)

    sketches = [sketch_of(opened(folder)).packed() for folder in folders]

    assert torch.from_numpy(cosines(sketches)) == pytest.approx(exact @ exact.T, abs=0.3)
    places = torch.tensor(placed(sketches))
    apart = torch.cdist(places, places)
    assert apart[0, 3] < 0.3 * min(apart[0, 1], apart[0, 2], apart[1, 2])
    assert placed(sketches[:1]) == [(0.0, 0.0)]
    assert placed([]) == []


def test_a_map_is_computed_on_one_core_and_the_limit_of_others_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def blas() -> set[int]:
        return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}

    during: list[set[int]] = []
    eigh = np.linalg.eigh

    def noted(matrix: Any) -> Any:
        during.append(blas())
        return eigh(matrix)

    monkeypatch.setattr(np.linalg, "eigh", noted)
    with threadpool_limits(2, "blas"):
        placed([np.random.default_rng(seed).bytes(NUMBERS) for seed in range(3)])
        assert (during, blas()) == ([{1}], {2})
