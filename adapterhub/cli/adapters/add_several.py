"""`adapt add runs/*`: several folders, each with its result, and a total."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from adapterhub.api.opened import report_likeness, report_warnings
from adapterhub.cli.adapters.added import added_line
from adapterhub.cli.output import failure_facts, report_failure
from adapterhub.core.errors import EXIT_SOME_FAILED, AdapterHubError, UsageProblem, reworded, shown
from adapterhub.formats.manifest import CONFIG_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from adapterhub.cli.options.params import Session
    from adapterhub.core.digests import Progress
    from adapterhub.library.library import Added

_WEIGHTS: Final = ".safetensors"


def add_several(session: Session, folders: Sequence[Path], add_one: Callable[[Path, Progress], Added]) -> None:
    """Add each folder and print its result at once; what holds no adapter is passed over, and refusals are counted.

    One bar shows the progress over all.

    Raises:
        UsageProblem: no folder holds an adapter.
        SystemExit: some were refused; the others were added.
    """
    out = session.out
    added: list[Added] = []
    skipped: list[dict[str, str]] = []
    failed: list[dict[str, Any]] = []
    sizes = [size_given(folder) or 0 for folder in folders]
    with out.progress(f"add {len(folders)}", sum(sizes) or None) as progress:
        for folder, size in zip(folders, sizes, strict=True):
            place = shown(str(folder), 200)
            reason = _no_adapter(folder)
            meter = Meter(progress, size)
            if reason:
                skipped.append({"path": str(folder), "reason": reason})
                out.note(f"passed over `{place}`: {reason}")
                continue
            try:
                one = add_one(folder, meter)
            except AdapterHubError as error:
                failed.append({"path": str(folder), "error": failure_facts(error)})
                if not out.as_json:
                    report_failure(reworded(error, f"`{place}`: {error.message}"), as_json=False)
                continue
            finally:
                meter.end()
            added.append(one)
            report_warnings(session, one)
            report_likeness(session, one)
            if not out.as_json:
                out.line(added_line(one, "added"))
    if not added and not failed:
        raise UsageProblem(
            f"none of the {len(folders)} holds an adapter", hint="give folders that PEFT's `save_pretrained` wrote"
        )
    new = sum(one.created for one in added)
    counts = ((new, "added"), (len(added) - new, "already installed"), (len(skipped), "passed over"))
    total = ", ".join(f"{count} {what}" for count, what in (*counts, (len(failed), "refused")) if count)
    document = {"added": [one.to_json() for one in added], "skipped": skipped, "failed": failed}
    out.result(document, lambda: out.line(f"{len(folders)} given: {total}"))
    if failed:
        raise SystemExit(EXIT_SOME_FAILED)


class Meter:
    """Counts one part of a whole, which is over at `end`, whatever of it was done: a refused file is not read whole."""

    def __init__(self, progress: Progress, expected: int) -> None:
        self._progress, self._left = progress, expected

    def __call__(self, done: int) -> None:
        """Count bytes, at most as many as are left of the part."""
        self._progress(min(done, self._left))
        self._left -= min(done, self._left)

    def end(self) -> None:
        """Count the rest."""
        self(self._left)


def size_given(path: Path) -> int | None:
    """Bytes that adding `path` reads, as far as its names tell; a foreign file is read once more to convert it."""
    if path.is_file():
        return 2 * path.stat().st_size
    return sum(p.stat().st_size for p in path.glob("adapter_*") if p.is_file()) or None if path.is_dir() else None


def _no_adapter(path: Path) -> str:
    """Why a path that a pattern may have matched holds no adapter; "" where it holds one, or parts of one."""
    if not path.exists() or any(path.glob("adapter_*")):
        return ""
    if not path.is_dir():
        return "" if path.name.endswith(_WEIGHTS) else "is a file, not an adapter's folder"
    if any(path.glob(f"*{_WEIGHTS}")) and not (path / "config.json").exists():  # which makes it a model's
        return ""
    inside = sorted((one.parent.name for one in path.glob(f"*/{CONFIG_FILE}")), key=lambda name: (len(name), name))
    if not inside:
        return f"holds no `{CONFIG_FILE}`"
    more = f" and {len(inside) - 1} more" if len(inside) > 1 else ""
    return f"holds no `{CONFIG_FILE}`, but `{shown(inside[-1])}`{more} in it does"
