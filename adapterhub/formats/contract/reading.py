"""The strict reader of contracts: a stranger's file, bounded before anything is used, every problem with its line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from adapterhub.core.digests import canonical_json, strict_json
from adapterhub.core.disk.files import read_plain
from adapterhub.core.disk.nearest import read_typed
from adapterhub.core.errors import CouldNotTell, Malformed, problem_list, shown
from adapterhub.formats.contract.contract import FAMILY, SCHEMAS, Contract
from adapterhub.formats.contract.reader import MAX_BYTES, MAX_DEPTH, MAX_LINE_BYTES, MAX_LINES, ContractReader
from adapterhub.formats.documents import JSON_KINDS
from adapterhub.formats.manifest import CONTRACT_FILE

_CLAIM: Final = re.compile(rb'(?<!\\)"adapterhub/tests/')


def claims_contract(raw: bytes) -> bool:
    """Whether the bytes claim to be a contract; any other `evals.jsonl` is somebody's own file."""
    return _CLAIM.search(raw[: MAX_BYTES + 1].replace(b"\0", b"")) is not None


def parse_contract(raw: bytes, where: str = CONTRACT_FILE) -> Contract:
    """Read a contract strictly.

    Raises:
        Malformed: every problem with its line and place, such as `line 3: tokens[2]: …`.
        DigestMismatch: the prompt form's chat template is not the one whose digest it states.
        CouldNotTell: it is of a newer version of the format.
    """
    if len(raw) > MAX_BYTES:
        raise _refused(where, [f"more than {MAX_BYTES >> 10} KiB, which no contract needs"])
    lines = raw.split(b"\n")
    if lines.pop() != b"":
        raise _refused(where, [f"line {len(lines) + 1}: the last line does not end"])
    if len(lines) > MAX_LINES:
        raise _refused(where, [f"{len(lines)} lines, expected at most {MAX_LINES}"])
    values, problems = [], []
    for number, line in enumerate(lines, 1):
        try:
            values.append(_value(line))
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    schema = values[0].get("schema") if values and not problems else None
    if isinstance(schema, str) and schema.startswith(FAMILY) and schema not in SCHEMAS:
        raise CouldNotTell(
            f"{shown(where, 200)}: the contract has the format {shown(schema)}, written by a newer version",
            hint="upgrade adapterhub to check it",
        )
    if problems:
        raise _refused(where, problems)
    reader = ContractReader()
    contract = reader.contract(values)
    if reader.problems or contract is None:
        raise _refused(where, reader.lines)
    if contract.to_bytes() != raw:
        reason = "written otherwise than the program writes it: six significant digits, and no key with its default"
        raise _refused(where, [reason])
    return contract


def read_contract(path: Path) -> Contract:
    """The contract in a file outside of any build.

    Raises:
        NotFound: there is no such file.
        Malformed, CouldNotTell: as `parse_contract`.
    """
    return parse_contract(read_typed(path, MAX_BYTES), str(path))


def contract_in(folder: Path) -> Contract | None:
    """The contract in an adapter's folder; None where there is none.

    Raises:
        Malformed, CouldNotTell: as `parse_contract`.
    """
    path = folder / CONTRACT_FILE
    try:
        raw = read_plain(path, MAX_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _refused(str(path), [f"cannot be read: {error.strerror}"]) from None
    return parse_contract(raw, str(path)) if claims_contract(raw) else None


def has_contract(folder: Path) -> bool:
    """Whether a folder holds what says that it is a contract, of this or a newer version; it may be broken."""
    try:
        return claims_contract(read_plain(folder / CONTRACT_FILE, MAX_BYTES))
    except OSError:
        return False


def _refused(where: str, problems: list[str]) -> Malformed:
    title = f"{shown(where, 200)}: not a usable contract"
    return Malformed(problem_list(title, problems), hint="`adapt contract record` writes a sound one")


def _value(line: bytes) -> dict[str, Any]:
    """The object on one line, which must be written in the one canonical way.

    Raises:
        ValueError: it is not.
    """
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"{len(line)} bytes, expected at most {MAX_LINE_BYTES}")
    value = strict_json(line, limit_bytes=MAX_LINE_BYTES)
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {JSON_KINDS.get(type(value), 'something else')}")  # noqa: TRY004
    if _is_deeper(value, MAX_DEPTH):
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    try:
        canonical = canonical_json(value)
    except ValueError as error:  # half of a UTF-16 pair, or a whole number that JSON's doubles cannot hold
        raise ValueError(f"has no canonical form: {shown(str(error))}") from None
    if canonical != line:
        raise ValueError("not canonical JSON (RFC 8785): keys sorted, no spaces, numbers in their shortest form")
    return value


def _is_deeper(value: object, levels: int) -> bool:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    if children is None:
        return False
    return levels == 0 or any(_is_deeper(child, levels - 1) for child in children)
