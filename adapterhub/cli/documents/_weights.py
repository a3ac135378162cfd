"""Documents of the commands that touch weights, and of those that answer."""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

from adapterhub.cli.documents._parts import Added, Digest, NotRequired, Path, Size, Verdict, WeightedAdapter

Ranks = Annotated[dict[str, int], "how many modules have which rank"]


class Tuning(TypedDict):
    """How weights were found; losses are means over the examples that were held out, if some were."""

    weights: list[float]
    base_loss: float
    single_losses: Annotated[list[float], "of each adapter alone"]
    loss_before: Annotated[float, "with equal shares"]
    loss_after: float
    evaluations: int
    searched: Annotated[int, "examples that were searched with"]
    reported: Annotated[int, "examples that the losses are on"]
    is_held_out: bool


class MergedFolder(TypedDict):
    """A merge that was written into a folder."""

    path: Path
    relative_error: Annotated[float, "against the exact sum, or the distance from it where the method makes another"]
    worst_module: str
    worst_error: float
    truncation_error: Annotated[float | None, "lost by cutting to the rank; null where nothing was cut"]
    ranks: Ranks
    dtype: str
    parents: list[WeightedAdapter]
    recipe: Annotated[dict[str, Any], "how to do it again"]
    tuning: NotRequired[Annotated[Tuning, "with --tune"]]


class Merged(Added, MergedFolder):
    """A merge that is in the library."""

    recorded_digest: NotRequired[Annotated[str, "with --recipe: what the recipe says it gives"]]
    as_recorded: NotRequired[Annotated[bool, "with --recipe: whether it did"]]


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
    is_random: Annotated[bool, "draws numbers, and takes a seed"]
    chooses_rank: Annotated[bool, "cuts to a rank"]


class Weights(TypedDict):
    """The size of an adapter."""

    size_bytes: Size
    ranks: Ranks


class ResizedFolder(TypedDict):
    """A smaller adapter that was written into a folder."""

    path: Path
    before: Weights
    after: Weights
    dtype: str
    relative_error: Annotated[float, "against the adapter"]
    worst_module: str
    worst_error: float
    recipe: dict[str, Any]


class Resized(Added, ResizedFolder):
    """A smaller adapter that is in the library."""


class LeftOut(TypedDict):
    """A tensor that differs and is not in the adapter."""

    name: str
    reason: str
    elements: int
    change: Annotated[float | None, "Frobenius norm of the difference"]
    carried: Annotated[bool, "stored whole, by --save-rest"]


class Extracted(Added):
    """A LoRA out of a fine-tuned model."""

    relative_error: Annotated[float, "against the exact difference, where the adapter has modules"]
    worst_module: str
    worst_error: float
    missing_share: Annotated[float, "of the whole difference, with what was left out"]
    ranks: Ranks
    dtype: str
    unchanged_tensors: int
    left_out: list[LeftOut]
    recipe: dict[str, Any]


class FusedTensor(TypedDict):
    """A tensor that got an update."""

    name: str
    relative_error: Annotated[float, "of the update, by rounding"]
    moved: Annotated[int, "numbers with an update"]
    lost: Annotated[int, "of them stored as they were"]


class Fused(TypedDict):
    """A model of its own."""

    path: Path
    base: str
    base_weights: Digest
    adapters: list[WeightedAdapter]
    files: int
    size_bytes: Size
    dtypes: list[str]
    relative_error: Annotated[float, "of the whole update, by rounding"]
    unchanged: Annotated[float, "share of the numbers with an update that are stored as they were"]
    worst_tensor: str
    worst_error: float
    copied: Annotated[int, "tensors taken over byte for byte"]
    tensors: list[FusedTensor]
    warnings: list[str]


# ---------------------------------------------------------------- compare
class Share(TypedDict):
    """A share from 0 to 1."""

    share: float
    standard_error: Annotated[float, "0 where everything was counted"]


class ComparedAdapter(TypedDict):
    """One of the adapters; others name it by its position."""

    label: str
    weight: float
    modules: int
    rank: int
    parameters: int
    norm: Annotated[float, "Frobenius, of its whole update"]
    digest: Digest | None


