"""How often routing by text is right, and whether its check knows; how often a trial finds the adapter, at which cost.

    python -m tests.bench.find_route [--router PYTHON]

The prompts are in `find_routes/`: eight of each task build the file, eight are held out, and 24 texts are for none.
`--router` names a Python with `vllm-sr` (0.4), whose own validator reads the export of a file.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from adapterhub.formats.meaning.encoder import Encoder
from adapterhub.formats.meaning.routing import Router, cross_check
from adapterhub.formats.route import LEAST_ACCURACY
from adapterhub.library.library import Library
from tests.bench import find_trying
from tests.bench.harness import given
from tests.support.command_line import Adapt
from tests.support.real_encoder import minilm_base
from tests.support.route_tasks import BUILT, NONE, auc, prompts_by_task, tasks
from tests.support.routed_library import fill
from tests.support.tiny import make_base

SPLITS = 6


def rows() -> Iterator[str]:
    """The lines of the report."""
    yield from routing_rows()
    yield from find_trying.rows()


def routing_rows() -> Iterator[str]:
    """Routing: as the prompts are split in the file, the halves swapped, and random splits."""
    encoder = Encoder(minilm_base())
    began = time.process_time()
    vectors = [encoder.vectors(prompts_by_task()[name]) for name in tasks()]
    strange = encoder.vectors(prompts_by_task()[NONE])
    spent = time.process_time() - began
    count = sum(map(len, vectors)) + len(strange)
    yield f"route: {len(vectors)} tasks, {BUILT} prompts each, {count} texts at {1000 * spent / count:.1f} ms of CPU"
    yield f"{'split':<8} {'right':>6} {'check':>6} {'threshold':>9} {'with it':>8} {'check':>6} {'to base':>8} {'strangers':>9} {'AUC':>6}"
    for split in range(SPLITS):
        orders = [_order(split, len(one), at) for at, one in enumerate(vectors)]
        built = [one[order[:BUILT]] for one, order in zip(vectors, orders, strict=True)]
        others = [one[order[BUILT:]] for one, order in zip(vectors, orders, strict=True)]
        name = ("as given", "swapped")[split] if split < 2 else f"random {split - 1}"
        yield _row(name, built, others, strange)


def _order(split: int, count: int, task: int) -> np.ndarray:
    places = np.arange(count)
    return [places, places[::-1]][split] if split < 2 else np.random.default_rng([split, task]).permutation(count)


def _row(name: str, built: list[np.ndarray], others: list[np.ndarray], strange: np.ndarray) -> str:
    own = np.repeat(np.arange(len(built)), [len(one) for one in others])
    router, check = Router(built), cross_check(built)
    chosen, cosines = router.choose(np.concatenate(others))
    told, away = router.choose(strange)
    near, far = cosines[np.arange(len(own)), chosen], away[np.arange(len(strange)), told]
    below, right = near < check.proposed(LEAST_ACCURACY), chosen == own
    return (
        f"{name:<8} {right.mean():6.3f} {check.accuracy(0):6.3f} {check.proposed(LEAST_ACCURACY):9.3f} {(right & ~below).mean():8.3f}"
        f" {check.accuracy(check.proposed(LEAST_ACCURACY)):6.3f}"
        f" {below.mean():8.3f} {(far < check.proposed(LEAST_ACCURACY)).mean():9.3f} {auc(near, far):6.3f}"
    )


def validate(python: str) -> str:
    """What the validator of vLLM's semantic router says of an export."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        library = Library(folder / "home")
        base = library.bases.add(make_base(folder / "base"), "base-7b")
        library.catalog.put_base(base)
        fill(library, base, folder / "made")
        adapt = Adapt(folder)
        adapt.ok("route", "--base", "base-7b", "-o", "route.json")
        adapt.ok("export", "router", "--for", "semantic-router", "--route", "route.json", "-o", "config.yaml")
        command = [python, "-m", "cli.main", "config", "validate", "--config", str(folder / "config.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr


def main() -> None:
    arguments = given(__doc__, router=str)
    if arguments.router:
        print(validate(arguments.router))
        return
    for line in rows():
        print(line, flush=True)


if __name__ == "__main__":
    main()
