"""Documents of the commands that work on weights or run a model."""

from __future__ import annotations

from typing import Annotated, Any

from adapterhub.cli.documents._contracts import Tested
from adapterhub.cli.documents._parts import Added, Digest, NotRequired, Path, Size, TypedDict, Verdict, WeightedAdapter

Ranks = Annotated[dict[str, int], "number of modules by rank"]


class Tuning(TypedDict):
    """The search for weights; losses are means over the held-out examples, if there are any."""

    weights: list[float]
    base_loss: Annotated[float, "loss of the plain base"]
    single_losses: Annotated[list[float], "loss of each adapter alone"]
    loss_before: Annotated[float, "loss with equal weights"]
    loss_after: Annotated[float, "loss with `weights`"]
    evaluations: Annotated[int, "number of weights that were tried"]
    searched: Annotated[int, "number of examples used in the search"]
    reported: Annotated[int, "number of examples that the losses are measured on"]
    is_held_out: Annotated[bool, "whether the losses are on examples that the search did not use"]


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
    tuning: NotRequired[Annotated[Tuning, "with --tune"]]
    tests: NotRequired[Annotated[list[Tested], "with --test: one for each parent that has a contract"]]


class Merged(Added, MergedFolder):
    """A merge in the library."""

    recorded_digest: NotRequired[Annotated[str, "with --recipe: the digest in the recipe"]]
    as_recorded: NotRequired[Annotated[bool, "with --recipe: whether the result has that digest"]]


class MethodOption(TypedDict):
    """An option of a merge method."""

    name: str
    kind: Annotated[str, "`float`, `int`, `bool` or `str`"]
    choices: list[str]
    default: Any


class Method(TypedDict):
    """A merge method."""

    name: str
    summary: str
    options: list[MethodOption]
    is_random: Annotated[bool, "whether it draws random numbers and takes a seed"]
    chooses_rank: Annotated[bool, "whether it cuts to a rank itself; others are cut afterwards"]


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


class LeftOut(TypedDict):
    """A tensor that differs but is not in the adapter."""

    name: str
    reason: str
    elements: int
    change: Annotated[float | None, "Frobenius norm of the difference"]
    carried: Annotated[bool, "whether --save-rest stored it whole"]


class Extracted(Added):
    """A LoRA extracted from a fine-tuned model."""

    relative_error: Annotated[float, "against the exact difference, in the modules that the adapter has"]
    worst_module: Annotated[str, "the module with the largest error"]
    worst_error: Annotated[float, "its relative error"]
    missing_share: Annotated[float, "error against the whole difference, including what was left out"]
    ranks: Ranks
    dtype: str
    unchanged_tensors: Annotated[int, "number of tensors that do not differ"]
    left_out: list[LeftOut]
    recipe: dict[str, Any]


class FusedTensor(TypedDict):
    """A tensor with an update."""

    name: str
    relative_error: Annotated[float, "error of the update from rounding"]
    moved: Annotated[int, "numbers that have an update"]
    lost: Annotated[int, "those that are stored unchanged"]


class Fused(TypedDict):
    """A model with adapters fused in."""

    path: Path
    base: str
    base_weights: Digest
    adapters: list[WeightedAdapter]
    files: Annotated[int, "number of weight files"]
    size_bytes: Size
    dtypes: list[str]
    relative_error: Annotated[float, "error of the whole update from rounding"]
    unchanged: Annotated[float, "share of the numbers with an update that are stored unchanged"]
    worst_tensor: Annotated[str, "the tensor with the largest error"]
    worst_error: Annotated[float, "its relative error"]
    copied: Annotated[int, "number of tensors copied byte for byte"]
    tensors: list[FusedTensor]
    warnings: list[str]


# ---------------------------------------------------------------- compare
class Share(TypedDict):
    """A share from 0 to 1."""

    share: float
    standard_error: Annotated[float, "0 if every number was counted"]


class ComparedAdapter(TypedDict):
    """A compared adapter; other fields refer to it by its position."""

    label: str
    weight: float
    modules: int
    rank: int
    parameters: int
    norm: Annotated[float, "Frobenius norm of its whole update"]
    digest: Digest | None


class ComparedPair(TypedDict):
    """The similarity of two updates."""

    first: Annotated[int, "position of the first adapter"]
    second: Annotated[int, "position of the second adapter"]
    cosine: Annotated[float, "cosine between the updates"]
    overlap_left: Annotated[float, "overlap of the spaces they write to"]
    overlap_right: Annotated[float, "overlap of the spaces they read from"]
    chance_left: Annotated[float, "mean `overlap_left` of random spaces of those ranks"]
    chance_right: Annotated[float, "mean `overlap_right` of random spaces of those ranks"]
    opposite: Annotated[Share, "share of numbers with opposite signs"]
    cancelled: Annotated[Share, "share of the magnitudes that the sum loses"]


class Choice(TypedDict):
    """One way to store the sum."""

    options: Annotated[str, "options of `adapt merge`"]
    rank_min: int
    rank_mean: float
    rank_max: int
    relative_error: float
    size_bytes: Size


class Forecast(TypedDict):
    """The expected result of a merge."""

    norm: Annotated[float, "Frobenius norm of the sum"]
    cancelled: Share
    dtype: str
    choices: Annotated[list[Choice], "ways to store the sum"]


class Spectrum(TypedDict):
    """The singular values of an update."""

    norm: Annotated[float, "Frobenius norm"]
    numerical_rank: Annotated[int, "number of directions"]
    effective_rank: Annotated[float, "exponential of the entropy of the singular values"]
    stable_rank: Annotated[float, "squared Frobenius norm divided by the squared largest singular value"]
    rank_of_energy: Annotated[dict[str, int], "the rank that keeps each share of the squared norm"]
    singular_values: list[float]


_Width = TypedDict("_Width", {"in": int})  # a word of Python, so no class can have it


class ComparedModule(_Width):
    """A module and its updates."""

    module: str
    kind: Annotated[str, "`linear`, `conv` or `embedding`"]
    out: int
    parts: Annotated[int, "number of separate updates in the module, such as one per expert"]
    updates: Annotated[list[Spectrum | None], "one per adapter; null if it lacks the module"]
    pairs: list[ComparedPair]
    sum: Annotated[Any, "spectrum of the sum and `cancelled`, or one per part"]


class Comparison(TypedDict):
    """The similarity of adapters, and the expected result of merging them."""

    adapters: list[ComparedAdapter]
    pairs: list[ComparedPair]
    forecast: Annotated[Forecast | None, "null if they cannot be merged"]
    obstacles: Annotated[list[str], "why they cannot be merged"]
    unlike: Annotated[dict[str, str], "modules whose shapes differ, and how they differ"]
    partial: Annotated[dict[str, list[int]], "modules that only some adapters have, with the positions of those"]
    sampled: Annotated[int, "maximal number of rows and columns sampled for signs"]
    modules: list[ComparedModule]
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
    "merge": Merged,
    "merge.folder": MergedFolder,
    "merge.tune": Merged,
    "merge.methods": list[Method],
    "resize": Resized,
    "compare": Comparison,
    "extract": Extracted,
    "fuse": Fused,
}
ANSWERS = {"run": Answer, "run.compare": ComparedAnswers, "run.batch": Batch, "demo": Demo}
