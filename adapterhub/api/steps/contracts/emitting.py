"""Write a contract's goldens as a task of another tool; nothing is run."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from adapterhub.api.steps.contracts.subjects import ContractSubject, base_for
from adapterhub.core.disk.files import write_durably
from adapterhub.core.disk.output_place import output_place
from adapterhub.core.errors import CouldNotTell, Incompatible, shown
from adapterhub.formats.documented import Documented
from adapterhub.formats.prompts.rendering import prompt_texts
from adapterhub.inference.contracts.runners import LmEvalTask, ensure_askable, lm_eval_task

if TYPE_CHECKING:
    from adapterhub.core.specs import BaseSpec
    from adapterhub.formats.contract.contract import Contract
    from adapterhub.library.library import Library


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
    """The contract that is given, else the adapter's own.

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
    """What a task of the adapter is called after."""
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
        NotAllowed: the folder is no place for an output.
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
            raise Incompatible(f"the goldens cannot be asked on `{record.label}`: {unknown.detail}") from None
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
