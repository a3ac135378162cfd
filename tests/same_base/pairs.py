"""Copies by other people's quantisers, in a folder, and the verdicts on each against its source and against others.

The folder has `sources/SOURCE/`, `out/WRITER/SOURCE/…` with the copies (folders with safetensors, or GGUF files), and
`sources-changed/SOURCE/WAY/` with their copies in `out/changed/SOURCE/WAY/…`. A copy counts if a log of its writer says
that it was written to its end: a line with all parts of its name that begins with DONE or ends in ok.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from adapterhub.core.errors import AdapterHubError
from adapterhub.formats.base.comparison import compare
from adapterhub.formats.base.fingerprint import BaseComparison, BaseFingerprint, BaseVerdict
from adapterhub.formats.base.folders import fingerprint_folder
from adapterhub.formats.base.quantised.deep import compare_models
from adapterhub.formats.base.quantised.opening import opened
from tests.same_base.changes import SMALL, WAYS, changed_folder

MOVED: Final = re.compile(
    r"GPTQ|AWQ|auto|IQ[123]|SQ-|SMOOTHQUANT|[TQ][12]_0$|tq[12]_0$|hqq|[WS]Q-|imatrix/(Q[45]_[01]|Q[45]_K|Q[23]|IQ4)"
)
FLOATS: Final = re.compile(r"^(gguf|changed)/(.*[/-])?(f32|f16|bf16|F32|F16|BF16|COPY)$")
ROTATED: Final = re.compile("QuIP|SpinQuant")

RIGHT: Final = {
    "rounded": {BaseVerdict.SAME_WEIGHTS_QUANTISED},
    "floats": {BaseVerdict.SAME_WEIGHTS, BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION},
    "moved": {BaseVerdict.LIKELY_SAME_QUANTISED, BaseVerdict.SAME_WEIGHTS_QUANTISED},
    "rotated": {BaseVerdict.CANNOT_TELL},
}
LIKELY: Final = BaseVerdict.LIKELY_SAME_QUANTISED


@dataclass(frozen=True)
class Copy:
    """One quantised copy: `name` is its path below its source's folder, without the end of a file."""

    writer: str
    source: Path
    name: str
    place: Path

    @property
    def kind(self) -> str:
        """What its writer did to the numbers, so which verdict is right."""
        name = f"{self.writer}/{self.name}"
        found = (("floats", FLOATS), ("rotated", ROTATED), ("moved", MOVED))
        return next((kind for kind, pattern in found if pattern.search(name)), "rounded")

    @property
    def is_whole(self) -> bool:
        """Whether a log of its writer says that it was written to its end."""
        out = next(parent for parent in self.place.parents if parent.name == "out")
        parts = [self.source.name, *self.name.removeprefix("convert-").split("/")]
        if self.writer == "changed":
            parts = [self.source.parent.name, self.source.name, self.name if self.place.is_file() else "llmcompressor"]
        if self.writer == "auto-round":
            parts.pop()
        return any(told >= set(parts) for told in _told(out))


@lru_cache(maxsize=4)
def _told(out: Path) -> tuple[frozenset[str], ...]:
    """The words of each line of the logs that says of a copy that it was written to its end."""
    said = []
    for path in sorted(path for path in out.rglob("*") if path.suffix in (".log", ".txt") and path.is_file()):
        text = path.read_text(errors="replace")
        said += [line for line in map(str.strip, text.splitlines()) if line.startswith("DONE") or line.endswith(" ok")]
        said += [
            line.replace("/", " ").replace(".gguf", "") for line in re.findall("successfully exported to (.*)", text)
        ]
        if "bits per weight" in text:  # mlx: a log for each copy
            said.append(f"{path.parent.name} {path.stem}")
        if "total time" in text:  # llama-quantize: as well
            said.append(f"{path.parent.parent.name} {' '.join(path.stem.rsplit('-', 1))}")
    return tuple(frozenset(re.sub(r":(\d+)\b", r"-iters\1", line).replace(":", "-").split()) for line in said)


def copies_in(root: Path) -> Iterator[Copy]:
    """Every whole copy, by writer and source."""
    for folder in sorted(path for path in (root / "out").glob("*/*") if path.is_dir()):
        writer, name = folder.parent.name, folder.name
        if writer == "changed":
            for way in sorted(folder.iterdir()):
                yield from _below(writer, root / "sources-changed" / name / way.name, way)
        elif (root / "sources" / name).is_dir():
            yield from _below(writer, root / "sources" / name, folder)


def _below(writer: str, source: Path, folder: Path) -> Iterator[Copy]:
    files = [path for path in folder.rglob("*.gguf") if "mmproj" not in path.name and path.name != "imatrix.gguf"]
    folders = {path.parent for path in folder.rglob("*.safetensors")}
    for place in sorted((*files, *folders)):
        name = str(place.relative_to(folder)).removesuffix(".gguf")
        yield Copy(writer, source, name, place)


