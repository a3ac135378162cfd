"""Moves one adapter to one base by each method, and takes the verdict of its contract there."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from adapterhub.core.errors import AdapterHubError
from adapterhub.core.specs import BaseSpec
from adapterhub.formats.contract.contract import Contract
from adapterhub.formats.contract.results import Tested
from adapterhub.formats.manifest import WEIGHTS_FILE
from adapterhub.inference.contracts.checking import check
from adapterhub.inference.loader.attachment import attach_to_test
from adapterhub.library.library import Library
from adapterhub.weights.port import opened
from adapterhub.weights.port.catalogue import describe, names
from tests.bench.contracts.judging import Bench
from tests.bench.contracts.training import load, trained
from tests.bench.port.pairs import Pair

GOLDENS: Final = {"smollm2": 6, "minilm": 12, "bert-chemistry": 12}
"""How many goldens are asked where a base is large; otherwise all."""
RETRAINED: Final = "retrained"
DISTANCE: Final = "distance"
_TO_RETRAIN: Final = ("trained most", "without a layer", "permuted", "of another seed")
"""The pairs of small bases on which the first adapter is trained again, as the most that any method can reach."""


class PairBench:
    """One pair with both bases in memory."""

    def __init__(self, pair: Pair, bench: Bench, work: Path) -> None:
        self.pair, self.bench, self.work = pair, bench, work
        self.folder = pair.base(bench, work)
        self.library = Library(work / "library")
        self.old, self.new = self.library.bases.look(bench.base), self.library.bases.look(self.folder)
        self._model: Any = None

    @property
    def verdict(self) -> str:
        """How the library compares the two bases."""
        return self.library.bases.judged(self.old.fingerprint, self.new.fingerprint).verdict.name

    @property
    def model(self) -> Any:
        """The new base in memory."""
        if self._model is None:
            self._model = load(self.bench.family, self.folder)[0]
        return self._model

    def contract(self, at: int) -> Contract:
        """The adapter's contract, with fewer goldens for a large base."""
        contract = self.bench.contract(at)
        return replace(contract, goldens=contract.goldens[: GOLDENS.get(self.pair.family, 20)], order=())

    def measured(self, at: int, wanted: list[str]) -> Iterator[dict[str, Any]]:
        """A result for each wanted method on one adapter."""
        folder, _ = self.bench.adapter(at)
        contract = self.contract(at)
        with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
            scratch, begun = Path(temporary), time.process_time()
            try:
                run = stack.enter_context(opened(folder, None, folder.name, self.old.fingerprint, self.old, self.new))
            except AdapterHubError as error:
                yield {"method": "copy", "verdict": "REFUSED", "reason": error.message.splitlines()[0]}
                return
            if DISTANCE in wanted:
                distance = run.distance()
                told = {} if distance is None else {k: v for k, v in distance.to_json().items() if k != "modules"}
                yield {"method": DISTANCE, "verdict": self.verdict, **told, "seconds": time.process_time() - begun}
            copied: tuple[bytes, dict[str, Any]] | None = None
            for method in [one for one in wanted if one != DISTANCE]:
                begun = time.process_time()
                if method == RETRAINED:
                    if at or self.pair.family != "small-gpt2" or self.pair.name not in _TO_RETRAIN:
                        continue
                    out = self._retrained(at)
                elif problem := run.obstacle(method):
                    yield {"method": method, "verdict": "REFUSED", "reason": problem}
                    continue
                else:
                    out = scratch / method
                    run.write(method, out)
                spent = round(time.process_time() - begun, 3)
                written = (out / WEIGHTS_FILE).read_bytes()
                if copied is not None and copied[0] == written:
                    yield {"method": method, **copied[1], "seconds": spent, "is_copy": True}
                    continue
                told = _told(self._verdict(out, contract))
                copied = copied or ((written, told) if method == "copy" else None)
                yield {"method": method, **told, "seconds": spent}

    def _retrained(self, at: int) -> Path:
        family = replace(self.bench.family, make=lambda _: self.folder)
        return trained(self.bench.recipes[at], family, self.folder, self.work / self.pair.label.replace(" ", "-"))[0]

    def _verdict(self, folder: Path, contract: Contract) -> Tested:
        with self._on(folder, self.model, is_new=True) as adapted:
            return check(adapted, self.bench.tokenizer, contract)

    @contextmanager
    def _on(self, folder: Path, model: Any, *, is_new: bool) -> Iterator[Any]:
        base = BaseSpec.parse(str(self.folder if is_new else self.bench.base))
        with attach_to_test(model, folder, library=self.library, base=base) as attached:
            yield attached.model


def _told(result: Tested) -> dict[str, Any]:
    told = {
        name: getattr(result, name) for name in ("verdict", "outcome", "reason", "drift", "same", "retention", "kl")
    }
    return told | {"cpu_seconds": result.cpu_seconds}


def methods() -> list[str]:
    """What is measured, `copy` first."""
    assert describe("copy").needs == "nothing"
    return [DISTANCE, *names(), RETRAINED]


def single_thread() -> None:
    """Leave the other cores to others."""
    torch.set_num_threads(1)
