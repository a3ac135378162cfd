"""What adapters answer to prompts, as the documents that `adapt run` prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Final

from adapterhub.core.disk.files import write_output
from adapterhub.formats.base.fingerprint import BaseVerdict
from adapterhub.formats.documented import Documented

_LABELLED: Final = " label? probability? probabilities?"
_SAMPLED: Final = " temperature? top_p? seed? base_digest? base_unchanged?"


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedAdapter(Documented):
    """An adapter in use; `base` compares its base with the one it ran on."""

    adapter: str
    weight: float
    base: BaseVerdict


@dataclass(frozen=True, slots=True, kw_only=True)
class _Labelled(Documented):
    """What a classifier (SEQ_CLS) answers; left out otherwise."""

    label: Annotated[str | None, "of a classifier: the most probable label"] = None
    probability: Annotated[float | None, "of that label"] = None
    probabilities: Annotated[Mapping[str, float] | None, "of all labels, which sum to 1"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sampled(Documented):
    """How tokens were sampled and whether the base was proved unchanged; left out otherwise."""

    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    base_digest: Annotated[str | None, "with --prove-base: digest of every parameter, before the run"] = None
    base_unchanged: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedAnswer(_Labelled, keys="answered_by adapters prompt_form text tokens seconds" + _LABELLED):
    """One of several answers to one prompt."""

    answered_by: str
    adapters: Annotated[tuple[UsedAdapter, ...], "empty for the base alone"]
    prompt_form: Annotated[Mapping[str, Any], "the [prompt form](files.md#the-prompt-form) that it was asked in"]
    text: Annotated[str, "what was answered"]
    tokens: Annotated[int, "tokens generated"]
    seconds: Annotated[float, "time of generation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedAnswers(_Sampled, keys="base prompt answers" + _SAMPLED):
    """Several answers to one prompt."""

    base: str
    prompt: str
    answers: tuple[ComparedAnswer, ...]

    def __getitem__(self, at: int) -> ComparedAnswer:
        """Return one of the answers; iteration uses it."""
        return self.answers[at]


@dataclass(frozen=True, slots=True, kw_only=True)
class OneAnswer(
    ComparedAnswers,
    keys="adapters=answer.adapters base prompt prompt_form=answer.prompt_form text=answer.text tokens=answer.tokens"
    " seconds=answer.seconds label?=answer.label probability?=answer.probability"
    " probabilities?=answer.probabilities" + _SAMPLED,
    title="Answer",
):
    """The answer to a prompt."""

    @property
    def answer(self) -> ComparedAnswer:
        """The only answer."""
        return self.answers[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowAnswer(_Labelled, keys="id? prompt adapter text tokens" + _LABELLED + " system?", title="Row"):
    """The answer to one line of a batch."""

    id: Annotated[str | int | None, "as in the input line"] = None
    prompt: str
    adapter: Annotated[Any, "the adapter of this line; null: the plain base"]
    text: str
    tokens: int
    system: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchAnswers(
    _Sampled,
    keys="base rows tokens seconds tokens_per_second rows_per_second" + _SAMPLED + " answers? out?",
    title="Batch",
):
    """Answers to the lines of a file."""

    base: str
    rows: Annotated[int, "number of answers"]
    tokens: Annotated[int, "tokens generated"]
    seconds: Annotated[float, "time of generation"]
    tokens_per_second: float
    rows_per_second: float
    answers: tuple[RowAnswer, ...] | None = None
    out: Annotated[str | None, "with --out: the file with the answers"] = None

    def __getitem__(self, at: int) -> RowAnswer:
        """Return one of the answers; iteration uses it."""
        return (self.answers or ())[at]


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnImage(Documented, keys="adapters base prompt image=path width height steps seed seconds", title="Drawn"):
    """An image that a pipeline drew of a prompt."""

    image: Any  # of Pillow
    adapters: tuple[UsedAdapter, ...]
    base: str
    prompt: str
    path: Annotated[str, "the PNG file"] = ""
    width: Annotated[int, "pixels"]
    height: Annotated[int, "pixels"]
    steps: Annotated[int | None, "as asked for; null: the pipeline's own number"]
    seed: int
    seconds: Annotated[float, "time of drawing"]

    def written(self, path: Path) -> DrawnImage:
        """Write it as PNG, whole or not at all."""
        held = BytesIO()
        self.image.save(held, format="PNG")
        write_output(path, held.getvalue())
        return replace(self, path=str(path))
