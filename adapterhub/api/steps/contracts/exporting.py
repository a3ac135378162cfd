"""`export --format gguf --test`: the new file is asked in llama.cpp, before it gets its name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.api.steps.contracts.gating import WrittenTest, name_of
from adapterhub.core.arguments import path_of
from adapterhub.core.errors import (
    BaseNotFound,
    BehaviourChanged,
    CouldNotTell,
    NotFound,
    UsageProblem,
    problem_list,
    shown,
)
from adapterhub.formats.contract.contract import WRITERS, Contract, Expect, Golden
from adapterhub.formats.contract.reader import contract_in
from adapterhub.formats.contract.results import Tested, TestedCase
from adapterhub.formats.prompts.form import prompt_tokens

if TYPE_CHECKING:
    from adapterhub.core.specs import BaseSpec
    from adapterhub.distribution.finding import FoundAdapter
    from adapterhub.inference.contracts.runners import LlamaServer, Written
    from adapterhub.library.library import Library
    from adapterhub.projects.reporting import Bars

ENGINE = "llama.cpp"


@dataclass(slots=True)
class LlamaTest:
    """Asks an exported GGUF adapter what its contract holds, with `gguf` as the base; `results` has the verdict.

    Token ids are compared, where the server gives them, else texts. Losses are not measured, so `leave_alone` lines are
    left out. Nothing proves that `gguf` holds the base, since it may be quantised: it is the file that the adapter will
    run on.
    """

    library: Library
    bars: Bars
    gguf: Path
    program: str | None = None
    on: BaseSpec | None = None
    results: list[Tested] = field(default_factory=list)

    def __call__(self, path: Path, adapters: Sequence[FoundAdapter]) -> None:
        """Test the new file.

        Raises:
            BehaviourChanged, CouldNotTell: it does not pass, or has no contract.
            NotFound: there is no server, or no file of the base.
            EngineFailed: the server does not start or answer.
        """
        from adapterhub.inference.contracts.runners import serving
        from adapterhub.inference.serving.llama_cpp.engine import find_llama_server

        [adapter] = adapters
        name, ending = name_of(adapter), "Nothing was written"
        contract = contract_in(adapter.folder)
        if contract is None:
            raise CouldNotTell(f"`{shown(adapter.label, 200)}` has no contract, so there is nothing to test. {ending}")
        if contract.kind not in WRITERS or contract.visibility == "digests":
            what = f"the contract of `{shown(adapter.label, 200)}` holds"
            raise CouldNotTell(f"llama.cpp cannot ask what {what}. {ending}")
        if not self.gguf.is_file():
            raise NotFound(f"no file `{shown(str(self.gguf), 200)}` with the base. {ending}")
        program = find_llama_server(self.program)
        prompts = self._prompts(contract, adapter)
        with (
            self.bars.steps(f"test {name}", unit="prompts") as progress,
            serving(program, self.gguf, path, dict(os.environ)) as server,
        ):
            asked: dict[str, Written] = {}
            for at, (line, prompt) in enumerate(prompts, 1):
                asked[line.id] = _asked(server, contract, line, prompt)
                progress(at, len(prompts))
        result = judged(Tested(name=name, verdict="NONE", engine=ENGINE), contract, asked)
        self.results.append(result)
        if result.verdict == "CHANGED":
            lines = [result.row, *(f"{name}: {shown(text, 400)}" for text in result.broken)]
            raise BehaviourChanged(problem_list(f"the result has changed in llama.cpp. {ending}", lines))

    def _prompts(self, contract: Contract, adapter: FoundAdapter) -> list[tuple[Golden | Expect, list[int]]]:
        """The lines to ask, with the tokens of each prompt by the base's own tokenizer."""
        from adapterhub.inference.contracts.answers import Unknown
        from adapterhub.inference.contracts.checking import ensure_comparable, ensure_same_prompts
        from adapterhub.inference.loader.text import load_tokenizer

        declared = adapter.base.fingerprint
        record = self.library.bases.find(self.on) if self.on else None
        record = record or (self.library.bases.by_fingerprint(declared) if declared else None)
        if record is None or record.path is None:
            raise BaseNotFound("the tokenizer of the base is not on this machine. Nothing was written")
        tokenizer = load_tokenizer(record.path)
        lines: list[Golden | Expect] = [*contract.distinct, *contract.expects]
        try:
            ensure_comparable(contract, tokenizer)
            rows = prompt_tokens(contract.prompt, [line.asked for line in lines if line.asked is not None], tokenizer)
            ensure_same_prompts(contract, {line.id: row for line, row in zip(lines, rows, strict=True)})
        except Unknown as unknown:
            raise CouldNotTell(
                f"no verdict is possible for `{shown(adapter.label, 200)}`: {unknown.reason}: {unknown.detail}. "
                "Nothing was written"
            ) from None
        return list(zip(lines, rows, strict=True))


