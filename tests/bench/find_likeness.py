"""Likeness by weights: time of a sketch and of a scan, copies told from strangers, and sums taken apart.

    python -m tests.bench.find_likeness [--families 24] [--strangers 100000]

The corpus is made: families of adapters of several shapes, each with every disguise, near copies and strangers; and the
real ones in `../shared/data/wild`, where they are there. A pair counts as found when its sketches propose it and its
factors confirm it. Times are CPU milliseconds of one thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adapterhub.core.errors import AdapterHubError
from adapterhub.formats.derived.algebra import ArrayUpdate
from adapterhub.formats.derived.likeness import NUMBERS, SAME, Sketch, Sketches, alike, explain, gram, pursue, sketch_of
from adapterhub.formats.derived.reading import AdapterUpdates
from adapterhub.library.store.index import Index
from adapterhub.library.store.rows import SketchRow
from tests.bench.harness import given
from tests.support.adapter_folders import write_folder
from tests.support.disguises import NEGATED, OTHER, disguise, opened
from tests.support.disguises import SAME as DISGUISES

WILD = Path(__file__).resolve().parents[3] / "shared" / "data" / "wild"
MODELS = {
    "SmolLM2-135M r=16": (576, 192, 1536, 30),
    "7B r=16": (4096, 1024, 14336, 32),
}
PROPOSED = SAME - 0.02


class Row(NamedTuple):
    """One line of the report; `goal` is empty where there is none."""

    what: str
    value: str
    goal: str


def cpu_ms(work: Callable[[], object], repeats: int = 5) -> float:
    """The least CPU time of some runs."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append((time.process_time() - start) * 1e3)
    return min(times)


