"""`export --format gguf --test`: the new file is tested in llama.cpp before it gets its name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.api.steps.contracts.gating import WITHOUT_TEST, MergeTest, name_of
from adapterhub.api.steps.contracts.testing import TestQuestion
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
from adapterhub.formats.contract.results import Tested
from adapterhub.formats.prompts.form import prompt_tokens

if TYPE_CHECKING:
    from adapterhub.core.specs import BaseSpec
    from adapterhub.distribution.finding import FoundAdapter
    from adapterhub.inference.contracts.runners import LlamaServer, Written
    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.library import Library
    from adapterhub.projects.reporting import Reporter
    from adapterhub.projects.session import Session

ENGINE = "llama.cpp"


@dataclass(slots=True)
class LlamaTest:
    """Asks an exported GGUF adapter what its contract holds, with `gguf` as the base; `results` has the verdict.

    Compares token ids if the server returns them, otherwise texts. Losses are not measured, so `leave_alone` lines are
    left out. `gguf` may be a quantised copy of the base, which is proved first; the result is about its weights.
    """

    library: Library
    bars: Reporter
    gguf: Path
    program: str | None = None
    on: BaseSpec | None = None
    results: list[Tested] = field(default_factory=list)

    def __call__(self, path: Path, adapters: Sequence[FoundAdapter]) -> None:
        """Test the new file.

        Raises:
            BehaviourChanged, CouldNotTell: it does not pass, or has no contract.
            BaseMismatch, CouldNotTell: `gguf` is not a copy of the base, or nothing proves that it is.
            NotFound: there is no server, or no file of the base.
            EngineFailed: the server does not start or answer.
        """
        from adapterhub.inference.contracts.answers import expectation, judge_texts
        from adapterhub.inference.contracts.runners import serving
        from adapterhub.inference.serving.llama_cpp.engine import find_llama_server
        from adapterhub.library.bases.proof import proof_of

        [adapter] = adapters
        name, ending = name_of(adapter), "Nothing was written"
        contract = contract_in(adapter.folder)
        if contract is None:
            raise CouldNotTell(
                f"`{shown(adapter.label, 200)}` has no contract, so there is nothing to test. {ending}",
                hint="`adapt contract record` records one; without `--test`, the export needs none",
            )
        if contract.kind not in WRITERS or contract.visibility == "digests":
            what = f"the contract of `{shown(adapter.label, 200)}`"
            raise CouldNotTell(
                f"llama.cpp cannot run {what}. {ending}", hint="export without `--test`, or test with `adapt test`"
            )
        if not self.gguf.is_file():
            raise NotFound(
                f"no file `{shown(str(self.gguf), 200)}` with the base. {ending}",
                hint="`--gguf FILE` names the base as a GGUF file",
            )
        program = find_llama_server(self.program)
        record = self._record(adapter)
        prompts = self._prompts(contract, adapter, record)
        proof = proof_of(self.library.bases, record, self.gguf, self.bars.progress)
        proof.ensure()
        with (
            self.bars.steps(f"test {name}", unit="prompts") as progress,
            serving(program, self.gguf, path, dict(os.environ)) as server,
        ):
            proof.ensure_unchanged()
            asked: dict[str, Written] = {}
            for at, (line, prompt) in enumerate(prompts, 1):
                asked[line.id] = _asked(server, contract, line, prompt)
                progress(at, len(prompts))
        made = Tested(
            name=name, verdict="NONE", engine=ENGINE, contract=contract.digest, bounds=asdict(contract.bounds),
            base=self.gguf.name, base_weights=proof.weights(self.library.bases, self.bars.progress),
            base_verdict=proof.comparison.label,
        )  # fmt: skip
        answers = {golden.id: _compared(golden, asked[golden.id]) for golden in contract.distinct}
        expects = [expectation(one, asked[one.id].text) for one in contract.expects]
        result = judge_texts(made, contract, answers, expects)
        self.results.append(result)
        if result.verdict == "CHANGED":
            lines = [result.row, *(f"{name}: {shown(text, 400)}" for text in result.broken)]
            raise BehaviourChanged(
                problem_list(f"the result has changed in llama.cpp. {ending}", lines), hint=WITHOUT_TEST
            )

    def _record(self, adapter: FoundAdapter) -> BaseRecord:
        """Return the base that was named, or that of the adapter."""
        declared = adapter.base.fingerprint
        record = self.library.bases.find(self.on) if self.on else None
        record = record or (self.library.bases.by_fingerprint(declared) if declared else None)
        if record is None or record.path is None:
            raise BaseNotFound(
                "the tokenizer of the base is not on this machine. Nothing was written",
                hint="`adapt base add FOLDER` registers a folder with the tokenizer",
            )
        return record

    def _prompts(
        self, contract: Contract, adapter: FoundAdapter, record: BaseRecord
    ) -> list[tuple[Golden | Expect, list[int]]]:
        """Return the lines to ask, with the tokens of each prompt by the base's own tokenizer."""
        from adapterhub.inference.contracts.answers import Unknown
        from adapterhub.inference.contracts.checking import ensure_comparable, ensure_same_prompts
        from adapterhub.inference.loader.text import load_tokenizer

        assert record.path is not None  # see `_record`
        tokenizer = load_tokenizer(record.path)
        lines: list[Golden | Expect] = [*contract.distinct, *contract.expects]
        try:
            ensure_comparable(contract, tokenizer)
            rows = prompt_tokens(contract.prompt, [line.asked for line in lines if line.asked is not None], tokenizer)
            ensure_same_prompts(contract, {line.id: row for line, row in zip(lines, rows, strict=True)})
        except Unknown as unknown:
            raise CouldNotTell(
                f"no verdict is possible for `{shown(adapter.label, 200)}`: {unknown.reason}: {unknown.detail}. "
                "Nothing was written",
                hint=WITHOUT_TEST,
            ) from None
        return list(zip(lines, rows, strict=True))


def export_test(
    library: Library,
    form: str,
    *,
    on: BaseSpec | None,
    gguf: Path | None,
    llama_server: str | None,
    session: Session,
) -> MergeTest | LlamaTest:
    """Return the test of an export in the format `form`.

    Raises:
        UsageProblem: the format needs the base as a GGUF file, or takes none.
    """
    if form == "gguf":
        if gguf is None:
            raise UsageProblem(
                "a test of a GGUF file also needs the base as a GGUF file", hint="name it with `--gguf FILE`"
            )
        return LlamaTest(library, session.out, path_of(gguf), llama_server, on)
    if gguf is not None or llama_server is not None:
        raise UsageProblem(
            "`--gguf` and `--llama-server` are for `--format gguf --test`", hint="add `--test`, or drop them"
        )
    return MergeTest(library, session, question=TestQuestion(on=on), is_model=form == "merged")


def _asked(server: LlamaServer, contract: Contract, line: Golden | Expect, prompt: Sequence[int]) -> Written:
    from adapterhub.inference.generation import NEW_TOKENS

    if isinstance(line, Golden):
        return server.answer(prompt, new=len(line.tokens))
    return server.answer(prompt, new=contract.prompt.max_new_tokens or NEW_TOKENS, stop=contract.prompt.stop)


def _compared(golden: Golden, written: Written) -> tuple[str, bool]:
    return written.text, written.tokens == golden.tokens if written.tokens else written.text == golden.answer
