"""Finding the right adapter from Python: `library.try_adapters("contracts", base="base-7b", examples=…)`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.api.opened import BaseLike, OpenedLibrary, StrPath, base_of
from adapterhub.core.errors import UsageProblem
from adapterhub.core.extras import extra_named
from adapterhub.core.ranks import RankRange

if TYPE_CHECKING:
    from adapterhub.api.steps.find.tried import Tried
    from adapterhub.trust.signing.policy import SignaturePolicy


class WithFinding(OpenedLibrary):
    """Search, then prove."""

    @extra_named("`Library.try_adapters`")
    def try_adapters(
        self,
        *text: str,
        base: BaseLike,
        examples: StrPath,
        top: int = 8,
        task: str = "",
        rank: int | None = None,
        min_rank: int | None = None,
        max_rank: int | None = None,
        method: str = "",
        remote: str | None = None,
        token: str | None = None,
        signatures: SignaturePolicy | None = None,
        agree: Callable[[int, int], None] | None = None,
    ) -> Tried:
        """Search, then try the best on a base and order them by their measured loss. Nothing is merged or installed.

        Args:
            text: as for `search`, with the filters `task`, `rank`, `min_rank`, `max_rank` and `method`.
            base: the base to try them on.
            examples: a file of at most 1 MiB and 100 lines, `{"prompt": …, "answer": …}` each.
            top: how many to try, at most 32.
            task: exactly this task.
            rank: exactly this rank.
            min_rank: this rank or a higher one.
            max_rank: this rank or a lower one.
            method: a PEFT type or variant.
            remote: a server to search instead of the library; its builds are fetched for the trial alone.
            token: access token for it.
            signatures: `require`, `warn` or `off` for what is fetched.
            agree: called with the number of builds to fetch and their bytes, and may raise; default: refuses more than
                200 MB.

        Returns:
            `.results`, best first, each with `.tried.loss` in nats a token and `.tried.share` of the gap to the base;
            `.base_loss`; `.best`, None where no build beats the base alone; `.left_out` with reasons.

        Raises:
            NotFound, Malformed: the examples cannot be read.
            BaseNotFound: the base is unknown, or its weights are not on this machine.
            CouldNotTell: there are candidates, and not one can be tried.
            NotAllowed: the trial would fetch too much.
            RemoteUnreachable: the server does not answer.
        """
        from adapterhub.api.steps.find.candidates import installed_candidates, server_candidates
        from adapterhub.api.steps.find.trying import MOST_CANDIDATES, try_candidates

        if not 1 <= top <= MOST_CANDIDATES:
            raise UsageProblem(f"top {top}, expected 1 to {MOST_CANDIDATES}")
        on = base_of(base)
        assert on is not None
        ranks = RankRange(rank=rank, min_rank=min_rank, max_rank=max_rank)
        query = {"text": " ".join(text), "task": task, "ranks": ranks, "method": method}
        if remote is None:
            found, lost = installed_candidates(self.session, on, top, **query), []
        else:
            from adapterhub.distribution.hub import Search

            search = Search(text=" ".join(text), task=task, ranks=ranks, method=method, limit=top)
            found, lost = server_candidates(self.session, on, search, remote=remote, token=token, signatures=signatures)
        where = Path(examples).expanduser()
        return try_candidates(
            self.session, query["text"], on, found, where, left_out=lost, agree=agree, bars=self.reports
        )