class ComparedPair(TypedDict):
    """How alike two updates are."""

    first: int
    second: int
    cosine: float
    overlap_left: Annotated[float, "of the spaces they write to"]
    overlap_right: Annotated[float, "of the spaces they read from"]
    chance_left: Annotated[float, "the same for two drawn at random"]
    chance_right: float
    opposite: Annotated[Share, "of the numbers that have opposite signs"]
    cancelled: Annotated[Share, "of the magnitudes that the sum loses"]


class Choice(TypedDict):
    """One way to store the sum."""

    options: Annotated[str, "for `adapt merge`"]
    rank_min: int
    rank_mean: float
    rank_max: int
    relative_error: float
    size_bytes: Size


class Forecast(TypedDict):
    """What a merge would come to."""

    norm: float
    cancelled: Share
    dtype: str
    choices: list[Choice]


class Spectrum(TypedDict):
    """The singular values of an update."""

    norm: float
    numerical_rank: int
    effective_rank: float
    stable_rank: float
    rank_of_energy: Annotated[dict[str, int], "the rank that keeps that share of the squared norm"]
    singular_values: list[float]


_Width = TypedDict("_Width", {"in": int})  # a word of Python, so no class can have it


class ComparedModule(_Width):
    """One module."""

    module: str
    kind: Annotated[str, "`linear`, `conv` or `embedding`"]
    out: int
    parts: int
    updates: Annotated[list[Spectrum | None], "one for each adapter; null where it lacks the module"]
    pairs: list[ComparedPair]
    sum: Annotated[Any, "spectrum of the sum and `cancelled`, or one for each part"]


class Comparison(TypedDict):
    """How alike adapters are, and what merging them would come to."""

    adapters: list[ComparedAdapter]
    pairs: list[ComparedPair]
    forecast: Annotated[Forecast | None, "null where they cannot be merged"]
    obstacles: Annotated[list[str], "why they cannot be merged"]
    unlike: Annotated[dict[str, str], "modules whose shapes differ, and how"]
    partial: Annotated[dict[str, list[int]], "modules that only some have, and the positions of those"]
    sampled: Annotated[int, "rows and columns looked at for signs, at most"]
    modules: list[ComparedModule]
    plot: NotRequired[Annotated[str, "with --plot: the file"]]


# ---------------------------------------------------------------- run
class UsedAdapter(TypedDict):
    """An adapter that answered, and how its base relates to the one it ran on."""

    adapter: str
    weight: float
    base: Verdict


class Drawing(TypedDict):
    """How tokens were drawn and whether the base was proved; left out where they were not."""

    temperature: NotRequired[float]
    top_p: NotRequired[float | None]
    seed: NotRequired[int | None]
    base_digest: NotRequired[Annotated[str, "with --prove-base: of every parameter, before"]]
    base_unchanged: NotRequired[bool]


class Answer(Drawing):
    """One answer."""

    adapters: list[UsedAdapter]
    base: str
    prompt: str
    text: str
    tokens: int
    seconds: float


class ComparedAnswer(TypedDict):
    """One of several answers to one prompt."""

    answered_by: str
    adapters: list[UsedAdapter]
    text: str
    tokens: int
    seconds: float


class ComparedAnswers(Drawing):
    """Several answers to one prompt."""

    base: str
    prompt: str
    answers: list[ComparedAnswer]


class Row(TypedDict):
    """The answer to one line."""

    id: NotRequired[Annotated[Any, "as the line has it"]]
    prompt: str
    adapter: Annotated[str | None, "who answered"]
    text: str
    tokens: int
    system: NotRequired[str]


class Batch(Drawing):
    """Answers to the lines of a file."""

    base: str
    rows: int
    tokens: int
    seconds: float
    tokens_per_second: float
    rows_per_second: float
    answers: NotRequired[list[Row]]
    out: NotRequired[Annotated[str, "with --out: the file that has them instead"]]


class DemoAnswer(TypedDict):
    """One answer of the demo."""

    prompt: str
    by: Annotated[str, "`base` or an adapter"]
    text: str


class Demo(TypedDict):
    """What the demo made."""

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
