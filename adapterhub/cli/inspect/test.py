"""`adapt test`: record what an adapter answers, and test whether it still answers so."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterhub.cli.completion.completing import complete_own_key, complete_spec_or_folder
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.loading import loading_options
from adapterhub.cli.options.params import BASE, Session, common
from adapterhub.cli.options.prompting import FORMS
from adapterhub.core.arguments import Budget, GoldenCount, GoldenTokens, Margin, RunnerName
from adapterhub.core.errors import UsageProblem, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adapterhub.api.steps.contracts.emitting import EmittedTask
    from adapterhub.api.steps.contracts.recording import RecordedContract
    from adapterhub.api.steps.contracts.running import Runner
    from adapterhub.core.specs import BaseSpec
    from adapterhub.library.library import Library

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("adapters", nargs=-1, metavar="[SPEC|FOLDER]...", shell_complete=complete_spec_or_folder)
@click.option("--all", "everything", is_flag=True, help="Test every installed build that has a contract.")
@click.option("--on", type=BASE, help="Ask on this base [default: the one that the adapter was made for].")
@loading_options
@click.option(
    "--tests",
    type=_FILE,
    metavar="FILE",
    help="Test against this contract instead of the build's own; with --record, take the inputs of a `tests.toml`.",
)
@click.option("--bound", "bounds", multiple=True, metavar="NAME=X", help="Tighten a bound, such as `same=1`.")
@click.option("--base-alone", is_flag=True, help="Also ask the base alone, and compare it with the recording.")
@click.option(
    "--budget",
    type=kind_of(Budget),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="CPU seconds that one verdict may take.",
)
@click.option("--runner", type=kind_of(RunnerName), help="Let this installed tool test.")
@click.option(
    "--task",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="With --runner: a task of lm-eval instead of the goldens, or tests of pytest.",
)
@click.option(
    "--emit",
    type=(click.Choice(["lm-eval"]), click.Path(path_type=Path, file_okay=False)),
    metavar="lm-eval DIR",
    help="Write the goldens into DIR as a task of that tool; run nothing.",
)
@click.option("--require", is_flag=True, help="Count a build without a contract as unknown.")
@click.option("--again", is_flag=True, help="Ask again, whatever results are kept.")
@click.option("--junit", type=_FILE, metavar="FILE", help="Write the results to FILE as JUnit XML.")
@click.option("--statement", type=_FILE, metavar="FILE", help="Write the result to FILE as an in-toto statement.")
@click.option("--sign", is_flag=True, help="Sign the result, and write it beside the build.")
@click.option(
    "--key",
    metavar="NAME",
    shell_complete=complete_own_key,
    help="Sign with this key [default: ADAPTERHUB_KEY, else your only key].",
)
@click.option("--results", is_flag=True, help="Show the signed results on an adapter, and ask nothing.")
@click.option("--fetch", is_flag=True, help="With --results: take those at the servers of its namespace first.")
@click.option("--record", is_flag=True, help="Record a contract instead of testing one.")
@click.option("--examples", type=_FILE, metavar="FILE", help="Take the inputs of a recording from JSON Lines.")
@click.option(
    "--count",
    type=kind_of(GoldenCount),
    default=20,
    show_default=True,
    metavar="N",
    help="Record at most N answers.",
)
@click.option("--prompt", type=click.Choice(FORMS), help="Ask in this prompt form.")
@click.option("--template", metavar="TEXT", help="Ask with TEXT, in which each input replaces {input}.")
@click.option("--system", metavar="TEXT", help="Put TEXT before the input in the chat template; implies chat.")
@click.option(
    "--max-new-tokens",
    type=kind_of(GoldenTokens),
    metavar="N",
    help="Stop an answer after N tokens [default: that of the prompt form, else 64].",
)
@click.option(
    "--margin",
    type=kind_of(Margin),
    default=0.05,
    show_default=True,
    metavar="X",
    help="Leave out answers that a change of X nats would flip.",
)
@click.option("--digests", is_flag=True, help="Record digests in place of prompts and answers.")
@click.option("--vectors", is_flag=True, help="Also record a classifier's vectors, and hold them.")
@click.option("--allow-secrets", is_flag=True, help="Record texts that look like keys, addresses or numbers of people.")
@click.option(
    "--detached",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write the recorded contract into DIR, not into a build.",
)
@common
def test(
    session: Session,
    adapters: tuple[str, ...],
    everything: bool,
    on: BaseSpec | None,
    dtype: str,
    load_in: str | None,
    tests: Path | None,
    bounds: tuple[str, ...],
    base_alone: bool,
    budget: float,
    runner: str | None,
    task: Path | None,
    emit: tuple[str, Path] | None,
    require: bool,
    again: bool,
    junit: Path | None,
    statement: Path | None,
    sign: bool,
    key: str | None,
    results: bool,
    fetch: bool,
    record: bool,
    examples: Path | None,
    count: int,
    prompt: str | None,
    template: str | None,
    system: str | None,
    max_new_tokens: int | None,
    margin: float,
    digests: bool,
    vectors: bool,
    allow_secrets: bool,
    detached: Path | None,
) -> None:
    """Test whether an adapter still answers as its contract records: on your base, in your precision.

    A contract is a small file in a build: prompts, the answers that the adapter gave when it was recorded, and bounds.
    PASS means answers as recorded, on the prompts of the contract. CHANGED names each broken bound. UNKNOWN means that
    no verdict is possible, and why. None of them says that an adapter is good or safe.

    With --record, asks the adapter and writes a contract: into the next version of an installed adapter, or into a
    folder before `adapt add`. An adapter of a pipeline draws: its contract holds images in numbers, and `--tests`
    names a file with the prompts, and with size and steps in a table `[image]`.

    With --sign, signs the result as an in-toto statement about the build's manifest, and keeps it in the library, or in
    `.tests/` beside a published folder. `push` and `install` copy it along; a project's policy may require one.

    Exits with code 0 for PASS, 3 when an adapter is CHANGED, and 17 when no verdict is possible for one.

    \b
    Examples:
      adapt test legal-qa@base-7b
      adapt test legal-qa --on base-7b-bf16 --bound same=1
      adapt test --all --junit results.xml
      adapt test --record ./out/legal-qa --examples examples.jsonl --prompt chat
      adapt test --record watercolour@sdxl --tests tests.toml
      adapt test legal-qa==1.1 --tests ./legal-qa-1.0.tests.jsonl
      adapt test legal-qa@base-7b --sign --key ana
      adapt test legal-qa --runner lm-eval
      adapt test legal-qa --runner pytest --task tests/test_legal.py
    """
    from adapterhub.api.steps.contracts.recording import Recipe, plan_from, record_contract
    from adapterhub.api.steps.contracts.subjects import subject_of
    from adapterhub.api.steps.contracts.testing import Question
    from adapterhub.api.steps.keys import signing_key
    from adapterhub.cli.inspect.tested import report_results, report_tested
    from adapterhub.formats.contract.bounds import parse_bound
    from adapterhub.formats.contract.reading import read_contract
    from adapterhub.formats.prompts.form import PromptForm

    if bool(adapters) == everything:
        raise UsageProblem("give adapters or folders, or `--all`", hint="see the examples of `adapt test --help`")
    library = session.project_library
    if (sign or key or results) and (record or everything):
        raise UsageProblem("`--sign`, `--key` and `--results` are for adapters that are named, and no recording")
    if key is not None and not sign:
        raise UsageProblem("`--key` chooses the key of `--sign`", hint="add `--sign`")
    if fetch and not results:
        raise UsageProblem("`--fetch` goes with `--results`", hint="add `--results`")
    if results:
        report_results(session, library, adapters, fetch=fetch)
        return
    if emit is not None:
        ensure_alone(adapters, {"--record": record or None, "--runner": runner, "--task": task, "--sign": sign or None})
        _emit(session, library, adapters[0], emit[1], tests, on)
        return
    if not record:
        given: dict[str, object] = {"--examples": examples, "--prompt": prompt, "--template": template}
        given |= {"--system": system, "--max-new-tokens": max_new_tokens, "--detached": detached}
        ensure_none_of_recording({**given, "--digests": digests or None})
        question = Question(
            on=on,
            dtype=dtype,
            load_in=load_in,
            contract=read_contract(tests) if tests is not None else None,
            bounds=dict(map(parse_bound, bounds)),
            base_alone=base_alone,
            budget_s=budget,
            again=again,
        )
        tool = runner_of(runner, task, adapters)
        if tool is not None and sign:
            raise UsageProblem("a runner's result cannot be signed", hint="sign the verdict without `--runner`")
        signer = signing_key(session, key) if sign else None
        report_tested(
            session,
            library,
            adapters,
            question,
            junit=junit,
            statement=statement,
            requires=require,
            signer=signer,
            runner=tool,
        )
        return
    if runner is not None or task is not None:
        raise UsageProblem("`--record` and `--runner` exclude each other", hint="record first, then let the tool test")
    if len(adapters) != 1:
        raise UsageProblem("`--record` records one adapter", hint="name one spec or folder")
    recipe = Recipe(
        plan=plan_from(examples, tests),
        form=PromptForm.typed(prompt, template=template, system=system),
        count=count,
        max_new_tokens=max_new_tokens,
        margin=margin,
        as_digests=digests,
        vectors=vectors,
        allow_secrets=allow_secrets,
        on=on,
        dtype=dtype,
        into=detached,
    )
    made = record_contract(library, subject_of(library, adapters[0]), recipe, bars=session.out)
    for warning in made.warnings:
        session.out.warn(warning)
    session.out.result(made.to_json(), lambda: _say_recorded(session, made))


def ensure_alone(adapters: Sequence[str], given: Mapping[str, object]) -> None:
    """Refuse `--emit` beside options that run something, or for several adapters.

    Raises:
        UsageProblem: one is given, or not one adapter.
    """
    if named := [name for name, value in given.items() if value is not None]:
        raise UsageProblem(f"`--emit` and `{named[0]}` exclude each other: `--emit` runs nothing")
    if len(adapters) != 1:
        raise UsageProblem("`--emit` writes the task of one adapter", hint="name one spec or folder")


def runner_of(name: str | None, task: Path | None, adapters: Sequence[str]) -> Runner | None:
    """The tool that tests; None for the program itself.

    Raises:
        UsageProblem: a task without a tool, a tool without adapters, or pytest without tests.
    """
    if name is None:
        if task is not None:
            raise UsageProblem("`--task` is for `--runner`", hint="add `--runner lm-eval` or `--runner pytest`")
        return None
    if not adapters:
        raise UsageProblem(
            "`--runner` tests the adapters that you name", hint="name specs or folders instead of `--all`"
        )
    from adapterhub.api.steps.contracts.running import Runner

    return Runner(name=name, task=task)


def _emit(
    session: Session, library: Library, adapter: str, folder: Path, tests: Path | None, on: BaseSpec | None
) -> None:
    from adapterhub.api.steps.contracts.emitting import emit_task
    from adapterhub.api.steps.contracts.subjects import subject_of
    from adapterhub.formats.contract.reading import read_contract

    contract = read_contract(tests) if tests is not None else None
    made = emit_task(library, subject_of(library, adapter), folder, contract=contract, on=on)
    session.out.result(made.to_json(), lambda: _say_emitted(session, made))


def _say_emitted(session: Session, made: EmittedTask) -> None:
    for path in made.files:
        session.out.line(str(path))
    session.out.note(f"{made.goldens} goldens; nothing was run. In that folder: {made.typed}")


def ensure_none_of_recording(given: Mapping[str, object]) -> None:
    """Refuse options that only a recording has.

    Raises:
        UsageProblem: one is given.
    """
    if named := [name for name, value in given.items() if value is not None]:
        raise UsageProblem(f"`{named[0]}` is for `--record`", hint="a contract says itself what it asks, and how")


def _say_recorded(session: Session, made: RecordedContract) -> None:
    out = session.out
    contract = made.contract
    demands = len(contract.expects) + len(contract.leave_alone)
    more = f", {demands} demand{'s' * (demands != 1)}" if demands else ""
    what = f"{made.name} {made.version}".strip()
    if (image := contract.image) is not None:
        form = f"{image.width} x {image.height} in {image.steps} steps"
    else:
        form = f"form {contract.prompt.form}"
    again = "" if made.created else "; this build had it already"
    out.line(f"{what}: recorded {len(contract.goldens)} goldens{more}, {form}{again}")
    if made.left_out:
        name, reason = made.left_out[0]
        out.note(f"left out {len(made.left_out)}; `{shown(name)}` {reason}")
    if made.build is None:
        out.line(str(made.path))
    elif contract.visibility == "digests":
        out.hint("no file has the prompts; record again with `--detached DIR` for the full contract to keep at home")
