"""Search over 100,000 indexed builds by base, task and rank, and by text.

    python -m tests.bench.bench_search [--builds 100000]

Peer: a scan of the same rows without indexes (`PRAGMA automatic_index=off` on a copy that has none), in the same run.
"""

from __future__ import annotations

import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from adapterhub.core.ranks import RankRange
from adapterhub.library.store.rows import Filters
from tests.bench.harness import given
from tests.bench.many_builds import digest, fill_index

REPEATS = 21


def milliseconds(run: Callable[[], object]) -> float:
    """Median over repeats, after one warm-up."""
    run()
    spent = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        spent.append((time.perf_counter() - start) * 1000)
    return statistics.median(spent)


def main() -> None:
    """Measure and print."""
    builds = given(__doc__, builds=100_000).builds
    with tempfile.TemporaryDirectory() as folder:
        index = fill_index(Path(folder, "home"), builds)
        bare = sqlite3.connect(Path(folder, "bare.db"))
        bare.execute("ATTACH ? AS full", (str(index.path),))
        bare.execute("CREATE TABLE builds AS SELECT * FROM full.builds")
        base = digest("base 3")
        exact = Filters(bases=(base,), task="legal-qa", ranks=RankRange(low=16, high=16))
        scan = "SELECT * FROM builds WHERE base_weights = ? AND task = ? AND rank = ? ORDER BY name"
        ours, peer = (
            milliseconds(lambda: index.search(exact)),
            milliseconds(lambda: bare.execute(scan, (base, "legal-qa", 16)).fetchall()),
        )
        found = len(index.search(exact))
        print(
            f"{builds:,} builds, base + task + rank: {ours:.2f} ms ({found} found)   "
            f"scan without index {peer:.2f} ms   ratio {ours / peer:.3f}"
        )
        bounded = Filters(bases=(base,), task="sql", ranks=RankRange(low=8, high=32), limit=50)
        print(
            f"{builds:,} builds, base + task + rank range, 50 rows: {milliseconds(lambda: index.search(bounded)):.2f} ms"
        )
        text = Filters(text="corpus 42", bases=(base,), all_words=True)
        like = "SELECT * FROM builds WHERE base_weights = ? AND description LIKE '%corpus 42%' ORDER BY name"
        ours, peer = (
            milliseconds(lambda: index.search(text)),
            milliseconds(lambda: bare.execute(like, (base,)).fetchall()),
        )
        print(
            f"{builds:,} builds, text + base: {ours:.2f} ms ({len(index.search(text))} found)   "
            f"LIKE scan {peer:.2f} ms   ratio {ours / peer:.3f}"
        )


if __name__ == "__main__":
    main()