def modules_of(hidden: int, keys: int, inner: int, layers: int, rank: int = 16) -> list[tuple[str, ArrayUpdate]]:
    """Random updates of every linear module of a model."""
    chance = np.random.default_rng(0)
    sizes = {"q": (hidden, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, hidden)}
    sizes |= {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    return [
        (
            f"model.layers.{layer}.{name}_proj",
            ArrayUpdate(
                a=chance.standard_normal((rank, i), "f4"), b=chance.standard_normal((o, rank), "f4"), scale=2.0
            ),
        )
        for layer in range(layers)
        for name, (o, i) in sizes.items()
    ]


def speed(strangers: int) -> Iterator[Row]:
    """Time of a sketch, and of a scan over many in memory and from the index."""
    for name, sizes in MODELS.items():
        modules = modules_of(*sizes)

        def sketch(modules: list[tuple[str, ArrayUpdate]] = modules) -> bytes:
            made = Sketch()
            for module, update in modules:
                made.add(module, [update])
            return made.packed()

        yield Row(f"sketch, {name}", f"{cpu_ms(sketch):.1f} ms", "20 ms" if "Smol" in name else "200 ms")
    raw = np.random.default_rng(0).integers(-127, 128, (strangers, NUMBERS), "i1")
    known, one = Sketches(raw.tobytes()), raw[strangers // 2].tobytes()
    yield Row(f"scan of {strangers:,}, in memory", f"{cpu_ms(lambda: known.cosines(one)):.1f} ms", "20 ms")
    with tempfile.TemporaryDirectory() as folder:
        index = Index(Path(folder, "index.db"))
        index.upsert_builds((), sketches=(SketchRow(f"{n:064x}", 1.0, "", row.tobytes()) for n, row in enumerate(raw)))
        took = cpu_ms(lambda: Sketches([row.sketch for row in index.sketches()]).cosines(one))
        yield Row(f"scan of {strangers:,}, from the index", f"{took:.0f} ms", "")
    yield Row("bytes of a sketch", str(NUMBERS), "256")


class Made(NamedTuple):
    """One adapter of the corpus: those of one `family` are one update in other numbers."""

    family: str
    updates: AdapterUpdates
    sketch: bytes


def corpus(root: Path, families: int) -> Iterator[Made]:
    """Families of made adapters, and the real ones."""
    shapes = [
        {f"model.layers.{i}.{n}": (64, 48) for i in range(layers) for n in ("q", "v", "down")} for layers in (2, 8, 16)
    ]
    for number in range(families):
        source = write_folder(root / f"{number}", shapes[number % 3], seed=number, ranks=(4, 8, 16)[number % 3])
        yield from _family(root, str(number), source)
    seen = set()
    for config in sorted(WILD.rglob("adapter_config.json")) if WILD.is_dir() else ():
        weights = config.parent / "adapter_model.safetensors"
        digest = hashlib.sha256(weights.read_bytes()).digest() if weights.is_file() else b""
        if digest in seen:  # published twice
            continue
        seen.add(digest)
        with contextlib.suppress(AdapterHubError, OSError, ValueError, KeyError):
            yield from _family(root, str(config.parent.relative_to(WILD)), config.parent)


def _family(root: Path, name: str, source: Path) -> Iterator[Made]:
    updates = opened(source)
    sketch = sketch_of(updates).packed()
    if not sketch:
        return
    yield Made(name, updates, sketch)
    for at, (kind, change) in enumerate((DISGUISES | NEGATED | OTHER).items()):
        folder = disguise(source, root / "disguised" / name / str(at), change, seed=at)
        other = opened(folder)
        if packed := sketch_of(other).packed():  # float16 holds no small numbers
            yield Made(name if kind not in OTHER else f"{name} {kind}", other, packed)


def copies(families: int) -> Iterator[Row]:
    """Recall and precision of copies, over all pairs of the corpus."""
    with tempfile.TemporaryDirectory() as folder:
        made = list(corpus(Path(folder), families))
        known = Sketches([one.sketch for one in made])
        right = told = proposed = 0
        for at, one in enumerate(made):
            near = [i for i in (abs(known.cosines(one.sketch)) >= PROPOSED).nonzero()[0].tolist() if i > at]
            proposed += len(near)
            for i in near:
                [found] = alike(one.updates, [made[i].updates])
                if found.cosine is not None and abs(found.cosine) >= SAME:
                    told += 1
                    right += made[i].family == one.family
        sizes = [len(list(group)) for _, group in itertools.groupby(sorted(one.family for one in made))]
        wanted = sum(size * (size - 1) // 2 for size in sizes)
    yield Row("adapters, pairs of copies", f"{len(made)}, {wanted}", "")
    yield Row("pairs that the sketches propose", str(proposed), "")
    yield Row("copies under disguise: recall", f"{right / wanted:.4f}", "0.99")
    yield Row("copies under disguise: precision", f"{right / max(told, 1):.4f}", "0.99")


def sums(strangers: int = 5000, each: int = 10) -> Iterator[Row]:
    """Merges of 2 to 8 of 12 adapters among strangers: exact sets, and the worst error of a weight."""
    shapes = {f"model.layers.{i}.{n}": (64, 48) for i in range(8) for n in ("q", "v")}
    chance = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        adapters = [opened(write_folder(Path(folder, str(seed)), shapes, seed=seed)) for seed in range(12)]
    products, raw = gram(adapters), np.array([sketch_of(one)._sum for one in adapters])
    known = np.concatenate(
        [
            Sketches([sketch_of(one).packed() for one in adapters]).numbers,
            chance.normal(0, 40, (strangers, NUMBERS)).clip(-127, 127).astype("i1"),
        ]
    )
    exact, worst, count = 0, 0.0, 0
    for parents in (2, 3, 4, 6, 8):
        for _ in range(each):
            chosen = sorted(chance.choice(12, parents, replace=False).tolist())
            weights = np.zeros(12)
            weights[chosen] = chance.uniform(0.3, 1.0, parents) * chance.choice([-1, 1], parents)
            summed = np.tensordot(weights, raw, 1)
            packed = np.rint(summed * 127 / np.abs(summed).max()).astype("i1").tobytes()
            taken = sorted(at for at in pursue(packed, known) if at < 12)
            whole = np.block(
                [[weights @ products @ weights, weights @ products], [(products @ weights)[:, None], products]]
            )
            kept = [0, *(at + 1 for at in taken)]
            explained = explain(whole[np.ix_(kept, kept)])
            found = {taken[at]: weight for at, weight in explained.weights.items()} if explained else {}
            count += 1
            exact += sorted(found) == chosen
            worst = max([worst, *(abs(found[at] - weights[at]) for at in found)])
    yield Row("sums of 2 to 8: exact sets", f"{exact} of {count}", "99 %")
    yield Row("sums of 2 to 8: worst error of a weight", f"{worst:.1e}", "0.005")


def rows(families: int = 24, strangers: int = 100_000) -> list[Row]:
    """The whole report."""
    return [*speed(strangers), *copies(families), *sums()]


def main() -> None:
    """Print the report."""
    asked = given(__doc__, families=24, strangers=100_000)
    for row in rows(asked.families, asked.strangers):
        print(f"{row.what:<45}{row.value:>16}  {row.goal}")


if __name__ == "__main__":
    main()