@dataclass(frozen=True)
class Row:
    """The verdicts on one copy against one model: by fingerprint, by files, and by every number.

    `against`: "" for its source, otherwise how the model was changed. `full` is None where it was left out.
    """

    copy: Copy
    against: str
    fingerprint: BaseComparison
    files: BaseComparison
    full: BaseComparison | None
    seconds: tuple[float, float, float]

    @property
    def verdicts(self) -> tuple[BaseComparison | None, ...]:
        return self.fingerprint, self.files, self.full

    def judged(self, found: BaseComparison | None) -> str:
        """`right`; of the source also `weaker` and `WRONG`; of another model `likely`, `unseen` and `WRONG`."""
        if found is None:
            return "-"
        if not self.against:
            if found.verdict in RIGHT[self.copy.kind]:
                return "right"
            return "weaker" if found.verdict in (LIKELY, BaseVerdict.CANNOT_TELL) else "WRONG"
        if found.verdict.is_same_model or found.verdict is LIKELY:
            if self.against in SMALL:
                return "likely" if found.verdict is LIKELY else "unseen"
            return "WRONG"
        return "right"

    @property
    def is_wrong(self) -> bool:
        return any(self.judged(found) == "WRONG" for found in self.verdicts)

    def __str__(self) -> str:
        source = self.copy.source
        model = f"{source.parent.name}:{source.name}" if self.copy.writer == "changed" else source.name
        cells = [f"{self.copy.writer}/{model}/{self.copy.name}"[:64].ljust(64), self.against[:14].ljust(14)]
        for found, spent in zip(self.verdicts, self.seconds, strict=True):
            label = "-" if found is None else found.label.replace("SAME_WEIGHTS", "SAME").replace("_QUANTISED", "_Q")
            cells.append(f"{label[:36]:36} {self.judged(found):6} {spent:6.2f}")
        return " ".join(cells)


def rows_of(root: Path, temporary: Path, *, others: int, most_full: int, only: str = "") -> Iterator[Row]:
    """Each copy against its source and `others` models; all numbers where a copy has at most `most_full` bytes."""
    print_of = lru_cache(maxsize=len(WAYS) + 2)(_fingerprint)
    last, made = None, dict[str, Path]()
    chosen = [copy for copy in copies_in(root) if re.search(only, f"{copy.writer}/{copy.source.name}/{copy.name}")]
    for number, copy in enumerate(sorted(chosen, key=lambda one: (str(one.source), one.writer, one.name))):
        if not copy.is_whole:
            continue
        if last != copy.source:
            for place in made.values():
                shutil.rmtree(place)
            last, made = copy.source, {}
        ours = _fingerprint(copy.place)
        ways = [list(WAYS)[(number + k) % len(WAYS)] for k in range(others)]
        for way in ("", *ways):
            if way and way not in made:
                made[way] = changed_folder(
                    copy.source, temporary / f"{copy.source.parent.name}-{copy.source.name}" / way, way
                )
            model = made[way] if way else copy.source
            yield _row(copy, way, model, print_of(model), ours, most_full)
    for place in made.values():
        shutil.rmtree(place)


def _fingerprint(place: Path) -> BaseFingerprint | AdapterHubError:
    try:
        return fingerprint_folder(place, cache_folder=None)[0]
    except AdapterHubError as error:
        return error


def _row(
    copy: Copy,
    way: str,
    model: Path,
    theirs: BaseFingerprint | AdapterHubError,
    ours: BaseFingerprint | AdapterHubError,
    most_full: int,
) -> Row:
    def by_fingerprint() -> BaseComparison:
        for one in (theirs, ours):
            if isinstance(one, AdapterHubError):
                raise one
        assert isinstance(theirs, BaseFingerprint)
        assert isinstance(ours, BaseFingerprint)
        return compare(theirs, ours)

    size = sum(
        path.stat().st_size for path in ([copy.place] if copy.place.is_file() else copy.place.glob("*.safetensors"))
    )
    steps: list[Callable[[], BaseComparison]] = [
        by_fingerprint,
        lambda: compare_models(opened(model), opened(copy.place)),
    ]
    if size <= most_full:
        steps.append(lambda: compare_models(opened(model), opened(copy.place), full=True))
    found: list[BaseComparison | None] = []
    seconds: list[float] = []
    for step in steps:
        begun = time.perf_counter()
        found.append(_verdict(step))
        seconds.append(time.perf_counter() - begun)
    found, seconds = [*found, None][:3], [*seconds, 0.0][:3]
    assert found[0] is not None
    assert found[1] is not None
    return Row(copy, way, found[0], found[1], found[2], (seconds[0], seconds[1], seconds[2]))


def _verdict(step: Callable[[], BaseComparison]) -> BaseComparison:
    try:
        return step()
    except AdapterHubError as error:
        return BaseComparison(verdict=BaseVerdict.UNKNOWN, differences=(f"{type(error).__name__}: {error}",))
