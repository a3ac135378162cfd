"""Search by meaning and for like updates in a registry of very many builds on SQLite, beside comparing each of them.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python -m tests.bench.bench_index [--builds 10000 100000 300000] [--folder DIR]

A million takes an hour and 4 GB of disk. The texts are made: mixtures of the vectors of 314 real task cards with noise
of their covariance, on subjects of very unequal size. Each twentieth build has the text of another, one in ten hardly
differs, and two of five have 1 to 8 prompts. Questions mix 180 real ones with subjects. A sketch of ten has a near one.
Times are CPU time beside the encoder's, memory is that of the process beside mapped files.
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from adapterhub_registry import vectors
from adapterhub_registry.database.db import Database, adapters, repos, sketches
from adapterhub_registry.database.db import meaning as table
from adapterhub_registry.nearest import Nearest
from adapterhub_registry.repos.search import AdapterQuery, search_adapters
from adapterhub_registry.worker import FLOOR, KnownSketches

from adapterhub.formats.derived.likeness import NUMBERS, Sketches
from adapterhub.formats.meaning.encoder import Encoder
from adapterhub.formats.meaning.model import FILES, MODEL, SIZE
from adapterhub.formats.meaning.ranking import VectorBlock
from adapterhub.formats.meaning.texts import FAR, FEWEST, parts_of
from tests.bench.find_questions import cards, questions
from tests.bench.harness import given, measured
from tests.support.real_encoder import minilm_base

AT_ONCE: Final = 2000
ASKED: Final = 100
_COMPONENTS: Final = 96


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


class Texts:
    """Vectors like those of builds and questions; the same ones each time."""

    def __init__(self, builds: int, folder: Path) -> None:
        kept = folder / "texts.npy"
        if not kept.exists():
            told = [parts_of(card.name, card.task, card.description)[0] for card in cards()]
            texts = [*told, *(question.text for question in questions())]
            np.save(kept, np.array(Encoder(minilm_base()).vectors(texts)))
        self.real, self.asked = np.split(np.load(kept), [len(cards())])
        _, sizes, axes = np.linalg.svd(self.real - self.real.mean(0), full_matrices=False)
        self.spread = (axes * (sizes / np.sqrt(len(self.real)))[:, None]).astype("f4")[:_COMPONENTS]
        self.chance = np.random.default_rng(0)
        self.subjects = self._subjects(max(50, builds // 20))

    def _noise(self, count: int) -> np.ndarray:
        like_texts = self.chance.standard_normal((count, _COMPONENTS), "f4") @ self.spread
        other = self.chance.standard_normal((count, SIZE), "f4") / np.float32(np.sqrt(SIZE))
        return unit(np.float32(0.9) * unit(like_texts) + np.float32(0.45) * other)

    def _subjects(self, count: int) -> np.ndarray:
        pairs = self.real[self.chance.integers(0, len(self.real), (count, 2))]
        shares = self.chance.dirichlet((1, 1), count).astype("f4")
        return unit(np.float32(0.55) * unit((pairs * shares[..., None]).sum(1)) + np.float32(0.8) * self._noise(count))

    def builds(self, count: int) -> Iterator[bytes]:
        """The packed vectors of each build."""
        for start in range(0, count, AT_ONCE):
            some = min(AT_ONCE, count - start)
            popular = (self.chance.pareto(1.2, some) * len(self.subjects) * 0.02).astype(int)
            subject = self.subjects[np.minimum(popular, len(self.subjects) - 1)]
            far = self.chance.choice([0.05, 0.3, 0.7], (some, 1), p=[0.1, 0.3, 0.6]).astype("f4")
            own = unit(subject + far * self._noise(some))
            same = self.chance.random(some) < 0.05
            own[same] = subject[same]
            prompts = np.where(self.chance.random(some) < 0.6, 0, self.chance.integers(1, 9, some))
            of = np.repeat(np.arange(some), prompts)
            told = unit(np.float32(0.6) * own[of] + np.float32(0.8) * self._noise(len(of)))
            wholes, parts = (np.rint(one * 127).astype(np.int8) for one in (own, told))
            for at, end in enumerate(np.cumsum(prompts).tolist()):
                yield wholes[at].tobytes() + parts[end - prompts[at] : end].tobytes()

    def questions(self) -> np.ndarray:
        chance = np.random.default_rng(1)
        real = self.asked[chance.integers(0, len(self.asked), ASKED)]
        share = chance.random((ASKED, 1)).astype("f4") * 0.6
        return unit((1 - share) * real + share * self.subjects[chance.integers(0, len(self.subjects), ASKED)])


def sketch_rows(count: int) -> Iterator[bytes]:
    """Sketches of strangers; each tenth has the cosine 0.9 to 1 with the one before it, or as much negated."""
    chance = np.random.default_rng(2)
    for start in range(0, count, AT_ONCE):
        made = chance.standard_normal((min(AT_ONCE, count - start), NUMBERS), "f4")
        near = made[9::10]
        cosine = chance.uniform(0.9, 1, (len(near), 1)).astype("f4")
        before = unit(made[8::10][: len(near)])
        other = unit(near - (near * before).sum(1, keepdims=True) * before)
        sign = chance.choice(np.array([-1, 1], "f4"), (len(near), 1))
        made[9::10] = sign * (cosine * before + np.sqrt(1 - cosine**2) * other)
        yield from (row.tobytes() for row in np.rint(made / abs(made).max(1, keepdims=True) * 127).astype(np.int8))


def commit_of(number: int) -> str:
    return f"{number:040x}"


def fill(database: Database, count: int, folder: Path) -> None:
    """Repositories, of which each hundredth is `few/…`, with a listed build each, its vectors and its sketch."""
    made = zip(Texts(count, folder).builds(count), sketch_rows(count), strict=True)
    told = {"created_by": "a", "created_at": 1, "modified_at": 1, "folded_namespace": "a"}
    build = {"methods": "[]", "target_modules": "[]", "words": "", "is_head": True, "is_listed": True, "created_at": 1}
    for start in range(1, count + 1, AT_ONCE):
        rows: dict[Any, list[dict[str, Any]]] = {repos: [], adapters: [], table: [], sketches: []}
        for number in range(start, min(start + AT_ONCE, count + 1)):
            space = "many" if number % 100 else "few"
            name = f"{space}/{number}"
            names = {"full_name": name, "folded": name, "namespace": space, "head": commit_of(number)}
            rows[repos].append({"id": number, "private": number % 100 != 0, **names, **told})
            mine, digest = {"repo_id": number, "commit_id": commit_of(number)}, f"{number:064x}"
            rows[adapters].append(mine | build | {"digest": digest, "examples": "one\n" * 8})
            vectors_of_it, sketch = next(made)
            rows[table].append(mine | {"model": MODEL, "vectors": vectors_of_it})
            rows[sketches].append({"digest": digest, "key_id": "k", "made_at": number, "sketch": sketch})
        with database.begin() as connection:
            for one, values in rows.items():
                connection.execute(one.insert(), values)


class Given:
    """Gives the vector of the question whose number is asked."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = rows

    def vectors(self, texts: list[str]) -> np.ndarray:
        return self._rows[[int(text.split()[0]) for text in texts]].astype("f4")


