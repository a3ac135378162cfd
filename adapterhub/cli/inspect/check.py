"""`adapt check`: check whether an engine reads adapters correctly."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_engine, complete_spec_or_folder
from adapterhub.cli.options.params import BASE, Session, common
from adapterhub.core.errors import EXIT_SOME_FAILED, Incompatible, RefusedAdapter, UsageProblem, shown
from adapterhub.projects.session import wanted_from

if TYPE_CHECKING:
    from adapterhub.core.specs import BaseSpec
    from adapterhub.inference.engines import Verdict
    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.library import Library
    from adapterhub.library.store.catalog import Installed
    from adapterhub.trust.verify import Report


@click.command()
@click.argument("adapters", nargs=-1, metavar="SPEC|FOLDER...", shell_complete=complete_spec_or_folder)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="ENGINE[@VERSION]",
    shell_complete=complete_engine,
    help="Check this engine: `vllm@0.32`, `llama.cpp`, `ollama`, `peft`, `tgi`, `sglang`; repeatable [default: all].",
)
@click.option("--all", "everything", is_flag=True, help="Check every installed adapter.")
@click.option("--base", type=BASE, help="Use this base for adapters that declare none.")
@common
def check(
    session: Session, adapters: tuple[str, ...], targets: tuple[str, ...], everything: bool, base: BaseSpec | None
) -> None:
    """Check which engines read an adapter correctly, why not, and which flags each engine needs.

    Engines do not check what they load: NaN in one adapter spoils the answers of others, and settings that an engine
    does not know are ignored. So the command first verifies an adapter, as `adapt verify` does, and an engine that
    misreads it counts as no, like one that refuses it. The rules come from the engines' sources; the reference page
    about engines lists them.

    Exits with code 0 when every answer is yes, 3 when some are no, and 11 when all are no.

    \b
    Examples:
      adapt check legal-qa@base-7b --target vllm@0.32
      adapt check --all --target vllm --target llama.cpp
      adapt check ./out/legal-qa --base base-7b --json
    """
    from adapterhub.inference.engines import names, parse_target

    if bool(adapters) == everything:
        raise UsageProblem("give adapters or folders, or `--all`", hint="see the examples of `adapt check --help`")
    chosen = targets or names()
    for target in chosen:
        parse_target(target)
    library = session.project_library
    checked = [_checked(one, chosen) for one in _requested(library, adapters, base)]
    session.out.result([one.to_json() for one in checked], lambda: _say(session, checked, chosen))
    answers = [one.says_yes(verdict) for one in checked for verdict in one.verdicts]
    if answers and not any(answers):
        raise SystemExit(Incompatible.exit_code)
    if not all(answers):
        raise SystemExit(EXIT_SOME_FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Requested:
    """One adapter: its files, their verification report, and its base if known."""

    label: str
    folder: Path
    report: Report
    record: BaseRecord | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked:
    """One adapter with its verdicts."""

    label: str
    report: Report
    verdicts: tuple[Verdict, ...]

    def says_yes(self, verdict: Verdict) -> bool:
        return verdict.ok and not self.report.errors

    def to_json(self) -> dict[str, Any]:
        return {
            "adapter": self.label,
            "status": self.report.status,
            "errors": [finding.to_json() for finding in self.report.errors],
            "verdicts": [{**verdict.to_json(), "ok": self.says_yes(verdict)} for verdict in self.verdicts],
        }


def _requested(library: Library, adapters: tuple[str, ...], base: BaseSpec | None) -> list[_Requested]:
    from adapterhub.core.specs import AdapterSpec, names_folder
    from adapterhub.distribution.choosing import look_up
    from adapterhub.trust.verify import verify_folder

    named = library.bases.find(base) if base is not None else None

    def of_build(build: Installed) -> _Requested:
        declared = build.base.fingerprint
        record = library.bases.by_fingerprint(declared) if declared is not None else named
        label = f"{build.full_name}=={build.manifest.version}"
        return _Requested(label=label, folder=build.folder, report=library.verify(build, record), record=record)

    if not adapters:
        return [of_build(build) for build in library.installed()]
    requested = []
    for text in adapters:
        if names_folder(text):
            folder = Path(text).expanduser()
            report = verify_folder(
                folder,
                base_tensors=named.tensors if named else None,
                base_fingerprint=named.fingerprint if named else None,
            )
            requested.append(_Requested(label=text, folder=folder, report=report, record=named))
        else:
            spec = AdapterSpec.parse(text)
            build, _ = look_up(library, spec, wanted=wanted_from(library, spec, base))
            requested.append(of_build(build))
    return requested


def _checked(adapter: _Requested, targets: Sequence[str]) -> _Checked:
    from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
    from adapterhub.inference.engines import base_facts, judge
    from adapterhub.trust.verify.checks.config import read_config_file
    from adapterhub.trust.verify.checks.container import read_weights_header
    from adapterhub.trust.verify.listing import list_folder

    taken = list_folder(adapter.folder).taken
    if adapter.report.facts is None or not {CONFIG_FILE, WEIGHTS_FILE} <= taken.keys():
        listed = [(f.code, f"{f.where}: {f.message}" if f.where else f.message) for f in adapter.report.errors]
        raise RefusedAdapter(f"cannot check `{shown(adapter.label, 200)}`", listed)
    config = read_config_file(taken[CONFIG_FILE])
    weights = read_weights_header(taken[WEIGHTS_FILE])
    facts = base_facts(adapter.record)
    verdicts = tuple(judge(target, config, weights, base=facts) for target in targets)
    return _Checked(label=adapter.label, report=adapter.report, verdicts=verdicts)


def _say(session: Session, checked: Sequence[_Checked], targets: Sequence[str]) -> None:
    from adapterhub.inference.engines import together

    out = session.out
    width = max(len(target) for target in targets)
    for one in checked:
        out.line(shown(one.label, 200))
        for finding in one.report.errors:
            out.line(f"  invalid: {finding}")
        for verdict in one.verdicts:
            flags = shlex.join(verdict.flags) if one.says_yes(verdict) else ""
            out.line(f"  {verdict.target:{width}}  {'yes' if one.says_yes(verdict) else 'no'}  {flags}".rstrip())
            for reason in verdict.reasons:
                out.line(f"    {reason.text}")
            for note in verdict.notes:
                out.note(f"    note: {note}")
    for number, target in enumerate(targets):
        good = [one.verdicts[number] for one in checked if one.says_yes(one.verdicts[number])]
        if len(good) > 1 and good[0].flags:
            out.line(f"{target}, {len(good)} adapters on one server: {shlex.join(together(good))}")
