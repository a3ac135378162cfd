"""The rank that vLLM's slots allow, and what one adapter of a large rank costs all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from adapterhub.cli.options.params import Session
from adapterhub.cli.use.serve_engine import ServeArgs
from adapterhub.core.display import size_text

if TYPE_CHECKING:
    from adapterhub.inference.serving import LeasedAdapter

_LEAST_RANK: Final = 16


def max_rank_for(session: Session, args: ServeArgs, handed: Sequence[LeasedAdapter]) -> int:
    """The rank to allow: that of the named adapters, else of installed adapters for this base.

    Says on stderr which adapters make every slot larger than all others need.
    """
    from adapterhub.formats.engines.vllm import MAX_RANKS
    from adapterhub.inference.serving.provider import RANK_SETTING
    from adapterhub.inference.serving.vllm import allowed_rank

    if args.settings.max_rank is not None:
        return allowed_rank(args.settings.max_rank)
    needed: dict[str, int] = {
        one.label: rank for one in handed if isinstance(rank := one.verdict.settings.get(RANK_SETTING), int)
    }
    needed = needed or _installed_ranks(session, args)
    allowed = {label: allowed_rank(rank) for label, rank in needed.items() if rank <= MAX_RANKS[-1]}
    most = max([_LEAST_RANK, *allowed.values()])
    _say_what_grows(session, args, allowed, most)
    return most


def _installed_ranks(session: Session, args: ServeArgs) -> dict[str, int]:
    from adapterhub.formats.base.fingerprint import compare

    ours = args.record.fingerprint
    return {
        f"{build.full_name}=={build.manifest.version}": build.manifest.rank
        for build in session.library.installed()
        if build.manifest.rank and compare(build.base.fingerprint, ours).verdict.allows_attach
    }


def _say_what_grows(session: Session, args: ServeArgs, allowed: Mapping[str, int], most: int) -> None:
    from adapterhub.inference.serving.vllm import option_in, slot_bytes

    large = sorted(label for label, rank in allowed.items() if rank == most)
    others = [rank for rank in allowed.values() if rank < most]
    if most == _LEAST_RANK or not others:
        return
    enough = max([_LEAST_RANK, *others])
    item_bytes = 4 if option_in(args.extra, "--dtype") in {"float32", "float"} else 2
    after, before = (size_text(slot_bytes(args.record.tensors, rank, item_bytes)) for rank in (most, enough))
    whose = f"`{large[0]}` needs" if len(large) == 1 else f"`{large[0]}` and {len(large) - 1} more need"
    session.out.note(
        f"{whose} rank {most}, so every slot takes {after} of the engine's memory; rank {enough} ({before}) is enough "
        f"for all others. To keep small slots, pass `--max-rank {enough}` and serve it from another server"
    )
