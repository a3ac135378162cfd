"""Compare the answers: `python -m tests.registry.matrix [KIND...]`, one line for each difference without a reason."""

from __future__ import annotations

import sys
from collections import Counter

from tests.registry.matrix.comparing import CALLERS, differences
from tests.registry.matrix.listed import MEANT
from tests.registry.matrix.worlds import KINDS


def main(arguments: list[str]) -> int:
    """Print the differences; 1 where there are any without a reason, or reasons without a difference."""
    kinds = tuple(arguments) or tuple(KINDS)
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        sys.stderr.write(f"no kind {unknown[0]}: the kinds are {', '.join(KINDS)}\n")
        return 2
    met: Counter[tuple[str, str]] = Counter()
    unmeant = 0
    for found in differences(kinds):
        key = (found.kind, found.request.route)
        met[key] += 1
        if key not in MEANT:
            unmeant += 1
            sys.stdout.write(f"{found}\n")
    idle = [key for key in MEANT if key[0] in kinds and key not in met]
    for kind, route in idle:
        sys.stdout.write(f"{kind}\t{route}\tlisted, but nothing differs there any more\n")
    sys.stdout.write(f"{unmeant} differences without a reason, {len(met) - len(idle)} routes listed, ")
    sys.stdout.write(f"{len(CALLERS)} callers, {len(kinds)} kinds of hidden things\n")
    return 1 if unmeant or idle else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
