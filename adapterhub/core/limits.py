"""Limits on untrusted adapters: the only settings that apply to the whole process.

`verify` runs deep inside other calls (`add`, `install`, `attach`), so passing the limits along would add an argument to
each of them. Set them once, before the first adapter is read: the command line reads ADAPTERHUB_LIMITS, a program calls
`use_limits`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import Final

from adapterhub.core.errors import UsageProblem, shown

_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The largest accepted values. Names that end in `_bytes` are sizes, all others counts.

    `header_bytes`, `tensors`, `metadata_entries`, `name_bytes`: of the header of a safetensors file. `file_bytes`: of
    the weights. `text_bytes`: of each other copied file. `config_bytes`: of `adapter_config.json`. `entries`:
    files and folders in an adapter's folder, whatever they are. `rank`: of one pair.
    """

    header_bytes: int = 16 * _MIB
    tensors: int = 65_536
    metadata_entries: int = 4096
    name_bytes: int = 512
    file_bytes: int = 4 * _GIB
    text_bytes: int = 64 * _MIB
    config_bytes: int = 1 * _MIB
    entries: int = 20_000
    rank: int = 4096


DEFAULT_LIMITS: Final = Limits()
_in_force = [DEFAULT_LIMITS]
_UNITS: Final[dict[str, int]] = {
    "": 1,
    **{f"{unit}B": 1000**n for n, unit in enumerate("KMGT", 1)},
    **{f"{unit}IB": 1024**n for n, unit in enumerate("KMGT", 1)},
}
_AMOUNT: Final = re.compile(r"([0-9]{1,18})([kmgtKMGT]i?[bB])?")


def limits() -> Limits:
    """Return the limits in force."""
    return _in_force[0]


def use_limits(chosen: Limits = DEFAULT_LIMITS) -> None:
    """Apply `chosen` to everything read from now on; without an argument, restore the built-in limits."""
    _in_force[0] = chosen


def parse_limits(text: str) -> Limits:
    """Parse limits such as `file_bytes=8GiB tensors=200000`; limits that are not named keep their built-in values.

    Raises:
        UsageProblem: an unknown limit, or a value that is not a whole number above 0.
    """
    known = {field.name for field in fields(Limits)}
    chosen: dict[str, int] = {}
    for part in text.replace(",", " ").split():
        name, _, value = part.partition("=")
        size = parse_amount(value, in_bytes=name.endswith("_bytes"))
        if name not in known or not size:
            raise UsageProblem(
                f"`{shown(part)}` sets no limit: expected NAME=NUMBER, where NAME is one of {', '.join(sorted(known))}",
                hint="sizes may end in KiB, MiB or GiB: `ADAPTERHUB_LIMITS='file_bytes=8GiB tensors=200000'`",
            )
        chosen[name] = size
    return replace(DEFAULT_LIMITS, **chosen)


def parse_amount(text: str, *, in_bytes: bool) -> int | None:
    """Return a whole number, of bytes with a unit such as `10GB` or `512MiB` if you like; None for anything else."""
    match = _AMOUNT.fullmatch(text)
    if match is None or (match[2] and not in_bytes):
        return None
    return int(match[1]) * _UNITS[(match[2] or "").upper()]
