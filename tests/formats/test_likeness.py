"""Sketches propose and factors decide: disguised copies are one update, forged sketches are not, sums come apart."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from adapterhub.formats.derived.algebra import ArrayUpdate
from adapterhub.formats.derived.likeness import (
    NUMBERS,
    Sketch,
    Sketches,
    alike,
    cosines,
    explain,
    gram,
    kind_of,
    pursue,
    sketch_of,
)
from tests.support.adapter_folders import updates_in, write_folder
from tests.support.disguises import NEGATED, OTHER, SAME, disguise, forged, opened

SHAPES = {f"model.layers.{i}.{n}": (48, 32) for i in range(8) for n in ("q", "v")}
GOLDEN = (
    "CxTW/NUa4vYDA+EfIBP3Gsf+DPzVEA0h3Psi8/L0IQ3K9fkoIaP2B7IJPEYfE/Eiahf420AN0cRK7qYOERbs3vLBDFYGxi0krkQ9"
    "J9P65R4VGtkCRcK7zfH76lhkOr8b1BszzB/0AgUKyTCz/uM2uecL+vz3/fQE7vwCFhQR8w7nT/KS1GDw6H+kypk08x/b9tbiRLgK"
    "LSTeOwUm1f/nPjLq3g+rWBwMLCHD9M3uCiQmJ8v9U7alu/n203Z2Ta8eQuYHEw4SD/kXH9oC1f7u+b4qvPzg4cvy4OgEUmYt6Uea"
    "JPf4JafT/LbcRzdjJO8XDigCxv8t6es619vUFwAM3Q=="
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("likeness") / "source", SHAPES, seed=1)


def test_a_sketch_is_the_same_on_every_machine() -> None:
    steps = np.arange(64, dtype="f4")
    sketch = Sketch()
    for module in ("model.layers.0.q", "model.layers.1.q"):
        sketch.add(module, [ArrayUpdate(a=np.sin(steps).reshape(2, 32), b=np.cos(steps).reshape(32, 2), scale=2.0)] * 2)

    found = np.frombuffer(sketch.packed(), "i1").astype(int)
    golden = np.frombuffer(base64.b64decode(GOLDEN), "i1")
    assert len(found) == NUMBERS
    assert np.abs(found - golden).max() <= 1


@pytest.mark.parametrize("name", [*SAME, *NEGATED, *OTHER])
def test_disguises_keep_the_update_and_noise_does_not(source: Path, tmp_path: Path, name: str) -> None:
    other = disguise(source, tmp_path / "other", (SAME | NEGATED | OTHER)[name])
    dense = [torch.cat([u.flatten() for u in updates_in(folder).values()]) for folder in (source, other)]

    [found] = alike(opened(source), [opened(other)])

    exact = float(torch.nn.functional.cosine_similarity(*dense, dim=0))
    estimated = cosines([sketch_of(opened(source)).packed(), sketch_of(opened(other)).packed()])[0, 1]
    assert found.cosine == pytest.approx(exact, abs=1e-6)
    assert found.scale == pytest.approx(float(dense[0] @ dense[1] / (dense[0] @ dense[0])), rel=1e-6)
    assert (found.shared, found.modules) == (len(SHAPES), len(SHAPES))
    assert estimated == pytest.approx(exact, abs=0.001 if name in SAME | NEGATED else 0.1)
    wanted = "same update" if name in SAME else "negated" if name in NEGATED else "near"
    assert kind_of(exact) == (wanted if name != "noise 60 %" else "related")


def test_adapters_of_other_modules_and_shapes_share_what_they_share(source: Path, tmp_path: Path) -> None:
    shapes = {name: (48, 32) if "layers.0" in name else (48, 16) for name in SHAPES} | {"lm_head": (8, 8)}
    other = write_folder(tmp_path / "other", shapes, seed=1)

    [found] = alike(opened(source), [opened(other)])

    one, two = updates_in(source), updates_in(other)
    both = sum(float((one[n] * two[n]).sum()) for n in one if "layers.0" in n)
    norms = [float(torch.cat([u.flatten() for u in each.values()]).norm()) for each in (one, two)]
    assert found.cosine == pytest.approx(both / norms[0] / norms[1], abs=1e-6)
    assert (found.shared, found.modules) == (2, 16)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 0.0])
def test_updates_without_a_direction_have_no_sketch_and_no_cosine(source: Path, tmp_path: Path, number: float) -> None:
    other = disguise(source, tmp_path / "other", lambda a, b, _: (a, torch.full_like(b, number)))

    assert sketch_of(opened(other)).packed() == b""
    assert alike(opened(source), [opened(other)])[0].cosine is None


def test_another_key_has_another_sketch(source: Path) -> None:
    rows = [sketch_of(opened(source), key).packed() for key in ("", "a", "b")]

    assert np.abs(cosines(rows)[np.triu_indices(3, 1)]).max() < 0.35


def test_a_forged_sketch_deceives_neither_the_factors_nor_a_key(source: Path, tmp_path: Path) -> None:
    wanted = write_folder(tmp_path / "wanted", SHAPES, seed=2)
    copy = forged(source, wanted, tmp_path / "forged")

    sketched = cosines([sketch_of(opened(folder)).packed() for folder in (wanted, copy)])[0, 1]
    keyed = cosines([sketch_of(opened(folder), "a secret").packed() for folder in (wanted, copy)])[0, 1]
    with_wanted, with_source = alike(opened(copy), [opened(wanted), opened(source)])
    assert sketched > 0.999
    assert abs(keyed) < 0.9
    assert with_wanted.cosine is not None
    assert with_source.cosine is not None
    assert kind_of(with_wanted.cosine) in ("far", "related")
    assert abs(with_source.cosine) > abs(with_wanted.cosine)


def test_a_scan_over_blocks_is_that_of_one_by_one() -> None:
    raw = np.random.default_rng(0).integers(-127, 128, (9000, NUMBERS), "i1")
    one = raw[7].tobytes()

    found = Sketches(raw.tobytes()).cosines(one)

    assert_allclose(found[::1000], [cosines([one, row.tobytes()])[0, 1] for row in raw[::1000]], atol=1e-6)
    assert int(found.argmax()) == 7


@pytest.mark.parametrize("count", [2, 5, 8])
def test_a_sum_comes_apart_into_its_parents(tmp_path: Path, count: int) -> None:
    folders = [write_folder(tmp_path / str(seed), SHAPES, seed=seed) for seed in range(count + 2)]
    weights = [(-1) ** i * (0.3 + 0.1 * i) for i in range(count)]
    adapters = [opened(folder) for folder in folders]
    products = gram(adapters)
    used = np.array([*weights, 0.0, 0.0])
    whole = np.block([[used @ products @ used, used @ products], [(products @ used)[:, None], products]])
    sketch = np.tensordot(used, np.array([sketch_of(one)._sum for one in adapters]), 1)
    target = np.rint(sketch * 127 / np.abs(sketch).max()).astype("i1").tobytes()
    strangers = np.random.default_rng(1).integers(-60, 61, (2000, NUMBERS), "i1")
    known = np.concatenate([Sketches([sketch_of(one).packed() for one in adapters]).numbers, strangers])

    taken = pursue(target, known)
    explained = explain(whole[np.ix_([0, *(1 + at for at in sorted(taken))], [0, *(1 + at for at in sorted(taken))])])

    assert sorted(taken) == list(range(count))
    assert explained is not None
    assert list(explained.weights.values()) == pytest.approx(weights, abs=1e-6)
    assert explained.unexplained < 1e-5
