"""The tables of the benchmark of ports: each method on each pair, and what was foretold of a copy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from adapterhub.weights.port.catalogue import names
from adapterhub.weights.port.prediction import BOUNDS, CAUTIOUS, expected_of

Row = Mapping[str, Any]
RETRAINED = "retrained"


def report(rows: Sequence[Row]) -> str:
    """Both tables."""
    return "\n\n".join([_by_pair(rows), _foretold(rows)])


def _by_pair(rows: Sequence[Row]) -> str:
    """How many adapters pass by each method, and the median drift (of a classifier, the divergence of its labels)."""
    methods = [name for name in (*names(), RETRAINED) if any(row["method"] == name for row in rows)]
    lines = [f"{'pair':52} {'strength':>8} {'adapters':>8}  " + "  ".join(f"{name:>22}" for name in methods)]
    for pair in dict.fromkeys(row["pair"] for row in rows):
        own = [row for row in rows if row["pair"] == pair]
        found = [row["strength"] for row in own if row.get("strength") is not None]
        strength = statistics.median(found) if found else math.nan
        count = len({row["adapter"] for row in own if row["method"] == "copy"})
        cells = [_cell([row for row in own if row["method"] == name]) for name in methods]
        lines.append(f"{pair:52} {strength:8.4f} {count:8}  " + "  ".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def _cell(rows: Sequence[Row]) -> str:
    if not rows:
        return "-"
    moved = [
        n for row in rows if (n := row.get("drift") if row.get("drift") is not None else row.get("kl")) is not None
    ]
    passed = sum(row["verdict"] == "PASS" for row in rows)
    return f"{passed} of {len(rows)} pass" + (f", {statistics.median(moved):.3f}" if moved else "")


# ---------------------------------------------------------------- what was foretold
def _foretold(rows: Sequence[Row]) -> str:
    """What the rule says of each pair, with bounds from all other pairs; the shipped bounds are from all."""
    far_apart = {
        (r["pair"], r["adapter"]): (r["strength"], r["overlap"]) for r in rows if r.get("strength") is not None
    }
    copies = [
        (row["pair"], *far_apart[row["pair"], row["adapter"]], row["verdict"] == "PASS")
        for row in rows
        if row["method"] == "copy" and row["verdict"] in ("PASS", "CHANGED")
        if far_apart.get((row["pair"], row["adapter"]), (0.0,))[0]
    ]
    pairs = list(dict.fromkeys(pair for pair, *_ in copies))
    families = list(dict.fromkeys(pair.partition(":")[0] for pair in pairs))
    near, far = fitted(copies)
    bounds_text = f"works up to {near:.3g}, fails from {far:.3g} (shipped: {BOUNDS[0]:g} and {BOUNDS[1]:g})"
    lines = [f"{len(copies)} copies on {len(pairs)} pairs. Bounds from all: {bounds_text}"]
    shipped = [(expected_of(strength, overlap), passed) for _, strength, overlap, passed in copies]
    lines += ["with the shipped bounds", *_shares(shipped)]
    for noun, groups in (("pair", pairs), ("family", families)):
        held = []
        for group in groups:
            is_out = [group in (pair, pair.partition(":")[0]) for pair, *_ in copies]
            bounds = fitted([one for one, out in zip(copies, is_out, strict=True) if not out])
            own = [one for one, out in zip(copies, is_out, strict=True) if out]
            held += [(expected_of(strength, overlap, bounds), passed) for _, strength, overlap, passed in own]
        lines += [f"each {noun} with bounds from the others", *_shares(held)]
    return "\n".join(lines)


def _shares(held: Sequence[tuple[str, bool]]) -> list[str]:
    lines = []
    for name in ("works", "fails", "cannot tell"):
        told = [passed for expected, passed in held if expected == name]
        passed = f"{sum(told)} of {len(told)} passed" + (f" ({sum(told) / len(told):.0%})" if told else "")
        lines.append(f"  `{name}`: {passed}")
    return lines


def fitted(copies: Sequence[tuple[str, float, float, bool]]) -> tuple[float, float]:
    """The strength up to which at most one copy in `CAUTIOUS` failed, and that from which at most one passed."""
    ranked = sorted((strength, passed) for _, strength, _, passed in copies)
    near, far = 0.0, math.inf
    for at, (strength, _) in enumerate(ranked):
        below, above = [passed for _, passed in ranked[: at + 1]], [passed for _, passed in ranked[at:]]
        if below.count(False) * CAUTIOUS <= len(below):
            near = strength
        if above.count(True) * CAUTIOUS <= len(above):
            far = min(far, strength)
    return near, far
