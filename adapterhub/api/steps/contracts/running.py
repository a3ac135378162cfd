"""Let a tool that the user names test an adapter: lm-eval its goldens or a task, pytest the user's own tests."""

from __future__ import annotations

import gc
import os
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from adapterhub.api.checking import checked_by, subjects_to_check
from adapterhub.api.steps.contracts.testing import (
    ContractSubject,
    Models,
    base_for,
    kept_or_measured,
    what_decides,
)
from adapterhub.core.arguments import RunnerName, path_of
from adapterhub.core.digests import Digest, canonical_json, digest_of
from adapterhub.core.disk.files import digest_of_file, output_place, write_durably
from adapterhub.core.errors import CouldNotTell, Incompatible, UsageProblem, shown
from adapterhub.formats.contract.results import Tested
from adapterhub.formats.documented import Documented
from adapterhub.formats.prompts.form import prompt_texts
from adapterhub.inference.contracts import runners
from adapterhub.inference.contracts.runners import METRIC, LmEvalTask, ensure_askable, lm_eval_task

if TYPE_CHECKING:
    from adapterhub.api.steps.contracts.testing import TestQuestion
    from adapterhub.core.specs import BaseSpec
    from adapterhub.formats.contract.contract import Contract
    from adapterhub.library.library import Library
    from adapterhub.projects.reporting import Reporter


@dataclass(frozen=True, slots=True, kw_only=True)
class EmittedTask(Documented):
    """A task that was written for a tool; nothing was run."""

    tool: Annotated[str, "`lm-eval`"]
    task: Annotated[str, "its name"]
    goldens: int
    files: tuple[Path, ...]
    command: Annotated[tuple[str, ...], "runs the task in the folder of the files"]

    @property
    def typed(self) -> str:
        """The command as one types it."""
        return shlex.join(self.command)


def contract_of(subject: ContractSubject, given: Contract | None) -> Contract:
    """Return the given contract, or the adapter's own.

    Raises:
        CouldNotTell: there is none.
        DigestMismatch, Malformed: the adapter's own is damaged.
    """
    if (contract := given or subject.contract()) is None:
        raise CouldNotTell(
            f"`{shown(subject.label, 200)}` has no contract",
            hint="record one with `adapt contract record`, or name one with `--tests FILE`",
        )
    return contract


def task_named(subject: ContractSubject) -> str:
    """Return the name for a task of the adapter."""
    return Path(subject.name).name if subject.build is None else subject.name


def emit_task(
    library: Library,
    subject: ContractSubject,
    folder: Path,
    *,
    contract: Contract | None = None,
    on: BaseSpec | None = None,
) -> EmittedTask:
    """Write the goldens as a task of lm-evaluation-harness into `folder`, a YAML file and a file of JSON Lines.

    Only prompts of the form `chat` need the base, for its template; no model is loaded.

    Raises:
        Incompatible: the tool cannot ask these goldens.
        BaseNotFound: the form is `chat`, and the base is not on this machine.
        CouldNotTell: there is no contract.
        NotAllowed: the folder cannot be used for an output.
    """
    contract = contract_of(subject, contract)
    ensure_askable(contract)
    tokenizer, base = None, "BASE_DIR"
    if contract.prompt.form == "chat":
        from adapterhub.inference.contracts.answers import Unknown
        from adapterhub.inference.contracts.checking import ensure_comparable
        from adapterhub.inference.loader.text import load_tokenizer

        record = base_for(library, subject, on)
        assert record.path is not None  # see `base_for`
        tokenizer, base = load_tokenizer(record.path), str(record.path)
        try:
            ensure_comparable(contract, tokenizer)
        except Unknown as unknown:
            raise Incompatible(
                f"the goldens cannot run on `{record.label}`: {unknown.detail}",
                hint="name the base that they were recorded on with `--base BASE`",
            ) from None
    asked = [golden.asked for golden in contract.distinct if golden.asked is not None]
    task = lm_eval_task(contract, prompt_texts(contract.prompt, asked, tokenizer), task_named(subject))
    place = output_place(folder / task.yaml).parent
    place.mkdir(parents=True, exist_ok=True)
    for name, raw in task.files.items():
        write_durably(place / name, raw)
    return EmittedTask(
        tool="lm-eval",
        task=task.name,
        goldens=task.goldens,
        files=tuple(place / name for name in task.files),
        command=_command(task, base, subject),
    )


