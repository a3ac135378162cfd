"""Documents of `adapt test`: verdicts, and contracts that were recorded."""

from __future__ import annotations

from typing import Annotated

from adapterhub.cli.documents._parts import Digest, Path, TypedDict


class TestedCase(TypedDict):
    """One line of a contract, checked; losses are in nats per token."""

    id: str
    kind: Annotated[str, "`golden`, `expect`, `never` or `leave_alone`; `test` of pytest"]
    verdict: Annotated[str, "`PASS` or `CHANGED`; `UNKNOWN` for a skipped test"]
    same: Annotated[bool | None, "whether the answer is the recorded one, token for token"]
    loss: float | None
    recorded_loss: float | None
    base_loss: Annotated[float | None, "that of the base alone, at the recording"]
    retention: float | None
    effect: Annotated[float | None, "of an image: share of what the adapter changes in it that is kept"]
    text: Annotated[str | None, "the answer now, where it was written"]
    recorded_text: str | None
    problem: Annotated[str, "empty unless it is CHANGED"]


class Tested(TypedDict):
    """The verdict on one build."""

    name: str
    version: str
    digest: Annotated[str, "of its manifest; empty for a folder"]
    weights: Annotated[str, "digest of its weights"]
    contract: Annotated[str, "digest of the contract; empty without one"]
    rules: Annotated[str, "digest of the project's `tests-never` that were checked, too; empty without any"]
    verdict: Annotated[str, "`PASS`, `CHANGED`, `UNKNOWN` or `NONE` (there is no contract)"]
    reason: Annotated[str, "one word for UNKNOWN"]
    detail: Annotated[str, "the reason in a sentence"]
    base: Annotated[str, "the base that was asked"]
    base_weights: Annotated[str, "its digest"]
    base_state: Annotated[str, "digest of all that decides what it answers: weights, settings, tokenizer, template"]
    base_verdict: Annotated[str, "how it compares with the base that the adapter was made for"]
    dtype: Annotated[str, "its precision"]
    load_in: str
    base_alone: Annotated[bool, "whether the base was measured, too"]
    engine: Annotated[str, "the programs that answered, with versions"]
    same: Annotated[float | None, "share of the goldens with the recorded answer"]
    retention: Annotated[float | None, "share of what the adapter gained over its base"]
    retention_worst: float | None
    kl: Annotated[float | None, "for classifiers: mean KL divergence of the labels, in nats"]
    cosine: Annotated[float | None, "for vectors: the least cosine"]
    effect: Annotated[float | None, "for images: share of what the adapter changes in them that is kept"]
    goldens: Annotated[int, "different prompts with a recorded answer"]
    metrics: Annotated[dict[str, float], "what a runner measured, as `task/metric`"]
    cases: list[TestedCase]
    bounds: Annotated[dict[str, float], "the bounds that held"]
    broken: Annotated[list[str], "each broken bound with its number"]
    warnings: list[str]
    cpu_seconds: float
    is_cached: Annotated[bool, "whether an earlier result of the very same question is shown"]


class SignedResult(TypedDict):
    """A result that a tester signed."""

    name: Annotated[str, "as the tester names the build"]
    digest: Digest
    contract: Digest
    rules: Annotated[str | None, "digest of the rules that were checked, too"]
    base_weights: Annotated[Digest, "of the base that was asked"]
    dtype: str
    load_in: str
    base_alone: Annotated[bool, "whether the base was measured, too"]
    verdict: Annotated[str, "`PASS` or `CHANGED`"]
    sequence: Annotated[int, "counts the results of one key on one build"]
    time: str
    signer: Annotated[str | None, "name of the key here; null for an unknown one"]
    key: Annotated[Digest, "fingerprint of the key"]
    standing: Annotated[str, "`trusted`, `unknown_key`, `out_of_scope` or `expired`"]
    statement: Annotated[Digest, "of the file"]


class SignedResults(TypedDict):
    """The signed results on one build, the latest first."""

    name: str
    version: str
    digest: Digest
    results: list[SignedResult]
    refusals: Annotated[list[str], "why other files do not count"]


class LeftOutInput(TypedDict):
    """An input whose answer was not recorded."""

    id: str
    reason: str


class RecordedContract(TypedDict):
    """A contract that was recorded."""

    name: str
    version: str
    contract: Digest
    goldens: int
    left_out: list[LeftOutInput]
    form: Annotated[str, "prompt form"]
    path: Path
    digest: Annotated[str | None, "manifest of the new build; null where none was made"]
    created: Annotated[bool, "false: the build had this contract already"]
    warnings: list[str]


class EmittedTask(TypedDict):
    """A task that was written for a tool; nothing was run."""

    tool: Annotated[str, "`lm-eval`"]
    task: Annotated[str, "its name"]
    goldens: int
    files: list[Path]
    command: Annotated[list[str], "runs the task in the folder of the files"]


class OwnTests(TypedDict):
    """The user's own defaults for tests."""

    tests: Annotated[str, "`off`, `warn` or `require`"]
    max_age: Annotated[str | None, "how old a signed result may be, such as `90d`"]
    bounds: Annotated[dict[str, float], "the loosest bounds of any test, by name"]


CONTRACTS = {
    "config-tests": OwnTests,
    "test": list[Tested],
    "test.record": RecordedContract,
    "test.results": list[SignedResults],
    "test.emit": EmittedTask,
}
