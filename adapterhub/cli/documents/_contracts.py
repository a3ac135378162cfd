"""Documents of `adapt test`: verdicts, and contracts that were recorded."""

# mypy: disable-error-code="valid-type, misc"
# `document_of` makes types when it runs.

from __future__ import annotations

from typing import Annotated

from adapterhub.cli.documents._parts import Digest, Path, TypedDict
from adapterhub.cli.documents._values import document_of
from adapterhub.formats.contract import results

Tested = document_of(results.Tested)


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
