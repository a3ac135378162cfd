"""The results of checks: findings, and the report that holds them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from adapterhub.core.disk.files import inside
from adapterhub.core.display import html_table
from adapterhub.core.errors import EXIT_SOME_FAILED, CouldNotTell, DigestMismatch, MalformedTensorFile, shown
from adapterhub.formats.documented import Documented
from adapterhub.formats.foreign.reading import PEFT, scheme_among
from adapterhub.formats.safetensors.file import TensorFile, read_header
from adapterhub.trust.findings import BySeverity, Finding

_ORDER: Final = ("error", "unknown", "warning", "note")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFacts(Documented):
    """The facts in an adapter's files. `rank` and `alpha` are the largest over all modules.

    `target_modules` are the leaf names of the modules that carry an update, sorted; `ranks` and `scales` pair a value
    with the number of modules that have it, most frequent first; `dtype` is torch's name of the most frequent dtype.
    """

    peft_type: str
    methods: tuple[str, ...]
    rank: int | None
    alpha: float | None
    target_modules: tuple[str, ...]
    modules: int
    ranks: tuple[tuple[int, int], ...]
    scales: tuple[tuple[float, int], ...]
    dtype: str
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Report(BySeverity, Documented, keys="status findings facts"):
    """All findings, errors first, each once; `facts` is None when the adapter could not be read."""

    findings: tuple[Finding, ...]
    facts: Annotated[FoundFacts | None, "null if the files cannot be read"] = None

    @classmethod
    def of(cls, findings: Iterable[Finding], facts: FoundFacts | None = None) -> Report:
        """Return a report in its order, without repetitions."""
        once = {(f.code, f.severity, f.where, f.message): f for f in findings}
        return cls(findings=tuple(sorted(once.values(), key=lambda f: _ORDER.index(f.severity))), facts=facts)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Report:
        """Return the report that a JSON value of one holds."""
        names = ("code", "where", "message", "expected", "hint")
        findings = [{name: str(one[name]) for name in names} for one in value["findings"]]
        facts: dict[str, Any] | None = value["facts"]
        found = None
        if facts is not None:
            pairs = {name: tuple((pair[0], pair[1]) for pair in facts[name]) for name in ("ranks", "scales")}
            texts = {name: tuple(facts[name]) for name in ("methods", "target_modules")}
            found = FoundFacts(**{**facts, **pairs, **texts})
        return cls(findings=tuple(Finding(**one) for one in findings), facts=found)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __repr__(self) -> str:
        counts = {severity: len(self.of_severity(severity)) for severity in _ORDER}
        told = ", ".join(f"{n} {severity}{'s' * (n != 1)}" for severity, n in counts.items() if n)
        return f"<Report {self.status}{f': {told}' if told else ''}>"

    def _repr_html_(self) -> str:
        rows = [(f.severity, f.code, f.where, f.message, f.expected, f.hint) for f in self.findings]
        columns = ("severity", "code", "where", "finding", "expected", "hint")
        return html_table(columns, rows, caption=self.status)


def exit_code_of(findings: Iterable[Finding], counted: Collection[str]) -> int:
    """Return the exit code of the worst finding of these severities: 12 for wrong bytes or logs, 3, 17 for unknowns."""
    found = [finding for finding in findings if finding.severity in counted]
    if any(finding.code in ("E_DIGEST", "E_LOG") and finding.severity == "error" for finding in found):
        return DigestMismatch.exit_code
    if any(finding.severity != "unknown" for finding in found):
        return EXIT_SOME_FAILED
    return CouldNotTell.exit_code if found else 0


def some(names: Iterable[str], most: int = 3) -> str:
    """Return the first few names, escaped, and how many more there are."""
    every = list(names)
    listed = ", ".join(f"`{shown(name)}`" for name in every[:most])
    return listed if len(every) <= most else f"{listed} and {len(every) - most} more"


_LOOKED_AT_FILES: Final = 8
RENAME: Final = "rename it to `adapter_model.safetensors`"
NO_PEFT: Final = "only adapters that PEFT's `save_pretrained` wrote are accepted; convert or train it with PEFT"
CONVERTED: Final = "`adapt add` converts it to a PEFT folder"


def weights_of_others(folder: Path, names: list[str]) -> Finding | None:
    """Return an error that names the foreign weights of a folder; None when nothing is recognised."""
    if "adapters.npz" in names:
        kind = "a LoRA of Apple's MLX in a numpy archive"
        return Finding("E_UNSUPPORTED", "adapters.npz", f"is {kind}, not PEFT's weights", hint=NO_PEFT)
    if "pytorch_adapter.bin" in names:
        kind = "a pickle of AdapterHub's `adapters` library"
        return Finding("E_PICKLE", "pytorch_adapter.bin", f"is {kind}, which is never opened", hint=NO_PEFT)
    candidates = sorted(n for n in names if n.endswith(".safetensors"))[:_LOOKED_AT_FILES]
    for name in candidates:
        file = _header(folder, name)
        if file is None:
            continue
        scheme = scheme_among(spec.name for spec in file.tensors)
        kind = scheme.title if scheme else "no adapter in PEFT's names"
        hint = (
            NO_PEFT if scheme is None else RENAME if scheme.key == PEFT else CONVERTED if scheme.reader else scheme.why
        )
        return Finding("E_UNSUPPORTED", shown(name), f"holds {kind}, not PEFT's weights", hint=hint or NO_PEFT)
    return None


def _header(folder: Path, name: str) -> TensorFile | None:
    """Return the header of a plain file, None for anything else. Only the header of a stranger's file is read here."""
    try:
        return read_header(inside(folder, name))
    except (OSError, MalformedTensorFile):
        return None