def _command(task: LmEvalTask, base: str, subject: ContractSubject) -> tuple[str, ...]:
    arguments = {"pretrained": base, "peft": str(subject.folder.absolute()), "dtype": "float32", **task.model_args}
    words = ("--model_args", ",".join(f"{name}={value}" for name, value in arguments.items()))
    return ("lm-eval", "--model", "hf", *words, "--tasks", task.yaml, "--output_path", "out", "--log_samples")


_MOST_FILES: Final = 1000
_MOST_BYTES: Final = 64 << 20
_IGNORED: Final = {"__pycache__", ".git", ".venv"}


def run_on(
    library: Library,
    subject: ContractSubject,
    question: TestQuestion,
    runner: RunnerName,
    task: Path | None,
    *,
    bars: Reporter,
) -> Tested:
    """Return the verdict of a tool on one adapter, by the user's own task: a YAML file of lm-eval, or tests of pytest.

    Without a task, lm-eval runs the contract's goldens, and `same` is its `exact_match`. The adapter is checked and put
    on its base before the tool starts, as tools load an adapter onto any base of the right shape.

    Raises:
        UsageProblem: the tool is not installed, there is no such task, or an option does not suit it.
        EngineFailed: the tool ended without a result.
        Incompatible: the tool cannot ask these goldens, or does not read this adapter right.
        CouldNotTell: there is no contract, and no task either.
        BaseNotFound, BaseMismatch, DigestMismatch, Malformed: as `Tester.verdict`.
    """
    if question.load_in is not None or question.base_alone:
        option = "--load-in" if question.load_in is not None else "--base-alone"
        raise UsageProblem(f"`{option}` and `--runner` exclude each other")
    if runner == "pytest" and task is None:
        raise UsageProblem("`--runner pytest` needs tests to run", hint="name a file or a folder with `--task PATH`")
    call = _with_pytest if runner == "pytest" else _with_task if task is not None else _with_goldens
    made = Tested(name=subject.name, version=subject.version, verdict="NONE", weights=subject.weights())
    if subject.manifest is not None:
        made = replace(made, digest=subject.manifest.digest)

    def measure() -> Tested:
        with (
            tempfile.TemporaryDirectory(prefix="adapterhub-") as work,
            bars.steps(f"{runner} {made.name}", unit="runs"),
        ):
            return call(library, subject, question, task, made, Path(work))

    def asked() -> dict[str, Any]:
        """All that decides what a tool finds, the files of its task too; empty if they are too many to hash."""
        tool, contract = f"pytest {version('pytest')}" if runner == "pytest" and find_spec("pytest") else "", ""
        if runner == "lm-eval":
            place = Path(runners.lm_eval_tool(os.environ.get("PATH", ""))).resolve()
            tool = f"{place} {place.stat().st_mtime_ns}"
            contract = contract_of(subject, question.contract).digest if task is None else ""
        files = digest_of_task(task) if task is not None else ""
        if files is None:
            return {}
        decides = what_decides(library, question, base_for(library, subject, question.on))
        told = {"runner": runner, "tool": tool, "task": files, "contract": contract, "bounds": dict(question.bounds)}
        return {**decides, **told}

    return kept_or_measured(library, subject, asked, measure, again=question.again) if asked() else measure()


def digest_of_task(task: Path) -> Digest | None:
    """Return the digest of a task's files: all in its folder, and below it too where a folder is named.

    None for more than a thousand files or 64 MB, and where one cannot be read or there is none.
    """
    named = path_of(task).absolute()
    top, size = named if named.is_dir() else named.parent, 0
    found: list[list[str]] = []
    for folder, folders, names in os.walk(top):
        folders[:] = sorted(set(folders) - _IGNORED) if named.is_dir() else []
        for path in sorted(Path(folder, name) for name in names):
            if not path.is_file():
                continue
            try:
                size += path.stat().st_size
                if len(found) == _MOST_FILES or size > _MOST_BYTES:
                    return None
                found.append([path.relative_to(top).as_posix(), digest_of_file(path)[0]])
            except OSError:
                return None
    return digest_of(canonical_json([named.name, *found])) if found else None


