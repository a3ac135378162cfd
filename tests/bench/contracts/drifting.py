"""Measures the drift of one adapter after damages of known kind and size, and after what damages nothing.

    python -m tests.bench.contracts.drifting FAMILY NUMBER WORK     # unchanged, on the BLAS that the environment names

Each measurement is `adapt test`'s own, without the truth of held-out prompts: a damage is a damage.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.bench.contracts.changes import DAMAGES, PRECISIONS, RESAVED, SOUND, Change
from tests.bench.contracts.judging import Bench, Subject

OTHER_BLAS: Final[Mapping[str, Mapping[str, str]]] = {
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "no vectors": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"},
}
"""Settings under which the same machine computes as an older one does."""

PACKED: Final = ("alpha x 0.8", "alpha x 1.25", "noise of 20 %", "middle layer lost")
"""The damages that packed bases are asked about."""

Row = list[Any]
"""What was done, where, the drift, the noise, whether it was told, the verdict, and the CPU seconds."""


def measured(bench: Bench, at: int) -> list[Row]:
    """One row for each damage, each way to save an adapter, and each machine."""
    folder, _ = bench.adapter(at)
    subject = Subject(recipe=bench.recipes[at], folder=folder, contract=bench.contract(at), held=())
    found: list[Row | None] = []
    for precision, of_base in PRECISIONS.items():
        with bench.base_after(of_base) as base:
            for name, change in {**RESAVED, **DAMAGES}.items():
                if precision.endswith("bits") and name not in (SOUND, *PACKED):
                    continue
                found.append(_row(bench, subject, change, base, name, precision))
            if not precision.endswith("bits"):
                for where, elsewhere in (("batches of 1", _batches_of_one), ("2 threads", _two_threads)):
                    with elsewhere():
                        found.append(_row(bench, subject, RESAVED[SOUND], base, SOUND, f"{precision}, {where}"))
    for name, settings in OTHER_BLAS.items():
        command = [sys.executable, "-m", __spec__.name, bench.name, str(at), str(bench.work)]
        done = subprocess.run(command, env=os.environ | settings, check=True, capture_output=True, text=True)
        found.append([SOUND, f"float32, {name}", *json.loads(done.stdout.splitlines()[-1])])
    return [row for row in found if row is not None]


def _row(bench: Bench, subject: Subject, change: Change, base: Any, name: str, where: str) -> Row | None:
    from adapterhub.inference.contracts.checking import check

    with tempfile.TemporaryDirectory() as temporary:
        folder = bench.changed(subject, change, Path(temporary) / "changed")
        if folder is None:
            return None
        with bench.on(folder, base) as model:
            made = check(model, bench.tokenizer, subject.contract)
    return [name, where, made.drift, made.noise, made.has_drifted, made.verdict, made.cpu_seconds]


@contextmanager
def _batches_of_one() -> Iterator[None]:
    from adapterhub.inference.contracts import answers

    before = answers.BATCH_TOKENS
    answers.BATCH_TOKENS = 1  # type: ignore[misc]  # a longer row runs alone
    try:
        yield
    finally:
        answers.BATCH_TOKENS = before  # type: ignore[misc]


@contextmanager
def _two_threads() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(before)


if __name__ == "__main__":
    from tests.bench.contracts.families import FAMILIES

    family, number, work = sys.argv[1:]
    here = Bench(family, FAMILIES[family], Path(work))
    own = here.adapter(int(number))[0]
    asked = Subject(recipe=here.recipes[int(number)], folder=own, contract=here.contract(int(number)), held=())
    row = _row(here, asked, RESAVED[SOUND], here.model, SOUND, "")
    assert row is not None  # nothing is changed
    print(json.dumps(row[2:]))