def memory_mb() -> int:
    """The resident memory of this process that is no page of a file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1000


def spent_ms(step: Callable[[], object]) -> float:
    began = time.process_time()
    step()
    return (time.process_time() - began) * 1000


def show(what: str, value: str) -> None:
    print(f"  {what:<58}{value}", flush=True)


def told(times: list[float]) -> str:
    return f"{np.mean(times):8.1f} ms, p99 {np.percentile(times, 99):.1f}"


def exact(database: Database, asked: np.ndarray) -> tuple[list[list[float]], list[list[float]]]:
    """For each question the ten best scores that an answer shows, of all builds and of the public ones."""
    best: list[list[float]] = [[] for _ in asked]
    few: list[list[float]] = [[] for _ in asked]
    with database.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT repo_id, vectors FROM meaning")
        while some := rows.fetchmany(AT_ONCE):
            block = VectorBlock([row[1] for row in some])
            is_few = np.array([row[0] % 100 == 0 for row in some])
            for at, question in enumerate(asked):
                tops = block.tops(block.scores(question))
                best[at] = sorted([*best[at], *tops.tolist()], reverse=True)[:10]
                few[at] = sorted([*few[at], *tops[is_few].tolist()], reverse=True)[:10]
    near, near_few = ([[s for s in one if s >= FAR] or one[:FEWEST] for one in kind] for kind in (best, few))
    return near, near_few


def measure(folder: Path, count: int) -> None:
    """Print all about one size; the process has measured nothing before."""
    place = vectors.model_place(folder)
    place.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if not (place / name).exists():
            (place / name).symlink_to(minilm_base() / name)
    asked = Texts(count, folder).questions()
    database = Database(f"sqlite:///{folder / 'registry.db'}")
    begun, before_mb = time.process_time(), memory_mb()

    nearest = Nearest(folder)
    nearest.__dict__["_encoder"] = Given(asked)
    made = nearest.keep(database)
    show(
        "index by meaning: made" if made else "by meaning, all in memory",
        f"{time.process_time() - begun:8.1f} s of CPU",
    )
    again = Nearest(folder)
    again.__dict__["_encoder"] = Given(asked)
    restart = spent_ms(lambda: again.keep(database))
    del nearest
    show("restart", f"{restart / 1000:8.1f} s of CPU")
    show("file", f"{sum(one.stat().st_size for one in folder.glob('meaning/*.cells')) / 1e6:8.0f} MB")

    def search(number: int, **how: Any) -> Any:
        question = AdapterQuery(q=f"{number} asked", by_relevance=True, limit=10)
        with database.read() as connection:
            visible = repos.c.private.is_(False) if how else repos.c.id > 0
            return search_adapters(connection, question, visible, again.ranked)

    def found(number: int, best: list[float], **how: Any) -> float:
        scores = [fit.score for fit in search(number, **how).fits.values()]
        return sum(score >= best[-1] - 1e-4 for score in scores) / len(best)

    of_all, of_few = exact(database, asked)
    search(0), search(0, few=True)
    show("a question, for a reader of all", told([spent_ms(lambda at=at: search(at)) for at in range(ASKED)]))
    show("recall at 10", f"{np.mean([found(at, best) for at, best in enumerate(of_all)]):8.3f}")
    show(
        "a question, for a reader of each hundredth",
        told([spent_ms(lambda at=at: search(at, few=1)) for at in range(ASKED)]),
    )
    show("recall at 10", f"{np.mean([found(at, best, few=1) for at, best in enumerate(of_few)]):8.3f}")
    pushes = []
    for number in range(count + 1, count + 21):
        push(database, number, asked[number % ASKED])
        pushes.append(spent_ms(functools.partial(search, 1)))
    show("a question after each of 20 pushes", told(pushes))
    show("memory", f"{memory_mb() - before_mb:8} MB")
    likeness(database, count)


def push(database: Database, number: int, vector: np.ndarray) -> None:
    packed = np.rint(unit(vector + 0.3) * 127).astype(np.int8).tobytes()
    with database.begin() as connection:
        name = f"few/{number}"
        names = {"full_name": name, "folded": name, "namespace": "few", "folded_namespace": "a"}
        told = {"private": False, "head": commit_of(number), "created_by": "a", "created_at": 1, "modified_at": 1}
        connection.execute(repos.insert().values(id=number, **names, **told))
        mine = {"repo_id": number, "commit_id": commit_of(number)}
        build = {"methods": "[]", "target_modules": "[]", "words": "", "is_head": True, "is_listed": True}
        digest = f"{number:064x}"
        connection.execute(adapters.insert().values(**mine, **build, digest=digest, created_at=1))
        connection.execute(table.insert().values(**mine, model=MODEL, vectors=packed))
        sketch = np.random.default_rng(number).integers(-120, 120, NUMBERS, np.int8).tobytes()
        connection.execute(sketches.insert().values(digest=digest, key_id="k", made_at=number, sketch=sketch))


def likeness(database: Database, count: int) -> None:
    """Print the same of like updates."""
    before_mb, known = memory_mb(), KnownSketches()

    def near(number: int) -> dict[str, float]:
        with database.read() as connection:
            return known.near(connection, f"{number:064x}", FLOOR) or {}

    show("like updates: restart", f"{spent_ms(lambda: near(1)) / 1000:8.1f} s of CPU")
    show("memory", f"{memory_mb() - before_mb:8} MB")
    chosen = [count * at // ASKED // 10 * 10 + 9 for at in range(ASKED)]
    show("a question", told([spent_ms(functools.partial(near, one)) for one in chosen]))
    hits = [f"{one + 1:064x}" in near(one) for one in chosen]
    show("recall of a cosine from 0.9 to 1", f"{np.mean(hits):8.3f}")
    pushes = []
    for number in range(count + 21, count + 41):
        push(database, number, np.ones(SIZE, "f4"))
        pushes.append(spent_ms(functools.partial(near, chosen[0])))
    show("a question after each of 20 pushes", told(pushes))
    packed = Sketches(list(sketch_rows(min(count, 100_000))))
    packed.cosines(packed.numbers[0].tobytes())
    scan = spent_ms(lambda: packed.cosines(packed.numbers[1].tobytes())) * count / len(packed)
    show("comparing each", f"{scan:8.1f} ms")


def main() -> None:
    """Measure each size in a process of its own."""
    asked = given(__doc__, builds=[10_000, 100_000, 300_000], folder="", within=int)
    if asked.within is not None:
        measure(Path(asked.folder), asked.within)
        return
    for count in asked.builds:
        with tempfile.TemporaryDirectory(dir=asked.folder or None) as folder:
            database = Database(f"sqlite:///{folder}/registry.db")
            begun = time.process_time()
            fill(database, count, Path(folder))
            database.close()
            print(f"{count:,} builds, written in {time.process_time() - begun:.0f} s of CPU", flush=True)
            within = [sys.executable, "-m", "tests.bench.bench_index", "--within", str(count), "--folder", folder]
            print(measured(within, env=dict(os.environ)).said, flush=True)


if __name__ == "__main__":
    main()