# ---------------------------------------------------------------- lm-eval
def _with_goldens(
    library: Library, subject: ContractSubject, question: TestQuestion, _task: Path | None, made: Tested, work: Path
) -> Tested:
    from adapterhub.inference.contracts.answers import Unknown

    contract, folder = contract_of(subject, question.contract), work / "task"
    ensure_askable(contract)
    made = replace(made, contract=contract.digest, bounds=asdict(contract.bounds.tightened(question.bounds)))

    def place_of(model: Any, tokenizer: Any) -> _Place:
        task = lm_eval_task(contract, _comparable_prompts(contract, model, tokenizer), task_named(subject))
        folder.mkdir()
        for name, raw in task.files.items():
            (folder / name).write_bytes(raw)
        return folder, task.yaml, task.model_args

    try:
        made, found = _scored(library, subject, question, made, work, place_of)
    except Unknown as unknown:
        return made.unknown(unknown.reason, unknown.detail)
    return made if found is None else _judged(made, contract, found)


def _comparable_prompts(contract: Contract, model: Any, tokenizer: Any) -> list[str]:
    """Return the prompts of the goldens as text.

    Raises:
        Unknown: the base's tokenizer or template makes something else of them than at the recording.
    """
    from adapterhub.inference.contracts.answers import prompts_in_tokens
    from adapterhub.inference.contracts.checking import ensure_comparable, ensure_same_tokens
    from adapterhub.inference.generation import NEW_TOKENS

    ensure_comparable(contract, tokenizer)
    asked = [golden.asked for golden in contract.distinct if golden.asked is not None]
    new = contract.prompt.max_new_tokens or NEW_TOKENS
    rows = prompts_in_tokens(contract.prompt, asked, model, tokenizer, new=new)
    ensure_same_tokens(contract, {golden.id: row for golden, row in zip(contract.distinct, rows, strict=True)}, model)
    return prompt_texts(contract.prompt, asked, tokenizer)


def _with_task(
    library: Library, subject: ContractSubject, question: TestQuestion, task: Path | None, made: Tested, work: Path
) -> Tested:
    assert task is not None  # see `run_on`
    folder, named = runners.task_place(task)
    made, found = _scored(library, subject, question, made, work, lambda _model, _tokenizer: (folder, named, {}))
    if found is None:
        return made
    if not question.bounds:
        return made.unknown("no-bound")
    broken = []
    for name, least in question.bounds.items():
        values = {key: value for key, value in found.metrics.items() if name in (key, key.rpartition("/")[2])}
        if not values:
            raise UsageProblem(f"the task has no metric `{shown(name)}`, expected one of {', '.join(found.metrics)}")
        broken += [
            f"{key} is {value:.3f}, at least {least:g} is required"
            for key, value in values.items()
            if not value >= least
        ]
    return replace(made, verdict="CHANGED" if broken else "PASS", bounds=dict(question.bounds), broken=tuple(broken))


_Place = tuple[Path, str, Mapping[str, str]]
"""A folder, the name of a task there, and the arguments that the tool's model needs for it."""


def _scored(
    library: Library,
    subject: ContractSubject,
    question: TestQuestion,
    made: Tested,
    work: Path,
    place_of: Callable[[Any, Any], _Place],
) -> tuple[Tested, runners.Scored | None]:
    """Return the result so far, and what the tool measured; None if its budget was spent.

    The adapter is checked as `attach` does. The model is freed again once `place_of` has seen it and its tokenizer: the
    tool loads its own.

    Raises:
        Incompatible: PEFT, through which the tool loads adapters, does not read it right.
    """
    tool, record = runners.lm_eval_tool(os.environ.get("PATH", "")), base_for(library, subject, question.on)
    assert record.path is not None  # see `base_for`
    on = question.on if subject.build is None else None
    [checked] = [checked_by(one, ["peft"]) for one in subjects_to_check(library, [subject.label], on)]
    if reasons := [reason for verdict in checked.verdicts for reason in verdict.reasons]:
        why = f"PEFT, through which lm-eval loads it, {reasons[0].says} ({reasons[0].detail})"
        raise Incompatible(
            f"lm-eval cannot ask `{shown(subject.label, 200)}`: {why}", hint="`adapt test` without `--runner` checks it"
        )
    with Models(library).of(subject, record, dtype=question.dtype) as loaded:
        model, tokenizer, base_verdict = loaded
        folder, task, model_args = place_of(model, tokenizer)
        dtype, device = str(model.dtype).removeprefix("torch."), str(model.device)
    del model, tokenizer, loaded
    gc.collect()
    weights = record.fingerprint.weights
    made = replace(made, base=record.label, base_weights=weights, base_verdict=base_verdict, dtype=dtype)
    found = runners.score(
        tool,
        (folder, task),
        (record.path, subject.folder),
        work,
        os.environ,
        device=device,
        model_args={"dtype": dtype, **model_args},
        budget_s=question.budget_s,
    )
    if not isinstance(found, runners.Scored):
        return _over_budget(made, question, found.cpu_seconds), None
    seconds = round(found.ran.cpu_seconds, 3)
    return replace(made, engine=found.engine, metrics=dict(found.metrics), cpu_seconds=seconds), found


