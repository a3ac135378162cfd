"""Search, then prove: try candidates on a base and order them by their measured loss.

One example first for all, then all examples for the best six. A candidate within 1 % of the gap between the base alone
and the best is as good as the best; among these a build that is no merge comes first, then the order of the search.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adapterhub.api.steps.find.candidates import Candidate, first
from adapterhub.api.steps.find.rounds import Agree, Rounds
from adapterhub.core.display import size_text
from adapterhub.core.errors import BaseNotFound, NotAllowed
from adapterhub.inference.tuning import Example, read_examples

if TYPE_CHECKING:
    from adapterhub.api.steps.find.tried import NotTried, Tried
    from adapterhub.core.specs import BaseSpec
    from adapterhub.projects.reporting import Bars
    from adapterhub.projects.session import Session

DEFAULT_TOP: Final = 8
MOST_CANDIDATES: Final = 32
MOST_EXAMPLES: Final = 100
MAX_EXAMPLES_BYTES: Final = 1 << 20
ASK_ABOVE_BYTES: Final = 200_000_000


def try_candidates(
    session: Session,
    query: str,
    base: BaseSpec,
    candidates: Sequence[Candidate],
    examples: Path | Sequence[Example],
    *,
    left_out: Sequence[NotTried] = (),
    agree: Agree | None = None,
    bars: Bars,
) -> Tried:
    """Try candidates, in the order of the search, on a base; `examples` is a file of JSON Lines or the examples.

    `agree` is called before anything is fetched; by default it refuses more than 200 MB. Losses that were measured
    earlier are not measured again, and their builds not fetched.

    Raises:
        NotFound, Malformed: the examples cannot be read.
        BaseNotFound: the weights of the base are not on this machine.
        BaseMismatch: they are not the registered ones.
        Incompatible, UsageProblem: the base continues no text.
        CouldNotTell: there are candidates, and not one can be tried.
    """
    if isinstance(examples, Path):
        examples = read_examples(examples, limit_bytes=MAX_EXAMPLES_BYTES, most=MOST_EXAMPLES)
    library = session.library
    record = library.bases.find(base)
    if record.path is None or not record.path.is_dir():
        raise BaseNotFound(
            f"the weights of base `{record.label}` are not on this machine",
            hint="register a local copy with `adapt base add PATH --as NAME`",
        )
    record = library.bases.current(record)
    assert record.path is not None  # as above
    with ExitStack() as loans:
        rounds = Rounds(session, record, record.path, tuple(examples), loans, bars=bars, agree=agree or refuse_much)
        return rounds.run(query, first(candidates), left_out)


def refuse_much(builds: int, size_bytes: int) -> None:
    """Refuse to fetch more than 200 MB.

    Raises:
        NotAllowed: it is more.
    """
    if size_bytes > ASK_ABOVE_BYTES:
        raise NotAllowed(
            f"trying {builds} builds would fetch {size_text(size_bytes)}, more than {size_text(ASK_ABOVE_BYTES)}."
            " Nothing was fetched",
            hint="try fewer with `--top`, or pass `--yes`",
        )
