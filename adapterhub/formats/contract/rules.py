"""The rules of a project: `never` and `leave_alone` lines that every adapter and every merge of it must meet.

People write the file, so it need not be canonical; an `id` may be left out. Otherwise the lines are those of a
contract.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapterhub.core.digests import Digest, canonical_json, digest_of, strict_json
from adapterhub.core.disk.nearest import read_typed
from adapterhub.core.errors import Malformed, problem_list, shown
from adapterhub.formats.contract.contract import WRITERS, Contract, Expect, LeaveAlone
from adapterhub.formats.contract.reader import MAX_BYTES, MAX_LINE_BYTES, MAX_LINES, ContractReader


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The lines of a file of rules; `digest` is their identity, whatever their spaces."""

    nevers: tuple[Expect, ...]
    leave_alone: tuple[LeaveAlone, ...]

    @property
    def digest(self) -> Digest:
        """Of the lines in canonical JSON."""
        lines = [*(line.to_json() for line in self.nevers), *(line.to_json() for line in self.leave_alone)]
        return digest_of(canonical_json(lines))

    def bind(self, contract: Contract) -> bool:
        """Whether they say anything of such an adapter: they are about texts, which not every adapter writes."""
        return contract.kind in WRITERS

    def added_to(self, contract: Contract) -> Contract:
        """The contract with these lines, for a check; their ids begin with `project/`, as none in a contract does."""
        nevers = tuple(replace(line, id=f"project/{line.id}") for line in self.nevers)
        leave = tuple(replace(line, id=f"project/{line.id}") for line in self.leave_alone)
        return replace(
            contract, expects=(*contract.expects, *nevers), leave_alone=(*contract.leave_alone, *leave), order=()
        )


def read_rules(path: Path) -> Rules:
    """Read a file of rules.

    Raises:
        NotFound: there is no such file.
        Malformed: every problem with its line.
    """
    raw = read_typed(path, MAX_BYTES, hint="the policy `tests-never` of the project names it")
    reader, lines = ContractReader(), raw.split(b"\n")
    if len(raw) > MAX_BYTES or len(lines) > MAX_LINES:
        reader.say("the file", f"expected at most {MAX_BYTES >> 10} KiB and {MAX_LINES} lines")
        lines = []
    found: list[Any] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = strict_json(line, limit_bytes=MAX_LINE_BYTES)
        except ValueError as error:
            reader.say(f"line {number}", shown(str(error), 200))
            continue
        if not isinstance(value, dict) or not {"never", "leave_alone"} & value.keys():
            reader.say(f"line {number}", "expected an object with the key `never` or `leave_alone`")
            continue
        found.append(reader.line({"id": f"rule-{number}", **value}, number))
    if not found and not reader.problems:
        reader.say("the file", "holds no rule")
    if reader.problems:
        title = f"`{shown(str(path), 200)}`: not usable as the rules of a project"
        raise Malformed(problem_list(title, reader.lines), hint="`docs/reference/contracts.md` shows the lines")
    return Rules(
        nevers=tuple(one for one in found if isinstance(one, Expect)),
        leave_alone=tuple(one for one in found if isinstance(one, LeaveAlone)),
    )