def _over_budget(made: Tested, question: TestQuestion, seconds: float) -> Tested:
    detail = f"it took more than {question.budget_s:g} CPU seconds; `--budget` allows more"
    return replace(made.unknown("budget", detail), cpu_seconds=round(seconds, 3))


def _judged(made: Tested, contract: Contract, found: runners.Scored) -> Tested:
    """Return the verdict on the goldens by their texts; losses are not measured."""
    from adapterhub.inference.contracts.answers import judge_texts

    samples = {str(sample["doc"]["id"]): sample for sample in found.samples if "id" in sample.get("doc", {})}
    goldens = contract.distinct
    if missing := [golden.id for golden in goldens if golden.id not in samples]:
        raise Incompatible(
            f"lm-eval gave no answer to `{missing[0]}` of the contract",
            hint="`adapt test` without `--runner` tests with the library",
        )
    answers = {golden.id: _answer(samples[golden.id]) for golden in goldens}
    unasked = len(contract.expects) + len(contract.leave_alone)
    warnings = (f"lm-eval asks goldens alone: it left out {unasked} demands of the contract",) if unasked else ()
    return replace(judge_texts(made, contract, answers), warnings=warnings)


def _answer(sample: Mapping[str, Any]) -> tuple[str, bool]:
    answers: Sequence[Any] = sample.get("filtered_resps") or [""]
    return str(answers[0]), sample.get(METRIC) == 1


# ---------------------------------------------------------------- pytest
def _with_pytest(
    library: Library, subject: ContractSubject, question: TestQuestion, task: Path | None, made: Tested, work: Path
) -> Tested:
    """Return the verdict of the user's tests. In the child, the plug-in's fixture checks the adapter and loads it."""
    assert task is not None  # see `run_on`
    runners.ensure_pytest()
    if question.bounds or question.contract is not None:
        option = "--bound" if question.bounds else "--tests"
        raise UsageProblem(f"`{option}` and `--runner pytest` exclude each other: the tests already define the demands")
    record = base_for(library, subject, question.on)
    environ = {
        **os.environ,
        "ADAPTERHUB_HOME": str(library.root.absolute()),
        "ADAPTERHUB_TEST_SPEC": str(subject.place) if subject.build is not None else str(subject.folder.absolute()),
        "ADAPTERHUB_TEST_FOLDER": str(subject.folder.absolute()),
        "ADAPTERHUB_TEST_BASE": record.alias or str(record.path),
        "ADAPTERHUB_TEST_DTYPE": question.dtype,
    }
    run = runners.run_pytest(task, work, environ, budget_s=question.budget_s)
    made = replace(made, base=record.label, base_weights=record.fingerprint.weights, engine=run.engine)
    made = replace(made, cases=run.cases, cpu_seconds=round(run.ran.cpu_seconds, 3))
    if run.ran.is_over:
        return _over_budget(made, question, run.ran.cpu_seconds)
    failed = [case for case in run.cases if case.verdict == "CHANGED"]
    skipped = [case for case in run.cases if case.verdict == "UNKNOWN"]
    if failed:
        text = f"{len(failed)} of {len(run.cases)} tests failed; `{failed[0].id}`: {failed[0].problem}"
        return replace(made, verdict="CHANGED", broken=(text,))
    if len(skipped) == len(run.cases):
        return made.unknown("no-tests")
    warnings = (f"{len(skipped)} of {len(run.cases)} tests were skipped",) if skipped else ()
    return replace(made, verdict="PASS", warnings=warnings)
