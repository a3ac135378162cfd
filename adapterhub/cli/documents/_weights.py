"""Documents of the commands that work on weights or run a model."""
# mypy: disable-error-code="valid-type, misc"
# `document_of` makes types when it runs.

from __future__ import annotations

from typing import Annotated, Any

from adapterhub.cli.documents._contracts import Tested
from adapterhub.cli.documents._parts import Added, Digest, NotRequired, Path, Size, TypedDict, Verdict, WeightedAdapter
from adapterhub.cli.documents._values import document_of
from adapterhub.inference import tuning
from adapterhub.weights import catalogue, extract, fuse
from adapterhub.weights.compare import similarity

Ranks = Annotated[dict[str, int], "number of modules by rank"]


class MergedFolder(TypedDict):
    """A merge written to a folder."""

    path: Path
    relative_error: Annotated[float, "against the exact sum; for other methods, the distance from it"]
    worst_module: Annotated[str, "the module with the largest error"]
    worst_error: Annotated[float, "its relative error"]
    truncation_error: Annotated[float | None, "lost by cutting to the rank; null if nothing was cut"]
    ranks: Ranks
    dtype: str
    parents: list[WeightedAdapter]
    recipe: Annotated[dict[str, Any], "how to repeat it"]
    tuning: NotRequired[Annotated[document_of(tuning.Tuned), "with --tune"]]
    tests: NotRequired[Annotated[list[Tested], "with --test: one for each parent that has a contract"]]


class Merged(Added, MergedFolder):
    """A merge in the library."""

    recorded_digest: NotRequired[Annotated[str, "with --recipe: the digest in the recipe"]]
    as_recorded: NotRequired[Annotated[bool, "with --recipe: whether the result has that digest"]]
    statement: NotRequired[Annotated[str, "with --statement: the file that says how it was made"]]


class Weights(TypedDict):
    """The size of an adapter."""

    size_bytes: Size
    ranks: Ranks


class ResizedFolder(TypedDict):
    """A smaller adapter written to a folder."""

    path: Path
    before: Weights
    after: Weights
    dtype: str
    relative_error: Annotated[float, "against the original adapter"]
    worst_module: Annotated[str, "the module with the largest error"]
    worst_error: Annotated[float, "its relative error"]
    recipe: dict[str, Any]
    tests: NotRequired[Annotated[list[Tested], "with --test: how it does by the contract"]]


class Resized(Added, ResizedFolder):
    """A smaller adapter in the library."""


class Extracted(Added):
    """A LoRA extracted from a fine-tuned model."""

    relative_error: Annotated[float, "against the exact difference, in the modules that the adapter has"]
    worst_module: Annotated[str, "the module with the largest error"]
    worst_error: Annotated[float, "its relative error"]
    missing_share: Annotated[float, "error against the whole difference, including what was left out"]
    ranks: Ranks
    dtype: str
    unchanged_tensors: Annotated[int, "number of tensors that do not differ"]
    left_out: list[document_of(extract.LeftOut)]
    recipe: dict[str, Any]


# ---------------------------------------------------------------- compare
class ComparedAdapter(document_of(similarity.AdapterFigures)):
    """A compared adapter; other fields refer to it by its position."""

    digest: Digest | None


class Comparison(document_of(similarity.Comparison)):
    """The similarity of adapters, and the expected result of merging them."""

    adapters: list[ComparedAdapter]
    plot: NotRequired[Annotated[str, "with --plot: the image file"]]


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


class Fused(document_of(fuse.Fused)):
    """A model with adapters fused in."""

    tests: NotRequired[Annotated[list[Tested], "with --test: one for each adapter that has a contract"]]


WEIGHTS = {
    "merge": Merged,
    "merge.folder": MergedFolder,
    "merge.tune": Merged,
    "merge.methods": list[document_of(catalogue.Method)],
    "resize": Resized,
    "compare": Comparison,
    "extract": Extracted,
    "fuse": Fused,
}
ANSWERS = {"run": Answer, "run.compare": ComparedAnswers, "run.batch": Batch, "run.image": Drawn, "demo": Demo}
