"""`adapt contract`: record the answers of adapters, show signed results, and set the requirements for a PASS."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_spec_or_folder
from adapterhub.cli.groups import Group
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.params import BASE, Session, common
from adapterhub.cli.options.prompting import prompt_options
from adapterhub.core.arguments import GoldenCount, GoldenTokens, LoadPrecision, Margin, TestsPolicy
from adapterhub.core.errors import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.api.steps.contracts.recording import RecordedContract, SignedResults

_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group(cls=Group)
def contract() -> None:
    """Record and show behaviour contracts, which `adapt test` holds adapters to.

    \b
    Examples:
      adapt contract record ./out/legal-qa --examples examples.jsonl
      adapt contract policy require
    """


@contract.command("record")
@click.argument("adapter", metavar="SPEC|FOLDER", shell_complete=complete_spec_or_folder)
@click.option("--examples", type=_FILE, metavar="FILE", help="Take the inputs from JSON Lines.")
@click.option("--tests", type=_FILE, metavar="FILE", help="Take the inputs and demands from a `tests.toml`.")
@prompt_options
@click.option("--base", type=BASE, help="Use this base [default: the one that the adapter was made for].")
@click.option(
    "--dtype",
    type=kind_of(LoadPrecision),
    default="auto",
    show_default=True,
    help="Load the base in this precision.",
)
@click.option(
    "--count",
    type=kind_of(GoldenCount),
    default=20,
    show_default=True,
    metavar="N",
    help="Record at most N answers.",
)
@click.option(
    "--max-new-tokens",
    type=kind_of(GoldenTokens),
    metavar="N",
    help="Stop an answer after N tokens [default: that of the prompt form, or 64].",
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
@click.option("--detached", type=_FOLDER, metavar="DIR", help="Write the contract into DIR, not into a build.")
@common
def record(session: Session, adapter: str, **options: Any) -> None:
    """Ask an adapter, and write what it answers as its contract.

    The contract goes into the next version of an installed adapter, or into a folder before `adapt add`. An adapter of
    a pipeline draws: its contract holds images in numbers, and --tests names a file with the prompts, and with size and
    steps in a table `[image]`.

    \b
    Examples:
      adapt contract record ./out/legal-qa --examples examples.jsonl --prompt chat
      adapt contract record watercolour@sdxl --tests tests.toml
    """
    made = session.opened.contracts.record(adapter, **options)
    session.out.result(made.to_json(), lambda: _say_recorded(session, made))


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
    out.line(f"{what}: recorded {made.goldens} goldens{more}, {form}{again}")
    if made.left_out:
        first = made.left_out[0]
        out.note(f"left out {len(made.left_out)}; `{shown(first.id)}` {first.reason}")
    if made.build is None:
        out.line(str(made.path))
    elif contract.visibility == "digests":
        out.hint("no file has the prompts; record again with `--detached DIR` for the full contract to keep at home")


@contract.command("results")
@click.argument("adapters", nargs=-1, required=True, metavar="SPEC...", shell_complete=complete_spec_or_folder)
@click.option("--fetch", is_flag=True, help="Take those at the servers of its namespace first.")
@common
def results(session: Session, adapters: tuple[str, ...], fetch: bool) -> None:
    """Show the signed results of tests on installed adapters, and ask nothing.

    \b
    Example:
      adapt contract results acme/legal-qa --fetch
    """
    found = session.opened.contracts.results(*adapters, fetch=fetch)
    session.out.result([build.to_json() for build in found], lambda: _say_results(session, found))


def _say_results(session: Session, found: Sequence[SignedResults]) -> None:
    for build in found:
        label = f"{build.name} {build.version}"
        session.out.line(f"{label}: {len(build.results) or 'no'} signed result{'s' * (len(build.results) != 1)}")
        for one in build.results:
            base = build.bases.get(one.result.base) or one.result.base[:19]
            where = ", ".join(filter(None, (base, one.result.dtype, one.result.load_in)))
            by = shown(f"{one.by}, {one.standing.replace('_', ' ')}")
            drift = "" if one.result.drift is None else f"  drift {one.result.drift:.3f}"
            session.out.line(f"  {one.result.verdict}  on {shown(where)}  by {by}  {one.time[:10]}{drift}")
        for refusal in build.refusals:
            session.out.warn(f"`{label}`: a result does not count: {refusal}")


@contract.command("export")
@click.argument("adapter", metavar="SPEC|FOLDER", shell_complete=complete_spec_or_folder)
@click.argument("folder", type=_FOLDER)
@click.option("--tests", type=_FILE, metavar="FILE", help="Take this contract instead of the build's own.")
@click.option("--base", type=BASE, help="Frame chats as this base does [default: the one that it was made for].")
@common
def export(session: Session, adapter: str, folder: Path, **options: Any) -> None:
    """Write the goldens of a contract as a task of lm-evaluation-harness; run nothing.

    \b
    Example:
      adapt contract export legal-qa ./task
    """
    made = session.opened.contracts.export(adapter, folder, **options)
    session.out.result(made.to_json(), lambda: session.out.line("\n".join(map(str, made.files))))
    session.out.note(f"{made.goldens} goldens; nothing was run. In that folder: {made.typed}")


@contract.command("policy")
@click.argument("policy", required=False, type=kind_of(TestsPolicy))
@click.option("--bound", "bounds", multiple=True, metavar="NAME=X", help="Let no test have a looser bound; repeatable.")
@click.option("--max-age", metavar="AGE", help="Let a signed result count for so long, such as 90d.")
@click.option("--reset", is_flag=True, help="Forget what was set before.")
@common
def policy(session: Session, policy: TestsPolicy | None, bounds: tuple[str, ...], **options: Any) -> None:
    """Show or set the policy for builds that have not passed their contract.

    `require` refuses such a build in `adapt sync` and `adapt serve`, `warn` prints a warning, `off` does neither. Runs
    no model. Settings that you do not pass stay unchanged. The policy applies in every project. If a project's policy
    `tests` is stricter, that one applies.

    \b
    Examples:
      adapt contract policy
      adapt contract policy require --bound same=0.95 --max-age 90d
      adapt contract policy --reset
    """
    from adapterhub.formats.contract.standards import parse_bound

    found = session.opened.contracts.policy(policy, bounds=dict(map(parse_bound, bounds)), **options)
    parts = [found.policy, *(f"{name}={value:g}" for name, value in found.bounds.items())]
    parts += [f"max-age {found.max_age}"] if found.max_age else []
    session.out.result(found.to_json(), lambda: session.out.line(f"tests  {'  '.join(parts)}"))
