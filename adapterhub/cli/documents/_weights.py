"""Documents of the commands that work on weights or run a model."""
# mypy: disable-error-code="valid-type, misc"
# `document_of` makes types when it runs.

from __future__ import annotations

from typing import Annotated, Any

from adapterhub.api import weights
from adapterhub.cli.documents._parts import NotRequired, TypedDict, Verdict
from adapterhub.cli.documents._values import document_of
from adapterhub.distribution import hub
from adapterhub.library.find import likeness
from adapterhub.weights import catalogue, fuse
from adapterhub.weights.compare import difference, similarity


# ---------------------------------------------------------------- run
class UsedAdapter(TypedDict):
    """An adapter in use; `base` compares its base with the one it ran on."""

    adapter: str
    weight: float
    base: Verdict


class Drawing(TypedDict):
    """How tokens were sampled and whether the base was proved unchanged; left out otherwise."""

    temperature: NotRequired[float]
    top_p: NotRequired[float | None]
    seed: NotRequired[int | None]
    base_digest: NotRequired[Annotated[str, "with --prove-base: digest of every parameter, before the run"]]
    base_unchanged: NotRequired[bool]


class Labelled(TypedDict):
    """What a classifier (SEQ_CLS) answers; left out otherwise."""

    label: NotRequired[Annotated[str, "of a classifier: the most probable label"]]
    probability: NotRequired[Annotated[float, "of that label"]]
    probabilities: NotRequired[Annotated[dict[str, float], "of all labels, which sum to 1"]]


PromptForm = Annotated[dict[str, Any], "the [prompt form](manifest.md#the-prompt-form) that it was asked in"]


class Answer(Drawing, Labelled):
    """The answer to a prompt."""

    adapters: list[UsedAdapter]
    base: str
    prompt: str
    prompt_form: PromptForm
    text: str
    tokens: Annotated[int, "tokens generated"]
    seconds: Annotated[float, "time of generation"]


class Drawn(TypedDict):
    """An image that a pipeline drew of a prompt."""

    adapters: list[UsedAdapter]
    base: str
    prompt: str
    image: Annotated[str, "the PNG file"]
    width: Annotated[int, "pixels"]
    height: Annotated[int, "pixels"]
    steps: Annotated[int | None, "as asked for; null: the pipeline's own number"]
    seed: int
    seconds: Annotated[float, "time of drawing"]


class ComparedAnswer(Labelled):
    """One of several answers to one prompt."""

    answered_by: str
    adapters: list[UsedAdapter]
    prompt_form: PromptForm
    text: str
    tokens: int
    seconds: float


class ComparedAnswers(Drawing):
    """Several answers to one prompt."""

    base: str
    prompt: str
    answers: list[ComparedAnswer]


class Row(Labelled):
    """The answer to one line of a batch."""

    id: NotRequired[Annotated[Any, "as in the input line"]]
    prompt: str
    adapter: Annotated[str | None, "the adapter of this line; null: the plain base"]
    text: str
    tokens: int
    system: NotRequired[str]


class Batch(Drawing):
    """Answers to the lines of a file."""

    base: str
    rows: Annotated[int, "number of answers"]
    tokens: Annotated[int, "tokens generated"]
    seconds: Annotated[float, "time of generation"]
    tokens_per_second: float
    rows_per_second: float
    answers: NotRequired[list[Row]]
    out: NotRequired[Annotated[str, "with --out: the file with the answers"]]


class DemoAnswer(TypedDict):
    """One answer of the demo."""

    prompt: str
    by: Annotated[str, "`base` or an adapter"]
    text: str


class Demo(TypedDict):
    """The result of the demo."""

    root: Annotated[str, "its library"]
    base: str
    hub_id: str
    answers: list[DemoAnswer]


WEIGHTS = {
    "merge": document_of(weights.MergedBuild),
    "merge.folder": document_of(weights.Merged),
    "merge.tune": document_of(weights.MergedBuild),
    "merge.methods": list[document_of(catalogue.Method)],
    "resize": document_of(weights.ResizedBuild),
    "compare": document_of(similarity.Comparison),
    "compare.diff": document_of(difference.Difference),
    "similar": document_of(likeness.Likeness),
    "similar.groups": document_of(likeness.LikenessGroups),
    "similar.server": document_of(hub.AlikeThere),
    "extract": document_of(weights.ExtractedBuild),
    "fuse": document_of(fuse.Fused),
}
ANSWERS = {"run": Answer, "run.compare": ComparedAnswers, "run.batch": Batch, "run.image": Drawn, "demo": Demo}
