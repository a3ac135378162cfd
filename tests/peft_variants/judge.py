"""Judges what the package makes of one configuration: right, wrong or misled, each with the step and the reason.

*Right*: the numbers are PEFT's, or the adapter is refused by a sentence that names a true reason. *Wrong*: other numbers.
*Misled*: refused for a reason that is not true, or with a sentence that does not name it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from torch import Tensor, nn

from adapterhub.core.errors import AdapterHubError
from adapterhub.inference.bank import AdapterBank
from adapterhub.inference.loader import attach, base_digest
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from adapterhub.trust.verify import verify_folder
from adapterhub.weights.merge import MergeInput, merge
from tests.peft_variants.configuration import Configuration
from tests.peft_variants.dense import summed
from tests.peft_variants.reasons import Config, against_adding_up, against_attaching, against_merging

Grade = Literal["right", "wrong", "misled", "not made"]
_CRASHES = (RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError)
TOLERANCE = 2e-4
"""Of the largest number in PEFT's answer. Merges round to float32, and the weights of the bases are random."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is not right at one step."""

    grade: Grade
    step: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The judgement of one configuration. `outcome`: equal, or refused, at `attach`, for the true `reasons`."""

    configuration: Configuration
    peft_type: str
    outcome: str
    faults: tuple[Fault, ...]
    reasons: tuple[str, ...] = ()

    @property
    def grade(self) -> Grade:
        """The worst of its faults."""
        order: tuple[Grade, ...] = ("not made", "wrong", "misled")
        return next((grade for grade in order if any(f.grade == grade for f in self.faults)), "right")


def judged(configuration: Configuration) -> Verdict:
    """Make the adapter, and put it through `verify`, `add`, `attach`, a bank and `merge`."""
    with tempfile.TemporaryDirectory() as place:
        first, second = Path(place) / "first", Path(place) / "second"
        try:
            configuration.save(first)
            configuration.save(second, seed=2)
        except (ImportError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            fault = Fault(grade="not made", step="PEFT", text=str(error).splitlines()[0])
            return Verdict(configuration=configuration, peft_type="", outcome="", faults=(fault,))
        trial = _Trial(configuration, Path(place), (first, second))
        faults = tuple(trial.faults())
        return Verdict(
            configuration=configuration,
            peft_type=trial.config["peft_type"],
            outcome="refused" if trial.words else "equal",
            faults=faults,
            reasons=tuple(trial.words),
        )


class _Trial:
    def __init__(self, configuration: Configuration, place: Path, folders: tuple[Path, Path]) -> None:
        self.base, self.place, self.folders = configuration.base, place, folders
        self.is_pair = configuration.second is not None
        self.library = Library(place / "library")
        self.configs = [json.loads((f / "adapter_config.json").read_text()) for f in folders]
        self.config: Config = self.configs[0]
        self.words = against_attaching(self.config, self.base.make())

    def faults(self) -> Iterator[Fault]:
        """Everything that is not right."""
        yield from self._checked()
        yield from self._compared("attach", self.words, self._attached, self._by_peft)
        yield from self._compared("bank", self.words, self._banked, self._by_peft)
        if self.is_pair:
            words = [*self.words, *against_adding_up(*self.configs)]
            yield from self._compared("attach two", words, self._attached_both, self._both_by_peft)
        yield from self._copied()
        for weights in ([0.5], [0.7, 0.3]):
            step = f"merge {len(weights)}"
            merging = against_merging(*self.configs[: len(weights)])
            wanted = self._summed(weights) if not merging else self._by_peft
            yield from self._compared(step, merging, self._merged(weights), wanted)

    def _checked(self) -> Iterator[Fault]:
        """`verify` and `add` find no error in what PEFT wrote, except that its method is not supported."""
        for finding in verify_folder(self.folders[0]).findings:
            if finding.severity == "error" and not _names(finding.message, self.words):
                yield Fault(grade="misled", step="verify", text=str(finding))
        try:
            self.library.add(self.folders[0], Description(name="variant", version="1.0.0"))
        except AdapterHubError as error:
            if not _names(str(error), self.words):
                yield Fault(grade="misled", step="add", text=_line(error))

    def _compared(
        self, step: str, words: Sequence[str], ours: Callable[[], Tensor], theirs: Callable[[], Tensor]
    ) -> Iterator[Fault]:
        try:
            mine = ours()
        except AdapterHubError as error:
            if not _names(str(error), words):
                yield Fault(grade="misled", step=step, text=_line(error))
            return
        except _CRASHES as error:
            yield Fault(grade="wrong", step=step, text=f"{type(error).__name__}: {error}")
            return
        if words:
            yield Fault(grade="wrong", step=step, text=f"taken, although {', '.join(words)}")
            return
        wanted = theirs()
        far = float((mine - wanted).abs().max()) if mine.shape == wanted.shape else float("inf")
        if not far <= TOLERANCE * max(1.0, float(wanted.abs().max())):
            yield Fault(grade="wrong", step=step, text=f"the logits differ by {far:.3g}")

    def _attached(self) -> Tensor:
        return self._on_attached([self.folders[0]])

    def _attached_both(self) -> Tensor:
        return self._on_attached(self.folders)

    def _on_attached(self, folders: Sequence[Path]) -> Tensor:
        model = self.base.make()
        before = base_digest(model)
        with attach(model, folders, library=self.library) as attached:
            answer = self.base.answer(attached.model.base_model.model)
        assert base_digest(model) == before, "the base has changed"
        return answer

    def _banked(self) -> Tensor:
        model = self.base.make()
        with AdapterBank(model, library=self.library) as bank, bank.use(bank.load(self.folders[0])):
            return self.base.answer(model)

    def _by_peft(self) -> Tensor:
        return self.base.answer(self._loaded(self.folders[0]))

    def _both_by_peft(self) -> Tensor:
        model = self._loaded(self.folders[0])
        model.load_adapter(self.folders[1], "second")
        model.base_model.set_adapter(["default", "second"])
        return self.base.answer(model.eval())

    def _loaded(self, folder: Path) -> PeftModel:
        return PeftModel.from_pretrained(self.base.make(), folder).eval()

    def _copied(self) -> Iterator[Fault]:
        """A merge of one adapter with weight 1 copies it whole, or refuses it by name."""
        out = self.place / "copy"
        try:
            merge([MergeInput(folder=self.folders[0], label="first", weight=1)], out)
        except AdapterHubError as error:
            if not _names(str(error), [*against_merging(self.config), *self.words]):
                yield Fault(grade="misled", step="copy", text=_line(error))
            return
        for file in out.iterdir():
            if file.read_bytes() != (self.folders[0] / file.name).read_bytes():
                yield Fault(grade="wrong", step="copy", text=f"{file.name} differs")

    def _merged(self, weights: Sequence[float]) -> Callable[[], Tensor]:
        def answer() -> Tensor:
            out = self.place / f"merged-{len(weights)}"
            pairs = zip(self.folders, weights, strict=False)
            merge([MergeInput(folder=folder, label=folder.name, weight=weight) for folder, weight in pairs], out)
            theirs = self.base.answer(self._loaded(out))
            if not self.words:
                mine = self._on_attached([out])
                if not torch.allclose(mine, theirs, atol=1e-4 * max(1.0, float(theirs.abs().max()))):
                    return mine
            return theirs

        return answer

    def _summed(self, weights: Sequence[float]) -> Callable[[], Tensor]:
        def answer() -> Tensor:
            model: nn.Module = summed(self.base.make, self.folders[: len(weights)], weights, self.config)
            return self.base.answer(model)

        return answer


def _names(text: str, words: Sequence[str]) -> bool:
    return any(word in text for word in words)


def _line(error: AdapterHubError) -> str:
    return " ".join(str(error).split())[:300]
