"""Shows the results of tests against contracts, and writes them for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.cli.output import json_text
from adapterhub.core.errors import EXIT_SOME_FAILED, CouldNotTell, UsageProblem, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.api.steps.contracts.running import Runner
    from adapterhub.api.steps.contracts.subjects import ContractSubject
    from adapterhub.api.steps.contracts.testing import Question
    from adapterhub.cli.options.params import Session
    from adapterhub.formats.contract.results import Tested
    from adapterhub.library.library import Library
    from adapterhub.trust.signing.keys import SigningKey

EXIT_CODES = {"PASS": 0, "CHANGED": EXIT_SOME_FAILED, "UNKNOWN": CouldNotTell.exit_code}
_CASES_SHOWN = 3


def report_tested(
    session: Session,
    library: Library,
    adapters: Sequence[str],
    question: Question,
    *,
    junit: Path | None,
    statement: Path | None,
    requires: bool,
    signer: SigningKey | None = None,
    runner: Runner | None = None,
) -> None:
    """Test `adapters`, or all installed builds without any, and end with the exit code of the worst verdict.

    A `runner` tests in place of the program itself.

    Raises:
        UsageProblem: a statement is wanted about several builds, or about none of the library.
    """
    from adapterhub.api.steps.contracts.stating import ensure_can_be_stated
    from adapterhub.api.steps.contracts.subjects import Models, subject_of
    from adapterhub.api.steps.contracts.testing import verdict_on, verdicts_on, worst
    from adapterhub.formats.contract import reports

    if statement is not None and len(adapters) != 1:
        raise UsageProblem("`--statement` is about one build", hint="name one adapter")
    subjects = [subject_of(library, text) for text in adapters]
    for subject in subjects if signer is not None else ():
        ensure_can_be_stated(subject)
    if runner is not None:
        from adapterhub.api.steps.contracts.running import run_on

        results = [run_on(library, subject, question, runner, bars=session.out) for subject in subjects]
    elif adapters:
        models = Models(library.bases)
        results = [verdict_on(library, subject, question, bars=session.out, models=models) for subject in subjects]
    else:
        results = verdicts_on(library, list(library.installed()), question, bars=session.out)
    if junit is not None:
        _write(junit, reports.junit(results))
    if statement is not None:
        _write_statement(session, results[0], statement)
    if signer is not None:
        _sign(session, library, subjects, results, signer)
    for result in results:
        for warning in result.warnings:
            session.out.warn(f"`{shown(result.label, 200)}`: {warning}")
    session.out.result([result.to_json() for result in results], lambda: say_tested(session, results))
    if code := EXIT_CODES[worst(results, requires=requires)]:
        raise SystemExit(code)


def _write_statement(session: Session, result: Tested, path: Path) -> None:
    from adapterhub.formats.contract import reports

    made = reports.statement(result)
    if made is None:
        session.out.warn(f"no statement was written: {result.verdict} says nothing to state")
    else:
        _write(path, json_text(made) + "\n")


def _sign(
    session: Session,
    library: Library,
    subjects: Sequence[ContractSubject],
    results: Sequence[Tested],
    signer: SigningKey,
) -> None:
    from adapterhub.api.steps.contracts.stating import state_result

    for subject, result in zip(subjects, results, strict=True):
        path = state_result(library, subject, result, signer)
        label = shown(result.label, 200)
        if path is None:
            session.out.warn(f"`{label}`: nothing was signed: {result.verdict} says nothing to state")
        else:
            session.out.note(f"signed the result of `{label}` with {signer.name}: {path}")


def report_results(session: Session, library: Library, adapters: Sequence[str], *, fetch: bool) -> None:
    """Show the signed results on installed builds; `fetch` takes those at servers first."""
    from adapterhub.api.steps.contracts.stating import fetch_results, signed_results
    from adapterhub.api.steps.contracts.subjects import subject_of

    subjects = [subject_of(library, text) for text in adapters]
    for subject in subjects if fetch else ():
        fetch_results(session, library, subject)
    found = [signed_results(library, subject) for subject in subjects]

    def say() -> None:
        for build in found:
            label = f"{build.name} {build.version}"
            session.out.line(f"{label}: {len(build.results) or 'no'} signed result{'s' * (len(build.results) != 1)}")
            for one in build.results:
                base = next((r.alias for r in library.bases.list() if r.fingerprint.weights == one.result.base), "")
                where = ", ".join(filter(None, (base or one.result.base[:19], one.result.dtype, one.result.load_in)))
                by = shown(f"{one.by}, {one.standing.replace('_', ' ')}")
                session.out.line(f"  {one.result.verdict}  on {shown(where)}  by {by}  {one.to_json()['time'][:10]}")
            for refusal in build.refusals:
                session.out.warn(f"`{label}`: a result does not count: {refusal}")

    session.out.result([build.to_json() for build in found], say)


def _write(path: Path, text: str) -> None:
    from adapterhub.core.disk.files import write_durably
    from adapterhub.core.disk.output_place import output_place

    write_durably(output_place(path), text.encode())


def say_tested(session: Session, results: Sequence[Tested]) -> None:
    """Print the verdicts, and what broke each bound."""
    out = session.out
    for result in results:
        out.line(f"{shown(result.label, 200)}: {result.verdict}{_numbers(result)}")
        if result.verdict == "UNKNOWN":
            out.line(f"  {result.reason}: {shown(result.detail, 400)}")
        for broken in result.broken:
            out.line(f"  {shown(broken, 400)}")
        for case in [case for case in result.cases if case.verdict == "CHANGED"][:_CASES_SHOWN]:
            if case.text is not None and case.recorded_text is not None:
                out.line(f"  {case.id}: `{shown(case.recorded_text)}` became `{shown(case.text)}`")
    if not results:
        out.line("no installed build has a contract")
    elif any(result.passed for result in results):
        out.note("PASS means answers as recorded on these prompts; it says nothing of quality or safety")


def _numbers(result: Tested) -> str:
    if result.verdict == "NONE":
        return ", it has no contract"
    parts = [f"{result.goldens} goldens"] if result.goldens else []
    if result.cases and not result.goldens:
        parts.append(f"{len(result.cases)} tests")
    parts += [f"{name} {value:.3f}" for name, value in result.metrics.items()]
    if result.same is not None:
        parts.append(f"{result.same:.0%} the same")
    for name, value in (
        ("retention", result.retention), ("KL", result.kl), ("cosine", result.cosine), ("effect", result.effect),
    ):  # fmt: skip
        if value is not None:
            parts.append(f"{name} {value:.3f}")
    where = ", ".join(filter(None, (result.base, result.dtype, result.load_in)))
    parts.append(f"on {where}" if where else "")
    kept = "  (kept result)" if result.is_cached else ""
    return f"  {', '.join(filter(None, parts))}{kept}"