def export_test(
    library: Library,
    form: str,
    *,
    on: BaseSpec | None,
    gguf: Path | None,
    llama_server: str | None,
    bars: Bars,
) -> WrittenTest | LlamaTest:
    """The test of an export in the format `form`.

    Raises:
        UsageProblem: the format needs the base as a GGUF file, or takes none.
    """
    if form == "gguf":
        if gguf is None:
            raise UsageProblem(
                "a test of a GGUF file needs the base as a GGUF file, too", hint="name it with `--gguf FILE`"
            )
        return LlamaTest(library, bars, path_of(gguf), llama_server, on)
    if gguf is not None or llama_server is not None:
        raise UsageProblem("`--gguf` and `--llama-server` are for `--format gguf --test`")
    return WrittenTest(library, bars, is_model=form == "merged", on=on)


def _asked(server: LlamaServer, contract: Contract, line: Golden | Expect, prompt: Sequence[int]) -> Written:
    from adapterhub.inference.generation import NEW_TOKENS

    if isinstance(line, Golden):
        return server.answer(prompt, new=len(line.tokens))
    return server.answer(prompt, new=contract.prompt.max_new_tokens or NEW_TOKENS, stop=contract.prompt.stop)


def judged(made: Tested, contract: Contract, asked: dict[str, Written]) -> Tested:
    """The verdict on answers alone: at most so many goldens may be lost, and no demand broken."""
    goldens = contract.distinct
    cases = [_golden_case(golden, asked[golden.id]) for golden in goldens]
    lost = [case for case in cases if not case.same]
    broken, allowed = [], contract.bounds.may_lose(len(goldens))
    if len(lost) > allowed:
        broken.append(f"{len(lost)} of {len(goldens)} answers changed, at most {allowed} may; `{lost[0].id}`")
    for expect in contract.expects:
        text = asked[expect.id].text
        if problem := expect.demand.problem(text, None):
            broken.append(f"`{expect.kind}` line `{expect.id}`: the answer {problem}")
        cases.append(
            TestedCase(
                id=expect.id, kind=expect.kind, verdict="CHANGED" if problem else "PASS", text=text, problem=problem
            )
        )
    return replace(
        made,
        contract=contract.digest,
        verdict="CHANGED" if broken else "PASS",
        bounds=asdict(contract.bounds),
        same=1 - len(lost) / len(goldens) if goldens else None,
        goldens=len(goldens),
        cases=tuple(cases),
        broken=tuple(broken),
    )


def _golden_case(golden: Golden, written: Written) -> TestedCase:
    same = written.tokens == golden.tokens if written.tokens else written.text == golden.answer
    return TestedCase(
        id=golden.id,
        kind="golden",
        verdict="PASS" if same else "CHANGED",
        same=same,
        text=written.text,
        recorded_text=golden.answer,
        problem="" if same else "the answer is not the recorded one",
    )
